"""A probe of a run: its two models, the steps of its training, and a kill at work.

The run is made of tiny models and rows in the places where a run has them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssd_ray.analysis.forward import Context
from ssd_ray.artifacts import manifests, shards
from ssd_ray.artifacts.facts import RowFacts
from ssd_ray.artifacts.identity import Identity
from ssd_ray.errors import UserError
from ssd_ray.schema import Completion, Example, RowT
from ssd_ray.standalone import probe_contexts
from ssd_ray.training.observe.heldout import held_out_order
from tests.support.commands import exit_status
from tests.support.planted import answers, write_answers
from tests.support.sample_rows import completion
from tests.support.tiny import tiny_model, tiny_tokenizer

RECIPE = """
name: probed
description: a run of tiny models
model: {{source: {base}, dtype: float32, max_model_len: 512}}
sample: {{temperature: 1.3, top_k: 10, top_p: 0.9}}
train: {{steps: 6, global_batch_size: 2, warmup_steps: 1, export_every: 2}}
evaluate:
  benchmarks: [builtin]
  arms:
    base: {{model: base, temperature: 0.7}}
    ssd: {{model: ssd, temperature: 0.9, top_k: 8}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with exports at steps 2 and 4, and a checkpoint at step 6."""
    out = tmp_path_factory.mktemp("run")
    base = tiny_model(out / "base-model", "qwen3", seed=0)
    (out / "recipe.yaml").write_text(RECIPE.format(base=base))
    identity = Identity(stage="checkpoint", choices={})
    manifests.claim(out / "checkpoint", identity)
    for number in (2, 4):
        tiny_model(out / "checkpoint" / "steps" / f"step-{number}", "qwen3", seed=number)
    tiny_model(out / "checkpoint", "qwen3", seed=6)
    manifests.seal(out / "checkpoint", identity, RowFacts(rows=0))
    write_answers(out / "answers.jsonl", answers())
    return out


def _probe(out: Path, *arguments: str | Path) -> int:
    return exit_status("probe", *arguments, "--out", out, "--quiet")


def _document(out: Path) -> dict:
    return json.loads((out / "probe.json").read_text())


def test_a_run_is_its_base_and_its_student(run: Path, tmp_path: Path) -> None:
    assert _probe(tmp_path / "out", run, "--contexts", run / "answers.jsonl") == 0
    document = _document(tmp_path / "out")
    assert document["models"] == ["base", "ssd"]
    assert document["settings"]["training"] == {"temperature": 1.3, "top_k": 10, "top_p": 0.9}
    assert document["settings"]["evaluation"] == {"temperature": 0.9, "top_k": 8, "top_p": 1.0}


@pytest.mark.slow
def test_exported_steps_are_a_curve_over_the_training(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps = run / "checkpoint" / "steps"
    assert _probe(out, steps, "--contexts", run / "answers.jsonl") == 0
    document = _document(out)
    assert document["models"] == ["base", "step 2", "step 4", "step 6"]
    assert [student["step"] for student in document["students"]] == [2, 4, 6]
    assert 'alt="Lines of gap closed' in (out / "probe.html").read_text()


@pytest.mark.slow
def test_a_base_of_its_own_is_named_once(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = run / "base-model"
    assert _probe(out, base, run, "--contexts", run / "answers.jsonl") == 0
    assert len(_document(out)["models"]) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("steps", "holds no exported step: set train.export_every in the recipe, or give"),
        ("weights", "damaged"),
        ("cut", "cut short"),
        ("checkpoint", "checkpoint"),
        ("heldout", "holds no samples out of its training"),
        ("verdicts", "holds no complete verdicts of a run; give RUN or RUN/verdicts/ARM"),
    ],
)
def test_an_incomplete_run_is_one_sentence(
    change: str, reason: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    models, contexts = copy, str(copy / "answers.jsonl")
    weights = copy / "checkpoint" / "steps" / "step-4" / "model.safetensors"
    if change == "steps":
        shutil.rmtree(copy / "checkpoint" / "steps")
        models = copy / "checkpoint" / "steps"
    elif change == "weights":
        models = copy / "checkpoint" / "steps"
        weights.write_bytes(weights.read_bytes() + b"more")
    elif change == "cut":
        models = copy / "checkpoint" / "steps"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif change == "checkpoint":
        (copy / "checkpoint" / "manifest.json").unlink()
    elif change == "heldout":
        contexts = str(copy)
        text = (copy / "recipe.yaml").read_text()
        (copy / "recipe.yaml").write_text(
            text.replace("{steps: 6", "{heldout_samples: 0, steps: 6")
        )
    else:
        contexts = f"{copy}:accepted"
    assert _probe(tmp_path / "out", models, "--contexts", contexts) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def _long_answers(number: int, length: int) -> list[Context]:
    contexts = answers(number)
    return [
        Context(
            problem_id=each.problem_id,
            prompt_token_ids=each.prompt_token_ids,
            output_token_ids=(each.output_token_ids * length)[:length],
        )
        for each in contexts
    ]


@pytest.mark.slow
def test_a_killed_probe_keeps_its_complete_shards(run: Path, tmp_path: Path) -> None:
    contexts = write_answers(tmp_path / "answers.jsonl", _long_answers(42, 420))
    out = tmp_path / "killed"
    shards = out / "shards"
    command = [
        *(sys.executable, "-m", "ssd_ray", "probe", str(run), "--quiet"),
        *("--contexts", str(contexts), "--out", str(out)),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list(shards.glob("*/positions-00000-*.parquet")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "manifest.json").exists(), "it was over before the kill"
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("*/*-00000-*.parquet")}
    assert len(kept) == 3
    resumed = subprocess.Popen(command, stderr=subprocess.PIPE)
    # Shards are deleted once they are joined, so they are looked at while the probe is at work.
    while not list(shards.glob("*/positions-00001-*.parquet")) and resumed.poll() is None:
        time.sleep(0.01)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert resumed.wait(240) == 0, resumed.communicate()[1]
    resumed.communicate()
    assert _probe(tmp_path / "expected", run, "--contexts", contexts) == 0
    assert _document(out) == _document(tmp_path / "expected")
    assert not shards.exists()


@pytest.mark.parametrize("name", ["", "-naive", "-accepted", "/T=1"])
def test_held_out_samples_of_every_data_set_are_contexts(
    name: str, run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text.replace("{steps: 6", "{heldout_samples: 4, steps: 6"))
    every = answers()
    samples = copy / ("samples" if name == "-accepted" else f"samples{name}")
    _seal(samples, [completion(f"p{number}") for number in range(len(every))], Completion)
    examples = [
        Example(
            prompt_id=f"p{number}",
            sample_index=0,
            input_ids=answer.prompt_token_ids + answer.output_token_ids,
            num_prompt_tokens=len(answer.prompt_token_ids),
        )
        for number, answer in enumerate(every)
    ]
    dataset = copy / f"dataset{name}"
    _seal(dataset, examples, Example)
    placed = probe_contexts.read([str(dataset if name else copy)], tiny_tokenizer())
    held_out = held_out_order([each.prompt_id for each in examples], 0)[:4]
    assert {each.context.problem_id for each in placed} == set(held_out)
    assert all(
        each.context.prompt_token_ids + each.context.output_token_ids
        == examples[int(each.context.problem_id[1:])].input_ids
        for each in placed
    )
    (dataset / "manifest.json").unlink()
    with pytest.raises(UserError, match="no complete data set"):
        probe_contexts.read([str(dataset if name else copy)], tiny_tokenizer())


def _seal(out: Path, rows: list[RowT], row_type: type[RowT]) -> None:
    identity = Identity(stage=out.name, choices={})
    manifests.claim(out, identity)
    shards.write_shard(out, "rows", rows, row_type)
    manifests.seal(out, identity, RowFacts(rows=len(rows)))
