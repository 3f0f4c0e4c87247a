"""Damaged, old, missing and deleted runs give one sentence; a running one is followed."""

from __future__ import annotations

import html
import json
import re
import shutil
import time
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from ssd_ray.artifacts.files import write_atomic
from ssd_ray.errors import UserError
from ssd_ray.view.runs import Runs
from tests.support.synthetic_run import Made, make_run, recipe, reported
from tests.view.browser import TOKEN, served
from tests.view.conftest import client_of


def sentence(page: str) -> str:
    """Return the sentence of a page with a message alone."""
    match = re.search(r'role="alert">([^<]*)<', page)
    assert match is not None, page
    assert "Traceback" not in page
    return html.unescape(match[1])


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Path:
    """A copy of the synthetic run, to be damaged."""
    return Path(shutil.copytree(made.path, tmp_path / "runs" / "one"))


def test_a_directory_without_runs(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    page = client.get("/")
    assert page.status_code == 200
    assert sentence(page.text).startswith(f"no run below {tmp_path}")
    assert 'http-equiv="refresh"' in page.text
    (tmp_path / "new" / "generations").mkdir(parents=True)
    time.sleep(2.1)
    assert "/run?run=new" in client.get("/").text
    with pytest.raises(UserError, match="is no directory"):
        Runs.below([tmp_path / "missing"])


@pytest.mark.parametrize("keep", [0, 3, 200, -9])
def test_a_half_written_shard_is_left_out(run: Path, keep: int) -> None:
    shard = run / "generations" / "ssd" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:keep])
    page = client_of(run.parent).get("/answers?run=one&arm=ssd")
    assert page.status_code == 200
    assert "generations/ssd/part-00000.parquet is left out" in page.text
    assert "<strong>72</strong>" in page.text


def test_a_damaged_shard_with_both_ends_is_left_out(run: Path) -> None:
    shard = run / "generations" / "ssd" / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    data[-8 - footer : -8] = bytes(footer)
    shard.write_bytes(data)
    page = client_of(run.parent).get("/answers?run=one")
    assert page.status_code == 200
    assert "generations/ssd/part-00000.parquet is left out" in page.text


def test_damaged_texts_give_one_sentence(run: Path) -> None:
    shard = run / "generations" / "ssd" / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    with pq.ParquetFile(shard) as file:
        group = file.metadata.row_group(0)
        text = next(
            group.column(number)
            for number in range(group.num_columns)
            if group.column(number).path_in_schema == "text"
        )
    start = text.dictionary_page_offset or text.data_page_offset
    data[start : start + text.total_compressed_size] = bytes(text.total_compressed_size)
    shard.write_bytes(data)
    client = client_of(run.parent)
    page = client.get("/answers?run=one")
    assert page.status_code == 200
    assert "part-00000.parquet has no health" in page.text
    assert "damaged" in sentence(client.get("/answers?run=one&q=print").text)
    address = "/answer?run=one&in=generations/ssd&id=builtin/00&n=0"
    assert "damaged" in sentence(client.get(address).text)


def test_a_run_of_another_format_is_named(run: Path) -> None:
    manifest = run / "samples" / "manifest.json"
    write_atomic(manifest, json.dumps(json.loads(manifest.read_text()) | {"format": 9}))
    page = client_of(run.parent).get("/run?run=one").text
    assert "samples has format 9, and this version of ssd_ray reads format 1" in page


def test_files_that_are_no_json_or_yaml(run: Path) -> None:
    (run / "report").mkdir()
    for name in ("owner.json", "report/scores.json", "recipe.yaml", "samples/timing.json"):
        (run / name).write_bytes(b"\xff{[: half")
    client = client_of(run.parent)
    assert client.get("/").status_code == 200
    assert client.get("/answers?run=one").status_code == 200


