"""Samples become training sequences with their drawn tokens, and drops are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssd_ray.artifacts.dataset_facts import DatasetFacts
from ssd_ray.artifacts.shards import read_rows, write_shard
from ssd_ray.config import Policies, PrepareConfig
from ssd_ray.errors import UserError
from ssd_ray.schema import Completion, Example, Outcome, Verdict
from ssd_ray.training.data import dataset
from ssd_ray.training.data.dataset import prepare as prepare_reading
from ssd_ray.training.data.health import ParseOptions
from ssd_ray.training.data.selection import REASONS
from tests.support.sample_rows import completion, write_samples

KEEP = Policies(empty="keep", stub="keep")


def prepare(samples: Path, choices: PrepareConfig, *, out: Path) -> dict[str, Any]:
    return prepare_reading(samples, choices, ParseOptions(end_tokens=frozenset({2})), out=out)


def _dropped(facts: DatasetFacts) -> dict[str, int]:
    return {reason: count for reason, count in facts.dropped.items() if count}


completions = st.builds(
    completion,
    prompt_id=st.text(max_size=5),
    sample_index=st.integers(0, 3),
    prompt_token_ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6).map(tuple),
    output_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple),
    text=st.text(max_size=12),
    finish_reason=st.sampled_from(["stop", "length"]),
)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        completions,
        min_size=1,
        max_size=12,
        unique_by=lambda row: (row.prompt_id, row.sample_index),
    )
)
def test_sampled_ids_are_trained_ids_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Completion]
) -> None:
    samples, out = (
        write_samples(tmp_path_factory.mktemp("samples"), rows),
        tmp_path_factory.mktemp("dataset"),
    )
    choices = PrepareConfig(policies=KEEP)
    sampled = {(row.prompt_id, row.sample_index): row for row in rows if row.output_token_ids}
    if not sampled:
        with pytest.raises(UserError):
            prepare(samples, choices, out=out)
        return
    facts = prepare(samples, choices, out=out)
    examples = list(read_rows(out, Example))
    assert [(row.prompt_id, row.sample_index) for row in examples] == sorted(sampled)
    for example in examples:
        row = sampled[example.prompt_id, example.sample_index]
        assert example.input_ids == row.prompt_token_ids + row.output_token_ids
        assert example.num_prompt_tokens == len(row.prompt_token_ids)
    assert facts.rows + sum(facts.dropped.values()) == facts.read == len(rows)
    assert facts.response_tokens == sum(len(row.output_token_ids) for row in sampled.values())
    assert sum(facts.length_histogram.counts) == facts.rows
    assert set(facts.dropped) == set(REASONS)


def test_nothing_is_appended_to_an_answer_that_was_cut(tmp_path: Path) -> None:
    rows = [completion("a", output_token_ids=(10, 11), finish_reason="length"), completion("b")]
    facts = prepare(
        write_samples(tmp_path / "samples", rows), PrepareConfig(), out=tmp_path / "out"
    )
    assert [row.input_ids for row in read_rows(tmp_path / "out", Example)] == [
        (1, 2, 3, 10, 11),
        (1, 2, 3, 10, 11, 2),
    ]
    assert facts.finish_reasons == {"stop": 1, "length": 1}
    assert facts.token_share == {"stop": 0.6, "length": 0.4}
    assert facts.prompt_tokens == 6


def test_empty_answers_and_stubs_are_dropped_and_counted(tmp_path: Path) -> None:
    texts = {"empty": " \n\t\n", "stub": "\n\nprint(1)  \n\n", "kept": "a\nb"}
    rows = [completion(name, text=text) for name, text in texts.items()]
    samples = write_samples(tmp_path / "samples", rows)
    facts = prepare(samples, PrepareConfig(), out=tmp_path / "out")
    assert _dropped(facts) == {"empty": 1, "stub": 1}
    assert [row.prompt_id for row in read_rows(tmp_path / "out", Example)] == ["kept"]
    kept = prepare(samples, PrepareConfig(policies=KEEP), out=tmp_path / "all")
    assert kept.rows == 3


def test_an_answer_without_tokens_is_never_trained_on(tmp_path: Path) -> None:
    rows = [completion("a", output_token_ids=(), text=""), completion("b")]
    facts = prepare(
        write_samples(tmp_path / "samples", rows),
        PrepareConfig(policies=Policies(empty="keep")),
        out=tmp_path / "out",
    )
    assert _dropped(facts) == {"no_tokens": 1}


def test_the_shortest_share_is_dropped_by_characters_then_key(tmp_path: Path) -> None:
    rows = [
        completion(name, text=f"{name}\n{'x' * length}")
        for name, length in zip("dcba", (5, 1, 1, 1), strict=True)
    ]
    facts = prepare(
        write_samples(tmp_path / "samples", rows),
        PrepareConfig(drop_shortest_percent=50),
        out=tmp_path / "out",
    )
    assert _dropped(facts) == {"shortest": 2}
    assert [row.prompt_id for row in read_rows(tmp_path / "out", Example)] == ["c", "d"]


def test_over_long_sequences_are_cut_or_dropped_as_chosen(tmp_path: Path) -> None:
    rows = [
        completion("a"),
        completion("b", output_token_ids=(10, 2)),
        completion("c", prompt_token_ids=(1,) * 5),
    ]
    samples = write_samples(tmp_path / "samples", rows)
    facts = prepare(samples, PrepareConfig(max_length=5), out=tmp_path / "cut")
    assert (facts.truncated, _dropped(facts)) == (1, {"over_length": 1})
    assert [row.input_ids for row in read_rows(tmp_path / "cut", Example)] == [
        (1, 2, 3, 10, 11),
        (1, 2, 3, 10, 2),
    ]
    assert facts.finish_reasons == {"stop": 1, "length": 1}
    facts = prepare(
        samples, PrepareConfig(max_length=5, over_length="drop"), out=tmp_path / "dropped"
    )
    assert (facts.truncated, _dropped(facts)) == (0, {"over_length": 2})


def test_the_order_does_not_depend_on_how_samples_are_sharded(tmp_path: Path) -> None:
    rows = [
        completion(f"p{index % 5}", sample_index=index, output_token_ids=(index, 2))
        for index in range(11)
    ]
    for name, order, shard_rows in (("a", rows, 3), ("b", rows[::-1], 4)):
        prepare(
            write_samples(tmp_path / name, order, shard_rows),
            PrepareConfig(),
            out=tmp_path / f"{name}-out",
        )
    assert list(read_rows(tmp_path / "a-out", Example)) == list(
        read_rows(tmp_path / "b-out", Example)
    )


def test_shards_are_bounded_and_interrupted_work_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD_TOKENS", 12)
    samples = write_samples(tmp_path / "samples", [completion(f"p{index}") for index in range(5)])
    facts = prepare(samples, PrepareConfig(), out=tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("*.parquet"))
    assert [path.name for path in shards] == [
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    rows, first = list(read_rows(tmp_path / "out", Example)), shards[0].stat().st_mtime_ns
    shards[1].unlink()
    assert prepare(samples, PrepareConfig(), out=tmp_path / "out") == facts
    assert list(read_rows(tmp_path / "out", Example)) == rows
    assert shards[0].stat().st_mtime_ns == first


def test_nothing_to_train_on_reports_the_drops_and_the_remedy(tmp_path: Path) -> None:
    samples = write_samples(
        tmp_path / "samples", [completion("a", text="x"), completion("b", text="")]
    )
    with pytest.raises(
        UserError,
        match=(
            r"nothing to train on among 2 samples .*\(1 empty, 1 stub\).*prepare.policies to keep"
        ),
    ):
        prepare(samples, PrepareConfig(), out=tmp_path / "out")
    with pytest.raises(UserError, match="holds no samples"):
        prepare(tmp_path, PrepareConfig(), out=tmp_path / "out")


def test_only_accepted_answers_are_kept_where_that_is_chosen(tmp_path: Path) -> None:
    rows = [completion(f"p{index % 3}", sample_index=index) for index in range(6)]
    samples = write_samples(tmp_path / "samples", rows)
    verdicts = [
        _verdict(row, "accepted" if row.sample_index in (1, 4) else "wrong_answer")
        for row in reversed(rows)
    ]
    write_shard(tmp_path / "verdicts", "a", verdicts, Verdict)
    choices, reading = PrepareConfig(select="accepted"), ParseOptions(end_tokens=frozenset({2}))
    facts = prepare_reading(
        samples, choices, reading, verdicts=tmp_path / "verdicts", out=tmp_path / "out"
    )
    assert [row.sample_index for row in read_rows(tmp_path / "out", Example)] == [1, 4]
    assert _dropped(facts) == {"not_accepted": 4}
    assert facts.health.rows == 6
    write_shard(tmp_path / "half", "a", verdicts[:3], Verdict)
    with pytest.raises(UserError, match="has no verdict"):
        prepare_reading(
            samples, choices, reading, verdicts=tmp_path / "half", out=tmp_path / "other"
        )
    for name in ("a", "b"):
        write_shard(tmp_path / "twice", name, verdicts, Verdict)
    with pytest.raises(UserError, match="sample 0 of 'p0' has two verdicts"):
        prepare_reading(
            samples, choices, reading, verdicts=tmp_path / "twice", out=tmp_path / "other"
        )
    write_shard(tmp_path / "none", "a", [_verdict(row, "no_code") for row in rows], Verdict)
    with pytest.raises(UserError, match=r"\(6 not_accepted\).* set prepare.select=all"):
        prepare_reading(
            samples, choices, reading, verdicts=tmp_path / "none", out=tmp_path / "another"
        )


def _verdict(row: Completion, outcome: Outcome) -> Verdict:
    return Verdict(
        prompt_id=row.prompt_id,
        sample_index=row.sample_index,
        source=row.source,
        difficulty=row.difficulty,
        outcome=outcome,
        num_tests=1,
        num_passed=int(outcome == "accepted"),
        time_s=0.0,
        code="",
        detail="",
    )
