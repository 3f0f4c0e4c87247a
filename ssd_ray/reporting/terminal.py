"""The table at the end of `ssd-ray run`: scores of each arm, and differences in plain words.

Does no I/O. Names from a recipe or a problem are never taken for markup.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray.reporting import words
from ssd_ray.reporting.numbers.scores import Scores
from ssd_ray.reporting.readings import readings
from ssd_ray.reporting.words import decoding, percent
from ssd_ray.statistics.metrics import Score

STYLES = {
    "higher": "bold blue",
    "lower": "bold red",
    "cannot tell": "bold",
    "too few problems": "bold",
    "refused": "bold yellow",
}


def summary(scores: Scores) -> RenderableType:
    """Return a table of scores and intervals of every arm, then a sentence for each difference."""
    table = Table(
        title=Text(f"{scores.recipe}, {percent(scores.confidence, 0)} intervals over problems"),
        title_justify="left",
    )
    for heading in ("benchmark", "arm", "decoding"):
        table.add_column(heading)
    for metric in scores.order.pass_at:
        table.add_column(metric, justify="right")
    for benchmark in scores.order.benchmarks:
        group = scores.benchmarks[benchmark].all
        for number, arm in enumerate(scores.order.arms):
            # The first row of a benchmark names it.
            where = ""
            if number == 0:
                where = f"{benchmark} ({group.problems} × {group.samples_per_problem})"
            cells = [
                where,
                arm,
                decoding(scores.arms[arm]),
                *(score(group.arms[arm].score[name]) for name in scores.order.pass_at),
            ]
            table.add_row(
                *(Text(cell) for cell in cells),
                end_section=number == len(scores.order.arms) - 1,
            )
    return Group(table, *_sentences(scores))


def _sentences(scores: Scores) -> Iterator[Text]:
    for reading in readings(scores):
        where = reading.benchmark
        if reading.how:
            where = f"{where}, {reading.how}"
        yield Text(f"{where}: {reading.text}", style=STYLES[reading.reading])
        if reading.note:
            yield Text(f"  {reading.note}")


def score(value: Score | None) -> str:
    """Format a score and its interval: `24.3 % (18.0 to 31.2)`, or `2.3 of 9 (0.9 to 4.6 of 9)`."""
    if value is None:
        return "no score"
    return f"{words.score(value)} ({words.score_range(value, unit='')})"
