"""Docstrings, comments and pages are in plain English: short sentences, words of the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.prose import BANNED, COLUMNS, RELATIVE, measure_page

ROOT = Path(__file__).parent.parent
PAGES = (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))
RELATIVE_LIMIT = 12.0
"""That, which and what per 1,000 words."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_short_sentences_and_plain_words(page: Path) -> None:
    measured = measure_page(page)
    assert measured.per_thousand(RELATIVE) <= RELATIVE_LIMIT
    assert measured.per_thousand(BANNED) == 0
    assert measured.long_lines == (), f"lines above {COLUMNS} columns"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_pages_named_in_the_package_exist() -> None:
    sources = [path.read_text() for path in sorted((ROOT / "ssd_ray").rglob("*.py"))]
    named = set(re.findall(r"docs/\w+\.md", "".join(sources)))
    assert {page for page in named if not (ROOT / page).exists()} == set()
