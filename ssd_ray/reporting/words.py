"""Numbers as text, in the digits that the size of a sample supports. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal
from urllib.parse import urlencode

from ssd_ray.artifacts.facts import Isolation
from ssd_ray.config import Decoding
from ssd_ray.config.section import AdaptiveDecoding
from ssd_ray.statistics.differences import MIN_PROBLEMS, Difference
from ssd_ray.statistics.metrics import Score

NBSP = "\u00a0"
MINUS = "\u2212"
NOT_RECORDED = "not recorded"
CONTROLS = {
    "naive": (
        "trained in the same way on the model's own samples at temperature 1 without truncation."
    ),
    "accepted": (
        "trained in the same way on only those of the same samples whose program passed its "
        "problem's tests."
    ),
    "compression": (
        "trained in the same way on samples at temperature 1 with the run's truncation, so by "
        "support compression alone."
    ),
    "reshaping": (
        "trained in the same way on samples at the run's temperature without truncation, so by "
        "the temperature alone."
    ),
    "bad-data": (
        "trained in the same way on samples at temperature 2 without truncation, all of them "
        "kept (the paper's section 4.4)."
    ),
    "token-mean": "trained on the same sequences, with the mean of the loss over all tokens.",
    "sequence-mean": (
        "trained on the same sequences, with the mean of the loss over tokens of each sequence "
        "first, so short answers weigh as much as long ones."
    ),
}
"""Description of each trained control."""


def control(name: str) -> str:
    """Return the description of a trained model other than the first one of the student."""
    return CONTROLS.get(name, "trained on the same sequences with another seed.")


def decimals(size: int) -> int:
    """Return the decimals of a percentage over `size` problems or answers: 0, 1 or 2.

    It has 0 below 100 and 1 below 10,000. A 95 % interval reaches up to 98 / sqrt(size) points to
    each side, so a further digit is noise.
    """
    if size < 100:
        return 0
    return 1 if size < 10_000 else 2


def rounded(value: float, digits: int) -> str:
    """Round to `digits` decimals, halves away from zero: 6.25 is `6.3`."""
    # Ten significant digits first, as in scores.json: 100 * 0.145 is a little below 14.5.
    return str(
        Decimal(f"{value:.10g}").quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)
    )


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share of one: `24.3 %`."""
    return NOT_RECORDED if share is None else f"{rounded(100 * share, digits)}{NBSP}%"


def points(share: float | None, digits: int = 1, *, signed: bool = True) -> str:
    """Format a difference of shares in percentage points: `+1.2` or `−0.4`."""
    if share is None:
        return NOT_RECORDED
    text = rounded(100 * share, digits)
    # A difference that rounds to zero has no sign.
    if float(text) == 0:
        return text.removeprefix("-")
    return text.replace("-", MINUS) if share < 0 or not signed else f"+{text}"


def is_few(problems: int) -> bool:
    """Return True if there are too few problems for percentages: counts are printed."""
    return problems < MIN_PROBLEMS


def solved(share: float, problems: int) -> str:
    """Format a share of few problems as their expected number: `3` or `2.3`."""
    return rounded(share * problems, 1).removesuffix(".0")


def score(value: Score) -> str:
    """Format an estimate without its interval: `24.3 %`, or `2.3 of 9` for few problems."""
    problems = value.problems
    if is_few(problems):
        return f"{solved(value.estimate, problems)} of {problems}"
    return percent(value.estimate, decimals(problems))


def score_range(value: Score, unit: str = f"{NBSP}%") -> str:
    """Format the interval of a score: `18.0 % to 31.2 %`, or `0.9 to 4.6 of 9`."""
    problems = value.problems
    if is_few(problems):
        low, high = (solved(end, problems) for end in (value.low, value.high))
        return f"{low} to {high} of {problems}"
    low, high = (rounded(100 * end, decimals(problems)) for end in (value.low, value.high))
    return f"{low}{unit} to {high}{unit}"


def gain(share: float, problems: int) -> str:
    """Format a difference: `+1.2 points`, or `+0.4 of 9 problems` for few problems."""
    if not is_few(problems):
        return f"{points(share, decimals(problems))} points"
    # `points` multiplies by 100 and signs the number; here the unit is a problem.
    number = points(share * problems / 100, 1).removesuffix(".0")
    return f"{number} of {counted(problems, 'problem')}"


def rate(share: float | None, size: int) -> str:
    """Format a share of `size` answers: a percentage, or `2 of 9` for few answers."""
    if share is None or not is_few(size):
        return percent(share, decimals(size))
    return f"{solved(share, size)} of {size}"


def rows(page: Literal["answers", "changes"], **filters: str) -> str:
    """Return the place of rows in `ssd-ray view`: its page, and filters without a run."""
    return f"{page}?{urlencode({name: value for name, value in filters.items() if value})}"


