"""The plan of a training as tables for a terminal, and as plain JSON.

The JSON holds everything that the tables show, in bytes, tokens, hours and USD. Writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray.config import fields
from ssd_ray.planner.clusters import GIB, Candidate, Time, TrainingPlan

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
        "longest_sequence_tokens": plan.length,
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
        "bytes_needed": round(candidate.bytes_needed),
        "fits": candidate.fits,
        "refusal": candidate.refusal,
        "hours": candidate.time and candidate.time.hours,
        "hours_at_most": candidate.most and candidate.most.hours,
        "bound_by": candidate.time and candidate.time.bound,
        "usd": candidate.usd,
    }


def shown(plan: TrainingPlan, name: str) -> Group:
    """The plan as tables: bytes by part and cluster with time and money under them, a verdict, the assumptions."""
    return Group(_heading(plan, name), _memory_table(plan), *_verdict(plan), Text(), _assumptions_table(plan))


def _heading(plan: TrainingPlan, name: str) -> Text:
    model, work = plan.model, plan.work
    active = f", {_count(model.active_parameters)} active for a token" if model.sparse_layers else ""
    text = Text.assemble((f"what training {name} takes\n", "italic"), f" {model.model_type}, ")
    text.append(f"{_count(model.parameters)} parameters{active}", style="bold")
    source = "counted in the data set" if work.measured else "assumed"
    text.append(
        f"\n {work.steps:,} steps, {work.sequences:,} sequences, "
        f"{_count(work.steps * work.expected.tokens)} tokens ({source}; {_count(work.steps * work.at_most.tokens)} if every "
        f"sequence had {plan.length:,})\n"
    )
    where = "worker" if plan.device == "cpu" else "GPU"
    text.append(f"\nGiB of one {where} at its fullest, {plan.candidates[0].setting.tokens:,} tokens in its micro-batch", "italic")
    return text


def _memory_table(plan: TrainingPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("workers" if plan.device == "cpu" else "GPUs", style="bold", no_wrap=True)
    for candidate in plan.candidates:
        table.add_column(_cluster(candidate, plan), justify="right", style="default" if candidate.fits else "dim")
    for part in dict.fromkeys(part for candidate in plan.candidates for part in candidate.memory.parts):
        values = [candidate.memory.parts.get(part, 0) for candidate in plan.candidates]
        if any(values):
            table.add_row(part, *(_gib(value) for value in values))
    if plan.device == "cuda":
        extra = [candidate.bytes_needed - candidate.memory.device for candidate in plan.candidates]
        table.add_row("context, fragmentation", *(_gib(value) for value in extra))
    table.add_section()
    table.add_row("needed", *(Text(_gib(each.bytes_needed), "bold green" if each.fits else "red") for each in plan.candidates))
    if any(candidate.memory.host for candidate in plan.candidates):
        table.add_row("offloaded to the host", *(_gib(candidate.memory.host) for candidate in plan.candidates))
    if plan.device == "cuda":
        table.add_row("hours", *(_fitting(each, _hours(each.time)) for each in plan.candidates))
        table.add_row("bound by", *(_fitting(each, each.time.bound if each.time else "") for each in plan.candidates))
        table.add_row("hours at the limit", *(_fitting(each, _hours(each.most)) for each in plan.candidates))
        table.add_row("USD", *(_fitting(each, _usd(each)) for each in plan.candidates))
    return table


def _verdict(plan: TrainingPlan) -> list[RenderableType]:
    if plan.device == "cpu":
        workers = plan.candidates[0]
        total = workers.num_workers * workers.bytes_needed
        each = f"{workers.num_workers} worker{'s' if workers.num_workers > 1 else ''}"
        return [
            Text(
                f" {each} on a CPU: {_gib(total)} GiB of tensors in all, and about 1 GiB of libraries a worker; no hours: "
                "a CPU's speed is not assumed"
            )
        ]
    if plan.smallest:
        best = plan.smallest
        found = f" smallest cluster that fits: {_cluster(best, plan)} GPUs, {_hours(best.time)} h, {_usd(best)} USD"
        return [Text(found, "green"), *_as_it_is(plan, best)]
    reasons = ", ".join(dict.fromkeys(candidate.refusal for candidate in plan.candidates))
    if plan.mend is None:
        return [Text(f" fits on none of these ({reasons}), nor with offloading or a sequence over up to 8 GPUs", "red")]
    changes, best = plan.mend
    told = f"{_cluster(best, plan)} GPUs, {_gib(best.bytes_needed)} GiB each, {_hours(best.time)} h, {_usd(best)} USD"
    return [Text(f" fits on none of these ({reasons})", "red"), Text(f" it would with {changes}: {told}", "yellow")]


def _as_it_is(plan: TrainingPlan, best: Candidate) -> Iterator[Text]:
    """What to change where the recipe's own number of workers does not hold its training."""
    for candidate in plan.candidates:
        if candidate.num_workers == plan.asked and not candidate.fits:
            yield Text(
                f" not the recipe as it is, with cluster.train_workers={plan.asked} ({candidate.refusal}): set it to "
                f"{best.num_workers}, or assume larger GPUs",
                "yellow",
            )


def _assumptions_table(plan: TrainingPlan) -> Table:
    table = Table(title="assumed (--assume NAME=VALUE overrides)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, style in (("name", "bold"), ("value", "cyan"), ("what it is", "default")):
        table.add_column(heading, style=style, overflow="fold")
    for name, value, meaning in fields(plan.assumed):
        if plan.device == "cpu" and name not in _ON_CPU:
            continue
        table.add_row(name, f"{value:g}", Text(meaning, "" if name not in plan.assumed.model_fields_set else "bold"))
    return table


def _cluster(candidate: Candidate, plan: TrainingPlan) -> str:
    nodes, left = divmod(candidate.num_workers, plan.assumed.gpus_per_node)
    return f"{nodes}×{plan.assumed.gpus_per_node}" if nodes > 1 and not left else str(candidate.num_workers)


def _fitting(candidate: Candidate, text: str) -> Text:
    return Text(text if candidate.fits else "–")


def _gib(value: float) -> str:
    return f"{value / GIB:,.1f}" if value >= GIB / 20 or not value else f"{value / GIB:.2f}"


def _hours(time: Time | None) -> str:
    hours = time.hours if time else 0.0
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _usd(candidate: Candidate) -> str:
    return f"{candidate.usd or 0:,.0f}"


def _count(value: float) -> str:
    for unit, name in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0f}"