def test_a_run_deleted_while_it_is_open(run: Path) -> None:
    client = client_of(run.parent)
    address = "/answer?run=one&in=generations/base&id=builtin/00&n=0"
    assert client.get(address).status_code == 200
    shutil.rmtree(run / "generations")
    assert "deleted" in sentence(client.get(address).text)
    shutil.rmtree(run)
    for page in (address, "/answers?run=one", "/run?run=one", "/report?run=one", "/events?run=one"):
        assert "it was deleted or renamed" in sentence(client.get(page).text)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/answers?run=first&sort=evil", "cannot be sorted by 'evil'"),
        ("/answers?run=first&least=many", "is no length"),
        ("/answers?run=first&after=x%3Ay", "damaged key"),
        ("/answers?run=first&q=" + "x" * 501, "at most 500 characters"),
        ("/answer?run=first&in=samples&id=none&n=0", "has no answer 0 to none"),
        ("/changes?run=first&from=base&to=none", "has no arm 'none'"),
        ("/changes?run=first&from=base&to=ssd&way=up", "way='up'"),
        ("/compare?run=first", "takes two runs"),
        ("/download?run=first&format=exe", "none of jsonl and parquet"),
        ("/compare?run=first&run=first", "has no report/scores.json"),
    ],
)
def test_a_mistake_in_an_address_is_one_sentence(
    client: TestClient, address: str, words: str
) -> None:
    assert words in sentence(client.get(address).text)


def test_runs_of_different_benchmarks_say_so(tmp_path: Path) -> None:
    first = make_run(tmp_path / "runs" / "first")
    second = make_run(tmp_path / "runs" / "second", seed=1, evil="other-")
    for made in (first, second):
        reported(made)
    client = client_of(tmp_path / "runs")
    page = client.get("/compare?run=first&run=second")
    assert "the problems differ" in page.text
    changes = client.get("/changes?run=second&from_run=first&from=base&to=ssd")
    assert "no problem is graded on both sides" in sentence(changes.text)
    assert recipe().name == "quickstart"


def test_samples_of_several_temperatures_are_sources(made: Made, tmp_path: Path) -> None:
    for arm in ("base", "T=1.5"):
        shutil.copytree(made.path / "samples", tmp_path / "runs" / "cast" / "samples" / arm)
    (tmp_path / "runs" / "cast" / "recipe.yaml").write_text("{}")
    page = client_of(tmp_path / "runs").get("/answers?run=cast&arm=T%3D1.5")
    assert "<strong>40</strong> of 80 answers" in page.text


@pytest.mark.slow
def test_a_running_run_is_followed_to_its_end(run: Path) -> None:
    (run / "owner.json").write_text(json.dumps({"outcome": None}))
    log = run / "logs" / "progress.log"
    log.parent.mkdir()
    log.write_text("samples: 3/40 answers, 0:05, 9.7 tok/s, about 1:00 left\n")
    with served(run.parent) as base:
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        home = opener.open(f"{base}/?token={TOKEN}").read().decode()
        assert 'data-events="/events?run=one"' in home
        events = opener.open(f"{base}/events?run=one", timeout=20)
        states = []
        for line in events:
            if line.startswith(b"data: {"):
                states.append(json.loads(line[6:]))
            if len(states) == 1:
                with log.open("a") as handle:
                    handle.write("samples: done, 40/40 answers in 0:09, mean 9 tok/s\n")
            if len(states) == 2:
                (run / "owner.json").write_text(json.dumps({"outcome": {"code": 0}}))
            if line.startswith(b"event: end"):
                break
    first, last = states[0]["bars"][0], states[1]["bars"][0]
    assert (first["done"], first["total"]) == (3, 40)
    assert first["text"].endswith("9.7 tok/s, about 1:00 left")
    assert (last["done"], last["total"]) == (40, 40)


def test_nothing_is_written_into_a_run(run: Path) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size if path.is_file() else 0)
            for path in (run, *run.rglob("*"))
        }

    before = state()
    client = client_of(run.parent)
    for address in ("/", "/run?run=one", "/answers?run=one&q=print", "/classify?run=one"):
        assert client.get(address).status_code == 200
    client.get("/download?run=one&format=parquet")
    assert state() == before
