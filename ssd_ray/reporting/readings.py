"""Differences and progress in plain words: the main comparisons of a run, and its training.

Each difference ends in words, for readers who do not know intervals. Pure functions of scores.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ssd_ray.reporting.numbers.logs import HeldOut
from ssd_ray.reporting.numbers.scores import Scores
from ssd_ray.reporting.numbers.sweeps import FamilyGain
from ssd_ray.reporting.numbers.tables import ArmTable
from ssd_ray.reporting.words import (
    MINUS,
    NBSP,
    counted,
    decimals,
    evidence,
    gain,
    is_few,
    number,
    percent,
    points,
    tally,
)
from ssd_ray.statistics.differences import Difference, Reading


@dataclass(frozen=True, kw_only=True)
class ArmReading:
    """One comparison of an arm in words."""

    benchmark: str
    arm: str
    how: str = ""
    """Way of the comparison, if it is not simply an arm against the baseline."""
    reading: Reading | Literal["refused"]
    text: str
    note: str = ""


def interval(difference: Difference, confidence: float) -> str:
    """Format the interval of a difference: `95 % interval −3.1 to +5.4`."""
    digits = decimals(difference.problems)
    low, high = (points(end, digits) for end in (difference.low, difference.high))
    return f"{100 * confidence:g}{NBSP}% interval {low} to {high}"


def reading(
    arm: str,
    baseline: str,
    difference: Difference,
    confidence: float,
    seen_by: str = "this run",
) -> str:
    """Return a difference in plain words, with its statistics or the counts of few problems."""
    problems = difference.problems
    endings: dict[Reading, str] = {
        "higher": f"{arm} did better than {baseline} in {seen_by}",
        "lower": f"{arm} did worse than {baseline} in {seen_by}",
        "cannot tell": f"{seen_by} cannot tell them apart",
        "too few problems": "too few problems to tell them apart",
    }
    names = f"{arm} {MINUS} {baseline}"
    ending = endings[difference.reading]
    if is_few(problems):
        return f"{names}: {tally(difference)} of {counted(problems, 'problem')}: {ending}"
    estimate = gain(difference.estimate, problems)
    statistics = f"{interval(difference, confidence)}, {evidence(difference)}"
    return f"{names}: {estimate}, {statistics}: {ending} ({tally(difference)})"


def readings(scores: Scores) -> list[ArmReading]:
    """Return the main comparisons.

    - Without a sweep: every arm but the baseline.
    - In a sweep: gains at temperatures chosen on other problems, the best cell's gain only as a
      note, and the arms outside of the sweep.
    """
    swept = {arm for points in scores.families.values() for arm in points}
    comparisons: list[ArmReading] = []
    for benchmark in scores.order.benchmarks:
        comparisons += [
            _free_reading(scores, benchmark, pair) for pair in scores.selection.get(benchmark, ())
        ]
        arms = scores.benchmarks[benchmark].all.arms
        # A swept arm has no sentence of its own: a reader would pick the best of them.
        comparisons += [
            _reading(scores, benchmark, arms, arm)
            for arm in arms_in_order(scores)
            if arm not in swept
        ]
    return comparisons


def arms_in_order(scores: Scores) -> list[str]:
    """Return the arms without the baseline."""
    return [arm for arm in scores.order.arms if arm != scores.baseline]


def _reading(scores: Scores, benchmark: str, arms: Mapping[str, ArmTable], arm: str) -> ArmReading:
    baseline = scores.baseline
    paired = arms[arm].difference[scores.headline]
    if paired is not None:
        text = reading(arm, baseline, paired, scores.confidence)
        return ArmReading(benchmark=benchmark, arm=arm, reading=paired.reading, text=text)
    # Name the arm without a score: it may be the baseline.
    unscored = arm if arms[arm].refused else baseline
    reason = arms[unscored].refused or "no problem has enough graded answers in both"
    text = f"No score for {unscored}: {reason}"
    return ArmReading(benchmark=benchmark, arm=arm, reading="refused", text=text)


def _free_reading(scores: Scores, benchmark: str, pair: FamilyGain) -> ArmReading:
    """Return a gain free of selection bias in words, with the best cell's gain as a note."""
    how = "temperatures chosen on other problems"
    gains = pair.metrics[scores.headline]
    if gains is None:
        text = f"{pair.treated} {MINUS} {pair.control}: no gain can be given, {pair.refused}"
        return ArmReading(
            benchmark=benchmark, arm=pair.treated, how=how, reading="refused", text=text
        )
    free = gains.selection_free
    return ArmReading(
        benchmark=benchmark,
        arm=pair.treated,
        how=how,
        reading=free.reading,
        text=reading(pair.treated, pair.control, free, scores.confidence),
        note=f"Best cell against best cell: {gain(gains.best_cell, free.problems)}, "
        "selected on the test problems themselves, so luck is part of it.",
    )


def progress_in_words(held: HeldOut | None) -> list[str]:
    """Return the final signals of a training as sentences; none if they were not measured."""
    if held is None:
        return []
    sentences = []
    if held.gap_closed is not None:
        sentences.append(_gap_closed(held.gap_closed[-1]))
    if held.temperature_reached is not None:
        sentences.append(_temperature(held.temperature_reached[-1], held.sampling_temperature))
    if held.tail_removed is not None:
        sentences.append(_tail_removed(held.tail_removed[-1]))
    return sentences


def _gap_closed(share: float | None) -> str:
    if share is None:
        return "Gap closed: undefined, for the samples are draws from the base as it is."
    way = "of the way from the base to the distribution of its samples"
    if share < 0:
        return f"Gap closed: none. The model is {percent(-share)} {way} further away."
    return f"Gap closed: {percent(share)} {way}."


def _temperature(reached: float | None, sampled: float | None) -> str:
    drawn = "" if sampled is None else f" The samples were drawn at T{NBSP}{sampled:g}."
    if reached is None:
        return f"Temperature reached: undefined, no temperature of the base fits.{drawn}"
    text = f"Temperature reached: {number(reached, 3)}. The base is at 1."
    return f"{text}{drawn}"


def _tail_removed(share: float | None) -> str:
    if share is None:
        return "Tail removed: undefined, for sampling kept every token."
    mass = "of the base's mass on tokens outside of the samples' support"
    if share < 0:
        return f"Tail removed: none. The tail has gained {percent(-share)} {mass}."
    return f"Tail removed: {percent(share)} {mass}."
