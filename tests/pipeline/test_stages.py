"""Promises of a run between its stages, whatever changes outside."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from ssd_ray import cluster, recipes
from ssd_ray.artifacts import files, identity, lineage, manifests, shards
from ssd_ray.artifacts.facts import AnswerFacts, Facts
from ssd_ray.artifacts.problem_facts import EvalPromptFacts, PromptFacts
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.renewal import Renewal
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.seconds import Rank, Seconds
from ssd_ray.pipeline.step import Step, when_complete
from ssd_ray.pipeline.timing import timed
from ssd_ray.progress import LineProgress, RecordedProgress
from ssd_ray.schema import Completion, Prompt
from ssd_ray.submissions.turn import turn
from tests.support.staged import Double


def test_a_run_stays_with_the_commit_that_it_got_first(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    head = ["first"]

    def download(source: str, revision: str | None, **_: Any) -> str:
        asked.append(revision)
        return str(
            shutil.copytree(
                tiny_llama, tmp_path / "snapshots" / (revision or head[0]), dirs_exist_ok=True
            )
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    recipe = recipes.load("qwen3-4b-instruct")
    assert RunContext(recipe, tmp_path / "run", LineProgress()).model.name == "first"
    head[0] = "second"
    assert RunContext(recipe, tmp_path / "run", LineProgress()).model.name == "first"
    assert RunContext(recipe, tmp_path / "other", LineProgress()).model.name == "second"
    pinned = recipes.load("qwen3-4b-instruct", ["model.revision=chosen"])
    assert RunContext(pinned, tmp_path / "run", LineProgress()).model.name == "chosen"
    assert asked == [None, "first", None, "chosen"]


def test_prompts_record_and_keep_the_commit_of_their_data_set(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub:
        def dataset_info(self, repo_id: str, *, revision: str | None = None) -> SimpleNamespace:
            return SimpleNamespace(sha="first")

    def load_dataset(*_: str, revision: str, **__: Any) -> list[dict[str, Any]]:
        return [{"question": f"Print {revision}.", "is_passed": True}]

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    chosen = [
        f"model.source={tiny_llama}",
        "model.max_model_len=4096",
        "evaluate.limit=2",
        "evaluate.benchmarks=[builtin]",
    ]
    run = Run(
        recipes.load("quickstart", [*chosen, "prompts.source=rstar-coder"]),
        tmp_path,
        LineProgress(),
    )
    run.make("render")
    facts = manifests.load_facts(run.out / "prompts", PromptFacts)
    assert facts.source_revision == "first"
    assert (tmp_path / "prompts-revision").read_text() == "rstar-coder first\n"
    assert [row.statement for row in shards.read_rows(tmp_path / "prompts", Prompt)] == [
        "Print first."
    ]


def test_a_second_driver_with_another_recipe_touches_nothing(
    tmp_path: Path,
) -> None:
    first, second = (
        Run(recipes.load("quickstart", [f"sample.temperature={value}"]), tmp_path, LineProgress())
        for value in (1.0, 1.5)
    )
    with turn(tmp_path, first.work("sample"), RecordedProgress(LineProgress())):
        step = next(step for step, _ in first.states() if step.name == "samples")
        manifests.claim(tmp_path / "samples", step.identity)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(
            UserError, match=r"is in use by .* \(sample.temperature: 1.0 there, 1.5 here\)"
        ):
            second.make("sample")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_second_signal_while_ray_starts_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, times: int
) -> None:
    import ray

    begun: list[str] = []

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def init(**_: Any) -> None:
        """As Ray's: its first act is a handler of SIGTERM to end the process."""
        ray._private.utils.set_sigterm_handler(lambda number, _: sys.exit(number))
        for _ in range(times):
            signal.raise_signal(number)
        begun.append("up")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: begun.append("down"))
    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt), cluster.connected():
            begun.append("at work")
        assert begun == (["up", "down"] if times == 1 else ["down"])
        assert all(signal.getsignal(each) is interrupt for each in before)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


