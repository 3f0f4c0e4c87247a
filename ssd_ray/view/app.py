"""Routes of the view: each reads parameters, asks the index and renders a template.

Endpoints are plain functions, so they run in threads and a slow search delays no other page.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ssd_ray.errors import UserError
from ssd_ray.view import answers, pages, queries, rendering
from ssd_ray.view.filters import Filters
from ssd_ray.view.index import Index, Shelf
from ssd_ray.view.runs import Run, Runs
from ssd_ray.view.security import Access, Guard
from ssd_ray.view.summaries import Summaries

_MAX_RAW = 64 << 20


class Viewer:
    """The pages over some runs."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.shelf = Shelf()
        self.summaries = Summaries()

    def home(self, request: Request) -> Response:
        """Show the table of runs."""
        rows = [self.summaries.of(run) for run in self.runs.all().values() if run.exists]
        if not rows:
            roots = ", ".join(str(root) for root in self.runs.roots)
            raise UserError(
                f"no run below {roots}: make one with `ssd-ray run quickstart`, or give the "
                "directory of another"
            )
        rows.sort(key=lambda row: (row.state != "running", row.name))
        return pages.render("runs.html.j2", runs=rows)

    def run(self, request: Request) -> Response:
        """Show one run."""
        run = self._run(request)
        return pages.render("run.html.j2", run=run, summary=self.summaries.of(run))

    def answers(self, request: Request) -> Response:
        """Show the table of answers under the filters of the address."""
        run, index, filters = self._table(request)
        return pages.render(
            "answers.html.j2",
            run=run,
            index=index,
            filters=filters,
            count=queries.count(index, filters),
            facets=queries.facets(index, filters),
            page=queries.page(index, filters, request.query_params.get("after", "")),
        )

    def rows(self, request: Request) -> Response:
        """Return the next rows of the table, to be added to it."""
        run, index, filters = self._table(request)
        page = queries.page(index, filters, request.query_params.get("after", ""))
        return pages.render("rows.html.j2", run=run, index=index, filters=filters, page=page)

    def answer(self, request: Request) -> Response:
        """Show one answer, its neighbors under the filters, and other answers to its problem."""
        run, index, filters = self._table(request)
        row = self._row(request, index)
        answer = answers.read_answer(index, row)
        peers = queries.of_problem(index, row)
        other_row = _other(peers, row, request.query_params.get("with", ""))
        other = answers.read_answer(index, other_row) if other_row else None
        prompt, statement = answers.prompt_text(index, answer.source, row.prompt_id)
        return pages.render(
            "answer.html.j2",
            run=run,
            index=index,
            filters=filters,
            answer=answer,
            row=row,
            prompt=prompt,
            statement=statement,
            failing=answers.failing_test(index, answer),
            peers=peers,
            other=other,
            program_lines=rendering.difference(other.program, answer.program) if other else [],
            before=queries.neighbor(index, filters, row, forward=False),
            after=queries.neighbor(index, filters, row, forward=True),
        )

    def raw(self, request: Request) -> Response:
        """Return the text of one answer as plain text."""
        _, index, _ = self._table(request)
        text = answers.read_answer(index, self._row(request, index)).text
        return PlainTextResponse(text.encode("utf-8", "replace")[:_MAX_RAW])

    def _row(self, request: Request, index: Index) -> queries.Row:
        parameters = request.query_params
        number = parameters.get("n", "")
        if not number.isdecimal() or len(number) > 9:
            raise UserError(f"n={number[:40]!r} is no number of an answer: open the table again")
        return queries.one(index, parameters.get("in", ""), parameters.get("id", ""), int(number))

    def _run(self, request: Request) -> Run:
        return self.runs.get(request.query_params.get("run", ""))

    def _table(self, request: Request) -> tuple[Run, Index, Filters]:
        run = self._run(request)
        return run, self.shelf.get(run), Filters.parse(request.query_params)


def _other(peers: list[queries.Row], row: queries.Row, arm: str) -> queries.Row | None:
    """Return the answer to compare with: that of an arm, else the first other arm's."""
    others = [peer for peer in peers if peer.place != row.place]
    named = [peer for peer in others if peer.arm == arm] or others
    same = [peer for peer in named if peer.sample_index == row.sample_index]
    return next(iter(same or named), None)


def application(runs: Runs, access: Access) -> Starlette:
    """Return the application behind its guard."""
    viewer = Viewer(runs)
    endpoints: dict[str, Callable[[Request], Response]] = {
        "/": viewer.home,
        "/run": viewer.run,
        "/answers": viewer.answers,
        "/rows": viewer.rows,
        "/answer": viewer.answer,
        "/raw": viewer.raw,
    }
    return Starlette(
        routes=[
            *(Route(path, endpoint) for path, endpoint in endpoints.items()),
            Mount("/static", StaticFiles(directory=pages.HERE / "static")),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={UserError: _mistake, HTTPException: _http_error, Exception: _crash},
    )


def _mistake(_: Request, error: Exception) -> Response:
    return pages.message(str(error), 404)


def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return pages.message("this address is none of the view: begin at the table of runs", status)


def _crash(_: Request, error: Exception) -> Response:
    # The terminal gets the traceback, the page one sentence.
    traceback.print_exception(error, file=sys.stderr)
    return pages.message(
        "the page could not be made; the terminal of `ssd-ray view` has the reason", 500
    )
