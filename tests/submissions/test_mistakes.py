"""A mistake on record is refused while nothing about it has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssd_ray import recipes
from ssd_ray.artifacts import versions
from ssd_ray.errors import InfrastructureError, OutsideError, UserError
from ssd_ray.pipeline import preflight
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.step import Step
from ssd_ray.submissions import mistakes
from ssd_ray.submissions.owner import Work
from tests.support.progress import Lines

WORK = Work(command="ssd-ray run tiny", choices={"seed": 1})
STATES = {"samples": "f00d missing"}


def _attempt(out: Path, digest: str, error: BaseException | None = None) -> list[str]:
    """Run a block that ends with an error, and return the lines printed."""
    lines = Lines()
    with mistakes.remembered(out, lambda: digest, lines.say):
        lines.say("at work")
        if error is not None:
            raise error
    return lines.lines


def test_an_unchanged_mistake_is_refused_with_the_same_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no seed 1: use another$"):
        _attempt(tmp_path, "a", UserError("no seed 1: use another"))
    lines = Lines()
    for _ in range(2):
        with (
            pytest.raises(UserError, match=r"^no seed 1: use another$"),
            mistakes.remembered(tmp_path, lambda: "a", lines.say),
        ):
            raise AssertionError("the work has begun")
    assert "recipe, inputs and package are the same; to try all the same, delete" in lines.lines[0]
    (tmp_path / mistakes.FILE).unlink()
    assert _attempt(tmp_path, "a") == ["at work"]


def test_changed_circumstances_let_the_work_begin(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        _attempt(tmp_path, "a", UserError("no seed 1"))
    assert _attempt(tmp_path, "b") == ["at work"]
    # The success has cleared the record.
    assert _attempt(tmp_path, "a") == ["at work"]


@pytest.mark.parametrize(
    "error",
    [OutsideError("the disk is full"), InfrastructureError("lost"), KeyboardInterrupt()],
)
def test_other_ends_are_not_remembered(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        _attempt(tmp_path, "a", error)
    assert _attempt(tmp_path, "a") == ["at work"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"sentence": "no"}'])
def test_a_torn_record_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / mistakes.FILE).write_text(text)
    assert _attempt(tmp_path, "a") == ["at work"]


def test_the_circumstances_are_all_that_a_user_can_correct(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    digests = [mistakes.circumstances(WORK, STATES)]
    assert mistakes.circumstances(WORK, dict(STATES)) == digests[0]
    other = Work(command=WORK.command, choices={"seed": 2})
    digests.append(mistakes.circumstances(other, STATES))
    digests.append(mistakes.circumstances(WORK, {"samples": "f00d complete"}))
    for token in ("hf_one", "hf_two"):
        monkeypatch.setenv("HF_TOKEN", token)
        digests.append(mistakes.circumstances(WORK, STATES))
    monkeypatch.setattr(versions, "package_digest", lambda: "other")
    digests.append(mistakes.circumstances(WORK, STATES))
    assert len(set(digests)) == 6


def test_a_run_on_a_cluster_asks_for_no_node_twice(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake of the first attempt showed at work; the second ends before its work."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(preflight, "check", lambda *_, **__: None)
    monkeypatch.setattr("ssd_ray.pipeline.run._Ray._connect", lambda _: None)
    asked: list[str] = []

    def make(self: Run, step: Step, *_: object, **__: object) -> None:
        asked.append(step.name)
        raise UserError("engine.max_num_seqs=0: use at least 1")

    monkeypatch.setattr(Run, "_make", make)
    chosen = [f"model.source={tiny_llama}", "model.max_model_len=4096"]
    for limit, number in ((8, 1), (8, 1), (9, 2), (9, 2)):
        recipe = recipes.load("quickstart", [*chosen, f"prompts.limit={limit}"])
        with pytest.raises(UserError, match=r"^engine\.max_num_seqs=0: use at least 1$"):
            Run(recipe, tmp_path, Lines()).make("sample")
        assert len(asked) == number
    # On this machine alone a repetition costs nothing but the user's time.
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError):
        Run(recipe, tmp_path, Lines()).make("sample")
    assert len(asked) == 3
