"""Tables of `ssd-ray doctor`: this machine, and the shipped recipes that run on it.

Reads the machine and the shipped recipes. Writes to the storage of runs, models and temporary files
to try it out, asks the hub for an answer, and tests the sandbox. Downloads nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from ssd_ray import models, recipes
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.machine import findings
from ssd_ray.machine.facts import Machine, read_machine
from ssd_ray.machine.findings import Finding
from ssd_ray.machine.installed import hub_failure, hub_home
from ssd_ray.machine.storage import read_storage
from ssd_ray.pipeline import preflight

HUB_TIMEOUT_S = 5.0
_SHARE = 0.9
"""Share of a GPU's memory that an engine takes by default."""
_HEADINGS = ("subject", "state", "finding")
_STYLES = {"ok": "green", "note": "yellow", "fault": "red"}


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """One shipped recipe on this machine."""

    recipe: str
    runs: bool
    text: str
    """Command to run it, or the first reason against it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings about a machine, and its outlook for each shipped recipe."""

    machine: Machine
    lines: list[Finding]
    recipes: list[Outlook]

    def tables(self) -> tuple[Table, Table]:
        """Return the findings and the recipes as tables."""
        return machine_table(self.lines), recipes_table(self.recipes)

    def json_text(self) -> str:
        """Return findings, recipes and facts as a JSON document."""
        values = {
            "findings": [dataclasses.asdict(line) for line in self.lines],
            "recipes": [dataclasses.asdict(line) for line in self.recipes],
            "facts": dataclasses.asdict(self.machine),
        }
        return json.dumps(values, indent=1, default=str)


def report() -> Report:
    """Examine this machine."""
    machine = read_machine()
    lines = list(examine(machine, runs_directory()))
    return Report(machine=machine, lines=lines, recipes=list(outlooks(machine, lines)))


def examine(machine: Machine, runs: Path) -> Iterator[Finding]:
    """Yield the findings about a machine; `runs` is the directory of run directories."""
    yield findings.build_finding(machine.torch, machine.engine)
    for finding in findings.gpu_findings(machine.gpus, machine.torch, _SHARE):
        # Without GPUs, a machine with the CPU build is as it should be.
        harmless = finding.subject == "GPUs" and machine.torch.cuda is None
        yield dataclasses.replace(finding, state="note", remedy="") if harmless else finding
    yield findings.host_finding(machine.host)
    yield from findings.tool_findings(machine.tools)
    places = {
        "runs": runs,
        "models": hub_home(),
        "converted models": models.cache_directory(),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for subject, path in places.items():
        yield findings.storage_finding(subject, read_storage(path))
    yield _hub()
    yield _sandbox()


def _hub() -> Finding:
    failure = hub_failure(HUB_TIMEOUT_S)
    if not failure:
        return Finding(subject="hub", state="ok", text="the Hugging Face hub answers")
    return Finding(
        subject="hub",
        state="note",
        text=f"the Hugging Face hub does not answer ({failure})",
        remedy="give local directories as model.source, or set HF_ENDPOINT to a mirror",
    )


def _sandbox() -> Finding:
    """Test every claim of the strongest sandbox here."""
    from ssd_ray.evaluation.sandbox.selftest import findings as tested
    from ssd_ray.evaluation.sandbox.supervisor import best_level

    try:
        level = best_level()
        held = [claim.held for claim in tested(level) if claim.held is not None]
    except (InfrastructureError, UserError) as error:
        return Finding(subject="sandbox", state="fault", text=str(error))
    text = f"{level.name}, {held.count(True)} of {len(held)} claims hold in the self-test"
    if not all(held):
        return Finding(
            subject="sandbox",
            state="fault",
            text=text,
            remedy="grade no untrusted programs here; `ssd-ray sandbox` names the claims",
        )
    if not level.landlock and not level.gvisor:
        return Finding(
            subject="sandbox",
            state="note",
            text=f"{text}: {level.covers}",
            remedy="docs/sandbox.md says what the stronger levels need",
        )
    return Finding(subject="sandbox", state="ok", text=text)


def outlooks(machine: Machine, lines: Sequence[Finding]) -> Iterator[Outlook]:
    """Yield each shipped recipe with the first reason against a run on this machine.

    `lines` are the findings shown above; a reason among them is named by its subject.
    """
    shown = {line.subject for line in lines}
    for name in recipes.shipped():
        recipe = recipes.load(name)
        fault = next(preflight.faults(recipe, machine, trains=True), None)
        text = f"ssd-ray run {name}"
        if fault is not None:
            text = f"see {fault.subject} above" if fault.subject in shown else fault.sentence
        yield Outlook(recipe=name, runs=fault is None, text=text)


def machine_table(lines: list[Finding]) -> Table:
    """Return the findings as a table."""
    table = _table(f"this machine, ssd-ray {metadata.version('ssd-ray')}", *_HEADINGS)
    for line in lines:
        table.add_row(line.subject, Text(line.state, _STYLES[line.state]), Text(line.sentence))
    return table


def recipes_table(lines: list[Outlook]) -> Table:
    """Return the recipes as a table."""
    table = _table("shipped recipes on this machine", "recipe", "runs", "command or reason")
    for line in lines:
        runs = Text("yes", "green") if line.runs else Text("no", "red")
        table.add_row(line.recipe, runs, Text(line.text))
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, style in zip(headings, ("bold", "default", "default"), strict=True):
        table.add_column(heading, style=style, overflow="fold", no_wrap=False)
    return table


def runs_directory() -> Path:
    """Return the directory of run directories."""
    return Path(os.environ.get("SSD_RAY_RUNS", "runs"))
