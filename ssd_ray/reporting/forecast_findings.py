"""Findings of a forecast in words, and what it cannot know.

Every sentence states numbers of forecast.json; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssd_ray.analysis.outlook_figures import Decoded, Estimate, References, TrainingCell
from ssd_ray.reporting.numbers.forecast import (
    Choice,
    Conclusion,
    Cost,
    ForecastDocument,
    is_at,
    own_cells,
)
from ssd_ray.reporting.words import NBSP, count, counted, decimals, duration, percent

_MOSTLY = 0.5
"""Share of unhealthy samples from which the forecast warns, whatever the T_train."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One answer of the forecast in words."""

    where: str
    what: str
    note: str
    warns: bool = False


def own_cell(document: ForecastDocument) -> TrainingCell:
    """Return the numbers of the recipe's own training setting."""
    return next(cell for cell in document.outlook.training if is_at(cell, document.train))


def decoded_at(decodings: Sequence[Decoded], choice: Choice) -> Decoded:
    """Return the numbers of a decoding."""
    return next(each for each in decodings if is_at(each, choice))


def setting(choice: Choice | TrainingCell | Decoded) -> str:
    """Format temperature and truncation: `T 0.7, top-k 20, top-p 0.8`."""
    if choice.temperature == 0:
        return "greedy"
    top_k = "" if choice.top_k is None else f", top-k{NBSP}{choice.top_k}"
    top_p = "" if choice.top_p == 1 else f", top-p{NBSP}{choice.top_p:g}"
    return f"T{NBSP}{choice.temperature:g}{f'{top_k}{top_p}' or ', no truncation'}"


def interval(estimate: Estimate) -> str:
    """Format the interval of a share: `18.0 % to 31.2 %`."""
    # The interval is linearized, and may leave the range of a share.
    low, high = (min(1.0, max(0.0, end)) for end in (estimate.low, estimate.high))
    return f"{percent(low)} to {percent(high)}"


def findings(document: ForecastDocument) -> Iterator[Finding]:
    """Yield the answers of the forecast, most important first."""
    conclusion = document.conclusion
    yield _change(document)
    if conclusion.suggested is not None:
        yield _settings(document, conclusion, conclusion.suggested)
    yield _decoding_alone(document)
    if document.outlook.accepted is not None:
        yield _accepted(document)
    if document.references is not None:
        yield _references(document, document.references)
    yield _health(document)
    yield _cost(document.cost, document.no_cost)


def _change(document: ForecastDocument) -> Finding:
    cell = own_cell(document)
    one = f"{percent(cell.one.value)} of positions keep one token ({interval(cell.one)})"
    if document.conclusion.nothing_to_gain:
        what = f"Nothing to gain: {one}"
    else:
        what = f"{one}; the ideal student is {cell.gap.value:.3f} nats a token away"
    return Finding(
        where=f"What SSD can change, at {setting(document.train)}",
        what=what,
        note=(
            f"The loss starts at {cell.start:.3f} and approaches {cell.floor:.3f} nats. "
            f"The difference is KL(q‖p0), {cell.gap.low:.3f} to {cell.gap.high:.3f}: the way from "
            "the base to the ideal student. Positions with one token are locks."
        ),
        warns=document.conclusion.nothing_to_gain,
    )


def _settings(document: ForecastDocument, conclusion: Conclusion, suggested: float) -> Finding:
    where = "Which settings, and why"
    cells = own_cells(document.outlook, document.train)
    cell = next(each for each in cells if each.temperature == suggested)
    gap = f"{cell.gap.value:.3f} nats a token"
    if conclusion.crossing == 0:
        return Finding(
            where=where,
            what=f"T_train {suggested:g} only makes the model sharper",
            note=(
                f"Of the healthy T_train, its ideal student is farthest from the base, {gap}, but "
                "less diverse than the base at every T_eval. A lower temperature of the base does "
                "the same without training."
            ),
            warns=True,
        )
    # A student that is too diverse at every T_eval is swept from the lowest one on.
    low = f"{document.outlook.base[0].temperature:g}"
    own = f"the base at {setting(document.baseline)}"
    begin = f"already more diverse than {own} at the lowest T_eval"
    if conclusion.matched is not None:
        low = f"{conclusion.matched:.2f}"
        begin = f"as diverse as {own} where the sweep begins"
    high = "on" if conclusion.crossing is None else f"to {conclusion.crossing:.2f}"
    return Finding(
        where=where,
        what=f"T_train {suggested:g}, and a sweep of T_eval from {low} {high}",
        note=(
            f"Of the healthy T_train with students more diverse than the base, this one's is "
            f"farthest from the base, {gap}. The student is {begin}, and more diverse than the "
            "base at the same T_eval until the sweep ends."
        ),
    )


def _decoding_alone(document: ForecastDocument) -> Finding:
    conclusion = document.conclusion
    base = decoded_at(document.outlook.base, conclusion.best_base)
    student = decoded_at(own_cell(document).student, document.evaluate)
    what = (
        f"The base chooses among {base.survivors:.2f} tokens a position, the ideal student among "
        f"{student.survivors:.2f}"
    )
    decodings = (
        f"The base at {setting(base)} has an entropy of {base.entropy:.3f} nats, the student at "
        f"{setting(student)} one of {student.entropy:.3f}."
    )
    note = (
        "Too few answers count under other decodings to rank them, so the base has the recipe's "
        "decoding."
    )
    if conclusion.ranked and base.prediction is not None:
        share = base.prediction.success
        note = (
            f"This is the base's best decoding here, with a predicted success of "
            f"{percent(share.value)} ({interval(share)}) on these prompts."
        )
    return Finding(where="What decoding alone gives", what=what, note=f"{decodings} {note}")


