"""Health of sampled answers: seven classes, each defined by a countable rule.

- empty: no text.
- stub: one line of text.
- no_code: the rule of extraction finds no program outside of the reasoning.
- cut_off: ended by the limit on its length.
- no_end_token: the last id is none of the model's end tokens.
- loop: at least a quarter of its 8-grams of token ids occur in it four times or more.
- duplicate: the same token ids as an earlier answer, by key.

A row can be in several classes. The weight of a class in training is its share of all tokens. If
two answers in a hundred loop to the limit, they can be a third of the tokens. Pure functions on
columns, without I/O.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ssd_ray.artifacts.dataset_facts import (
    ClassCount,
    EndCount,
    HealthCounts,
    Lengths,
    RowsAndTokens,
)
from ssd_ray.config import Policies
from ssd_ray.extraction import Rule, extract, names_other_language
from ssd_ray.models import answers
from ssd_ray.reasoning import TEXT_MARKS, ReasoningFormat, State

if TYPE_CHECKING:
    import pyarrow as pa

Class = Literal["empty", "stub", "no_code", "cut_off", "no_end_token", "loop", "duplicate"]
CLASSES: tuple[Class, ...] = (
    "empty",
    "stub",
    "no_code",
    "cut_off",
    "no_end_token",
    "loop",
    "duplicate",
)
STATES: tuple[State, ...] = get_args(State)
GROUPS = ("loop", "cut_off", "empty or stub", "no_code", "none of these")
NGRAM, TIMES, LOOP_SHARE = 8, 4, 0.25
DIGEST_BYTES = 16
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ParseOptions:
    """Options to parse answers."""

    extract: Rule = "last-block"
    """Rule to find the program of an answer."""
    reasoning: ReasoningFormat = TEXT_MARKS
    """Marks of the reasoning."""
    end_tokens: frozenset[int] = frozenset()
    """Ids that end an answer."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Measures of answers, an array each: [rows], or [rows, classes] for `classes`."""

    characters: Ints
    """Characters of the text, without the names of special tokens that mark reasoning."""
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    stopped: Bools
    """True for finish reason "stop"."""
    classes: Bools
    """Membership in CLASSES."""
    reasoning: Ints
    """Place of a State in STATES."""
    foreign: Bools
    """True for a program in a code block labeled with another language than Python."""
    digests: NDArray[np.bytes_]
    """Digests of the token ids."""


def judge(shard: pa.Table, reading: ParseOptions) -> Answers:
    """Return the measures of a Completion table; class `duplicate` is left to `take`."""
    import pyarrow.compute as pc

    lengths = [
        pc.list_value_length(shard.column(name)).to_numpy()
        for name in ("prompt_token_ids", "output_token_ids")
    ]
    texts = shard.column("text").to_pylist()
    contents = list(answers.answer_parser(reading.reasoning).contents(shard))
    programs = [
        extract(text, content, reading.extract)
        for text, content in zip(texts, contents, strict=True)
    ]
    texts = [_unmarked(text, reading.reasoning) for text in texts]
    stopped = pc.equal(shard.column("finish_reason"), "stop").to_numpy()
    tokens = shard.column("output_token_ids").combine_chunks().flatten().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths[1], dtype=np.int64)])
    lines = np.array([_lines(text) for text in texts], dtype=np.int64)
    ended = np.zeros(len(texts), dtype=bool)
    filled = lengths[1] > 0
    ended[filled] = np.isin(tokens[offsets[1:][filled] - 1], sorted(reading.end_tokens))
    members: dict[Class, Any] = {
        "empty": lines == 0,
        "stub": lines == 1,
        "no_code": [program.code is None for program in programs],
        "cut_off": ~stopped,
        "no_end_token": ~ended,
        "loop": repeated_share(tokens, offsets) >= LOOP_SHARE,
        "duplicate": np.zeros(len(texts), dtype=bool),
    }
    return Answers(
        characters=np.array([len(text) for text in texts], dtype=np.int64),
        num_prompt_tokens=lengths[0].astype(np.int64),
        num_output_tokens=lengths[1].astype(np.int64),
        stopped=stopped,
        # The reshape keeps [0, classes] for a shard without rows.
        classes=np.column_stack(
            [np.asarray(members[name], dtype=bool) for name in CLASSES]
        ).reshape(len(texts), len(CLASSES)),
        reasoning=np.array(
            [STATES.index(content.reasoning) for content in contents], dtype=np.int64
        ),
        foreign=np.array(
            [names_other_language(program.language) for program in programs], dtype=bool
        ),
        digests=digests(tokens, offsets),
    )


