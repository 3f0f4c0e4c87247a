"""Rounds sample from the frozen student before, and stop at the round of a collapse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssd_ray import recipes
from ssd_ray.analysis.collapse import ProbeState, SampleState, first_collapse
from ssd_ray.analysis.toy import ToySettings
from ssd_ray.analysis.toy_study import rounds as toy_rounds
from ssd_ray.config import Recipe, StopConfig
from ssd_ray.errors import UserError
from ssd_ray.pipeline import graph
from ssd_ray.pipeline.rounds import Acts, run_rounds
from ssd_ray.progress import LineProgress
from ssd_ray.reporting.rounds import Evaluated

BASE = ProbeState(forks=40, fork_entropy=1.5, fork_support=5.0, entropy=0.4, kl_to_base=0.0)
DRAWN = SampleState(distinct=1.0, no_code=0.1, cut_off=0.05, mean_tokens=90.0, accepted=0.4)
RESULT = Evaluated(
    gap_closed=0.8, scores={"builtin": {"pass@1": 0.3}}, no_code=0.1, cut_off=0.0, mean_tokens=80.0
)


def recipe(*overrides: str) -> Recipe:
    return recipes.load("quickstart", ["rounds=5", "train.heldout_samples=16", *overrides])


class Played:
    """Rounds without engines: states of each round by its number."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.students = {number: replace(BASE, kl_to_base=0.01 * number) for number in range(1, 9)}
        self.samples = {number: DRAWN for number in range(1, 9)}
        self.made: list[tuple[int, str, Recipe]] = []
        self.pages: list[str] = []

    def acts(self) -> Acts:
        return Acts(
            make=self._make,
            samples=lambda run: self.samples[number(run)],
            probe=lambda first, run, out: (BASE, self.students[number(run)]),
            evaluated=lambda run: RESULT,
        )

    def _make(self, chosen: Recipe, run: Path, verb: str) -> None:
        self.made.append((number(run), verb, chosen))
        self.pages.append((self.out / "rounds.html").read_text())

    def run(self, chosen: Recipe) -> Any:
        return run_rounds(chosen, self.out, self.acts(), LineProgress())


def number(run: Path) -> int:
    return int(run.name.removeprefix("round-"))


def test_each_round_samples_from_the_student_before(tmp_path: Path) -> None:
    played = Played(tmp_path / "out")
    state = played.run(recipe())
    assert (state.stopped, state.is_running) == (None, False)
    chosen = {place: each for place, verb, each in played.made if verb == "report"}
    source = recipe().model.source
    assert [each.model.source for each in chosen.values()] == [
        source,
        *(str(tmp_path / "out" / f"round-{place}" / "checkpoint") for place in range(1, 5)),
    ]
    assert len({each.seed for each in chosen.values()}) == 5
    assert {each.rounds for each in chosen.values()} == {1}, "no round repeats itself"
    same = recipe().model_dump(exclude={"model", "seed", "rounds"})
    for each in chosen.values():
        assert each.model_dump(exclude={"model", "seed", "rounds"}) == same


def test_the_first_round_is_the_ordinary_run(tmp_path: Path) -> None:
    played = Played(tmp_path / "out")
    played.run(recipe())
    first = played.made[0][2]
    plain = recipes.load("quickstart", ["train.heldout_samples=16"])
    prints = [
        {step.name: step.identity.fingerprint for step in graph.steps(each)}
        for each in (first, plain)
    ]
    assert prints[0] == prints[1]


@pytest.mark.parametrize("planted", [2, 3, 5])
@pytest.mark.parametrize(
    ("changed", "field"),
    [({"fork_entropy": 0.7}, "fork_entropy"), ({"fork_support": 2.4}, "fork_support")],
)
def test_a_planted_collapse_of_the_student_stops_after_its_round(
    planted: int, changed: dict[str, float], field: str, tmp_path: Path
) -> None:
    played = Played(tmp_path / "out")
    for each in range(planted, 9):
        played.students[each] = replace(BASE, **changed)
    state = played.run(recipe())
    assert state.stopped.startswith(f"after round {planted}, because")
    assert f"stop.{field}" in state.stopped
    assert max(place for place, _, _ in played.made) == planted
    document = json.loads((tmp_path / "out" / "rounds.json").read_text())
    assert len(document["rows"]) == planted
    assert state.stopped in (tmp_path / "out" / "rounds.html").read_text()


