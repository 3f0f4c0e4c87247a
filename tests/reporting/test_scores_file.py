"""scores.json keeps its bytes, is read as it was written, and is refused in one sentence."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.errors import UserError
from ssd_ray.reporting.comparison import ComparedScores
from ssd_ray.reporting.numbers.scores import FORMAT, Scores
from ssd_ray.reporting.numbers.scores_file import read_part, read_scores, scores_text
from ssd_ray.reporting.page import measure
from ssd_ray.reporting.readings import readings
from tests.support import synthetic_run

GOLDEN = Path(__file__).parents[1] / "golden" / "scores.json"
"""Written by a version that handled scores as nested dictionaries."""
PROBLEMS = {"builtin": ("easy", "easy", "hard", "hard"), "humaneval": ("unknown",)}
DECODING = {"temperature": 0.7, "top_k": 20}
EVALUATE = {
    "arms": {name: {"model": name, **DECODING} for name in ("base", "ssd")},
    "sweep": [0.9],
    "controls": ["teacher", "naive"],
    "profiles": ["strict", "lcb-compat"],
    "samples_per_problem": 2,
    "pass_at": [1],
    "bootstrap_samples": 100,
}
DOCUMENT: dict[str, Any] = json.loads(GOLDEN.read_text())


def paths(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within a JSON document."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*at, key))


PATHS = list(paths(DOCUMENT))


def changed(path: tuple[Any, ...], *change: Any) -> dict[str, Any]:
    """Return the golden document with one value replaced, or removed if no change is given."""
    document = copy.deepcopy(DOCUMENT)
    node: Any = document
    for key in path[:-1]:
        node = node[key]
    if change:
        node[path[-1]] = change[0]
    else:
        del node[path[-1]]
    return document


def stored(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_scores_of_a_run_keep_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_run, "PROBLEMS", PROBLEMS)
    made = synthetic_run.make_run(tmp_path, synthetic_run.recipe(evaluate=EVALUATE))
    scores, _ = measure(made.recipe, made.path)
    assert scores_text(scores) == GOLDEN.read_text()
    assert read_scores(GOLDEN) == scores


def test_scores_are_read_as_they_were_written() -> None:
    scores = read_scores(GOLDEN)
    assert scores_text(scores) == GOLDEN.read_text()
    assert len(readings(scores)) == 8


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    for path in ((), ("order",), ("benchmarks", "builtin", "all"), ("training", "samples")):
        document = changed((*path, "of another version"), {"new": [1]})
        assert read_scores(stored(tmp_path / "scores.json", document)) == read_scores(GOLDEN)


@pytest.mark.parametrize(
    ("path", "change", "name"),
    [
        (("headline",), (), "headline (field required)"),
        (("order", "arms"), (), "order.arms (field required)"),
        (("confidence",), ("high",), "confidence (input should be a valid number"),
        (
            ("benchmarks", "builtin", "all", "arms", "base@T=0.7", "score", "pass@1"),
            ({"estimate": 1},),
            "benchmarks.builtin.all.arms.base@T=0.7.score.pass@1.low (field required)",
        ),
        (("problems",), ([],), "problems (input should be a valid"),
    ],
)
def test_an_unreadable_field_is_named(
    tmp_path: Path, path: tuple[Any, ...], change: tuple[Any, ...], name: str
) -> None:
    file = stored(tmp_path / "scores.json", changed(path, *change))
    with pytest.raises(UserError, match=re.escape(f"no readable {name}")) as raised:
        read_scores(file)
    assert str(raised.value).startswith(f"{file} has format {FORMAT} and ")
    assert str(raised.value).endswith(
        f"delete {tmp_path} and run `ssd-ray report`, which makes only the report again"
    )


def refusal(file: Path, part: type[Any]) -> str:
    """Return the sentence that refuses a file, empty if it can be read."""
    try:
        read_part(file, part)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.slow
@settings(max_examples=40)
@given(path=st.sampled_from(PATHS), change=st.sampled_from([(), (None,), ("text",), ([],), ({},)]))
def test_a_damaged_document_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[Any, ...], change: tuple[Any, ...]
) -> None:
    file = stored(tmp_path_factory.getbasetemp() / "scores.json", changed(path, *change))
    for part in (Scores, ComparedScores):
        sentence = refusal(file, part)
        assert "\n" not in sentence
        assert not sentence or "run `ssd-ray report`" in sentence


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(UserError, match=r"scores\.json.*delete its directory and run again"):
        read_scores(tmp_path / "scores.json")


def test_scores_of_an_earlier_format_are_refused_or_compared(tmp_path: Path) -> None:
    before = copy.deepcopy(DOCUMENT) | {"format": 3}
    for arm in before["benchmarks"]["builtin"]["all"]["arms"].values():
        for difference in filter(None, arm["difference"].values()):
            difference["p_exact"] = True
            del difference["better"], difference["worse"]
    file = stored(tmp_path / "scores.json", before)
    with pytest.raises(UserError, match=r"format 3 .*better .*reads format 4: delete"):
        read_scores(file)
    assert read_part(file, ComparedScores) == read_part(GOLDEN, ComparedScores)
