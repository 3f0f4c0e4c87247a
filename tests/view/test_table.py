"""Filters of the table give the answers that the same question of the rows gives."""

from __future__ import annotations

import re

from starlette.testclient import TestClient

from tests.support.synthetic_run import Made


def _count(page: str) -> int:
    match = re.search(r'id="count" role="status"><strong>([\d,]+)</strong>', page)
    assert match is not None, page
    return int(match[1].replace(",", ""))


def test_runs_lead_to_answers_and_an_answer(client: TestClient, made: Made) -> None:
    home = client.get("/")
    assert "first" in home.text
    table = client.get("/answers", params={"run": "first", "stage": "generations"})
    expected = sum(len(rows) for rows in made.completions.values())
    assert _count(table.text) == expected
    links = re.findall(r'class="row" href="([^"]+)"', table.text)
    assert len(links) == 50
    answer = client.get(links[0].replace("&amp;", "&"))
    assert answer.status_code == 200
    assert "Verdict" in answer.text
