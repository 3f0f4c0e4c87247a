"""Numbers as a person reads them, and differences in plain words.

One idea: a reader should not have to know what an interval is to learn whether a run shows anything, so each difference
ends in words. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from ssd_ray.config import Decoding
from ssd_ray.statistics.differences import MIN_PROBLEMS

NBSP = "\u00a0"
MINUS = "\u2212"
NOT_RECORDED = "not recorded"
CONTROLS = {
    "naive": "trained in the same way on the model's own samples at temperature 1 without truncation.",
    "accepted": "trained in the same way on those of the same samples alone whose program passed its problem's tests.",
}
"""What each trained control is."""


def decimals(size: int) -> int:
    """The decimals of a percentage that a sample deserves: 0 below 100 problems or answers, 1 below 10,000, else 2.

    A 95 % interval reaches up to 98 / sqrt(size) points to each side, so a further digit would say nothing.
    """
    return 0 if size < 100 else 1 if size < 10_000 else 2


def rounded(value: float, digits: int) -> str:
    """A number with so many decimals, halves away from zero as people round: 6.25 is `6.3`."""
    # Ten significant digits first: 100 * 0.145 is a little below 14.5, and scores.json holds no more.
    return str(
        Decimal(f"{value:.10g}").quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)
    )


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one as `24.3 %`."""
    return NOT_RECORDED if share is None else f"{rounded(100 * share, digits)}{NBSP}%"


def points(share: float | None, digits: int = 1, *, signed: bool = True) -> str:
    """A difference of shares in percentage points, as `+1.2` or `−0.4`."""
    if share is None:
        return NOT_RECORDED
    text = rounded(100 * share, digits)
    if float(text) == 0:
        return text.removeprefix("-")
    return text.replace("-", MINUS) if share < 0 or not signed else f"+{text}"


def is_few(problems: int) -> bool:
    """Return True if there are too few problems for percentages, so that counts are printed."""
    return problems < MIN_PROBLEMS


def solved(share: float, problems: int) -> str:
    """A share of few problems as their expected number, `3` or `2.3`."""
    return rounded(share * problems, 1).removesuffix(".0")


def score(found: Mapping[str, Any]) -> str:
    """An estimate without its interval, as `24.3 %`, or of few problems `2.3 of 9`."""
    problems = found["problems"]
    if is_few(problems):
        return f"{solved(found['estimate'], problems)} of {problems}"
    return percent(found["estimate"], decimals(problems))


def score_range(found: Mapping[str, Any], unit: str = f"{NBSP}%") -> str:
    """The interval of a score, as `18.0 % to 31.2 %`, or of few problems `0.9 to 4.6`."""
    problems = found["problems"]
    if is_few(problems):
        return f"{solved(found['low'], problems)} to {solved(found['high'], problems)}"
    low, high = (rounded(100 * found[end], decimals(problems)) for end in ("low", "high"))
    return f"{low}{unit} to {high}{unit}"


def gain(share: float, problems: int) -> str:
    """A difference with its unit: `+1.2 points`, or of few problems `+0.4 of 9 problems`."""
    if not is_few(problems):
        return f"{points(share, decimals(problems))} points"
    return (
        f"{points(share * problems / 100, 1).removesuffix('.0')} of {counted(problems, 'problem')}"
    )


def rate(share: float | None, size: int) -> str:
    """A share of `size` answers as a percentage, or of few answers as `2 of 9`."""
    if share is None or not is_few(size):
        return percent(share, decimals(size))
    return f"{solved(share, size)} of {size}"


def tally(found: Mapping[str, Any]) -> str:
    """The problems behind a difference, as `3 better, 1 worse, 5 equal` or `all 9 equal`."""
    better, worse = found["better"], found["worse"]
    equal = found["problems"] - better - worse
    if better == worse == 0:
        return f"all {equal:,} equal"
    return f"{better:,} better, {worse:,} worse, {equal:,} equal"


