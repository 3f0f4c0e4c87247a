"""A self-contained site of the first rows of a run: a table and a page for each answer.

Writes a new directory outside of the runs; its pages need no server and hold no script but keys.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ssd_ray.errors import UserError
from ssd_ray.view import pages, queries
from ssd_ray.view.filters import Filters
from ssd_ray.view.index import Index
from ssd_ray.view.runs import Runs, contained

_STATIC = ("view.css", "view.js", "icon.svg")


def export(runs: Runs, out: Path, rows: int) -> int:
    """Write the site of the only run; return the number of its answers.

    Raises:
        UserError: several runs or none, or the directory exists or is in a run.
    """
    known = list(runs.all().values())
    if len(known) != 1:
        raise UserError(f"--export takes one run, and {len(known)} are below the directories")
    if out.exists():
        raise UserError(f"--export {out} exists already: choose another directory")
    if any(contained(out, run.path.resolve()) for run in known):
        raise UserError(f"--export {out} is in the run, which the view never writes")
    run = known[0]
    # Not from a shelf: this process ends after the pages are written.
    index = Index(run)
    filters = Filters()
    page = queries.page(index, filters, rows=rows)
    if not page.rows:
        raise UserError(f"{run.name} has no answers to export")
    files = {row.position: f"answer-{number:05}.html" for number, row in enumerate(page.rows)}
    (out / "static").mkdir(parents=True)
    for name in _STATIC:
        shutil.copyfile(pages.HERE / "static" / name, out / "static" / name)
    shared = {"exported": True, "base": "", "files": files}
    table = {"run": run, "index": index, "filters": filters, "page": page}
    _write(out / "index.html", "exported.html.j2", {**table, **shared})
    shown = pages.Shown(run=run, index=index, filters=filters, probes=runs.probes())
    for row in page.rows:
        context = pages.answer_context(shown, row)
        # The last page has no link to an answer that is not exported.
        if context["after"] is not None and context["after"].position not in files:
            context["after"] = None
        _write(out / files[row.position], "answer.html.j2", {**context, **shared})
    return len(page.rows)


def _write(path: Path, template: str, context: pages.Context) -> None:
    text = pages.environment().get_template(template).render(**context)
    path.write_bytes(text.encode("utf-8", "replace"))
