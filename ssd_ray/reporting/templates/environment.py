"""The template engine of the pages, with the numbers of `words` as filters.

It escapes every string, and a missing variable is an error. Reads the templates of this folder.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from ssd_ray.reporting import words
from ssd_ray.reporting.numbers import profiles, questions
from ssd_ray.reporting.numbers.timings import USD_PER_GPU_HOUR
from ssd_ray.statistics import differences

MAX_FLIPS = 100
"""Most flipped verdicts to list on the page; scores.json holds all of them."""


@functools.cache  # an engine keeps its compiled templates
def environment(*, escape: bool = True) -> jinja2.Environment:
    """Return the template engine of report.html and health.html; `escape=False` for Markdown."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        # A missing variable must fail, not print as nothing.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters.update(
        percent=words.percent,
        points=words.points,
        count=words.count,
        counted=words.counted,
        decimals=words.decimals,
        evidence=words.evidence,
        gain=words.gain,
        tally=words.tally,
        rate=words.rate,
        score=words.score,
        score_range=words.score_range,
        size=words.size,
        duration=words.duration,
        number=words.number,
        listed=words.listed,
        isolation=words.isolation,
        official=words.official,
        plain=words.plain,
        pair=lambda name, groups: (name, groups[name]),
        shares=_shares,
        chosen=words.chosen,
        versions=_versions,
        visible=_visible,
        newline_marked=_newline_marked,
    )
    engine.tests["few"] = words.is_few
    engine.globals.update(
        decoding=words.decoding,
        NOT_RECORDED=words.NOT_RECORDED,
        control_text=words.control,
        PAPER_NO_CODE=questions.PAPER_NO_CODE,
        rows=words.rows,
        MIN_PROBLEMS=differences.MIN_PROBLEMS,
        MAX_FLIPS=MAX_FLIPS,
        USD_PER_GPU_HOUR=USD_PER_GPU_HOUR,
        KNOWN_FLIPS=profiles.KNOWN_FLIPS,
    )
    return engine


def _shares(shares: Mapping[str, float] | None) -> list[tuple[str, str]]:
    return [
        (f"Share of answer tokens: {words.plain(name)}", words.percent(share))
        for name, share in (shares or {}).items()
    ]


def _versions(by_package: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [
        (name, " and ".join(versions) + (" (stages differ)" if len(versions) > 1 else ""))
        for name, versions in by_package.items()
    ]


def _visible(text: str) -> str:
    """Return a token for a list: white space and control characters have signs."""
    marked = text.replace("\n", "\u23ce").replace("\t", "\u21e5").replace(" ", "\u2423")
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in marked) or "\u2205"


def _newline_marked(text: str) -> str:
    """Return a token for a text: a sign before the end of each line."""
    return text.replace("\n", "\u23ce\n")
