"""Plan of a training as tables for a terminal, and as plain JSON.

The JSON holds all numbers of the tables, in bytes, tokens, hours and USD. Writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray.artifacts.files import Json
from ssd_ray.config import fields
from ssd_ray.planner.clusters import GIB, Candidate, TrainingPlan
from ssd_ray.planner.hours import Time
from ssd_ray.planner.states import States
from ssd_ray.planner.work import Load, Work
from ssd_ray.quantities import magnitude

_ON_CPU = (
    "local_disk_gb_s",
    "shared_volume_gb_s",
    "mean_prompt_tokens",
    "mean_response_tokens",
    "capped_share",
)
"""Assumptions used by a plan for CPU workers."""


def plain(plan: TrainingPlan) -> Json:
    """Return the plan as JSON."""
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
        "work": _plain_work(plan.work),
        "clusters": [_plain(candidate) for candidate in plan.candidates],
        "smallest": plan.smallest and plan.smallest.num_workers,
        # The key of earlier versions, for programs that read it.
        "remedy": plan.remedy and {"set": plan.remedy[0], "cluster": _plain(plan.remedy[1])},
    }


def _plain_work(work: Work) -> Json:
    """Return the work without its sampled batches."""

    def totals(load: Load) -> Json:
        return {"tokens": load.tokens, "flops": load.flops}

    return {
        "steps": work.steps,
        "sequences": work.sequences,
        "expected": totals(work.expected),
        "at_most": totals(work.at_most),
        "measured": work.measured,
    }


def _plain(candidate: Candidate) -> Json:
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
        "waiting": candidate.time and candidate.time.waiting,
        "hours_of_the_host": candidate.time and candidate.time.updating,
        "usd": candidate.usd,
        "usd_at_most": candidate.usd_at_most,
        "states": dataclasses.asdict(candidate.states),
    }


def plan_tables(plan: TrainingPlan, name: str) -> Group:
    """Return the plan as tables.

    The first has bytes by part and cluster, with time and money below. Sentences on the clusters
    that fit and a table of assumptions follow.
    """
    return Group(
        _heading(plan, name), _memory_table(plan), *_verdict(plan), Text(), _assumptions_table(plan)
    )


def _heading(plan: TrainingPlan, name: str) -> Text:
    model = plan.model
    work = plan.work
    setting = plan.requested.setting
    active = ""
    if model.sparse_layers:
        active = f", {_count(model.active_parameters)} active for a token"
    adapters = ""
    if setting.lora_parameters is not None:
        adapters = f"; trained are adapters of {_count(setting.lora_parameters)}"
    text = Text.assemble((f"plan of training {name}\n", "italic"), f" {model.model_type}, ")
    text.append(f"{_count(model.parameters)} parameters{active}{adapters}", style="bold")
    source = "counted in the data set" if work.measured else "assumed"
    tokens, most = (_count(work.steps * load.tokens) for load in (work.expected, work.at_most))
    mean = work.steps * work.expected.tokens / work.sequences
    text.append(
        f"\n {work.steps:,} steps, {work.sequences:,} sequences of {mean:,.0f} tokens "
        f"({source}; at most {plan.length:,}), {tokens} tokens (at most {most})\n"
    )
    where = "worker" if plan.device == "cpu" else "GPU"
    text.append(
        f"\nGiB of one {where} at its fullest: ZeRO-{setting.zero_stage}, {setting.precision}, "
        f"{setting.micro_batch_tokens:,} tokens at a time",
        "italic",
    )
    if setting.sequence_parallel > 1:
        text.append(f", shared by {setting.sequence_parallel}", "italic")
    if setting.expert_parallel > 1:
        text.append(f", experts divided by {setting.expert_parallel}", "italic")
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
            (
                _gib(candidate.bytes_needed - candidate.memory.device)
                for candidate in plan.candidates
            ),
        )
    table.add_section()
    limit = f", of {plan.assumed.gpu_memory_gib:g}" if plan.device == "cuda" else ""
    row(
        f"needed{limit}",
        (
            Text(_gib(candidate.bytes_needed), "bold green" if candidate.fits else "red")
            for candidate in plan.candidates
        ),
    )
    if any(candidate.memory.host for candidate in plan.candidates):
        row("offloaded to the host", (_gib(candidate.memory.host) for candidate in plan.candidates))
    if plan.device == "cuda":
        for name, cells in _costs(plan.candidates):
            row(name, cells)
    return table


def _costs(candidates: Sequence[Candidate]) -> Iterator[tuple[str, Iterator[Text]]]:
    """Yield rows of time and money, with a dash where the training does not fit."""
    cells: dict[str, Callable[[Candidate], str]] = {
        "hours": lambda candidate: _hours(candidate.time),
        "bound by": lambda candidate: candidate.time.bound if candidate.time else "",
        "waiting, %": lambda candidate: (
            f"{100 * candidate.time.waiting if candidate.time else 0:.0f}"
        ),
        "USD": lambda candidate: _usd(candidate.usd),
        "hours at most": lambda candidate: _hours(candidate.most),
        "USD at most": lambda candidate: _usd(candidate.usd_at_most),
    }
    for name, cell in cells.items():
        yield name, (Text(cell(each) if each.fits else "–") for each in candidates)


def _verdict(plan: TrainingPlan) -> Iterator[RenderableType]:
    """Yield sentences about the smallest cluster that fits, the recipe's own, and the host."""
    export = _gib(plan.requested.memory.export)
    if plan.warning:
        yield Text(f" {plan.warning}", "yellow")
    if plan.device == "cpu":
        total = _gib(plan.num_workers * plan.requested.bytes_needed)
        workers = f"{plan.num_workers} worker{'s' if plan.num_workers > 1 else ''}"
        yield Text(
            f" {workers} on a CPU: {total} GiB of tensors in all, and about 1 GiB of libraries a "
            "worker; while it writes the model, the first also holds the complete model twice, "
            f"{export} GiB, but no activations; no hours: a CPU's speed is not assumed"
        )
        yield from _states(plan.requested.states)
        return
    if plan.smallest is None:
        reasons = ", ".join(dict.fromkeys(candidate.refusal for candidate in plan.candidates))
        yield Text(f" fits on none of these ({reasons})", "red")
    else:
        also = ", and the recipe's own" if plan.smallest is plan.requested else ""
        yield Text(f" smallest cluster that fits{also}: {_summary(plan.smallest, plan)}", "green")
    yield from _requested(plan)
    best = plan.smallest or (plan.remedy[1] if plan.remedy else plan.requested)
    if best.time and best.time.updating:
        yield Text(
            f" {_hours_text(best.time.updating)} of the hours are optimizer steps on the host"
        )
    kept = plan.requested.memory.kept
    measuring = f", and up to {_gib(kept)} GiB a GPU to measure held-out samples" if kept else ""
    yield Text(
        f" a host also holds the complete model twice while it is written, {export} GiB{measuring}"
    )
    yield from _states(best.states)
    yield Text(" training alone: sampling, evaluation and grading come on top")


