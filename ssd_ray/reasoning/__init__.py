"""Reasoning in answers: its end, and the content outside of it.

Grading, data health and the report share this rule:

- A mark with a special token counts where its id was drawn. Its name, spelled out, is text.
- Any other mark is found in the text. It begins reasoning only at the beginning of the answer, or
  in the prompt if it is still open at the prompt's end.
- An answer cut off within its reasoning has no content, and no draft is graded.

Does no I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ssd_ray.reasoning.harmony import Messages
from ssd_ray.reasoning.marks import (
    CHANNEL,
    CLOSINGS,
    MESSAGE,
    OPENINGS,
    PAIRS,
    REQUIRED,
    START,
    THINK,
    Decode,
    Pair,
    Piece,
    id_pieces,
    opened_by,
    special_marks,
    spelled,
    text_pieces,
)
from ssd_ray.schema import Completion, from_table

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ANY", "TEXT_MARKS", "AnswerParser", "Content", "Decode", "ReasoningFormat"]
__all__ += ["content_of_text", "format_from_prompts", "opened_by", "special_marks", "spelled"]

State = Literal["none", "ended", "unfinished"]
"""Reasoning in an answer: it has none, it was ended, or the answer ends within it."""
ANY = "any"
"""Given instead of an opening mark: texts begin within a reasoning part of an unknown mark."""

_HARMONY = re.compile(r"\s*(?:<\|channel\|>|<\|start\|>\s*assistant)")
_FINAL = f"{START}assistant{CHANNEL}final{MESSAGE}"
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=[A-Za-z])")
"""Beginning of harmony without its special tokens: a channel's name, then at once a word."""
_BARE_FINAL = "assistantfinal"
_SURE = [pair.closing for pair in PAIRS if not pair.plain]
_SURE_END = "|".join(map(re.escape, _SURE))
_LINE_END = re.compile(f"(?:{_SURE_END})[ \t\r]*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Content:
    """The part of an answer outside of its reasoning."""

    text: str | None
    """None exactly if the reasoning is unfinished."""
    reasoning: State


def content_of_text(text: str, opened: str = "") -> Content:
    """Return the content of a text outside of its reasoning.

    `opened` is the opening mark at the end of its prompt, or ANY. Without it:

    - A text begins with reasoning if it begins with an opening mark or in the harmony format.
    - In any other text, a closing mark at the end of a line ends reasoning. Within a line, the
      mark may be part of a program.
    """
    if opened in OPENINGS:
        return _after(text, OPENINGS[opened].closing)
    if _HARMONY.match(text):
        return _of_messages(Messages(text.__getitem__).parse(text_pieces(text), len(text)))
    if bare := _BARE_ANALYSIS.match(text):
        return _after(text, _BARE_FINAL, bare.end())
    beginning = next((pair for pair in PAIRS if text.lstrip().startswith(pair.opening)), None)
    if beginning is not None:
        return _after(text, beginning.closing)
    if opened:
        return _after_any(text)
    ending = _LINE_END.search(text)
    if ending is None:
        return Content(text=text, reasoning="none")
    return Content(text=text[ending.end() :], reasoning="ended")


def _after(text: str, mark: str, start: int = 0) -> Content:
    """Split after the first such mark."""
    place = text.find(mark, start)
    if place < 0:
        return Content(text=None, reasoning="unfinished")
    return Content(text=text[place + len(mark) :], reasoning="ended")


def _after_any(text: str) -> Content:
    """Split at the first `</think>`, else at the first of the other closing marks.

    Marks from ordinary XML count only if there is no other.
    """
    # Ends that may be ordinary XML come last: an answer may quote them.
    for candidates in ([THINK.closing], [*_SURE, _FINAL], list(CLOSINGS)):
        ends = [mark for mark in candidates if mark in text]
        if ends:
            first = min(ends, key=text.index)
            break
    else:
        return Content(text=None, reasoning="unfinished")
    if first != _FINAL:
        return _after(text, first)
    messages = Messages(text.__getitem__, reasoned=True)
    return _of_messages(messages.parse(text_pieces(text, text.index(_FINAL)), len(text)))


def _of_messages(messages: Messages) -> Content:
    """Return the content of harmony's messages for the user."""
    if messages.contents is None:
        return Content(text=None, reasoning="unfinished")
    state: State = "ended" if messages.reasoned else "none"
    return Content(text="\n".join(messages.contents), reasoning=state)


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """Marks of reasoning in the answers to some prompts."""

    special: Mapping[int, str] = field(default_factory=dict)
    """Special tokens among the marks, by id; empty if all marks are text."""
    tokenizer: Path | None = None
    """The model's directory, to decode the ids between special marks."""
    opened: str = ""
    """The mark still open at the end of the prompts' texts, empty if there is none."""
    exceptions: Mapping[str, str] = field(default_factory=dict)
    """The same by prompt id, for prompts unlike most."""

    def opened_in(self, prompt_id: str) -> str:
        """Return the mark still open at the end of one prompt's text."""
        return self.exceptions.get(prompt_id, self.opened)


TEXT_MARKS = ReasoningFormat()
"""All marks are text, and no prompt ends within a reasoning part."""


def format_from_prompts(prompts: Iterable[tuple[str, str, str]]) -> ReasoningFormat:
    """Return the format of answers to prompts, given as (id, text, statement), by texts alone."""
    marks = {prompt_id: opened_by(text, statement) for prompt_id, text, statement in prompts}
    opened = Counter(marks.values()).most_common(1)[0][0] if marks else ""
    exceptions = {prompt_id: mark for prompt_id, mark in marks.items() if mark != opened}
    return ReasoningFormat(opened=opened, exceptions=exceptions)


class AnswerParser:
    """Split the answers in one format into reasoning and content."""

    def __init__(self, form: ReasoningFormat, decode: Decode | None = None) -> None:
        """Take a format, and the tokenizer's `decode` if the format has special marks."""
        self._form = form
        self._decode = decode if form.special else None
        self._harmony = set(form.special.values()) >= REQUIRED

    def content(self, answer: Completion) -> Content:
        """Return the content of an answer, by its ids if marks are special tokens, else by text."""
        if self._decode is None:
            return content_of_text(answer.text, self._form.opened_in(answer.prompt_id))
        # An answer that stopped by itself ends in an end token, which is not part of its text.
        ids = answer.output_token_ids
        output = ids[:-1] if answer.finish_reason == "stop" else ids
        if self._harmony:
            return self._by_channels(answer.prompt_token_ids, output, self._decode)
        return self._by_pairs(answer.prompt_token_ids, output, self._decode)

    def contents(self, shard: pa.Table) -> Iterator[Content]:
        """Return the content of each row of a Completion table; read ids only if they decide."""
        if self._decode is not None:
            return (self.content(answer) for answer in from_table(shard, Completion))
        prompt_ids, texts = (shard.column(name).to_pylist() for name in ("prompt_id", "text"))
        marks = map(self._form.opened_in, prompt_ids)
        return map(content_of_text, texts, marks)

    def _by_channels(self, prompt: Sequence[int], output: Sequence[int], decode: Decode) -> Content:
        special = self._form.special
        starts = [piece.start for piece in id_pieces(prompt, special) if piece.mark == START]
        # The prompt ends in the header of the message that the answer continues.
        before = prompt[starts[-1] :] if starts else ()
        ids = (*before, *output)
        messages = Messages(lambda span: spelled(ids[span], special, decode), offset=len(before))
        return _of_messages(messages.parse(id_pieces(ids, special), len(ids)))

    def _by_pairs(self, prompt: Sequence[int], output: Sequence[int], decode: Decode) -> Content:
        special = self._form.special
        marks = [piece.mark for piece in id_pieces(prompt, special) if piece.mark]
        opened = OPENINGS.get(marks[-1]) if marks else None
        spans, reasoned = _outside(id_pieces(output, special), len(output), opened)
        if spans is None:
            return Content(text=None, reasoning="unfinished")
        parts = filter(None, (spelled(output[span], special, decode) for span in spans))
        return Content(text="\n".join(parts), reasoning="ended" if reasoned else "none")


_Spans = list[slice] | None
"""Spans of ids outside of the reasoning, None if it is unfinished."""


def _outside(pieces: Iterable[Piece], length: int, opened: Pair | None) -> tuple[_Spans, bool]:
    """Return the spans outside of pairs, and True if there was any reasoning.

    - An opening mark within reasoning is ignored.
    - A closing mark before any reasoning ends reasoning without an opening mark: everything before
      it. Later closing marks outside of reasoning are ignored.
    """
    spans: list[slice] = []
    pair, begin, reasoned = opened, 0, opened is not None
    for mark, start, end in pieces:
        if pair is None and mark in OPENINGS:
            spans.append(slice(begin, start))
            pair, reasoned = OPENINGS[mark], True
        elif pair is not None and mark == pair.closing:
            pair, begin = None, end
        elif not reasoned and mark in CLOSINGS:
            begin, reasoned = end, True
    if pair is not None:
        return None, True
    return [*spans, slice(begin, length)], reasoned