def _unmarked(text: str, form: ReasoningFormat) -> str:
    """Remove the names of special tokens that mark reasoning.

    Texts in shards of earlier versions have no such names.
    """
    for name in form.special.values():
        text = text.replace(name, "")
    return text


def _lines(text: str) -> int:
    """Count lines with text, at most two."""
    lines = 0
    for line in text.splitlines():
        lines += bool(line.strip())
        if lines == 2:
            break
    return lines


def repeated_share(tokens: NDArray[Any], offsets: Ints) -> Floats:
    """Return, for each row, the share of its 8-grams that occur in it four times or more.

    - Row i is `tokens[offsets[i]:offsets[i + 1]]`. Rows of fewer than eight tokens have share 0.
    - A 64-bit key holds the row's number and a hash of the 8-gram, so one sort counts all rows.
      Two different 8-grams collide once in 10^13 pairs or more rarely.
    """
    num_rows, num_grams = len(offsets) - 1, len(tokens) - NGRAM + 1
    if num_grams < 1:
        return np.zeros(num_rows)
    rows = np.repeat(np.arange(num_rows, dtype=np.uint64), np.diff(offsets))
    hashes = np.zeros(num_grams, dtype=np.uint64)
    for place in range(NGRAM):
        hashes = (hashes + tokens[place : place + num_grams].astype(np.uint64)) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(32)
    # An n-gram across the border of two rows belongs to neither.
    inside = rows[:num_grams] == rows[NGRAM - 1 :]
    # The row's number takes the high bits, so that the n-grams of a row are adjacent once sorted.
    row_bits = np.uint64(max(1, num_rows.bit_length()))
    keys = (rows[:num_grams] << (np.uint64(64) - row_bits) | hashes >> row_bits)[inside]
    keys.sort()
    begins = (
        np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        if len(keys)
        else np.zeros(0, dtype=np.int64)
    )
    counts = np.diff(np.concatenate([begins, [len(keys)]]))
    owners = (keys[begins] >> (np.uint64(64) - row_bits)).astype(np.int64)
    often = np.bincount(owners, weights=np.where(counts >= TIMES, counts, 0), minlength=num_rows)
    shares: Floats = often / np.maximum(np.diff(offsets) - NGRAM + 1, 1)
    return shares


def digests(tokens: NDArray[Any], offsets: Ints) -> NDArray[np.bytes_]:
    """Return a digest of 16 bytes of each row's token ids, [rows]."""
    raw = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    width = 4
    pieces = (
        hashlib.blake2b(raw[width * start : width * end], digest_size=DIGEST_BYTES).digest()
        for start, end in itertools.pairwise(offsets.tolist())
    )
    return np.frombuffer(b"".join(pieces), dtype=f"V{DIGEST_BYTES}")


def concatenate(shards: Iterable[Answers]) -> Answers:
    """Concatenate the answers of several shards."""
    parts = list(shards)
    columns = {
        name: np.concatenate([getattr(answers, name) for answers in parts])
        for name in Answers.__annotations__
    }
    return Answers(**columns)


