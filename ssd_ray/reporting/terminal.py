"""The short table at the end of `ssd-ray run`: each arm's scores, and each difference in plain words.

Reads scores.json as a mapping and writes nothing; names from a recipe or a problem are shown as they are, never as markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray.config import Decoding
from ssd_ray.reporting.words import decoding, percent, readings

STYLES = {"higher": "bold blue", "lower": "bold red", "cannot tell": "bold", "too few problems": "bold", "refused": "bold yellow"}


def summary(scores: Mapping[str, Any]) -> RenderableType:
    """The scores of every arm on every benchmark with their intervals, then one sentence for each difference."""
    table = Table(
        title=Text(f"{scores['recipe']}, {percent(scores['confidence'], 0)} intervals over problems"), title_justify="left"
    )
    for heading in ("benchmark", "arm", "decoding"):
        table.add_column(heading)
    for metric in scores["order"]["pass_at"]:
        table.add_column(metric, justify="right")
    for benchmark in scores["order"]["benchmarks"]:
        group = scores["benchmarks"][benchmark]["all"]
        for number, arm in enumerate(scores["order"]["arms"]):
            found = group["arms"][arm]
            where = f"{benchmark} ({group['problems']} × {group['samples_per_problem']})" if number == 0 else ""
            chosen = {key: value for key, value in scores["arms"][arm].items() if key in Decoding.model_fields}
            cells = [
                where,
                arm,
                decoding(Decoding(**chosen)),
                *(score(found["score"][name]) for name in scores["order"]["pass_at"]),
            ]
            table.add_row(*(Text(cell) for cell in cells), end_section=number == len(scores["order"]["arms"]) - 1)
    sentences = [Text(f"{found['benchmark']}: {found['text']}", style=STYLES[found["reading"]]) for found in readings(scores)]
    return Group(table, *sentences)


def score(found: Mapping[str, Any] | None) -> str:
    """A score with its interval, as `24.3 % (18.0 to 31.2)`."""
    if found is None:
        return "no score"
    return f"{percent(found['estimate'])} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
