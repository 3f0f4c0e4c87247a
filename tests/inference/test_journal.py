"""Journals of finished answers, without Ray: complete lines are reused, torn ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.artifacts.ledger import Span
from ssd_ray.inference.vllm.engine import Answer
from ssd_ray.inference.work import journal
from ssd_ray.inference.work.journal import Journal

answers = st.builds(
    Answer,
    output_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=8).map(tuple),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    finish_reason=st.sampled_from(["stop", "length"]),
)


@given(position=st.integers(0, 2**40), answer=answers)
def test_a_line_comes_back_as_it_was_and_holds_no_newline(position: int, answer: Answer) -> None:
    line = journal.encode(position, answer)
    assert b"\n" not in line
    assert journal.decode(line) == (position, answer)


@given(answer=answers, data=st.data())
def test_a_line_that_was_torn_or_changed_is_no_answer(answer: Answer, data: st.DataObject) -> None:
    line = journal.encode(3, answer)
    cut = data.draw(st.integers(0, len(line) - 1))
    assert journal.decode(line[:cut]) is None
    changed = bytearray(line)
    changed[cut] ^= 1 << data.draw(st.integers(0, 6))
    assert journal.decode(bytes(changed)) is None


def _answer(number: int) -> Answer:
    return Answer(output_token_ids=(number,), text=f"é {number}", finish_reason="stop")


def test_journaled_answers_are_reused_by_position(tmp_path: Path) -> None:
    dead = Journal(tmp_path, Span("prompts-0.x", 4, 8), "a")
    for position in (4, 6, 7):
        dead.append(position, _answer(position))
    with next((tmp_path / ".journal").iterdir()).open("ab") as handle:
        handle.write(journal.encode(5, _answer(5))[:-4])
    Journal(tmp_path, Span("prompts-0.x", 8, 12), "b").append(9, _answer(9))
    Journal(tmp_path, Span("prompts-1", 4, 8), "b").append(5, _answer(50))
    recovered = journal.recover(tmp_path, Span("prompts-0.x", 6, 10))
    assert recovered == {position: _answer(position) for position in (6, 7, 9)}
    assert journal.spans(tmp_path) == {
        Span("prompts-0.x", 4, 8),
        Span("prompts-0.x", 8, 12),
        Span("prompts-1", 4, 8),
    }


def test_a_removed_journal_leaves_no_answer(tmp_path: Path) -> None:
    own = Journal(tmp_path, Span("p", 0, 2), "a")
    own.remove()
    own.append(0, _answer(0))
    own.remove()
    assert journal.recover(tmp_path, Span("p", 0, 2)) == {}


@pytest.mark.parametrize("name", ["p.00000000-00000002.abc.jsonl"])
def test_a_journal_names_its_unit(name: str) -> None:
    assert journal.span_of(Path(name)) == Span("p", 0, 2)
