"""The plan of a training as tables for a terminal, and as plain JSON.

The JSON holds everything that the tables show, in bytes, tokens, hours and USD. Writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray.config import fields
from ssd_ray.planner.clusters import GIB, Candidate, Time, TrainingPlan
from ssd_ray.quantities import magnitude

_ON_CPU = ("mean_prompt_tokens", "mean_response_tokens")
"""Assumptions that a plan for CPU workers rests on."""


def plain(plan: TrainingPlan) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "model": {
            **dataclasses.asdict(plan.model),
            "parameters": plan.model.parameters,
            "active_parameters": plan.model.active_parameters,
            "parameters_by_part": plan.model.parts,
        },
        "assumptions": plan.assumed.model_dump(mode="json"),
        "assumptions_given": sorted(plan.assumed.model_fields_set),
        "longest_sequence_tokens": plan.length,
        "warning": plan.warning,
        "work": dataclasses.asdict(plan.work),
        "clusters": [_plain(candidate) for candidate in plan.candidates],
        "smallest": plan.smallest and plan.smallest.num_workers,
        "mend": plan.mend and {"set": plan.mend[0], "cluster": _plain(plan.mend[1])},
    }


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {
        "workers": candidate.num_workers,
        "setting": dataclasses.asdict(candidate.setting),
        "bytes": candidate.memory.parts,
        "host_bytes": candidate.memory.host,
        "host_bytes_for_held_out_samples": candidate.memory.kept,
        "host_bytes_of_the_export": candidate.memory.export,
        "bytes_needed": round(candidate.bytes_needed),
        "fits": candidate.fits,
        "refusal": candidate.refusal,
        "hours": candidate.time and candidate.time.hours,
        "hours_at_most": candidate.most and candidate.most.hours,
        "bound_by": candidate.time and candidate.time.bound,
        "usd": candidate.usd,
        "usd_at_most": candidate.usd_at_most,
    }


def shown(plan: TrainingPlan, name: str) -> Group:
    """The plan as tables: bytes by part and cluster with time and money under them, a verdict, the assumptions."""
    return Group(
        _heading(plan, name), _memory_table(plan), *_verdict(plan), Text(), _assumptions_table(plan)
    )


def _heading(plan: TrainingPlan, name: str) -> Text:
    model, work, setting = plan.model, plan.work, plan.own.setting
    active = (
        f", {_count(model.active_parameters)} active for a token" if model.sparse_layers else ""
    )
    adapters = (
        ""
        if setting.lora_parameters is None
        else f"; trained are adapters of {_count(setting.lora_parameters)}"
    )
    text = Text.assemble((f"what training {name} takes\n", "italic"), f" {model.model_type}, ")
    text.append(f"{_count(model.parameters)} parameters{active}{adapters}", style="bold")
    source = "counted in the data set" if work.measured else "assumed"
    tokens, most = (_count(work.steps * load.tokens) for load in (work.expected, work.at_most))
    mean = work.steps * work.expected.tokens / work.sequences
    text.append(
        f"\n {work.steps:,} steps, {work.sequences:,} sequences of {mean:,.0f} tokens ({source}; at most {plan.length:,}), "
        f"{tokens} tokens (at most {most})\n"
    )
    where = "worker" if plan.device == "cpu" else "GPU"
    text.append(
        f"\nGiB of one {where} at its fullest: ZeRO-{setting.zero_stage}, {setting.precision}, "
        f"{setting.micro_batch_tokens:,} tokens at a time",
        "italic",
    )
    if setting.sequence_parallel > 1:
        text.append(f", shared by {setting.sequence_parallel}", "italic")
    return text


def _memory_table(plan: TrainingPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(
        "workers" if plan.device == "cpu" else "GPUs (nodes×GPUs)", style="bold", no_wrap=True
    )
    for candidate in plan.candidates:
        table.add_column(
            _cluster(candidate, plan), justify="right", style="default" if candidate.fits else "dim"
        )

    def row(name: str, cells: Iterable[str | Text]) -> None:
        table.add_row(name, *cells)

    for part in dict.fromkeys(
        part for candidate in plan.candidates for part in candidate.memory.parts
    ):
        values = [candidate.memory.parts.get(part, 0) for candidate in plan.candidates]
        if any(values):
            row(part, map(_gib, values))
    if plan.device == "cuda":
        row(
            "context, fragmentation",
            (_gib(each.bytes_needed - each.memory.device) for each in plan.candidates),
        )
    table.add_section()
    limit = f", of {plan.assumed.gpu_memory_gib:g}" if plan.device == "cuda" else ""
    row(
        f"needed{limit}",
        (
            Text(_gib(each.bytes_needed), "bold green" if each.fits else "red")
            for each in plan.candidates
        ),
    )
    if any(candidate.memory.host for candidate in plan.candidates):
        row("offloaded to the host", (_gib(candidate.memory.host) for candidate in plan.candidates))
    if plan.device == "cuda":
        row("hours", (_fitting(each, _hours(each.time)) for each in plan.candidates))
        row(
            "bound by",
            (_fitting(each, each.time.bound if each.time else "") for each in plan.candidates),
        )
        row("USD", (_fitting(each, _usd(each.usd)) for each in plan.candidates))
        row("hours at most", (_fitting(each, _hours(each.most)) for each in plan.candidates))
        row("USD at most", (_fitting(each, _usd(each.usd_at_most)) for each in plan.candidates))
    return table


def _verdict(plan: TrainingPlan) -> Iterator[RenderableType]:
    export = _gib(plan.own.memory.export)
    if plan.warning:
        yield Text(f" {plan.warning}", "yellow")
    if plan.device == "cpu":
        total = _gib(plan.asked * plan.own.bytes_needed)
        yield Text(
            f" {plan.asked} worker{'s' if plan.asked > 1 else ''} on a CPU: {total} GiB of tensors in all, and about 1 GiB of "
            f"libraries a worker; while it writes the model, the first holds it whole besides, {export} GiB, but no activations; "
            "no hours: a CPU's speed is not assumed"
        )
        return
    if plan.smallest is None:
        reasons = ", ".join(dict.fromkeys(candidate.refusal for candidate in plan.candidates))
        yield Text(f" fits on none of these ({reasons})", "red")
    else:
        also = ", and the recipe's own" if plan.smallest is plan.own else ""
        yield Text(f" smallest cluster that fits{also}: {_told(plan.smallest, plan)}", "green")
    yield from _as_it_is(plan)
    best, kept = plan.smallest or (plan.mend[1] if plan.mend else plan.own), plan.own.memory.kept
    if best.setting.offload != "none":
        yield Text(" what the host's processor takes for offloaded states is not in the hours")
    yield Text(
        f" a host also holds the whole model while it is written, {export} GiB"
        + (f", and up to {_gib(kept)} GiB a GPU to measure held-out samples" if kept else "")
    )
    yield Text(" training alone: sampling, evaluation and grading come on top")


def _as_it_is(plan: TrainingPlan) -> Iterator[Text]:
    """What the recipe's own number of workers takes, or what to change where it does not hold its training."""
    own, asked = plan.own, f"cluster.train_workers={plan.asked}"
    if own.fits:
        if own is not plan.smallest:
            yield Text(f" the recipe as it is, with {asked}: {_told(own, plan)}")
        return
    if plan.smallest:
        yield Text(
            f" not the recipe as it is, with {asked} ({own.refusal}): --set cluster.train_workers={plan.smallest.num_workers}",
            "yellow",
        )
    if plan.mend:
        changes, best = plan.mend
        if best.num_workers != plan.asked:
            changes += f" --set cluster.train_workers={best.num_workers}"
        told = f"{_told(best, plan)}, {_gib(best.bytes_needed)} GiB a GPU"
        yield Text(f" {'or' if plan.smallest else 'it would'} with {changes}: {told}", "yellow")
    elif plan.smallest is None:
        yield Text(" nor with offloading or a sequence over up to 8 GPUs", "red")