def _states(states: States) -> Iterator[Text]:
    """Yield sentences about size, seconds and cost of resume states."""
    way = f"{states.volume_s:,.0f} s to the run directory"
    if states.disk_bytes:
        way = f"{states.disk_s:,.0f} s to local disks, then {way} in the background"
    cost = ""
    if states.waiting_share is not None:
        cost = f"; {states.number} of them take {states.waiting_share:.1%} of training"
    yield Text(f" a resume state has {_gib(states.state_bytes)} GiB: {way}{cost}")
    disk = ""
    if states.disk_bytes:
        disk = f", a node's local disk {_gib(states.disk_bytes)} GiB"
    yield Text(f" the run directory needs {_gib(states.volume_bytes)} GiB for states{disk}")


def _requested(plan: TrainingPlan) -> Iterator[Text]:
    """Yield sentences about the recipe's own cluster, with a remedy if it is too small."""
    requested = plan.requested
    setting = f"cluster.train_workers={plan.num_workers}"
    if requested.fits:
        if requested is not plan.smallest:
            yield Text(f" the recipe as it is, with {setting}: {_summary(requested, plan)}")
        return
    if plan.smallest:
        yield Text(
            f" not the recipe as it is, with {setting} ({requested.refusal}): "
            f"--set cluster.train_workers={plan.smallest.num_workers}",
            "yellow",
        )
    if plan.remedy:
        changes, best = plan.remedy
        if best.num_workers != plan.num_workers:
            changes += f" --set cluster.train_workers={best.num_workers}"
        summary = f"{_summary(best, plan)}, {_gib(best.bytes_needed)} GiB a GPU"
        yield Text(f" {'or' if plan.smallest else 'it would'} with {changes}: {summary}", "yellow")
    elif plan.smallest is None:
        yield Text(" nor with offloading or a sequence over up to 8 GPUs", "red")


def _summary(candidate: Candidate, plan: TrainingPlan) -> str:
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
    for heading, style in (("name", "bold"), ("value", "cyan"), ("meaning", "default")):
        table.add_column(heading, style=style, overflow="fold")
    for name, value, meaning in fields(plan.assumed):
        if plan.device == "cpu" and name not in _ON_CPU:
            continue
        text = Text(meaning)
        if name in plan.assumed.model_fields_set:
            default = type(plan.assumed).model_fields[name].default
            text = Text(f"--assume, in place of {default:g}: {meaning}", "bold")
        table.add_row(name, f"{value:g}", text)
    return table


def _cluster(candidate: Candidate, plan: TrainingPlan) -> str:
    """Return the number of GPUs, as nodes×GPUs for several full nodes."""
    nodes, rest = divmod(candidate.num_workers, plan.assumed.gpus_per_node)
    if nodes > 1 and not rest:
        return f"{nodes}×{plan.assumed.gpus_per_node}"
    return str(candidate.num_workers)


def _gib(value: float) -> str:
    return f"{value / GIB:,.1f}" if value >= GIB / 20 or not value else f"{value / GIB:.2f}"


def _hours(time: Time | None) -> str:
    return _hours_text(time.hours if time else 0.0)


def _hours_text(hours: float) -> str:
    if hours >= 100:
        return f"{hours:,.0f}"
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _usd(usd: float | None) -> str:
    return f"{usd or 0:,.0f}"


def _count(value: float) -> str:
    return magnitude(round(value), billion="B", space=" ")