def tally(difference: Difference) -> str:
    """Count the problems of a difference: `3 better, 1 worse, 5 equal` or `all 9 equal`."""
    better = difference.better
    worse = difference.worse
    equal = difference.problems - better - worse
    if better == worse == 0:
        return f"all {equal:,} equal"
    return f"{better:,} better, {worse:,} worse, {equal:,} equal"


def probability(difference: Difference) -> str:
    """Format the p-value of a difference with two digits: `0.032` or `below 0.001`."""
    value = difference.p_value
    if value < 0.001:
        return f"below{NBSP}0.001"
    # Two digits of 0.997 would be `1`.
    return f"{value:.2g}" if value < 0.995 else "1.0"


def evidence(difference: Difference) -> str:
    """Format the p-value of a difference and the effect detectable on so many problems."""
    digits = decimals(difference.problems)
    least = points(difference.smallest_detectable_effect, digits, signed=False)
    return f"p{NBSP}{probability(difference)}, detectable ±{least}"


def count(value: float | None) -> str:
    """Format an integer with thousands separated."""
    return NOT_RECORDED if value is None else f"{value:,.0f}"


def counted(value: int, noun: str) -> str:
    """Format a number with its noun: `1 answer` or `1,200 answers`."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def number(value: float | None, digits: int = 4) -> str:
    """Format a number with `digits` significant digits."""
    return NOT_RECORDED if value is None else f"{value:,.{digits}g}"


def plain(name: str) -> str:
    """Return an identifier as words: `wrong_answer` as `wrong answer`."""
    return name.replace("_", " ")


def listed(counts: Mapping[str, float] | None) -> str:
    """List counts by name in one line, zeros left out: `12 empty, 3 stub`."""
    if counts is None:
        return NOT_RECORDED
    nonzero = (f"{count(value)} {plain(name)}" for name, value in counts.items() if value)
    return ", ".join(nonzero) or "none"


def size(value: float | None) -> str:
    """Format bytes as GiB or MiB."""
    if value is None:
        return NOT_RECORDED
    return f"{value / 2**30:.1f}{NBSP}GiB" if value >= 2**30 else f"{value / 2**20:.0f}{NBSP}MiB"


def duration(seconds: float | None) -> str:
    """Format seconds: `41 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds is None:
        return NOT_RECORDED
    if seconds < 60:
        return f"{float(f'{seconds:.2g}'):g}{NBSP}s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minute}{NBSP}min" if hours else f"{minutes}{NBSP}min {second}{NBSP}s"


def parameters(number: float | None) -> str:
    """Format a number of parameters: `135 million` or `4.0 billion`."""
    if number is None:
        return NOT_RECORDED
    if number < 1e5:
        return f"{number:,.0f}"
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.3g} million"


def decoding(choice: Decoding) -> str:
    """Format temperature and truncation: `T 0.7, top-k 20, top-p 0.8`."""
    if choice.temperature == 0:
        return "greedy"
    top_k = "" if choice.top_k is None else f", top-k{NBSP}{choice.top_k}"
    top_p = "" if choice.top_p == 1 else f", top-p{NBSP}{choice.top_p:g}"
    adaptive = ""
    if isinstance(choice, AdaptiveDecoding) and choice.is_adaptive:
        theta = choice.entropy_theta
        adaptive = "" if theta is None else f", entropy-adaptive{NBSP}{theta:g}"
        adaptive += f", min-p{NBSP}{choice.min_p:g}" if choice.min_p else ""
    truncation = f"{adaptive}{top_k}{top_p}" or ", no truncation"
    return f"T{NBSP}{choice.temperature:g}{truncation}"


def chosen(shares: Sequence[float], temperatures: Sequence[float]) -> str:
    """List the chosen temperatures, the most frequent first: `T 0.9 (63 %), T 0.7 (37 %)`."""
    ranked = sorted(zip(shares, temperatures, strict=True), key=lambda pair: (-pair[0], pair[1]))
    # Less than half a percent would be printed as 0 %.
    names = [f"T{NBSP}{t:g} ({percent(share, 0)})" for share, t in ranked[:2] if share >= 0.005]
    if sum(share for share, _ in ranked[2:]) >= 0.005:
        names.append("others")
    return ", ".join(names)


def official(grader: Mapping[str, str]) -> str:
    """Name the commit of an official grader: `LiveCodeBench/LiveCodeBench at 28fef95 (…)`."""
    return f"{grader['repository']} at {grader['commit'][:7]} ({grader['date']})"


def isolation(sandbox: Isolation | None) -> str:
    """Describe the isolation of programs: `separate process, limits; network isolated`."""
    if sandbox is None:
        return NOT_RECORDED
    return f"{sandbox.level}; network {'isolated' if sandbox.network else 'not isolated'}"
