"""An installed command ignores modules in its working folder and works in odd surroundings."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import ssd_ray
from ssd_ray.cluster import import_path
from tests.support.surroundings import COMMAND, folder_of_traps, run

PACKAGE = Path(ssd_ray.__file__).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of_traps(tmp_path)


@pytest.mark.slow
def test_grading_imports_nothing_from_the_folder(folder: Path, tmp_path: Path) -> None:
    """Its processes start with `python -c`: the folder is first on their path."""
    problem = {
        "problem_id": "p",
        "kind": "stdin",
        "statement": "s",
        "tests": [{"input": "2\n", "output": "3\n"}],
    }
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    program = "import random, queue, numpy, json\nprint(int(input()) + 1)"
    (tmp_path / "answers.jsonl").write_text(json.dumps({"problem_id": "p", "code": program}) + "\n")
    command = [
        COMMAND,
        "grade",
        "--problems",
        "../problems.jsonl",
        "--completions",
        "../answers.jsonl",
    ]
    process = run([*command, "--out", "../graded", "--workers", "1", "--quiet"], folder)
    assert process.returncode == 0, process.stderr
    assert "was imported" not in process.stdout + process.stderr
    scores = json.loads((tmp_path / "graded" / "scores.json").read_text())
    assert "1 accepted" in process.stdout, scores


@pytest.mark.parametrize("module", ["ssd_ray"])
def test_a_module_run_by_name_imports_nothing_from_the_folder(folder: Path, module: str) -> None:
    (folder / "ssd_ray.py").unlink()  # `-m` itself would find it before any code of the package
    process = run([sys.executable, "-m", module, "plan", "quickstart"], folder)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "sample.temperature" in process.stdout


def test_processes_that_are_started_leave_the_folder_out(folder: Path) -> None:
    code = (
        "from ssd_ray.cluster import import_path; import_path.keep_children_safe(); import "
        "subprocess, sys\n"
    )
    code += (
        "sys.exit(subprocess.run([sys.executable, '-m', 'json.tool', '--help'], "
        "stdout=subprocess.DEVNULL).returncode)"
    )
    assert run([sys.executable, "-P", "-c", code], folder).returncode == 0


def test_every_interpreter_that_the_package_starts_is_safe() -> None:
    for path in PACKAGE.rglob("*.py"):
        for line in re.findall(r"\[sys\.executable, .*", path.read_text()):
            assert '"-P"' in line or "*_FLAGS" in line, f"{path.name}: {line}"


def test_workers_get_no_directory_of_the_driver() -> None:
    from ray.core.generated.common_pb2 import JobConfig

    config = import_path.job_config()
    config._py_driver_sys_path.extend(
        ["/home/me/notes", "/home/me/scripts"]
    )  # as Ray does while it connects
    sent = JobConfig()
    sent.ParseFromString(config._serialize())
    assert list(sent.py_driver_sys_path) == []


def test_workers_of_a_checkout_that_is_not_installed_get_it(tmp_path: Path) -> None:
    (tmp_path / "ssd_ray").symlink_to(PACKAGE)
    code = "import sys\nfrom ssd_ray.cluster import import_path\nprint(import_path._package_path())"
    script = tmp_path / "script.py"
    installed = run([sys.executable, "-c", code], tmp_path)
    assert installed.stdout == "[]\n", installed.stderr
    without_installation = (
        f"import sys\nsys.path = [path for path in sys.path if path != {str(PACKAGE.parent)!r}]\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in "
        "repr(finder).lower()]\n"
    )
    script.write_text(without_installation + code)
    # -E: the script's own directory is on the path, whatever the environment holds.
    alone = run([sys.executable, "-E", str(script)], tmp_path)
    assert alone.stdout == f"['{PACKAGE.parent}']\n", alone.stderr


RECIPE = """
name: field
model: {{source: {model}, dtype: float32, max_model_len: 1024}}
prompts: {{source: builtin, limit: 4, contamination: allow}}
sample: {{temperature: 1.0, top_k: 20, max_tokens: 16}}
train: {{steps: 1, global_batch_size: 2, warmup_steps: 0, dtype: float32, zero_stage: 0,
  checkpoint_every: 1}}
evaluate:
  benchmarks: [builtin]
  limit: 2
  samples_per_problem: 1
  pass_at: [1]
  max_tokens: 16
  arms: {{base: {{model: base, temperature: 0.7}}, ssd: {{model: ssd, temperature: 0.9}}}}
engine: {{kv_cache_gib: 0.2, enforce_eager: true, cpus: 1, max_num_seqs: 8}}
cluster: {{device: cpu, grader_cpus: 0, train_workers: 1, cpus_per_train_worker: 1}}
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("library", "code", "message"),
    [
        (
            "raise MemoryError\n",
            1,
            (
                r"failed: samples: an engine crashed 1 times in a row without an answer "
                r"\(MemoryError\)"
            ),
        ),
        (
            "",
            2,
            (
                r"error: vLLM does not take .*ImportError: cannot import name 'EngineArgs' from "
                r"'vllm' \(.*path/vllm.py\)"
            ),
        ),
    ],
    ids=["failure", "mistake"],
)
def test_a_dead_engine_prints_one_sentence(
    tmp_path: Path, tiny_llama: Path, library: str, code: int, message: str
) -> None:
    """Ray's own paragraph is in the logs; a library on PYTHONPATH is the user's choice."""
    (tmp_path / "field.yaml").write_text(RECIPE.format(model=tiny_llama))
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "vllm.py").write_text(library)
    command = [
        COMMAND,
        "sample",
        "field.yaml",
        "--out",
        "run",
        "--quiet",
        "--set",
        "cluster.max_failures=0",
    ]
    process = run(command, tmp_path, 400, PYTHONPATH=str(tmp_path / "path"))
    assert process.returncode == code, process.stderr
    assert re.search(message, process.stderr), process.stderr
    shown = process.stdout + process.stderr
    for word in ("raylet", "A worker died", "OOM", "Traceback"):
        assert word not in shown
    assert ("To resume" in shown) is (code == 1)
    if code == 1:  # a mistake ends the run at once, before Ray reports the process
        assert "A worker died" in (tmp_path / "run" / "logs" / "ray.log").read_text()