@pytest.mark.parametrize("planted", [2, 4])
@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"distinct": 0.7}, "distinct"),
        ({"no_code": 0.4}, "no_code_rise"),
        ({"cut_off": 0.4}, "cut_off_rise"),
        ({"accepted": 0.2}, "accepted_drop"),
    ],
)
def test_collapsed_samples_are_not_trained_on(
    planted: int, changed: dict[str, float], field: str, tmp_path: Path
) -> None:
    played = Played(tmp_path / "out")
    played.samples[planted] = replace(DRAWN, **changed)
    state = played.run(recipe())
    assert state.stopped.startswith(f"before the training of round {planted}, because")
    assert f"stop.{field}" in state.stopped
    assert [verb for place, verb, _ in played.made if place == planted] == ["prepare"]


def test_scores_of_a_benchmark_never_stop(tmp_path: Path) -> None:
    played = Played(tmp_path / "out")
    acts = replace(
        played.acts(),
        evaluated=lambda run: replace(RESULT, scores={"builtin": {"pass@1": 0.0}}, no_code=1.0),
    )
    assert run_rounds(recipe(), played.out, acts, LineProgress()).stopped is None


def test_the_page_shows_every_round_while_they_run(tmp_path: Path) -> None:
    played = Played(tmp_path / "out")
    played.run(recipe())
    # Two acts a round: at its training, the page has the samples of this round too.
    running = [f"Running: {done} of 5 rounds" for done in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)]
    assert all(text in page for text, page in zip(running, played.pages, strict=True))
    final = (tmp_path / "out" / "rounds.html").read_text()
    assert "All 5 rounds are complete" in final
    assert 'http-equiv="refresh"' not in final


def test_the_toy_collapses_at_the_known_round() -> None:
    """Entropies of the fork by round: 1.948, 1.553, 1.539, 1.292, 1.268, 1.239 nats."""
    settings = ToySettings()
    base = settings.base()
    entropies = [
        float(base.states["fork"].entropy),
        *(each.entropies[1] for each in toy_rounds(base, settings)),
    ]
    states = [replace(BASE, fork_entropy=value) for value in entropies]
    ratios = [value / entropies[0] for value in entropies]
    assert first_collapse(states, StopConfig(fork_entropy=0.5)) is None
    for limit, expected in ((0.85, 1), (0.79, 2), (0.7, 3), (0.655, 4), (0.64, 5)):
        brute = next(place for place, ratio in enumerate(ratios) if ratio < limit)
        assert first_collapse(states, StopConfig(fork_entropy=limit)) == brute == expected


def test_rounds_that_could_not_be_watched_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set train\.heldout_samples"):
        Played(tmp_path / "a").run(recipe("train.heldout_samples=0"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="holds a run without rounds"):
        Played(tmp_path / "b").run(recipe())
    played = Played(tmp_path / "c")
    played.run(recipe())
    with pytest.raises(UserError, match="holds rounds, and rounds=1"):
        played.run(recipe("rounds=1"))


def test_the_divergence_of_heads_is_that_of_the_distributions() -> None:
    from ssd_ray.standalone.round_probe import divergence_of_heads

    rng = np.random.default_rng(0)
    p, base = (rng.dirichlet(np.ones(9), size=5) for _ in range(2))
    order = np.argsort(-p, axis=1)[:, :4]
    head = [np.take_along_axis(np.log(each), order, axis=1) for each in (p, base)]
    exact = (p * np.log(p / base)).sum(axis=1)
    bound = divergence_of_heads(*head)
    assert (bound <= exact + 1e-12).all()
    assert (bound > 0).all()
    everything = np.argsort(-p, axis=1)
    full = [np.take_along_axis(np.log(each), everything, axis=1) for each in (p, base)]
    np.testing.assert_allclose(divergence_of_heads(*full), exact, atol=1e-9)