def _accepted(document: ForecastDocument) -> Finding:
    seen = document.outlook
    student = decoded_at(own_cell(document).student, document.evaluate)
    kept = [
        f"{percent(group.tokens_kept)} of the tokens of {counted(group.answers, name)} "
        f"({group.survived} complete)"
        for group, name in (
            (student.accepted, "accepted answer"),
            (student.rejected, "rejected answer"),
        )
        if group is not None
    ]
    reading = "A student that keeps more of the accepted ones leans the right way."
    if seen.accepted in (0, seen.answers):
        reading = "Without both kinds, nothing shows which way the student leans."
    return Finding(
        where="Accepted and rejected answers under the ideal student",
        what="It keeps " + " and ".join(kept),
        note=(
            f"{seen.accepted} of {counted(seen.answers, 'answer')} drawn at T 1 passed their "
            f"tests. {reading}"
        ),
        warns=seen.accepted == 0,
    )


def _references(document: ForecastDocument, solutions: References) -> Finding:
    student = decoded_at(own_cell(document).student, document.evaluate)
    base = decoded_at(document.outlook.base, document.conclusion.best_base)
    kept = [
        f"{percent(group.tokens_kept)} of the tokens ({group.survived} complete)"
        for group in (
            solutions.student[own_cell(document).student.index(student)],
            solutions.base[document.outlook.base.index(base)],
        )
    ]
    left_out = f" {count(solutions.left_out)} are too long." if solutions.left_out else ""
    return Finding(
        where="Reference solutions, for comparison",
        what=(
            f"Of {counted(solutions.solutions, 'solution')} the ideal student keeps {kept[0]}, "
            f"the base at {setting(base)} {kept[1]}"
        ),
        note=(
            "They are not the model's path, and no number above uses them. The base gives them "
            f"{_nats(solutions.log_likelihood)} a token, and its own answers "
            f"{_nats(solutions.log_likelihood_of_answers)}.{left_out}"
        ),
    )


def _nats(value: float) -> str:
    return f"{value:.3f} nats".replace("-", "\u2212")


def _health(document: ForecastDocument) -> Finding:
    shown = ", ".join(
        f"{percent(each.share, decimals(each.answers))} at T {each.temperature:g}"
        for each in document.health
    )
    healthy = ", ".join(f"{each:g}" for each in document.conclusion.healthy)
    mostly_ill = min(each.share for each in document.health) > _MOSTLY
    note = f"Within noise of the healthiest: T_train {healthy}."
    if mostly_ill:
        note += " Most samples are unhealthy at every T_train: look at them before anything else."
    return Finding(
        where="Health of real samples",
        what=f"Without code, in loops or cut off: {shown}",
        note=note,
        warns=mostly_ill or document.train.temperature not in document.conclusion.healthy,
    )


def _cost(cost: Cost | None, reason: str) -> Finding:
    where = "What the training costs"
    if cost is None:
        return Finding(where=where, what="No plan", note=reason)
    device = {"cuda": "GPU"}.get(cost.device, cost.device.upper())
    workers = counted(cost.workers, f"{device} worker")
    if cost.refusal:
        fits = f"the smallest that fits has {cost.smallest}" if cost.smallest else "none fits"
        return Finding(
            where=where, what=f"It does not fit {workers}: {cost.refusal}", note=fits, warns=True
        )
    if cost.hours is None or cost.usd is None:
        return Finding(
            where=where, what=f"It fits {workers}", note="The planner times no training on a CPU."
        )
    return Finding(
        where=where,
        what=f"{duration(3600 * cost.hours)} on {workers}, about {cost.usd:,.0f} USD",
        note="By the planner's assumptions, with the lengths of the answers drawn here. Sampling "
        "and evaluation come on top. ssd-ray plan shows the assumptions.",
    )


def limits(document: ForecastDocument) -> Iterator[tuple[str, str]]:
    """Yield what the forecast cannot know."""
    seen = document.outlook
    yield (
        "Training is not ideal",
        "The ideal student is q at every position. A real one has a budget of steps, shares its "
        "weights between contexts, and does not reach the floor.",
    )
    yield (
        "Other paths",
        "Positions are those of the base's answers at T 1 without truncation. A student walks "
        "other paths, and its mistakes come at contexts that are not here.",
    )
    ranked = [
        each.prediction.effective_answers for each in seen.base if each.prediction is not None
    ]
    if ranked:
        most = max(ranked)
        yield (
            "Success under another decoding",
            "Each answer is weighted by its likelihood under the decoding, relative to T 1. Of "
            f"{counted(seen.answers, 'answer')}, up to {most:.0f} count for a decoding of the "
            "base, and fewer the farther it is from T 1. With fewer than 10 nothing is ranked.",
        )
    else:
        yield (
            "Success",
            "The prompts have no tests, so nothing here is about being right.",
        )
    yield (
        "Few answers",
        f"{counted(seen.answers, 'answer')} to {counted(seen.problems, 'problem')}, "
        f"{count(seen.positions)} positions. Intervals are over problems. Prompts are those of "
        "training; a benchmark may differ.",
    )