STARTS_RAY = """
import signal, sys, ray
from ssd_ray import cluster
from ssd_ray.config import ClusterConfig
if sys.argv[1] == "ignored":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
def init(**_):
    for name in sys.argv[2:]:
        signal.raise_signal(getattr(signal, name))
    print("up", flush=True)
ray.init, ray.shutdown = init, lambda: print("down", flush=True)
with cluster.connected():
    print("at work", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "signals", "shown", "status"),
    [
        ("default", ["SIGTERM", "SIGTERM"], "", -signal.SIGTERM),
        ("default", ["SIGINT", "SIGTERM"], "", -signal.SIGTERM),
        ("default", ["SIGTERM"], "up\n", -signal.SIGTERM),
        ("default", ["SIGTERM", "SIGINT"], "down\n", 1),  # KeyboardInterrupt, Python's own answer
        ("ignored", ["SIGTERM", "SIGTERM", "SIGINT"], "up\nat work\ndown\n", 0),
    ],
)
def test_a_second_signal_ends_a_python_call_at_once(
    answer: str, signals: list[str], shown: str, status: int
) -> None:
    """Without the command line no handler is set, and the default cannot be called."""
    command = [sys.executable, "-c", STARTS_RAY, answer, *signals]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.returncode) == (shown, status), ended.stderr


def test_the_versions_of_every_attempt_stay_with_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load("quickstart")

    def attempt(act: Callable[[Path], Any]) -> None:
        step = Double(name="samples", recipe=recipe, verb="sample", chosen={}, act=act)
        context = RunContext(recipe, tmp_path, LineProgress())
        timed(step, tmp_path / "samples", context, Seconds(), Rank.LEADING)

    def killed(_: Path) -> Any:
        raise InfrastructureError("killed")

    for version in ("1", "1", "2"):
        monkeypatch.setattr(
            "ssd_ray.artifacts.versions.installed", lambda version=version: {"vllm": version}
        )
        with pytest.raises(InfrastructureError):
            attempt(killed)
    monkeypatch.setattr("ssd_ray.artifacts.versions.installed", lambda: {"vllm": "3"})

    def drawn(out: Path) -> AnswerFacts:
        versions = files.read_json(out / "timing.json")["versions"]
        return AnswerFacts(rows=1, output_tokens=len(versions))

    attempt(drawn)
    timing = files.read_json(tmp_path / "samples" / "timing.json")
    assert timing["versions"] == [{"vllm": "1"}, {"vllm": "2"}, {"vllm": "3"}]
    assert (timing["attempts"], timing["tokens"]) == (4, 3), (
        "versions are recorded from the beginning of an attempt"
    )


def test_a_prompt_file_with_ids_hints_once_how_to_use_them(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text(
        "".join(
            json.dumps({"id": "same", "question": f"Print {number}."}) + "\n" for number in range(3)
        )
    )
    chosen = [
        f"model.source={tiny_llama}",
        "model.max_model_len=4096",
        "evaluate.limit=2",
        "evaluate.benchmarks=[builtin]",
    ]
    chosen += [f"prompts.source={source}"]
    hint = (
        f"{source} has a column 'id' and prompts are numbered: set prompts.id_column=id to use it"
    )
    for count in (1, 0):
        Run(recipes.load("quickstart", chosen), tmp_path / "run", LineProgress()).make("render")
        assert capsys.readouterr().err.count(hint) == count
    with pytest.raises(
        UserError, match=r"mine.jsonl, row 2: field 'id': the id 'same' occurs twice"
    ):
        Run(
            recipes.load("quickstart", [*chosen, "prompts.id_column=id"]),
            tmp_path / "other",
            LineProgress(),
        ).make("render")


def test_every_stage_has_its_own_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controls = ["evaluate.controls=[naive, accepted]", "evaluate.profiles=[strict, lcb-compat]"]

    def fingerprints() -> dict[str, str]:
        run = Run(recipes.load("quickstart", controls), tmp_path, LineProgress())
        return {step.name: step.identity.fingerprint for step, _ in run.states()}

    before = fingerprints()
    assert {name.partition("/")[0] for name in before} >= {
        "samples-naive",
        "dataset-accepted",
        "sample-verdicts",
        "verdicts-lcb",
    }
    monkeypatch.setattr(identity, "REVISIONS", {**identity.REVISIONS, "verdicts": 7})
    changed = {name for name, fingerprint in fingerprints().items() if fingerprint != before[name]}
    assert changed == {name for name in before if "verdicts" in name}


def test_sampling_starts_once_a_few_prompts_are_checked(
    tmp_path: Path,
) -> None:
    run = Run(recipes.load("quickstart"), tmp_path, LineProgress())
    steps = {step.name: step for step, _ in run.states()}
    samples = steps["samples"]
    assert samples.follows is steps["prompts"]
    assert [step.name for step in samples.after] == ["contamination", "eval-prompts"]
    assert run._needs_ray(steps["prompts"], list(steps.values()))
    assert not run._needs_ray(steps["prompts"], [steps["prompts"]])
    ended = when_complete(run._context, *samples.after)
    assert not ended()
    for name in ("benchmark", "prompts", "contamination", "eval-prompts"):
        assert not ended()
        manifests.make(tmp_path / name, steps[name].identity, lambda out: Facts())
    assert ended()
    run._context.stopped.set()
    with pytest.raises(InfrastructureError, match="the run was stopped"):
        ended()


def _samples(run: Path, identity: manifests.Identity, text: str) -> Path:
    """Complete samples of one answer."""

    def write(out: Path) -> Facts:
        answer = {
            "prompt_token_ids": (1,),
            "output_token_ids": (2,),
            "text": text,
            "finish_reason": "stop",
        }
        key = {"prompt_id": "p", "sample_index": 0, "seed": 1, "source": "s", "difficulty": "d"}
        shards.write_shard(
            out, "prompts-00000000.00000000-00000001", [Completion(**key, **answer)], Completion
        )
        return Facts()

    return manifests.make(run / "samples", identity, write).path


def _settled(run: Run, step: Step) -> manifests.State:
    return Renewal(run._steps, run.out, LineProgress()).settle(step)


def test_a_data_set_is_remade_only_for_other_samples(tmp_path: Path, tiny_llama: Path) -> None:
    run = Run(
        recipes.load("quickstart", [f"model.source={tiny_llama}", "model.max_model_len=4096"]),
        tmp_path,
        LineProgress(),
    )
    steps = {step.name: step for step, _ in run.states()}
    samples, dataset = steps["samples"], steps["dataset"]
    there = _samples(tmp_path, samples.identity, "one")
    for state in ("partial", "complete"):
        assert manifests.claim(tmp_path / "dataset", dataset.identity) is None
        lineage.record(tmp_path / "dataset", {"samples": there})
        if state == "complete":
            manifests.seal(tmp_path / "dataset", dataset.identity, Facts())
        shutil.rmtree(there)
        _samples(tmp_path, samples.identity, "one")  # drawn again, with equal contents
        assert _settled(run, dataset) == state
        shutil.rmtree(there)
        _samples(tmp_path, samples.identity, f"two {state}")
        assert _settled(run, dataset) == "missing"
        shutil.rmtree(there)
        _samples(tmp_path, samples.identity, "one")


@pytest.mark.parametrize("harm", ["cut", "gone", "foreign"])
def test_damaged_shards_of_complete_samples_reopen_the_ledger(
    tmp_path: Path, tiny_llama: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(
        recipes.load("quickstart", [f"model.source={tiny_llama}", "model.max_model_len=4096"]),
        tmp_path,
        LineProgress(),
    )
    samples = next(step for step, _ in run.states() if step.name == "samples")
    there = _samples(tmp_path, samples.identity, "one")
    (there / "ledger").mkdir()
    assert _settled(run, samples) == "complete"
    (shard,) = shards.shard_paths(there)
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif harm == "gone":
        shard.unlink()
    else:
        shutil.copy(shard, there / "foreign.parquet")
    assert _settled(run, samples) == "partial"
    assert "samples: shards have changed since it was complete" in "".join(capsys.readouterr())


def test_a_model_without_a_template_runs_in_release_mode(
    tmp_path: Path,
) -> None:
    from tests.support.tiny import tiny_model

    model = tiny_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    chosen = [
        f"model.source={model}",
        "evaluate.limit=4",
        "prompts.limit=4",
        "evaluate.benchmarks=[builtin, humaneval]",
    ]
    chosen += ["model.max_model_len=4096", "prompts.mode=release"]
    with pytest.raises(
        UserError,
        match=(
            r"evaluate.prompt_mode paper needs a chat template .* use evaluate.prompt_mode "
            r"release"
        ),
    ):
        Run(recipes.load("quickstart", chosen), tmp_path / "half", LineProgress()).make("render")
    run = Run(
        recipes.load("quickstart", [*chosen, "evaluate.prompt_mode=release"]),
        tmp_path / "whole",
        LineProgress(),
    )
    run.make("render")
    assert manifests.load_facts(run.out / "eval-prompts", EvalPromptFacts).rows == 8
    assert [step.name for step, _ in run.states()][:3] == [
        "benchmark",
        "eval-prompts",
        "prompts",
    ], "a mistake shows first"


def test_another_answer_length_cuts_prompts_in_another_place(
    tmp_path: Path,
) -> None:
    def fingerprint(*chosen: str) -> str:
        steps = {
            step.name: step
            for step, _ in Run(
                recipes.load("quickstart", [*chosen]), tmp_path, LineProgress()
            ).states()
        }
        return steps["prompts"].identity.fingerprint

    longer = "sample.max_tokens=512"
    assert fingerprint() == fingerprint(longer)
    assert fingerprint("prompts.over_length=truncate-left") != fingerprint(
        "prompts.over_length=truncate-left", longer
    )


def test_a_killed_attempt_counts_with_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssd_ray.pipeline.timing._PERIOD_S", 0.01)
    recipe = recipes.load("quickstart")
    path = tmp_path / "checkpoint" / "timing.json"
    left: list[str] = []

    def attempt(act: Callable[[Path], Any]) -> None:
        step = Double(name="checkpoint", recipe=recipe, verb="train", chosen={}, act=act)
        context = RunContext(recipe, tmp_path, LineProgress())
        timed(step, path.parent, context, Seconds(), Rank.LEADING)

    def killed(_: Path) -> Any:
        until = time.monotonic() + 20
        while files.read_json(path)["wall_seconds"] == 0 and time.monotonic() < until:
            time.sleep(0.01)
        left.append(path.read_text())
        raise InfrastructureError("killed")

    with pytest.raises(InfrastructureError):
        attempt(killed)
    # A kill leaves the last regular write.
    path.write_text(left[0])
    before = files.read_json(path)
    assert before["attempts"] == 1
    assert before["seconds"] == before["wall_seconds"] > 0
    attempt(lambda _: AnswerFacts(rows=1, output_tokens=30))
    after = files.read_json(path)
    assert (after["attempts"], after["tokens"]) == (2, 30)
    assert after["wall_seconds"] > before["wall_seconds"]
