"""The page of a probe: plots, tables, and answers with every token colored.

It opens without a network and holds no script; layers are radio buttons, details appear on hover.
The template engine escapes every text of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssd_ray.analysis.operator import Setting
from ssd_ray.reporting.numbers.probe_groups import Group
from ssd_ray.reporting.numbers.probe_numbers import ProbeNumbers, Student
from ssd_ray.reporting.plots.probe_plots import TYPE_WORDS, probe_pictures
from ssd_ray.reporting.probe_programs import Program
from ssd_ray.reporting.templates.environment import environment
from ssd_ray.reporting.words import MINUS, NBSP, percent, points, rounded
from ssd_ray.statistics.metrics import Interval

UNDEFINED = "undefined"
"""Text of a number that theory or the positions leave undefined."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One result in words."""

    where: str
    value: str
    note: str
    tone: str
    """Class of its border: lock, fork or plain."""


def probe_page(numbers: ProbeNumbers, programs: Sequence[Program]) -> str:
    """Return probe.html."""
    template = environment().get_template("probe.html.j2")
    return template.render(
        numbers=numbers,
        student=numbers.students[-1] if numbers.students else None,
        headlines=list(_headlines(numbers)),
        pictures=probe_pictures(numbers),
        programs=programs,
        means=list(_means(numbers)),
        type_words=TYPE_WORDS,
        range=interval_text,
        setting=setting_text,
    )


def setting_text(setting: Setting) -> str:
    """Format a decoding: `T 1.6, top-k 20, top-p 0.8`."""
    parts = [f"T {setting.temperature:.3g}"]
    parts += [] if setting.top_k is None else [f"top-k {setting.top_k}"]
    parts += [] if setting.top_p >= 1 else [f"top-p {setting.top_p:.3g}"]
    if len(parts) == 1:
        parts.append("no truncation")
    return ", ".join(parts)


def interval_text(value: Interval | None, unit: str = "") -> str:
    """Format an interval as `percent`, `points`, a `small` number, or as it is."""
    if value is None:
        return UNDEFINED
    if unit == "percent":
        middle = percent(value.estimate)
        low, high = rounded(100 * value.low, 1), rounded(100 * value.high, 1)
    elif unit == "points":
        middle, low, high = (points(each, 2) for each in (value.estimate, value.low, value.high))
    else:
        digits = 5 if unit == "small" else 3
        middle, low, high = (
            rounded(each, digits) for each in (value.estimate, value.low, value.high)
        )
    text = f"{middle} ({low} to {high})"
    return text.replace("-", "\u2212").replace(" ", NBSP)


def summary(numbers: ProbeNumbers) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of the terminal's table: a label, then a cell for each trained model."""
    types = {group.name: group for group in numbers.views.types}
    columns = max(1, len(numbers.students))
    everything = numbers.views.everything
    yield "positions", [f"{everything.positions:,} of {everything.problems} problems"] * columns
    yield (
        "locks, forks",
        [f"{percent(_share(types.get('lock')))}, {percent(_share(types.get('fork')))}"] * columns,
    )
    if not numbers.students:
        return
    first = [student.signals[0] for student in numbers.students]
    decodings = [student.decoding for student in numbers.students]
    yield "gap closed", [interval_text(each.gap_closed, "percent") for each in first]
    yield "temperature reached", [interval_text(each.temperature_reached) for each in first]
    yield "tail removed", [interval_text(each.tail_removed, "percent") for each in first]
    yield (
        "lock sharpening (points)",
        [interval_text(each.lock_sharpening, "points") for each in first],
    )
    yield "fork spreading (nats)", [interval_text(each.fork_spreading) for each in first]
    yield "nearest decoding of the base", [setting_text(each.setting) for each in decodings]
    yield "change explained by it", [interval_text(each.explained, "percent") for each in decodings]
    yield (
        "tokens changed by training",
        [interval_text(each.tokens_changed, "percent") for each in decodings],
    )
    yield (
        "tokens it leaves different",
        [interval_text(each.tokens_left, "percent") for each in decodings],
    )


def _headlines(numbers: ProbeNumbers) -> Iterator[Headline]:
    types = {group.name: group for group in numbers.views.types}
    locks = types.get("lock")
    forks = types.get("fork")
    yield Headline(
        where="Locks and forks of the base",
        value=f"{percent(_share(locks))} locks, {percent(_share(forks))} forks",
        note=f"Tokens that survive {setting_text(numbers.settings.training)}: one is a lock, three "
        "or more are a fork.",
        tone="plain",
    )
    if numbers.students:
        yield from _changes(numbers, numbers.students[-1])


def _share(group: Group | None) -> float:
    return group.share.estimate if group else 0.0


def _changes(numbers: ProbeNumbers, student: Student) -> Iterator[Headline]:
    signals = student.signals[0]
    training = numbers.settings.training.temperature
    yield Headline(
        where="Lock sharpening",
        value=_with_unit(interval_text(signals.lock_sharpening, "points"), "points"),
        note="Rise of the probability of the base's only surviving token.",
        tone="lock",
    )
    yield Headline(
        where="Fork spreading",
        value=_with_unit(interval_text(signals.fork_spreading), "nats"),
        note="Rise of the entropy among the surviving tokens of the base.",
        tone="fork",
    )
    yield Headline(
        where="Gap closed",
        value=interval_text(signals.gap_closed, "percent"),
        note="0 at the base, 100 % at the ideal fit to the samples' distribution.",
        tone="plain",
    )
    yield Headline(
        where="Temperature reached",
        value=interval_text(signals.temperature_reached),
        note=f"The samples were drawn at {training:g}; the base is at 1.",
        tone="plain",
    )
    decoding = student.decoding
    yield Headline(
        where="Decoding alone would explain",
        value=_with_unit(interval_text(decoding.explained, "percent"), "of the change"),
        note=f"The nearest decoding of the base is {setting_text(decoding.setting)}, to the "
        f"student at {setting_text(numbers.settings.evaluation)}. It draws "
        f"{interval_text(decoding.tokens_left, 'percent')} of the tokens differently; the base at "
        f"the student's decoding, {interval_text(decoding.tokens_changed, 'percent')}.",
        tone="plain",
    )


def _with_unit(text: str, unit: str) -> str:
    """Add a unit to a value, if it has one."""
    return text if text == UNDEFINED else f"{text} {unit}"


def _means(numbers: ProbeNumbers) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of the table of means: a label, then a cell for each model."""
    labels = {
        "support_compression": "support compression, −log p(S)",
        "reshaping": "reshaping within S",
        "alignment": "alignment with the base",
        "constant": "constant, T H(q)",
        "cross_entropy": "their sum: the loss on samples",
        "kept_mass": "mass of S",
        "entropy": "entropy",
        "entropy_gate": "of being in S or not",
        "entropy_head": "within S",
        "entropy_tail": "outside of S",
        "log_probability": "log-probability of the token there",
    }
    for name, label in labels.items():
        yield (
            label,
            [
                rounded(numbers.views.everything.models[model].means[name], 4).replace("-", MINUS)
                for model in numbers.models
            ],
        )
