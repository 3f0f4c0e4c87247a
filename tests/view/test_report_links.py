"""Each number and bar of a served report leads to exactly the rows that it counts."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.support.synthetic_run import EVIL, make_run, reported
from tests.view.conftest import client_of

_LINK = re.compile(r'<a href="([^"]*)"(?: title="([^"]*)")?[^>]*>([^<]*)</a>')


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    """A reported run with hostile names, behind the view."""
    made = make_run(tmp_path_factory.mktemp("reports") / "first", evil=EVIL)
    reported(made)
    with client_of(made.path.parent) as client:
        yield client, made.path


def _links(page: str) -> list[tuple[str, str, str]]:
    links = [tuple(map(html.unescape, link)) for link in _LINK.findall(page)]
    return [link for link in links if link[0].startswith(("/changes", "/answers"))]


def _rows(client: TestClient, address: str) -> int:
    page = client.get(address)
    assert page.status_code == 200, address
    if address.startswith("/changes"):
        return page.text.count('class="row"')
    return int(re.search(r'id="count"[^>]*>\s*<strong>([\d,]+)', page.text)[1].replace(",", ""))


def test_counts_lead_to_as_many_rows(served: tuple[TestClient, Path]) -> None:
    client, _ = served
    page = client.get("/report", params={"run": "first"}).text
    counted = {
        (address, int(number[1].replace(",", "")))
        for address, label, text in _links(page)
        if (number := re.search(r"^([\d,]+)(?: better| worse| equal|$)", text))
        or (number := re.search(r": ([\d,]+) answers$", label))
    }
    kinds = {re.split(r"[?&]run=", address)[0] for address, _ in counted}
    assert kinds == {"/answers", "/changes"}
    assert len(counted) > 40
    assert any("metric=pass%405" in address for address, _ in counted)
    assert any("difficulty=easy" in address for address, _ in counted)
    assert [each for each in counted if _rows(client, each[0]) != each[1]] == []


def test_every_other_link_of_a_report_opens(served: tuple[TestClient, Path]) -> None:
    client, _ = served
    page = client.get("/report", params={"run": "first"}).text
    assert 'data-rows="' not in page
    assert 'data-areas="' not in page
    assert "<script" not in page
    for address in {address for address, _, _ in _links(page)}:
        assert client.get(address).status_code == 200


def test_the_report_on_disk_has_no_links_to_rows(served: tuple[TestClient, Path]) -> None:
    page = (served[1] / "report" / "report.html").read_text()
    assert _links(page) == []


@pytest.mark.parametrize("place", ["https://elsewhere.invalid/?a=b", "//elsewhere.invalid", "raw?"])
def test_a_place_elsewhere_in_a_report_is_no_link(made_run: Path, place: str) -> None:
    report = made_run / "report" / "report.html"
    report.parent.mkdir()
    report.write_text(f'<body><span data-rows="{place}">4</span></body>')
    page = client_of(made_run.parent).get("/report?run=one").text
    assert "<span>4</span>" in page


@pytest.fixture
def made_run(tmp_path: Path) -> Path:
    """A run directory without anything in it but its recipe."""
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("{}")
    return run
