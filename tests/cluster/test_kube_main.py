"""`make cluster` and `make cluster-down`, without an overlay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parents[2]


def _double(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.kube", *words], cwd=TOP, capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_cluster_goes_up_once_and_down_without_a_trace(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    up = _double("up", "--folder", str(folder))
    try:
        assert up.stdout == f"export KUBECONFIG={folder}/api/kubeconfig\n", up.stderr
        kubeconfig = yaml.safe_load((folder / "api" / "kubeconfig").read_text())
        assert kubeconfig["clusters"][0]["cluster"]["server"].startswith("https://127.0.0.1:")
        again = _double("up", "--folder", str(folder))
        assert again.returncode == 2
        assert again.stderr == f"a cluster runs in {folder}: end it with `make cluster-down`\n"
    finally:
        pid = int(yaml.safe_load((folder / "state.json").read_text())["pid"])
        assert _double("down", "--folder", str(folder)).returncode == 0
    assert not folder.exists()
    process = Path(f"/proc/{pid}/cmdline")
    assert not process.exists() or process.read_bytes() == b"", "at most a zombie is left"


def test_an_overlay_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    refused = _double("up", "--folder", str(tmp_path / "cluster"), "--overlay", "moon")
    assert refused.returncode == 2
    assert refused.stderr == "--overlay moon: k8s/overlays has no such folder\n"
