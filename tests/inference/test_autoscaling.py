"""The pool of engines on an autoscaling cluster: it grows, loses a node, and shrinks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ssd_ray.artifacts import shards
from ssd_ray.schema import Completion, Prompt
from tests.support.fleet import Fleet

pytestmark = [pytest.mark.real, pytest.mark.slow]
PROMPTS, ENGINES, SECONDS = 320, 4, 0.25


def test_a_fleet_grows_survives_a_lost_node_and_shrinks(tmp_path: Path) -> None:
    rows = [
        Prompt(prompt_id=f"p{n}", source="s", difficulty="d", text="t", token_ids=(n, 3))
        for n in range(PROMPTS)
    ]
    shards.write_shard(tmp_path / "prompts", "prompts-00000000", rows, Prompt)
    (tmp_path / "prompts" / "manifest.json").touch()
    out, seen = tmp_path / "out", tmp_path / "nodes.json"
    with Fleet(tmp_path, most=ENGINES) as fleet:
        command = [
            sys.executable,
            str(Path(__file__).parents[1] / "support" / "fleet_driver.py"),
            str(tmp_path / "prompts"),
            str(out),
        ]
        driver = subprocess.Popen([*command, str(ENGINES), str(SECONDS)], env=fleet.environment)
        deadline = time.monotonic() + 240
        while not (seen.exists() and seen.read_text().endswith(f"{ENGINES}]")):
            assert driver.poll() is None, "the driver ended before the fleet had grown"
            assert time.monotonic() < deadline, (
                seen.read_text() if seen.exists() else "no node was seen"
            )
            time.sleep(0.2)
        assert shards.shard_paths(out), "the first engines draw while others come"
        family = fleet.take_away_a_node()
        assert family, "an engine was on that node"
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, "a process outlived its node"
        assert driver.wait(300) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    keys = [row.prompt_id for row in shards.read_rows(out, Completion)]
    assert sorted(keys) == sorted(f"p{n}" for n in range(PROMPTS))
    noted = json.loads(seen.read_text())
    assert noted[0] == 0
    assert facts["most_nodes"] == ENGINES
    assert ENGINES - 1 in noted[noted.index(ENGINES) :], "one node was seen to be gone"
    assert facts["gpus_free_after"], "the pool held a GPU after the last answer"
    assert facts["nodes_at_end"] == 0
