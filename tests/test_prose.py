"""Docstrings, comments and pages are in plain English: short sentences, words of the field."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.prose import (
    BANNED,
    COLUMNS,
    RELATIVE,
    banned_words,
    long_first_lines,
    measure,
    measure_page,
    nodes,
)

ROOT = Path(__file__).parent.parent
FOLDERS = ("ssd_ray", "tests", "benchmarks", "jobs")
MODULES = tuple(sorted((ROOT / "ssd_ray").rglob("*.py")))
FILES = tuple(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
PAGES = (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))
RELATIVE_LIMIT = 12.0
"""Relative words (`RELATIVE`) per 1,000 words."""
OPENING_LIMIT = 0.03
"""Share of docstrings with an interrogative opening."""
VERBS = ("found", "given", "said", "told")
"""Verbs once used as names of variables."""
COMMENT_SHARE = 0.02
"""Least share of lines with nothing but a comment."""


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
    named = set(re.findall(r"docs/\w+\.md", "".join(path.read_text() for path in MODULES)))
    assert {page for page in named if not (ROOT / page).exists()} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_have_short_sentences_and_state_the_subject(folder: str) -> None:
    prose = measure((ROOT / folder).rglob("*.py"))
    assert prose.per_thousand(RELATIVE) <= RELATIVE_LIMIT
    assert prose.question_openings <= OPENING_LIMIT


def test_docstrings_and_comments_have_plain_words() -> None:
    assert _by_file(banned_words) == {}


def test_first_lines_of_docstrings_are_short() -> None:
    assert _by_file(long_first_lines) == {}


def test_variables_are_nouns() -> None:
    assert _by_file(_verbs_as_variables) == {}


def test_hard_places_have_comments() -> None:
    assert measure(MODULES).comment_share >= COMMENT_SHARE


def test_lines_of_the_package_fit_the_columns() -> None:
    # In tests ruff checks this, with exceptions for data: hostile programs, other scripts.
    complaints = _by_file(_long_lines)
    assert {name for name in complaints if name.startswith("ssd_ray/")} == set()


def _by_file(complaints: Callable[[str], list[str]]) -> dict[str, list[str]]:
    """Return the complaints about each file with any."""
    by_file = {str(path.relative_to(ROOT)): complaints(path.read_text()) for path in FILES}
    return {name: each for name, each in by_file.items() if each}


def _verbs_as_variables(source: str) -> list[str]:
    names = [
        node.id
        for node in nodes(source)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    names += [node.arg for node in nodes(source) if isinstance(node, ast.arg)]
    return sorted(name for name in names if name in VERBS)


def _long_lines(source: str) -> list[str]:
    return [line for line in source.splitlines() if len(line) > COLUMNS]
