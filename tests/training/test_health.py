"""Data health: figures match a plain recount, and policies change the loss as documented."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssd_ray.artifacts.dataset_facts import Masked
from ssd_ray.artifacts.shards import read_rows
from ssd_ray.config import Policies, PrepareConfig
from ssd_ray.errors import UserError
from ssd_ray.extraction import extract_code
from ssd_ray.reasoning import ReasoningFormat
from ssd_ray.schema import Completion, Example
from ssd_ray.training.data.batches import collate
from ssd_ray.training.data.dataset import prepare
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.data.health import (
    CLASSES,
    GROUPS,
    LOOP_SHARE,
    NGRAM,
    TIMES,
    ParseOptions,
    repeated_share,
)
from tests.support.sample_rows import completion, write_samples

READING = ParseOptions(end_tokens=frozenset({2, 7}))
LOOP = (1, 4, 5) * 20
TEXTS = [
    "",
    "\n \n",
    "one line",
    "a\nb",
    "see\n```python\nprint(1)\n```\n",
    "cut\n```python\nprint(1",
]


def _naive_share(row: list[int]) -> float:
    grams = [tuple(row[start : start + NGRAM]) for start in range(len(row) - NGRAM + 1)]
    often = Counter(grams)
    return sum(often[gram] >= TIMES for gram in grams) / len(grams) if grams else 0.0


@given(rows=st.lists(st.lists(st.integers(0, 2), max_size=60), max_size=6))
def test_repetition_is_counted_within_answers_alone(rows: list[list[int]]) -> None:
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    assert repeated_share(tokens, offsets.astype(np.int64)).tolist() == pytest.approx(
        [_naive_share(row) for row in rows]
    )


def test_a_late_loop_is_found_and_a_repeated_program_is_no_loop() -> None:
    fresh = list(range(100, 400))
    shares = repeated_share(
        np.array(fresh + [7, 8, 9, 10] * 50 + fresh * 2, dtype=np.int32), np.array([0, 500, 1100])
    )
    assert shares[0] == pytest.approx(194 / 493, abs=0.01)
    assert shares[0] >= LOOP_SHARE > shares[1] == 0


rows_of_answers = st.lists(
    st.builds(
        completion,
        prompt_id=st.sampled_from("abcdef"),
        sample_index=st.integers(0, 9),
        output_token_ids=st.one_of(
            st.just(LOOP), st.lists(st.sampled_from([2, 5, 7]), max_size=4).map(tuple)
        ),
        text=st.sampled_from(TEXTS),
        finish_reason=st.sampled_from(["stop", "length"]),
    ),
    min_size=1,
    max_size=14,
    unique_by=lambda row: (row.prompt_id, row.sample_index),
)
policies = st.builds(
    Policies, **{name: st.sampled_from(["keep", "mask", "drop"]) for name in CLASSES}
)


def _classes(row: Completion, earlier: set[tuple[int, ...]]) -> set[str]:
    lines = sum(bool(line.strip()) for line in row.text.splitlines())
    marks = {
        "empty": lines == 0,
        "stub": lines == 1,
        "no_code": extract_code(row.text) is None,
        "cut_off": row.finish_reason == "length",
        "no_end_token": row.output_token_ids[-1:] not in ((2,), (7,)),
        "loop": _naive_share(list(row.output_token_ids)) >= LOOP_SHARE,
        "duplicate": row.output_token_ids in earlier,
    }
    return {name for name, holds in marks.items() if holds}


@pytest.mark.slow
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=rows_of_answers, chosen=policies)
def test_every_figure_is_that_of_a_plain_recount(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Completion], chosen: Policies
) -> None:
    ordered = sorted(rows, key=lambda row: (row.prompt_id, row.sample_index))
    classes = [
        _classes(row, {other.output_token_ids for other in ordered[:place]})
        for place, row in enumerate(ordered)
    ]
    gone = [
        not row.output_token_ids or any(getattr(chosen, name) == "drop" for name in kinds)
        for row, kinds in zip(ordered, classes, strict=True)
    ]
    out_of_loss = [any(getattr(chosen, name) == "mask" for name in kinds) for kinds in classes]
    samples, out = (
        write_samples(tmp_path_factory.mktemp("samples"), rows, 3),
        tmp_path_factory.mktemp("dataset"),
    )
    if all(left or masked for left, masked in zip(gone, out_of_loss, strict=True)):
        with pytest.raises(UserError, match="nothing to train on"):
            prepare(samples, PrepareConfig(policies=chosen), READING, out=out)
        return
    facts = prepare(samples, PrepareConfig(policies=chosen), READING, out=out)
    health: dict[str, Any] = facts.document()["health"]
    for name in CLASSES:
        members = [place for place, kinds in enumerate(classes) if name in kinds]
        counted = health["classes"][name]
        assert counted["rows"] == len(members)
        assert counted["tokens"] == sum(len(ordered[place].output_token_ids) for place in members)
        assert counted["dropped"] == sum(gone[place] for place in members)
        assert counted["masked"] == sum(out_of_loss[place] and not gone[place] for place in members)
        shown = [(row["prompt_id"], row["sample_index"]) for row in health["examples"][name]]
        assert shown == [
            (ordered[place].prompt_id, ordered[place].sample_index) for place in members[:2]
        ]
    assert (
        health["rows"]
        == len(rows)
        == sum(sum(counts) for counts in health["lengths"]["counts"].values())
    )
    assert health["tokens"] == sum(len(row.output_token_ids) for row in rows)
    assert health["distinct"] == len({row.output_token_ids for row in rows})
    assert health["most_copies"] == max(Counter(row.output_token_ids for row in rows).values())
    assert sum(sum(ends.values()) for ends in health["ends"].values()) == len(rows)
    assert health["ends"]["stop"]["no_end_token"] == sum(
        {"no_end_token"} <= kinds and "cut_off" not in kinds for kinds in classes
    )
    assert sum(health["lengths"]["counts"]["loop"]) == health["classes"]["loop"]["rows"]
    assert set(health["lengths"]["counts"]) == set(GROUPS)
    examples = list(read_rows(out, Example))
    assert [(row.prompt_id, row.sample_index, row.masked) for row in examples] == [
        (row.prompt_id, row.sample_index, masked)
        for row, left, masked in zip(ordered, gone, out_of_loss, strict=True)
        if not left
    ]
    assert facts.masked.rows == sum(row.masked for row in examples)
    assert facts.rows == len(examples) == facts.read - sum(facts.dropped.values())


def test_the_default_is_the_papers_filter() -> None:
    kept = {name for name in CLASSES if getattr(Policies(), name) == "keep"}
    assert set(CLASSES) - kept == {"empty", "stub"}
    assert (PrepareConfig().select, PrepareConfig().drop_shortest_percent) == ("all", 0)


def test_a_masked_answer_stays_in_the_batch_without_loss(tmp_path: Path) -> None:
    rows = [completion("a", output_token_ids=LOOP), completion("b", output_token_ids=(10, 11, 2))]
    choices = PrepareConfig(policies=Policies(loop="mask"))
    facts = prepare(
        write_samples(tmp_path / "samples", rows), choices, READING, out=tmp_path / "out"
    )
    assert facts.masked == Masked(rows=1, response_tokens=len(LOOP))
    examples = Examples(tmp_path / "out")
    assert examples.lengths.tolist() == [3 + len(LOOP), 6]
    assert examples.response_lengths.tolist() == [0, 3]
    micro = collate(examples, np.array([0, 1]), [1.0, 1.0])
    assert (micro.input_ids[0] != 0).all()
    assert not micro.weights[0].any()
    assert micro.targets[1][micro.weights[1] > 0].tolist() == [10, 11, 2]


def test_code_inside_reasoning_is_not_extracted(
    tmp_path: Path,
) -> None:
    text = "plan\n```python\nprint(1)\n```\n```python\n```"
    samples = write_samples(tmp_path / "samples", [completion("a", text=text)])
    for number, (reading, without) in enumerate(
        [
            (ParseOptions(), 1),
            (ParseOptions(reasoning=ReasoningFormat(opened="<think>")), 1),
            (ParseOptions(extract="lcb"), 0),
            (ParseOptions(extract="first-block"), 0),
        ]
    ):
        facts = prepare(samples, PrepareConfig(), reading, out=tmp_path / str(number))
        assert facts.health.classes["no_code"].rows == without, reading


def test_end_tokens_come_from_tokenizer_and_generation_config(
    tiny_llama: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    from ssd_ray.models.loading import end_tokens

    assert end_tokens(tiny_llama) == {2}
    other = shutil.copytree(tiny_llama, tmp_path / "model")
    path = other / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [0, 5]}))
    assert end_tokens(other) == {0, 2, 5}
