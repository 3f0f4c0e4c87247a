"""Numbers as a person reads them, and differences in plain words.

One idea: a reader should not have to know what an interval is to learn whether a run shows anything, so each difference
ends in words. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_ray.config import Decoding

NBSP = "\u00a0"
MINUS = "\u2212"
NOT_RECORDED = "not recorded"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one as `24.3 %`."""
    return NOT_RECORDED if share is None else f"{100 * share:.{digits}f}{NBSP}%"


def points(share: float | None, *, signed: bool = True) -> str:
    """A difference of shares in percentage points, as `+1.2` or `−0.4`."""
    if share is None:
        return NOT_RECORDED
    text = f"{100 * share:{'+' if signed else ''}.1f}"
    return text.removeprefix("+").removeprefix("-") if float(text) == 0 else text.replace("-", MINUS)


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
    return ", ".join(f"{count(value)} {plain(name)}" for name, value in counts.items() if value) or "none"


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
        return f"{seconds:.3g}{NBSP}s"
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
    return f"T{NBSP}{choice.temperature:g}{top_k}{top_p}" + ("" if top_k or top_p else ", no truncation")


def interval(found: Mapping[str, Any], confidence: float) -> str:
    """The interval of a difference, as `95 % interval −3.1 to +5.4`."""
    return f"{100 * confidence:g}{NBSP}% interval {points(found['low'])} to {points(found['high'])}"


def reading(arm: str, baseline: str, found: Mapping[str, Any], confidence: float, seen_by: str = "this run") -> str:
    """A difference in plain words."""
    told = f"{arm} {MINUS} {baseline}: {points(found['estimate'])} points"
    if found["estimate"] == found["low"] == found["high"] == 0:
        return f"{told}: every problem came out the same in both, so {seen_by} cannot tell them apart"
    endings = {
        "higher": f"{arm} did better than {baseline} in {seen_by}",
        "lower": f"{arm} did worse than {baseline} in {seen_by}",
        "cannot tell": f"{seen_by} cannot tell them apart",
        "too few problems": f"too few problems ({found['problems']}) to tell them apart",
    }
    return f"{told}, {interval(found, confidence)}: {endings[found['reading']]}"


def readings(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """One sentence for each benchmark and arm but the baseline: `benchmark`, `arm`, `reading` and `text`."""
    found = []
    for benchmark in scores["order"]["benchmarks"]:
        arms = scores["benchmarks"][benchmark]["all"]["arms"]
        baseline = scores["baseline"]
        for arm in scores["order"]["arms"]:
            paired = arms[arm]["difference"][scores["headline"]]
            if arm == baseline:
                continue
            if paired is None:
                which = arm if arms[arm]["refused"] else baseline
                reason = arms[which]["refused"] or "no problem has enough graded answers in both"
                found.append(
                    {"benchmark": benchmark, "arm": arm, "reading": "refused", "text": f"No score for {which}: {reason}"}
                )
            else:
                text = reading(arm, baseline, paired, scores["confidence"])
                found.append({"benchmark": benchmark, "arm": arm, "reading": paired["reading"], "text": text})
    return found


def isolation(found: Mapping[str, Any] | None) -> str:
    """The level of a sandbox and what else is isolated, as `separate process, limits; network isolated`."""
    if not found:
        return NOT_RECORDED
    return "; ".join(_isolated(key, value) for key, value in found.items())


def _isolated(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{plain(key)} {'isolated' if value else 'not isolated'}"
    return str(value) if key == "level" else f"{plain(key)} {value}"
