"""Seconds of overlapping steps count once; steps of one rank share them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import recipes
from ssd_ray.artifacts import files
from ssd_ray.artifacts.facts import RowFacts
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.seconds import Rank, Seconds, StepTime
from ssd_ray.progress import LineProgress
from tests.support.staged import Double

Times = Mapping[str, tuple[Rank, int, int]]


def spent(times: Times) -> dict[str, float]:
    """Return the seconds of steps given by rank, begin and end, on a simulated clock."""
    now = 0.0
    seconds = Seconds(lambda: now)
    stacks: dict[str, tuple[ExitStack, StepTime]] = {}
    events = [(begin, 1, name) for name, (_, begin, _) in times.items()]
    events += [(end, 2, name) for name, (_, _, end) in times.items()]
    for moment, kind, name in sorted(events):
        now = float(moment)
        if kind == 1:
            stack = ExitStack()
            stacks[name] = (stack, stack.enter_context(seconds.of(times[name][0])))
        else:
            stacks[name][0].close()
    return {name: span.seconds for name, (_, span) in stacks.items()}


def test_grading_steps_that_overlap_count_each_second_once() -> None:
    """A resumed run grades all arms at once."""
    grading = {f"verdicts/{arm}": (Rank.GRADING, 0, 60 + arm) for arm in range(11)}
    seconds = spent({**grading, "verdicts/first": (Rank.LEADING, 0, 60)})
    assert sum(seconds.values()) == pytest.approx(70)


def test_grading_costs_what_it_adds_to_drawing() -> None:
    result = spent({"generations": (Rank.LEADING, 0, 100), "verdicts": (Rank.GRADING, 1, 103)})
    assert result == {"generations": 100, "verdicts": 3}
    result = spent(
        {
            "prompts": (Rank.LEADING, 0, 2),
            "samples": (Rank.DRAWING, 0, 50),
            "verdicts": (Rank.GRADING, 1, 40),
        }
    )
    assert result == {"prompts": 2, "samples": 48, "verdicts": 0}, (
        "grading that ends before drawing takes nothing from it"
    )


def test_steps_of_one_pool_of_engines_share_their_time() -> None:
    """If the first to end got all of the time, the rate of the other would be far too high."""
    drawn = {"samples": (Rank.DRAWING, 0, 300), "generations": (Rank.DRAWING, 0, 295)}
    assert spent(drawn) == {"samples": 152.5, "generations": 147.5}


steps = st.tuples(st.sampled_from(list(Rank)), st.integers(0, 20), st.integers(1, 20))


@given(st.lists(steps, max_size=6))
def test_seconds_add_up_to_the_time_at_work(rows: list[tuple[Rank, int, int]]) -> None:
    leading = 0
    times = {}
    for number, (rank, begin, length) in enumerate(rows):
        if rank == Rank.LEADING:  # one after the other
            begin = max(begin, leading)
            leading = begin + length
        times[f"step {number}"] = (rank, begin, begin + length)
    at_work = {moment for _, begin, end in times.values() for moment in range(begin, end)}
    assert sum(spent(times).values()) == pytest.approx(len(at_work))


def test_timings_of_a_run_with_followers_add_up(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20)

    def act(_: Path) -> RowFacts:
        both.wait()
        both.wait()
        return RowFacts(rows=0)

    run = Run(recipes.load("quickstart"), tmp_path, LineProgress())
    now = iter(range(100))
    run._seconds = Seconds(lambda: float(next(now)))
    made = [
        Double(name=name, recipe=run.recipe, verb="grade", chosen={}, act=act)
        for name in ("verdicts/a", "verdicts/b")
    ]
    renewal = type("Renewal", (), {"record": lambda *_: None})()
    thread = threading.Thread(target=run._make, args=(made[1], renewal), kwargs={"follows": True})
    thread.start()
    run._make(made[0], renewal)
    thread.join()
    records = [files.read_json(tmp_path / step.name / "timing.json") for step in made]
    assert sum(record["seconds"] for record in records) == pytest.approx(3.0), json.dumps(records)
    # Each of them takes two or three ticks of the clock from its own start to its own end.
    walls = [record["wall_seconds"] for record in records]
    assert sum(walls) == pytest.approx(4.0), json.dumps(records)
