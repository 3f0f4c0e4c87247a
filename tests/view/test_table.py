"""The table agrees with the same question of the rows, page by page and as a file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from starlette.testclient import TestClient

from ssd_ray.artifacts.shards import read_rows
from ssd_ray.schema import Completion, Verdict
from ssd_ray.view import index as index_module
from ssd_ray.view import parquet, queries
from ssd_ray.view.classes import classify
from ssd_ray.view.filters import CLASSES, SORTS, Filters
from ssd_ray.view.index import Index
from ssd_ray.view.runs import Runs
from tests.support.synthetic_run import Made

VALUES = {
    "stage": ("generations", "samples"),
    "arm": ("base", "ssd", "samples"),
    "benchmark": ("builtin", "humaneval", "no such"),
    "difficulty": ("easy", "medium", "hard", "unknown"),
    "outcome": ("accepted", "wrong_answer", "not graded", "time_limit"),
    "finish": ("stop", "length"),
}
TEXTS = ("", "print", "PRINT", "expected 4, got 5", "no such text", "%", "_", "'", "\\")


@pytest.fixture(scope="module")
def index(made: Made) -> Iterator[Index]:
    """The index of the synthetic run, with classes."""
    (run,) = Runs.below([made.path]).all().values()
    index = Index(run)
    classify(index)
    yield index
    index.close()


@pytest.fixture(scope="module")
def table(made: Made) -> pa.Table:
    """Its answers and verdicts as one Arrow table, joined in Python."""
    rows = []
    for place, stage, arm in (
        ("generations/base", "generations", "base"),
        ("generations/ssd", "generations", "ssd"),
        ("samples", "samples", "samples"),
    ):
        verdicts = {}
        if stage == "generations":
            judged = read_rows(made.path / "verdicts" / arm, Verdict)
            verdicts = {(row.prompt_id, row.sample_index): row for row in judged}
        for row in read_rows(made.path / place, Completion):
            verdict = verdicts.get((row.prompt_id, row.sample_index))
            rows.append(
                {
                    "stage": stage,
                    "arm": arm,
                    "prompt_id": row.prompt_id,
                    "sample_index": row.sample_index,
                    "benchmark": row.source,
                    "difficulty": row.difficulty,
                    "finish": row.finish_reason,
                    "tokens": len(row.output_token_ids),
                    "outcome": verdict.outcome if verdict else "not graded",
                    "num_passed": verdict.num_passed if verdict else 0,
                    "text": row.text,
                    "detail": verdict.detail if verdict else "",
                }
            )
    return pa.Table.from_pylist(rows)


filters = st.fixed_dictionaries(
    {
        **{name: st.lists(st.sampled_from(each), max_size=2) for name, each in VALUES.items()},
        "least": st.sampled_from(["", "0", "20", "64"]),
        "most": st.sampled_from(["", "10", "63"]),
        "q": st.sampled_from(TEXTS),
        "sort": st.sampled_from(sorted(SORTS)),
        "descending": st.sampled_from(["", "1"]),
    }
)


def parsed(chosen: dict[str, str | list[str]]) -> Filters:
    pairs = [
        (name, value)
        for name, values in chosen.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return Filters.parse(QueryParams(pairs))


def asked_of_arrow(table: pa.Table, wanted: Filters) -> pa.Table:
    for name in VALUES:
        if values := getattr(wanted, name):
            table = table.filter(pc.is_in(table[name], value_set=pa.array(values)))
    if wanted.least is not None:
        table = table.filter(pc.greater_equal(table["tokens"], wanted.least))
    if wanted.most is not None:
        table = table.filter(pc.less_equal(table["tokens"], wanted.most))
    if wanted.q:
        held = [pc.match_substring(table[name], wanted.q, ignore_case=True) for name in TEXT]
        table = table.filter(pc.or_(*held))
    return table


TEXT = ("text", "detail")


def keys(rows: list[queries.Row]) -> list[tuple[str, str, int]]:
    return [(row.arm, row.prompt_id, row.sample_index) for row in rows]


def all_pages(index: Index, wanted: Filters) -> list[queries.Row]:
    rows: list[queries.Row] = []
    after = ""
    while True:
        page = queries.page(index, wanted, after, rows=37)
        rows += page.rows
        after = page.after
        if not after:
            return rows


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(chosen=filters)
def test_filters_equal_the_question_of_arrow(
    index: Index, table: pa.Table, chosen: dict[str, str | list[str]]
) -> None:
    wanted = parsed(chosen)
    expected = asked_of_arrow(table, wanted)
    counted = queries.count(index, wanted)
    assert counted.rows == len(expected)
    assert counted.accepted == expected["outcome"].to_pylist().count("accepted")
    rows = all_pages(index, wanted)
    columns = [expected[name].to_pylist() for name in ("arm", "prompt_id", "sample_index")]
    assert sorted(keys(rows)) == sorted(zip(*columns, strict=True))
    values = [getattr(row, wanted.sort) for row in rows]
    assert values == sorted(values, reverse=wanted.descending)
    for name, facet in queries.facets(index, wanted).items():
        if name == "health":
            continue
        other = asked_of_arrow(table, wanted.without(name))
        counts = {each["values"]: each["counts"] for each in other[name].value_counts().to_pylist()}
        assert {value.value: value.rows for value in facet if value.rows} == counts


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(chosen=filters)
def test_neighbors_follow_the_order_of_the_table(
    index: Index, chosen: dict[str, str | list[str]]
) -> None:
    wanted = parsed(chosen)
    rows = all_pages(index, wanted)
    for number in range(0, len(rows), 61):
        after = queries.neighbor(index, wanted, rows[number], forward=True)
        before = queries.neighbor(index, wanted, rows[number], forward=False)
        assert after == (rows[number + 1] if number + 1 < len(rows) else None)
        assert before == (rows[number - 1] if number else None)


@given(chosen=filters)
def test_a_link_holds_the_complete_state(chosen: dict[str, str | list[str]]) -> None:
    wanted = parsed(chosen)
    assert Filters.parse(QueryParams(wanted.address("run"))) == wanted


def test_health_classes_are_those_of_the_data_set(index: Index, made: Made) -> None:
    from ssd_ray.artifacts.dataset_facts import DatasetFacts
    from ssd_ray.artifacts.manifests import load_facts

    health = load_facts(made.path / "dataset", DatasetFacts).health
    assert health is not None
    facet = queries.facets(index, Filters(stage=("samples",)))["health"]
    counts = {value.value: value.rows for value in facet}
    expected = {name: health.classes[name].rows for name in CLASSES}
    assert {name: counts.get(name, 0) for name in CLASSES} == expected


def test_runs_lead_to_answers_and_an_answer(client: TestClient, made: Made) -> None:
    assert "first" in client.get("/").text
    table = client.get("/answers", params={"run": "first", "stage": "generations"})
    expected = sum(len(rows) for rows in made.completions.values())
    assert f"<strong>{expected}</strong> of" in table.text
    links = re.findall(r'class="row" href="([^"]+)"', table.text)
    assert len(links) == queries.PAGE_ROWS
    answer = client.get(links[0].replace("&amp;", "&"))
    assert answer.status_code == 200
    assert "print(2 * int(input()))" in re.sub(r"<[^>]+>", "", answer.text)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_filtered_rows_are_taken_away(client: TestClient, made: Made, form: str) -> None:
    chosen = {"run": "first", "arm": "ssd", "outcome": "wrong_answer", "format": form}
    content = client.get("/download", params=chosen).content
    if form == "jsonl":
        rows = [json.loads(line) for line in content.splitlines()]
    else:
        rows = pq.read_table(io.BytesIO(content)).to_pylist()
    texts = {(row.prompt_id, row.sample_index): row.text for row in made.completions["ssd"]}
    verdicts = [row for row in made.verdicts["ssd"] if row.outcome == "wrong_answer"]
    assert {(row["prompt_id"], row["sample_index"], row["detail"]) for row in rows} == {
        (row.prompt_id, row.sample_index, row.detail) for row in verdicts
    }
    assert all(row["text"] == texts[row["prompt_id"], row["sample_index"]] for row in rows)


@pytest.mark.parametrize(
    ("detail", "signs"),
    [
        ("test 1: line 2 is '3' and should be '4'", [("-", "'4'"), ("+", "'3'")]),
        ("test 1: returned 'a' and should have returned 'b'", [("-", "'b'"), ("+", "'a'")]),
        ("test 1: TypeError: 'int' object is not iterable", []),
    ],
)
def test_got_and_expected_are_those_of_the_verdict(
    detail: str, signs: list[tuple[str, str]]
) -> None:
    from ssd_ray.view.answers import compared_values

    assert [(line.sign, line.text) for line in compared_values(detail)] == signs


def test_an_exported_site_has_its_links(made: Made, tmp_path: Path) -> None:
    from ssd_ray.view.export import export

    site = tmp_path / "site"
    assert export(Runs.below([made.path]), site, 30) == 30
    pages = {path.name: path.read_text() for path in site.glob("*.html")}
    assert len(pages) == 31
    for page in pages.values():
        for link in re.findall(r'(?:href|src)="([^"#]+)"', page):
            assert (site / link).exists(), link


def test_many_small_shards_are_searched_alike(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Runs.below([made.path.parent]).get("first")
    plain = Index(run)
    monkeypatch.setattr(index_module, "MANY_FILES", 1)
    monkeypatch.setattr(parquet, "BATCH_FILES", 1)
    gathered = Index(run)
    folder = Path(gathered._gathered.of(run.path / "generations" / "ssd")[0]).parent
    assert not folder.is_relative_to(run.path)
    for filters in (
        Filters(),
        Filters(q="PRINT"),
        Filters(q="expected 4", arm=("ssd",)),
        Filters(q="nothing like it"),
        Filters(outcome=("accepted",), sort="num_passed"),
    ):
        pages = [queries.page(each, filters, rows=1000).rows for each in (plain, gathered)]
        assert [(row.position, row.outcome) for row in pages[0]] == [
            (row.position, row.outcome) for row in pages[1]
        ]
    assert queries.count(gathered, Filters(q="expected 4")).rows > 0
    gathered.close()
    assert not folder.exists()