def probability(found: Mapping[str, Any]) -> str:
    """The p-value of a difference with two digits, as `0.032` or `below 0.001`."""
    value = found["p_value"]
    return f"below{NBSP}0.001" if value < 0.001 else f"{value:.2g}" if value < 0.995 else "1.0"


def doubt(found: Mapping[str, Any]) -> str:
    """The p-value of a difference and the smallest effect that so many problems could show."""
    least = points(found["smallest_detectable_effect"], decimals(found["problems"]), signed=False)
    return f"p{NBSP}{probability(found)}, detectable ±{least}"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return NOT_RECORDED if value is None else f"{value:,.0f}"


def counted(value: int, noun: str) -> str:
    """A number with its noun, as `1 answer` or `1,200 answers`."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits."""
    return NOT_RECORDED if value is None else f"{value:,.{digits}g}"


def plain(name: str) -> str:
    """An identifier as words: `wrong_answer` as `wrong answer`."""
    return name.replace("_", " ")


def told(counts: Mapping[str, float] | None) -> str:
    """Counts by name in one line, zeros left out: `12 empty, 3 stub`."""
    if counts is None:
        return NOT_RECORDED
    return (
        ", ".join(f"{count(value)} {plain(name)}" for name, value in counts.items() if value)
        or "none"
    )


def size(value: float | None) -> str:
    """Bytes as GiB or MiB."""
    if value is None:
        return NOT_RECORDED
    return f"{value / 2**30:.1f}{NBSP}GiB" if value >= 2**30 else f"{value / 2**20:.0f}{NBSP}MiB"


