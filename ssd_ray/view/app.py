"""Routes of the view: each reads parameters, asks the index and renders a template.

Endpoints are plain functions, so they run in threads and a slow search delays no other page.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import duckdb
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ssd_ray.errors import UserError, one_line
from ssd_ray.view import answers, live, pages, queries, takeaway
from ssd_ray.view.changes import Part, paired_by_problem
from ssd_ray.view.classes import AT_ONCE, begin, classify
from ssd_ray.view.filters import Filters
from ssd_ray.view.index import Index
from ssd_ray.view.report_links import linked
from ssd_ray.view.runs import Run, Runs
from ssd_ray.view.security import REPORT_POLICY, Access, Guard
from ssd_ray.view.shelf import Shelf, StillReadingError
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
        probes = sorted(self.runs.probes())
        if not rows:
            roots = ", ".join(str(root) for root in self.runs.roots)
            # No error: a view may be open before the first run, and shows it once it is there.
            sentence = (
                f"no run below {roots}: make one with `ssd-ray run quickstart`, or give the "
                "directory of another"
            )
            return pages.render("message.html.j2", sentence=sentence, refresh_s=3)
        rows.sort(key=lambda row: (row.state != "running", row.name))
        return pages.render("runs.html.j2", runs=rows, probes=probes)

    def run(self, request: Request) -> Response:
        """Show one run."""
        run = self._run(request)
        return pages.render(
            "run.html.j2",
            run=run,
            summary=self.summaries.of(run),
            bars=live.bars(run),
            loss=live.loss(run),
            logs=live.logs(run),
            probes=sorted(self.runs.probes()),
            has_report=(run.path / "report" / "report.html").exists(),
        )

    def answers(self, request: Request) -> Response:
        """Show the table of answers under the filters of the address."""
        run, index, filters = self._table(request)
        if index.rows <= AT_ONCE and not index.has_health:
            classify(index)
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
        arm = request.query_params.get("with", "")
        shown = pages.Shown(run=run, index=index, filters=filters, probes=self.runs.probes())
        return pages.render("answer.html.j2", **pages.answer_context(shown, row, arm))

    def raw(self, request: Request) -> Response:
        """Return the text of one answer as plain text."""
        _, index, _ = self._table(request)
        text = answers.read_answer(index, self._row(request, index)).text
        return PlainTextResponse(text.encode("utf-8", "replace")[:_MAX_RAW])

    def changes(self, request: Request) -> Response:
        """Show the problems that differ between two arms, of one run or of two."""
        parameters = request.query_params
        second = self._run(request)
        first = self.runs.get(parameters.get("from_run", "") or second.name)
        arms = [parameters.get("from", ""), parameters.get("to", "")]
        sides = []
        for run, arm in zip((first, second), arms, strict=True):
            known = [source.arm for source in run.sources() if source.stage != "samples"]
            if arm not in known:
                raise UserError(
                    f"{run.name} has no arm {arm!r}: it has {', '.join(known) or 'none yet'}"
                )
            sides.append(queries.solved(self.shelf.get(run), arm))
        part = _part(parameters)
        way = parameters.get("way", "")
        if way not in ("", "better", "worse", "equal"):
            raise UserError(f"way={way!r} is none of better, worse and equal")
        index = self.shelf.get(second)
        return pages.render(
            "changes.html.j2",
            run=second,
            first=first,
            index=index,
            arms=arms,
            part=part,
            way=way,
            changes=paired_by_problem(sides[0], sides[1], part),
            benchmarks=sorted({each[0] for each in sides[1].values()}),
            source=next(
                each for each in second.sources() if each.arm == arms[1] and each.stage != "samples"
            ),
            firsts=queries.first_answers(index, arms[1]),
        )

    def compare(self, request: Request) -> Response:
        """Compare two finished runs, as `ssd-ray compare` does."""
        names = request.query_params.getlist("run")
        if len(names) != 2:
            raise UserError(f"a comparison takes two runs, and {len(names)} are ticked")
        first, second = (self.runs.get(name) for name in names)
        from ssd_ray.reporting.comparison import compare

        shared = [arm for arm in second.arms() if arm in first.arms()]
        return pages.render(
            "compare.html.j2",
            first=first,
            second=second,
            shared=shared,
            comparison=compare(first.path, second.path),
        )

    def report(self, request: Request) -> Response:
        """Show the report of a run, with links from its differences to the problems."""
        run = self._run(request)
        page = _text(run, "report", "report.html")
        if page is None:
            raise UserError(f"{run.name} has no report yet: make it with `ssd-ray report`")
        # The report is a file of the run and stays as it is: links are added on the way out.
        page = linked(page, run.name)
        strip = pages.environment().get_template("report_links.html.j2")
        links = strip.render(run=run, summary=self.summaries.of(run))
        return _foreign_page(page.replace("<body>", f"<body>{links}", 1))

    def probe(self, request: Request) -> Response:
        """Show the page of a probe, with answers token by token."""
        name = request.query_params.get("probe", "")
        path = self.runs.probes().get(name)
        if path is None:
            raise UserError(f"there is no probe {name!r} below the directories of this command")
        return _foreign_page(path.read_text("utf-8", "replace"))

    def events(self, request: Request) -> Response:
        """Stream the bars of a running run."""
        run = self._run(request)
        return StreamingResponse(
            live.events(run, with_logs=request.query_params.get("logs", "") == "1"),
            media_type="text/event-stream",
        )

    def classify(self, request: Request) -> Response:
        """Begin to compute the classes of health, and go back to the table."""
        run, index, filters = self._table(request)
        begin(index)
        return RedirectResponse(f"/answers?{filters.address(run.name)}", 303)

    def download(self, request: Request) -> Response:
        """Return the rows under the filters as JSONL or Parquet."""
        _, index, filters = self._table(request)
        form = request.query_params.get("format", "")
        if form not in ("jsonl", "parquet"):
            raise UserError(f"format={form!r} is none of jsonl and parquet")
        name = f"answers.{form}"
        if form == "parquet":
            path = takeaway.parquet_file(index, filters)
            return FileResponse(path, filename=name, background=BackgroundTask(path.unlink))
        return StreamingResponse(
            takeaway.json_lines(index, filters),
            media_type="application/x-ndjson",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

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


def _part(parameters: QueryParams) -> Part:
    metric = parameters.get("metric", "") or "pass@1"
    k = metric.removeprefix("pass@")
    if not k.isdecimal() or not 0 < len(k) < 7 or int(k) < 1:
        raise UserError(f"metric={metric[:40]!r} is no pass@k: use pass@1")
    return Part(
        benchmark=parameters.get("benchmark", ""),
        difficulty=parameters.get("difficulty", ""),
        k=int(k),
    )


def _text(run: Run, *parts: str) -> str | None:
    path = run.inside(*parts)
    try:
        return None if path is None else path.read_text("utf-8", "replace")
    except OSError:
        return None


def _foreign_page(page: str) -> Response:
    """Return a page of the package's own reports: styles and pictures are in it, no scripts."""
    return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})


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
        "/changes": viewer.changes,
        "/compare": viewer.compare,
        "/report": viewer.report,
        "/probe": viewer.probe,
        "/events": viewer.events,
        "/classify": viewer.classify,
        "/download": viewer.download,
    }
    return Starlette(
        routes=[
            *(Route(path, endpoint) for path, endpoint in endpoints.items()),
            Mount("/static", StaticFiles(directory=pages.HERE / "static")),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={
            UserError: _mistake,
            StillReadingError: _still_reading,
            HTTPException: _http_error,
            duckdb.Error: _unreadable,
            OSError: _unreadable,
            Exception: _crash,
        },
    )


def _mistake(_: Request, error: Exception) -> Response:
    return pages.message(str(error), 404)


def _still_reading(_: Request, error: Exception) -> Response:
    return pages.render("reading.html.j2", 202, name=str(error))


def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return pages.message("this address is none of the view: begin at the table of runs", status)


def _unreadable(_: Request, error: Exception) -> Response:
    reason = one_line(error, 200)
    return pages.message(f"a file of the run was deleted or is damaged: {reason}", 404)


def _crash(_: Request, error: Exception) -> Response:
    # The terminal gets the traceback, the page one sentence.
    traceback.print_exception(error, file=sys.stderr)
    return pages.message(
        "the page could not be made; the terminal of `ssd-ray view` has the reason", 500
    )
