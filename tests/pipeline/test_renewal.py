"""A run handles artifacts of other choices, other contents, or another version."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ssd_ray.artifacts import identity, manifests
from ssd_ray.errors import UserError
from ssd_ray.pipeline.step import Step
from tests.support.played import SCORES, Played, rows
from tests.support.staged import GPU, ORDER, World, killed_at, snapshot, without_ray


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Return a function that makes a finished run of test doubles; its graders fail if asked."""
    without_ray(monkeypatch)

    def make(name: str = "run", *, failing: bool = False) -> World:
        world = World(tmp_path / name)
        world.failing = failing
        world.run().make()
        assert sorted(world.made) == sorted(ORDER)
        world.failing = False
        world.made.clear()
        return world

    return make


New = Callable[..., World]


def test_a_finished_run_makes_nothing(new: New) -> None:
    world = new()
    before = snapshot(world.out)
    world.run().make()
    assert world.made == []
    assert snapshot(world.out) == before


# Verdicts with infrastructure errors, and all other contents that change under one recipe.


def test_all_that_was_made_from_failed_verdicts_is_made_again(new: New) -> None:
    world, calm = new(failing=True), new("calm")
    world.run().make()
    assert world.contents() == calm.contents()
    assert world.scores() == calm.scores()
    assert set(world.made) == {
        name for name in ORDER if "accepted" in name or "verdicts" in name or name == "report"
    }
    kept = sorted(
        path.relative_to(world.out).as_posix()
        for path in (world.out / "set-aside").rglob("*.[0-9]")
    )
    assert kept == [
        "set-aside/checkpoint-accepted.0",
        "set-aside/generations/accepted.0",
        "set-aside/verdicts/accepted.0",
    ]