def duration(seconds: float | None) -> str:
    """Seconds as `41 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds is None:
        return NOT_RECORDED
    if seconds < 60:
        return f"{float(f'{seconds:.2g}'):g}{NBSP}s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minute}{NBSP}min" if hours else f"{minutes}{NBSP}min {second}{NBSP}s"


def parameters(number: float | None) -> str:
    """A number of parameters as `135 million` or `4.0 billion`."""
    if number is None:
        return NOT_RECORDED
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.3g} million"


def decoding(choice: Decoding) -> str:
    """Temperature and truncation, as `T 0.7, top-k 20, top-p 0.8`."""
    if choice.temperature == 0:
        return "greedy"
    top_k = "" if choice.top_k is None else f", top-k{NBSP}{choice.top_k}"
    top_p = "" if choice.top_p == 1 else f", top-p{NBSP}{choice.top_p:g}"
    return f"T{NBSP}{choice.temperature:g}{top_k}{top_p}" + (
        "" if top_k or top_p else ", no truncation"
    )


def interval(found: Mapping[str, Any], confidence: float) -> str:
    """The interval of a difference, as `95 % interval −3.1 to +5.4`."""
    digits = decimals(found["problems"])
    return f"{100 * confidence:g}{NBSP}% interval {points(found['low'], digits)} to {points(found['high'], digits)}"


def reading(
    arm: str, baseline: str, found: Mapping[str, Any], confidence: float, seen_by: str = "this run"
) -> str:
    """A difference in plain words with its interval, p-value and detectable effect, or of few problems with their counts."""
    endings = {
        "higher": f"{arm} did better than {baseline} in {seen_by}",
        "lower": f"{arm} did worse than {baseline} in {seen_by}",
        "cannot tell": f"{seen_by} cannot tell them apart",
        "too few problems": f"too few problems ({found['problems']}) to tell them apart",
    }
    names, ending = f"{arm} {MINUS} {baseline}", endings[found["reading"]]
    if is_few(found["problems"]):
        return f"{names}: {tally(found)} of {counted(found['problems'], 'problem')}: {ending}"
    size = gain(found["estimate"], found["problems"])
    return (
        f"{names}: {size}, {interval(found, confidence)}, {doubt(found)}: {ending} ({tally(found)})"
    )


def readings(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """The comparisons that a reader should see first, each with `benchmark`, `arm`, `how`, `reading`, `text` and `note`.

    In a sweep the gains whose temperatures were chosen on other problems, with the best cell's gain only as a note, and the
    arms that no sweep made; else every arm but the baseline.
    """
    swept = {arm for points in scores["families"].values() for arm in points}
    found = []
    for benchmark in scores["order"]["benchmarks"]:
        found += [
            _free_reading(scores, benchmark, gain)
            for gain in scores["selection"].get(benchmark, ())
        ]
        arms = scores["benchmarks"][benchmark]["all"]["arms"]
        found += [
            _reading(scores, benchmark, arms, arm)
            for arm in arms_in_order(scores)
            if arm not in swept
        ]
    return found


def arms_in_order(scores: Mapping[str, Any]) -> list[str]:
    """The arms but the baseline."""
    return [arm for arm in scores["order"]["arms"] if arm != scores["baseline"]]


def _reading(
    scores: Mapping[str, Any], benchmark: str, arms: Mapping[str, Any], arm: str
) -> dict[str, str]:
    baseline, paired = scores["baseline"], arms[arm]["difference"][scores["headline"]]
    if paired is not None:
        text = reading(arm, baseline, paired, scores["confidence"])
        return {
            "benchmark": benchmark,
            "arm": arm,
            "reading": paired["reading"],
            "text": text,
            "note": "",
            "how": "",
        }
    which = arm if arms[arm]["refused"] else baseline
    reason = arms[which]["refused"] or "no problem has enough graded answers in both"
    text = f"No score for {which}: {reason}"
    return {
        "benchmark": benchmark,
        "arm": arm,
        "reading": "refused",
        "text": text,
        "note": "",
        "how": "",
    }


def _free_reading(
    scores: Mapping[str, Any], benchmark: str, found: Mapping[str, Any]
) -> dict[str, str]:
    """One gain without selection in words; the best cell's gain is a note and says what it is."""
    kept = {
        "benchmark": benchmark,
        "arm": found["treated"],
        "how": "temperatures chosen on other problems",
    }
    best = found["metrics"][scores["headline"]]
    if best is None:
        text = f"{found['treated']} {MINUS} {found['control']}: no gain can be given, {found['refused']}"
        return {**kept, "reading": "refused", "text": text, "note": ""}
    free = best["selection_free"]
    told = reading(found["treated"], found["control"], free, scores["confidence"])
    return {
        **kept,
        "reading": free["reading"],
        "text": told,
        "note": f"Best cell against best cell: {gain(best['best_cell'], free['problems'])}, "
        "selected on the test problems themselves, with the luck of that in it.",
    }


def chosen(shares: Sequence[float], temperatures: Sequence[float]) -> str:
    """Which temperatures the halves chose, the most frequent first: `T 0.9 (63 %), T 0.7 (37 %)`."""
    ranked = sorted(zip(shares, temperatures, strict=True), key=lambda pair: (-pair[0], pair[1]))
    shown = [f"T{NBSP}{t:g} ({percent(share, 0)})" for share, t in ranked[:2] if share >= 0.005]
    return ", ".join(shown) + (", others" if sum(share for share, _ in ranked[2:]) >= 0.005 else "")


def official(grader: Mapping[str, str]) -> str:
    """Name the state of a benchmark's own grader, as `LiveCodeBench/LiveCodeBench at 28fef95 (2025-07-16)`."""
    return f"{grader['repository']} at {grader['commit'][:7]} ({grader['date']})"


def isolation(found: Mapping[str, Any] | None) -> str:
    """The level of a sandbox and what else is isolated, as `separate process, limits; network isolated`."""
    if not found:
        return NOT_RECORDED
    return "; ".join(_isolated(key, value) for key, value in found.items())


def _isolated(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{plain(key)} {'isolated' if value else 'not isolated'}"
    return str(value) if key == "level" else f"{plain(key)} {value}"
