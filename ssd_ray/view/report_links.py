"""Numbers and bars of a served report as links to their rows.

The report on disk marks them with the place of their rows (`data-rows`, `data-areas`), and has no
links itself. Pure functions on the text of the page.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from markupsafe import Markup

_MARKED = re.compile(
    r'<(?P<tag>span|td|th)(?P<before>(?: [a-z]+="[^"<>]*")*) data-rows="(?P<rows>[^"<>]*)"'
    r"(?P<after>[^<>]*)>(?P<text>[^<]*)</(?P=tag)>"
)
_PICTURE = re.compile(r'<img (?P<rest>[^<>]*) data-areas="(?P<areas>[^"<>]*)">')
_WAY = re.compile(r"[\d,]+ (?P<way>better|worse|equal)\b")
_PAGES = ("answers", "changes")


def linked(page: str, run: str) -> str:
    """Return the page of a report with links to the rows of a run."""

    def number(match: re.Match[str]) -> str:
        text, place = match["text"], html.unescape(match["rows"])
        tag = f"<{match['tag']}{match['before']}{match['after']}>"
        return f"{tag}{_number(run, place, text)}</{match['tag']}>"

    def picture(match: re.Match[str]) -> str:
        try:
            areas = "".join(_bar(run, area) for area in json.loads(html.unescape(match["areas"])))
        except (ValueError, TypeError):
            # A damaged report: its picture stays without links.
            return match[0]
        return f'<span style="display:block;position:relative"><img {match["rest"]}>{areas}</span>'

    return _PICTURE.sub(picture, _MARKED.sub(number, page))


def address(run: str, place: str, **more: str) -> str:
    """Return the address of a place, "" if it is none of the pages with rows."""
    page, _, query = place.partition("?")
    if page not in _PAGES:
        return ""
    return f"/{page}?{urlencode([('run', run), *parse_qsl(query), *more.items()])}"


def _number(run: str, place: str, text: str) -> str:
    """Return a text as a link; counts of changed problems lead to those of their way."""
    if place.startswith("changes?") and _WAY.search(text):
        return _WAY.sub(lambda way: _link(address(run, place, way=way["way"]), way[0]), text)
    return _link(address(run, place), text)


def _link(target: str, text: str) -> str:
    # The text is markup of the report already.
    return f'<a href="{html.escape(target)}">{text}</a>' if target and text.strip() else text


def _bar(run: str, area: Sequence[Any]) -> str:
    """Return a link over a bar, at its place in percent of the picture."""
    left, top, width, height, label, place = area
    target = address(run, place)
    if not target:
        return ""
    box = (
        f"left:{float(left):.2f}%;top:{float(top):.2f}%;"
        f"width:{float(width):.2f}%;height:{float(height):.2f}%"
    )
    link = '<a href="{}" title="{}" aria-label="{}" style="position:absolute;{}"></a>'
    return Markup(link).format(target, label, label, box)