def _told(candidate: Candidate, plan: TrainingPlan) -> str:
    gpus = f"{_cluster(candidate, plan)} GPU{'s' if candidate.num_workers > 1 else ''}"
    return (
        f"{gpus}, {_hours(candidate.time)} h, {_usd(candidate.usd)} USD "
        f"(at most {_hours(candidate.most)} h, {_usd(candidate.usd_at_most)} USD)"
    )


def _assumptions_table(plan: TrainingPlan) -> Table:
    table = Table(
        title="assumed (--assume NAME=VALUE overrides)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading, style in (("name", "bold"), ("value", "cyan"), ("what it is", "default")):
        table.add_column(heading, style=style, overflow="fold")
    for name, value, meaning in fields(plan.assumed):
        if plan.device == "cpu" and name not in _ON_CPU:
            continue
        default = type(plan.assumed).model_fields[name].default
        given = name in plan.assumed.model_fields_set
        table.add_row(
            name,
            f"{value:g}",
            Text(f"--assume, in place of {default:g}: {meaning}", "bold") if given else meaning,
        )
    return table


def _cluster(candidate: Candidate, plan: TrainingPlan) -> str:
    nodes, left = divmod(candidate.num_workers, plan.assumed.gpus_per_node)
    return (
        f"{nodes}×{plan.assumed.gpus_per_node}"
        if nodes > 1 and not left
        else str(candidate.num_workers)
    )


def _fitting(candidate: Candidate, text: str) -> Text:
    return Text(text if candidate.fits else "–")


def _gib(value: float) -> str:
    return f"{value / GIB:,.1f}" if value >= GIB / 20 or not value else f"{value / GIB:.2f}"


def _hours(time: Time | None) -> str:
    hours = time.hours if time else 0.0
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _usd(usd: float | None) -> str:
    return f"{usd or 0:,.0f}"


def _count(value: float) -> str:
    return magnitude(round(value), billion="B", space=" ")
