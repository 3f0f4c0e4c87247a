"""What a run does with artifacts that were made from other choices, from other contents, or by another version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from staged import GPU, ORDER, World, killed_at, snapshot, without_ray

from ssd_ray.errors import UserError


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Makes a finished run of doubles, whose graders failed or not."""
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


# Verdicts that a failing machine left open, and everything else whose contents change under one recipe.


def test_all_that_was_made_from_failed_verdicts_is_made_again(new: New) -> None:
    world, calm = new(failing=True), new("calm")
    world.run().make()
    assert world.contents() == calm.contents()
    assert world.scores() == calm.scores()
    assert set(world.made) == {name for name in ORDER if "accepted" in name or "verdicts" in name or name == "report"}
    kept = sorted(path.relative_to(world.out).as_posix() for path in (world.out / "set-aside").rglob("*.[0-9]"))
    assert kept == ["set-aside/checkpoint-accepted.0", "set-aside/generations/accepted.0", "set-aside/verdicts/accepted.0"]


def test_verdicts_that_come_to_the_same_data_set_cost_no_gpu_time(new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    read = World._read
    monkeypatch.setattr(World, "_read", lambda *of: ["same"] if of[1] == "sample-verdicts" else read(*of))
    world = new(failing=True)
    before = world.stamps(*GPU)
    world.run().make()
    assert world.stamps(*GPU) == before
    assert set(world.made) == {"sample-verdicts", "dataset-accepted", "verdicts/base", "verdicts/accepted", "report"}


@pytest.mark.parametrize("name", [name for name in ORDER if name != "report"])
def test_what_is_made_again_otherwise_has_all_that_follows_made_again(new: New, name: str) -> None:
    """Whatever was deleted, and came out otherwise on other hardware: the end is that of a run from the beginning."""
    world = new()
    calm = World(world.out.with_name("calm"))
    world.nature[name] = calm.nature[name] = "other hardware"
    shutil.rmtree(world.out / name)
    calm.run().make()
    world.run().make()
    assert world.contents() == calm.contents()
    assert world.scores() == calm.scores()


@pytest.mark.parametrize("name", [name for name in ORDER if name != "report"])
def test_what_is_made_again_to_the_same_has_nothing_that_follows_made_again(new: New, name: str) -> None:
    world = new()
    shutil.rmtree(world.out / name)
    world.run().make()
    follows = {"sample-verdicts": {"dataset-accepted", "report"}, "verdicts/base": {"report"}, "verdicts/accepted": {"report"}}
    assert set(world.made) == {name} | follows.get(name, set()), "graders measure time, which is never the same"


def killed_while_followed(world: World, name: str) -> None:
    """A run that ended while `name` had one part of two, and what follows it had made its own of that."""

    def die(made: str, part: str) -> None:
        if (made, part) == (name, "part-1"):
            follower = next(step.name for step in world.steps() if step.follows and step.follows.name == name)
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
def test_what_followed_an_input_that_was_lost_halfway_is_made_again(
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
def test_what_followed_an_input_that_is_resumed_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without_ray(monkeypatch)
    world, calm = World(tmp_path / "run"), World(tmp_path / "calm")
    killed_while_followed(world, name)
    follower = next(step.name for step in world.steps() if step.follows and step.follows.name == name)
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


# Kills.


def retried(world: World) -> None:
    """Graders work now."""


def redrawn(world: World) -> None:
    """Samples and an arm's answers were lost and come out otherwise."""
    world.nature |= {"samples": "other hardware", "generations/base": "other hardware"}
    for name in ("samples", "generations/base"):
        shutil.rmtree(world.out / name)


def regraded(world: World) -> None:
    """Choices of graders and report are others."""
    world.choices |= {"verdicts/base": 2, "verdicts/accepted": 2, "report": 2}


CHANGES = (retried, redrawn, regraded)


def ends_as_calm(tmp_path: Path, new: New, change: Callable[[World], None], step: int) -> None:
    """Kill a run after a change at every `step`th file operation, run again, and compare with a run from the beginning."""
    world, calm = new(failing=True), World(tmp_path / "calm")
    ended = world.out.rename(tmp_path / "ended")
    shutil.copytree(ended, calm.out)
    change(calm)
    shutil.rmtree(calm.out)
    calm.run().make()
    world.choices, world.nature = calm.choices, calm.nature
    number, killed = step, True
    while killed:
        shutil.copytree(ended, world.out)
        change(world)
        killed = killed_at(lambda: world.run().make() and None, number)
        world.run().make()
        assert world.contents() == calm.contents(), number
        assert world.scores() == calm.scores(), number
        shutil.rmtree(world.out)
        number += step
    assert number > 60


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_killed_while_it_makes_things_again_ends_with_the_same_bytes(
    tmp_path: Path, new: New, change: Callable[[World], None]
) -> None:
    ends_as_calm(tmp_path, new, change, 17)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_killed_at_any_file_operation_ends_with_the_same_bytes(
    tmp_path: Path, new: New, change: Callable[[World], None]
) -> None:
    ends_as_calm(tmp_path, new, change, 1)
