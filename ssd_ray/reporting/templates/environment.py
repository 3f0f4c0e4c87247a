"""The template engine of the pages: it escapes every string, knows no missing value, and writes numbers as `words` does.

Reads the templates beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from ssd_ray.reporting import words
from ssd_ray.reporting.numbers import profiles
from ssd_ray.statistics import differences

MAX_FLIPS = 100
"""Flipped verdicts that the page lists; scores.json holds all of them."""


def environment(*, escape: bool = True) -> jinja2.Environment:
    """The environment of report.html, health.html and the sections that they share; a Markdown card is not escaped."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        percent=words.percent,
        points=words.points,
        count=words.count,
        counted=words.counted,
        decimals=words.decimals,
        doubt=words.doubt,
        gain=words.gain,
        tally=words.tally,
        rate=words.rate,
        score=words.score,
        score_range=words.score_range,
        size=words.size,
        duration=words.duration,
        number=words.number,
        told=words.told,
        isolation=words.isolation,
        official=words.official,
        plain=words.plain,
        pair=lambda name, groups: (name, groups[name]),
        shares=_shares,
        chosen=words.chosen,
        versions=_versions,
    )
    made.tests["few"] = words.is_few
    made.globals.update(
        decoding=words.decoding,
        NOT_RECORDED=words.NOT_RECORDED,
        CONTROLS=words.CONTROLS,
        MIN_PROBLEMS=differences.MIN_PROBLEMS,
        MAX_FLIPS=MAX_FLIPS,
        KNOWN_FLIPS=profiles.KNOWN_FLIPS,
    )
    return made


def _shares(found: Mapping[str, float] | None) -> list[tuple[str, str]]:
    return [
        (f"Share of answer tokens: {words.plain(name)}", words.percent(share))
        for name, share in (found or {}).items()
    ]


def _versions(found: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [
        (name, " and ".join(versions) + (" (stages differ)" if len(versions) > 1 else ""))
        for name, versions in found.items()
    ]
