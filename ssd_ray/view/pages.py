"""The template engine of the view, and its pages as responses.

It escapes every string, and a missing variable is an error. Reads the templates of this folder.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
from starlette.responses import HTMLResponse

from ssd_ray.view import answers, queries, rendering, tokens
from ssd_ray.view.filters import FACETS, SORTS, Filters
from ssd_ray.view.index import Index
from ssd_ray.view.runs import Run

Context: TypeAlias = dict[str, Any]
"""Variables of a template."""
HERE = Path(__file__).parent


@functools.cache  # an engine keeps its compiled templates
def environment() -> jinja2.Environment:
    """Return the template engine."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters.update(
        words=lambda name: str(name).replace("_", " "),
        count=lambda number: f"{number:,}",
        points=lambda share: f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}"),
        duration=duration,
        size=size,
        plain=rendering.plain,
        printable=rendering.printable,
        markdown=rendering.markdown,
        code=rendering.code,
    )
    engine.globals.update(
        base="/",
        exported=False,
        share=share,
        FACETS=FACETS,
        SORTS=SORTS,
        no_filters=Filters(),
    )
    return engine


def share(part: int, all_rows: int) -> str:
    """Format a part of some rows as a percentage; small shares keep a digit that shows them."""
    if not all_rows:
        return "–"
    percent = 100 * part / all_rows
    return f"{percent:.1f} %" if percent >= 0.1 or not part else f"{percent:.2g} %"


def duration(seconds: float) -> str:
    """Format seconds: `0.12 s`, `45 s`, `12 min` or `3.4 h`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(num_bytes: int) -> str:
    """Format a number of bytes in MiB or GiB."""
    mib = num_bytes / 2**20
    return f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The table of answers behind a page of one, and the probes that may have it."""

    run: Run
    index: Index
    filters: Filters
    probes: Mapping[str, Path]


def answer_context(shown: Shown, row: queries.Row, arm: str = "") -> Context:
    """Return all that the page of an answer shows; `arm` chooses the answer to compare with.

    Raises:
        UserError: the shard of the answer was deleted, or a probe cannot be read.
    """
    index, filters = shown.index, shown.filters
    answer = answers.read_answer(index, row)
    peers = queries.of_problem(index, row)
    other_row = _other(peers, row, arm)
    other = answers.read_answer(index, other_row) if other_row else None
    prompt, statement = answers.prompt_text(index, answer.source, row.prompt_id)
    return {
        "run": shown.run,
        "index": index,
        "filters": filters,
        "answer": answer,
        "row": row,
        "prompt": prompt,
        "statement": statement,
        "failing": answers.failing_test(index, answer),
        "peers": peers,
        "other": other,
        "layer": tokens.token_layer(index, answer, shown.probes),
        "probe_command": tokens.command(answer),
        "program_lines": rendering.difference(other.program, answer.program) if other else [],
        "before": queries.neighbor(index, filters, row, forward=False),
        "after": queries.neighbor(index, filters, row, forward=True),
    }


def _other(peers: list[queries.Row], row: queries.Row, arm: str) -> queries.Row | None:
    """Return the answer to compare with: that of an arm, else the first other arm's."""
    others = [peer for peer in peers if peer.place != row.place]
    named = [peer for peer in others if peer.arm == arm] or others
    same = [peer for peer in named if peer.sample_index == row.sample_index]
    return next(iter(same or named), None)


def render(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Return a page. A lone surrogate in it becomes a replacement character."""
    text = environment().get_template(template).render(**context)
    return HTMLResponse(text.encode("utf-8", "replace"), status)


def message(sentence: str, status: int) -> HTMLResponse:
    """Return a page with one sentence."""
    return render("message.html.j2", status, sentence=sentence, refresh_s=0)