def take(answers: Answers, order: Ints) -> Answers:
    """Reorder answers, and mark as `duplicate` those with the ids of an earlier one."""
    taken = {name: getattr(answers, name)[order] for name in Answers.__annotations__}
    first = np.unique(taken["digests"], return_index=True)[1]
    taken["classes"][:, CLASSES.index("duplicate")] = True
    taken["classes"][first, CLASSES.index("duplicate")] = False
    return Answers(**taken)


def count(
    answers: Answers, kept: Bools, masked: Bools, policies: Policies, reading: ParseOptions
) -> HealthCounts:
    """Count the health of samples.

    - `lengths` has histograms by GROUPS. Each row counts in the first group to match.
    - `reasoning` has answers by State, such as without reasoning or with unfinished reasoning.
    - `other_language` has programs in a code block labeled with another language than Python.
    """
    tokens = answers.num_output_tokens
    copies = np.unique(answers.digests, return_counts=True)[1]
    classes: dict[str, ClassCount] = {}
    for place, name in enumerate(CLASSES):
        members = answers.classes[:, place]
        classes[name] = ClassCount(
            rows=int(members.sum()),
            tokens=int(tokens[members].sum()),
            policy=getattr(policies, name),
            dropped=int((members & ~kept).sum()),
            masked=int((members & masked).sum()),
        )
    return HealthCounts(
        rows=len(tokens),
        tokens=int(tokens.sum()),
        classes=classes,
        ends=_ends(answers),
        lengths=_lengths(answers),
        distinct=len(copies),
        most_copies=int(copies.max()),
        reasoning={
            state: int((answers.reasoning == place).sum()) for place, state in enumerate(STATES)
        },
        other_language=RowsAndTokens(
            rows=int(answers.foreign.sum()), tokens=int(tokens[answers.foreign].sum())
        ),
        extract=reading.extract,
        end_tokens=tuple(sorted(reading.end_tokens)),
    )


def _ends(answers: Answers) -> dict[str, EndCount]:
    ended = ~answers.classes[:, CLASSES.index("no_end_token")]
    return {
        reason: EndCount(
            end_token=int((rows & ended).sum()), no_end_token=int((rows & ~ended).sum())
        )
        for reason, rows in (("stop", answers.stopped), ("length", ~answers.stopped))
    }


def _lengths(answers: Answers) -> Lengths:
    tokens = answers.num_output_tokens
    classes = {name: answers.classes[:, place] for place, name in enumerate(CLASSES)}
    left = np.ones(len(tokens), dtype=bool)
    counts = {}
    weights = {}
    edges = length_edges(tokens)
    for group in GROUPS:
        if group == "empty or stub":
            members = left & (classes["empty"] | classes["stub"])
        else:
            members = left & classes.get(group, left)  # type: ignore[call-overload]
        lengths = tokens[members]
        counts[group] = tuple(np.histogram(lengths, bins=edges)[0].tolist())
        weights[group] = tuple(np.histogram(lengths, bins=edges, weights=lengths)[0].tolist())
        left &= ~members
    quantiles = {
        f"p{share}": float(np.percentile(tokens, share)) for share in (1, 10, 25, 50, 75, 90, 99)
    }
    return Lengths(
        min=int(tokens.min()),
        mean=float(tokens.mean()),
        max=int(tokens.max()),
        **quantiles,
        edges=tuple(edges),
        counts=counts,
        tokens=weights,
    )


def length_edges(tokens: Ints) -> list[int]:
    """Return bin edges at quarter octaves in tokens, from the shortest to above the longest."""
    shortest = int(tokens.min())
    longest = int(tokens.max())
    first = math.floor(4 * math.log2(max(shortest, 1)))
    last = math.floor(4 * math.log2(max(longest, 1))) + 1
    edges = sorted({round(2 ** (quarter / 4)) for quarter in range(first, last + 1)})
    edges = [shortest, *(edge for edge in edges if edge > shortest)]
    return edges if edges[-1] > longest else [*edges, longest + 1]