def test_verdicts_that_change_no_data_set_cost_no_gpu_time(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = World._read
    monkeypatch.setattr(
        World, "_read", lambda *of: ["same"] if of[1] == "sample-verdicts" else read(*of)
    )
    world = new(failing=True)
    before = world.stamps(*GPU)
    world.run().make()
    assert world.stamps(*GPU) == before
    assert set(world.made) == {
        "sample-verdicts",
        "dataset-accepted",
        "verdicts/base",
        "verdicts/accepted",
        "report",
    }


@pytest.mark.parametrize("name", [name for name in ORDER if name != "report"])
def test_a_changed_artifact_remakes_all_that_follow(new: New, name: str) -> None:
    """Deleted and made differently on other hardware, a run ends like one from scratch."""
    world = new()
    calm = World(world.out.with_name("calm"))
    world.nature[name] = calm.nature[name] = "other hardware"
    shutil.rmtree(world.out / name)
    calm.run().make()
    world.run().make()
    assert world.contents() == calm.contents()
    assert world.scores() == calm.scores()


@pytest.mark.parametrize("name", [name for name in ORDER if name != "report"])
def test_an_unchanged_artifact_remakes_nothing_that_follows(new: New, name: str) -> None:
    world = new()
    shutil.rmtree(world.out / name)
    world.run().make()
    follows = {
        "sample-verdicts": {"dataset-accepted", "report"},
        "verdicts/base": {"report"},
        "verdicts/accepted": {"report"},
    }
    assert set(world.made) == {name} | follows.get(name, set()), (
        "graders measure time, which is never the same"
    )


def killed_while_followed(world: World, name: str) -> None:
    """Leave a run with half of `name`, already used by its followers."""

    def die(made: str, part: str) -> None:
        if (made, part) == (name, "part-1"):
            follower = next(
                step.name for step in world.steps() if step.follows and step.follows.name == name
            )
            path = world.out / follower / "part-0.parquet"
            while not path.exists():
                pass
            world.dead = True
            raise UserError("killed")

    world.before = die  # type: ignore[method-assign]
    with pytest.raises(UserError, match="killed"):
        world.run().make()
    del world.before  # type: ignore[method-assign]
    world.dead = False


@pytest.mark.parametrize("name", ["prompts", "samples", "generations/base", "generations/accepted"])
def test_artifacts_of_an_input_lost_halfway_are_remade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without_ray(monkeypatch)
    world, calm = World(tmp_path / "run"), World(tmp_path / "calm")
    killed_while_followed(world, name)
    shutil.rmtree(world.out / name)
    world.nature[name] = calm.nature[name] = "other hardware"
    world.run().make()
    calm.run().make()
    assert world.contents() == calm.contents()


@pytest.mark.parametrize("name", ["prompts", "samples", "generations/base", "generations/accepted"])
def test_artifacts_of_a_resumed_input_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without_ray(monkeypatch)
    world, calm = World(tmp_path / "run"), World(tmp_path / "calm")
    killed_while_followed(world, name)
    follower = next(
        step.name for step in world.steps() if step.follows and step.follows.name == name
    )
    kept = (world.out / follower / "part-0.parquet").stat().st_mtime_ns
    world.run().make()
    calm.run().make()
    assert (world.out / follower / "part-0.parquet").stat().st_mtime_ns == kept
    assert world.contents() == calm.contents()


def test_open_verdicts_are_left_alone_by_a_verb_that_needs_none(new: New) -> None:
    world = new(failing=True)
    before = world.stamps(*ORDER)
    world.run().make("sample")
    assert world.made == []
    assert world.stamps(*ORDER) == before


def test_verdicts_that_stay_open_are_graded_once_a_run(new: New) -> None:
    world = new(failing=True)
    world.failing = True
    world.run().make()
    assert sorted(world.made) == sorted({*world.made})


# Other choices.


def test_an_arm_is_added_to_a_finished_run(new: New) -> None:
    world = new()
    before = world.stamps(*(name for name in ORDER if name != "report"))
    world.arms = ("base", "other", "accepted")
    world.run().make()
    assert sorted(world.made) == ["generations/other", "report", "verdicts/other"]
    assert world.stamps(*before) == before
    world.made.clear()
    world.arms = ("base",)
    world.run().make()
    assert world.made == ["report"], "and an arm is left out"


CHEAP = ("contamination", "verdicts/base", "report")


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_artifacts_are_remade_for_other_choices(
    new: New, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world = new()
    before = world.stamps(*GPU)
    world.choices[name] = 2
    world.run().make()
    assert set(world.made) == {name, "report"}
    assert world.stamps(*GPU) == before
    assert (
        f"{name} was made with other choices (chosen: null there, 2 here), and is made again"
        in capsys.readouterr().err
    )
    assert (world.out / "set-aside" / f"{name}.0").exists() == (name == "verdicts/base")
    before = snapshot(world.out)
    world.run().make()
    assert snapshot(world.out) == before


def remove(world: World, *names: str) -> None:
    """Delete artifacts, as a person does."""
    for name in names:
        shutil.rmtree(world.out / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in ORDER if name not in CHEAP and name != "verdicts/accepted"]
)
@pytest.mark.parametrize(
    "verb", ["report", "render", "sample", "prepare", "train", "generate", "grade"]
)
def test_gpu_work_of_other_choices_is_refused_untouched(new: New, name: str, verb: str) -> None:
    world = new()
    world.choices[name] = 2
    before = snapshot(world.out)
    steps = world.steps()
    needed = {step.name for goal in steps if goal.verb == verb for step in goal.closure()}
    stale = {step.name for step in steps if any(each.name == name for each in inputs_of(step))}
    looked_at = needed & stale
    kept = [step.name for step in steps if step.takes_gpu or step.name == "prompts"]
    refused = [each for each in kept if each in stale and (each in needed or looked_at)]
    if not refused:
        world.run().make(verb)
        assert set(world.made) <= looked_at
        assert all(
            snapshot(world.out)[path] == before[path] for path in before if path.startswith(GPU)
        )
        return
    with pytest.raises(UserError) as error:
        world.run().make(verb)
    own = name if name != refused[0] else "made with other choices (chosen"
    assert ("took GPU time" in str(error.value)) == (refused != ["prompts"])
    assert own in str(error.value)
    assert all(str(world.out / each) in str(error.value) for each in refused)
    assert str(error.value).endswith(
        "to have it made again" if len(refused) == 1 else "to have them made again"
    )
    assert snapshot(world.out) == before
    assert world.made == []


def inputs_of(step: Step) -> list[Step]:
    """Return a step and all its inputs."""
    return [step, *(before for each in step.inputs for before in inputs_of(each))]


def test_a_refused_run_resumes_once_named_directories_are_gone(new: New) -> None:
    world, calm = new(), World(new("calm").out)
    world.choices["prompts"] = calm.choices["prompts"] = 2
    shutil.rmtree(calm.out)
    calm.run().make()
    with pytest.raises(UserError) as error:
        world.run().make()
    named = ("prompts", "samples", "checkpoint-accepted", "generations/accepted")
    *most, last = (str(world.out / name) for name in named)
    assert str(error.value).startswith(
        f"{', '.join(most)} and {last} were made with other choices (chosen: null there, 2 here)"
    )
    remove(world, *named)
    world.run().make()
    assert world.contents() == calm.contents()


def test_artifacts_that_no_gpu_used_are_remade_except_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    world = World(tmp_path / "run")
    world.run().make("render")
    world.choices |= {"training-problems": 2, "benchmark": 2}
    world.made.clear()
    world.run().make("render")
    assert sorted(world.made) == ["benchmark", "contamination", "eval-prompts", "training-problems"]
    world.choices["prompts"] = 2
    with pytest.raises(
        UserError, match=r"prompts was made with other choices \(chosen: .*\): choose another --out"
    ):
        world.run().make("render")
    del world.choices["prompts"]
    world.run().make()


def test_an_attempt_that_made_nothing_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    world = World(tmp_path / "run")
    world.run().make("render")
    steps = {step.name: step for step in world.steps()}
    manifests.claim(world.out / "samples", steps["samples"].identity)
    (world.out / "samples" / ".engines").mkdir()
    world.choices["samples"] = 2
    world.run().make()
    assert not (world.out / "set-aside").exists()


# Another version of ssd_ray.


def raise_revision(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Pretend that another version is installed."""
    numbers = {kind: identity.REVISIONS[kind] + 1 for kind in kinds}
    monkeypatch.setattr(identity, "REVISIONS", {**identity.REVISIONS, **numbers})


KINDS = [kind for kind in identity.REVISIONS if kind not in ("completions", "forecast")]


@pytest.mark.parametrize("kind", KINDS)
def test_another_version_that_makes_the_same_costs_no_gpu_time(
    new: New, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    world = new()
    before = snapshot(world.out)
    raise_revision(monkeypatch, kind)
    if kind in ("samples", "checkpoint", "generations"):
        with pytest.raises(
            UserError,
            match=rf"{kind}.* made by an earlier version of ssd_ray .*, and took GPU time: choose",
        ):
            world.run().make()
        assert snapshot(world.out) == before
        return
    stamps = world.stamps(*GPU)
    world.run().make()
    assert world.stamps(*GPU) == stamps
    before = snapshot(world.out)
    world.run().make()
    assert snapshot(world.out) == before


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("prompts", "samples"),
        ("dataset", "checkpoint-accepted"),
        ("verdicts", "checkpoint-accepted"),
        ("training-problems", "checkpoint-accepted"),
        ("eval-prompts", "generations/base"),
        ("benchmark", "generations/base"),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_gpu_work_is_refused_if_a_new_version_changes_its_inputs(
    new: New, monkeypatch: pytest.MonkeyPatch, kind: str, refused: str, times: int
) -> None:
    world = new()
    raise_revision(monkeypatch, kind)
    for name in ORDER:
        if name.startswith(kind) or (kind == "verdicts" and "verdicts" in name):
            world.nature[name] = "another version"
    before = {path: data for path, data in snapshot(world.out).items() if path.startswith(GPU)}
    for _ in range(times):
        with pytest.raises(UserError) as error:
            world.run().make()
    assert str(error.value).startswith(f"{world.out / refused} took GPU time and was made from ")
    assert "of another version of ssd_ray" in str(error.value)
    assert {
        path: data for path, data in snapshot(world.out).items() if path.startswith(GPU)
    } == before


def test_artifacts_lost_under_a_new_version_belong_to_it(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If their inputs change later, they are made again and not refused."""
    world = new()
    raise_revision(monkeypatch, "verdicts")
    world.run().make()
    remove(world, "samples")
    world.nature["samples"] = "other hardware"
    world.run().make()
    assert (world.out / "set-aside" / "checkpoint-accepted.0").exists()


# Plans of a run.


def outlooks(world: World) -> dict[str, str]:
    """Return the outlook of a run and its reason, by step."""
    return {
        step.name: f"{outlook} {reason}".strip()
        for step, _, outlook, reason in world.run().outlooks()
    }


def test_a_plan_predicts_the_run_and_touches_nothing(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new()
    before = snapshot(world.out)
    assert set(outlooks(world).values()) == {"keep"}
    world.choices |= {"verdicts/base": 2, "samples": 2}
    outlook = outlooks(world)
    assert (
        outlook["verdicts/base"]
        == "make again was made with other choices (chosen: null there, 2 here)"
    )
    assert outlook["samples"] == "refuse was made with other choices (chosen: null there, 2 here)"
    assert (
        outlook["checkpoint-accepted"]
        == "refuse was made with other choices (samples: chosen: null there, 2 here)"
    )
    assert outlook["generations/base"] == "keep"
    assert outlook["verdicts/accepted"].startswith(
        "make again was made with other choices (samples:"
    )
    world.choices.clear()
    raise_revision(monkeypatch, "prompts")
    outlook = outlooks(world)
    assert outlook["prompts"].startswith(
        "make again was made by an earlier version of ssd_ray (revision "
    )
    assert outlook["samples"] == "keep if the contents of prompts change"
    assert snapshot(world.out) == before


def test_a_plan_lists_verdicts_to_grade_again(new: New) -> None:
    world = new(failing=True)
    outlook = outlooks(world)
    assert outlook["sample-verdicts"] == outlook["verdicts/base"] == "resume"
    assert outlook["dataset-accepted"] == "keep if the contents of sample-verdicts change"
    assert outlook["generations/accepted"] == "keep if the contents of checkpoint-accepted change"


# Kills.


def retried(world: World) -> None:
    """Let graders work again."""


def redrawn(world: World) -> None:
    """Lose samples and an arm's answers, which are drawn differently again."""
    world.nature |= {"samples": "other hardware", "generations/base": "other hardware"}
    for name in ("samples", "generations/base"):
        shutil.rmtree(world.out / name)


def regraded(world: World) -> None:
    """Change the choices of grading and of the report."""
    world.choices |= {"verdicts/base": 2, "verdicts/accepted": 2, "report": 2}


CHANGES = (retried, redrawn, regraded)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_at_any_file_operation_keeps_the_same_bytes(
    tmp_path: Path, new: New, change: Callable[[World], None]
) -> None:
    """The reference is a run from scratch."""
    world, calm = new(failing=True), World(tmp_path / "calm")
    ended = world.out.rename(tmp_path / "ended")
    shutil.copytree(ended, calm.out)
    change(calm)
    shutil.rmtree(calm.out)
    calm.run().make()
    world.choices, world.nature = calm.choices, calm.nature
    number, killed = 1, True
    while killed:
        shutil.copytree(ended, world.out)
        change(world)
        killed = killed_at(lambda: world.run().make(), number)
        world.run().make()
        assert world.contents() == calm.contents(), number
        assert world.scores() == calm.scores(), number
        shutil.rmtree(world.out)
        number += 1
    assert number > 60


@pytest.mark.slow
def test_a_run_killed_at_random_ends_with_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    """Prompts, data set and report are made by the real steps, the others by test doubles."""
    played, rng = Played(monkeypatch, tiny_llama), random.Random(0)
    played.run(tmp_path / "calm").make()
    played.failing = True
    played.run(tmp_path / "ended").make()
    played.failing = False
    assert (tmp_path / "ended" / SCORES).read_bytes() != (tmp_path / "calm" / SCORES).read_bytes()
    for number in rng.sample(range(1, 160), 3):
        shutil.copytree(tmp_path / "ended", tmp_path / "run")
        code = "import sys; from tests.support import played; played.play(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(tmp_path / "run"), str(tiny_llama), str(number)]
        assert (
            subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
        ), number
        played.run(tmp_path / "run").make()
        assert list(rows(tmp_path / "run", *ROWS)) == list(rows(tmp_path / "calm", *ROWS)), number
        assert (tmp_path / "run" / SCORES).read_bytes() == (
            tmp_path / "calm" / SCORES
        ).read_bytes(), number
        shutil.rmtree(tmp_path / "run")


ROWS = (
    "samples",
    "dataset-accepted",
    "sample-verdicts",
    "generations/accepted",
    "verdicts/accepted",
    "verdicts/base",
)
