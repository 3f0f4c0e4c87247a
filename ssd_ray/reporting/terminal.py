"""The short table at the end of `ssd-ray run`: each arm's scores, and each difference in plain words.

Reads scores.json as a mapping and writes nothing; names from a recipe or a problem are shown as they are, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray.config import Decoding
from ssd_ray.reporting import words
from ssd_ray.reporting.words import decoding, percent, readings

STYLES = {
    "higher": "bold blue",
    "lower": "bold red",
    "cannot tell": "bold",
    "too few problems": "bold",
    "refused": "bold yellow",
}


def summary(scores: Mapping[str, Any]) -> RenderableType:
    """The scores of every arm on every benchmark with their intervals, then one sentence for each difference."""
    table = Table(
        title=Text(
            f"{scores['recipe']}, {percent(scores['confidence'], 0)} intervals over problems"
        ),
        title_justify="left",
    )
    for heading in ("benchmark", "arm", "decoding"):
        table.add_column(heading)
    for metric in scores["order"]["pass_at"]:
        table.add_column(metric, justify="right")
    for benchmark in scores["order"]["benchmarks"]:
        group = scores["benchmarks"][benchmark]["all"]
        for number, arm in enumerate(scores["order"]["arms"]):
            found = group["arms"][arm]
            where = (
                f"{benchmark} ({group['problems']} × {group['samples_per_problem']})"
                if number == 0
                else ""
            )
            chosen = {
                key: value
                for key, value in scores["arms"][arm].items()
                if key in Decoding.model_fields
            }
            cells = [
                where,
                arm,
                decoding(Decoding(**chosen)),
                *(score(found["score"][name]) for name in scores["order"]["pass_at"]),
            ]
            table.add_row(
                *(Text(cell) for cell in cells),
                end_section=number == len(scores["order"]["arms"]) - 1,
            )
    return Group(table, *_sentences(scores))


def _sentences(scores: Mapping[str, Any]) -> Iterator[Text]:
    for found in readings(scores):
        where = f"{found['benchmark']}, {found['how']}" if found["how"] else found["benchmark"]
        yield Text(f"{where}: {found['text']}", style=STYLES[found["reading"]])
        if found["note"]:
            yield Text(f"  {found['note']}")


def score(found: Mapping[str, Any] | None) -> str:
    """A score with its interval, as `24.3 % (18.0 to 31.2)`, or of few problems `2.3 of 9 (0.9 to 4.6)`."""
    return (
        "no score"
        if found is None
        else f"{words.score(found)} ({words.score_range(found, unit='')})"
    )
