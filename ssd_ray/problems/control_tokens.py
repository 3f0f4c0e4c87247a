"""Encoding of prompts in which control tokens come from the chat template alone.

- A control token is a special token, or another added token in the form of a mark: `<think>`. HTML
  tags are ordinary vocabulary unless they are special tokens.
- A prompt without control tokens in its words is encoded in one piece, as transformers does it.
- Any other prompt is encoded by a copy of the tokenizer in which control tokens have aliases.
  Tokens written by the template are replaced by their aliases. Tokens among the words then match
  nothing.
- The copy has the same splits, normalizer and pre-tokenizer, so pieces join as in the original.

Does no I/O.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MARK = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\{[^{}\s]+\}", re.DOTALL)
_HTML = re.compile(
    r"</?(a|abbr|b|bbox|blockquote|body|br|caption|code|col|colgroup|dd|del|div|dl|dt|em|figcaption"
    r"|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|li|link|main"
    r"|mark|meta|nav|ol|option|p|pre|q|s|samp|script|section|select|small|span|strong|style|sub|sup"
    r"|table|tbody|td|tfoot|th|thead|title|tr|u|ul|var|video)/?>",
    re.IGNORECASE,
)
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Private use: no template changes the case of these characters, trims them or splits at them.
_FIRST_PLACEHOLDER = 0x100000
_PREFIX = 3


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Values with one character in place of each control token, and the texts by character."""

    values: Any
    originals: Mapping[str, str]

    def restore(self, text: str) -> str:
        """Return a text with the characters replaced by their texts."""
        return text.translate(
            {ord(character): original for character, original in self.originals.items()}
        )


class ControlTokens:
    """Control tokens of a tokenizer, and both ways to encode a text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        tokens = {
            str(token): (number, token.special)
            for number, token in tokenizer.added_tokens_decoder.items()
        }
        self._ids = {
            text: number
            for text, (number, special) in tokens.items()
            if _controls(text, special=special)
        }
        # Characters outside of the vocabulary become the unknown token, so it is not counted.
        self._unknown: int | None = tokenizer.unk_token_id
        self._numbers = frozenset(self._ids.values())
        self._counted = self._numbers - {self._unknown}
        self._lengths = sorted({len(text) for text in self._ids}, reverse=True)
        beginnings = sorted({text[:_PREFIX] for text in self._ids})
        self._beginning = re.compile("|".join(map(re.escape, beginnings)) or r"(?!)")
        # Improbable in any text: a problem that held an alias would gain a control token.
        self._aliases = {text: f"zqxj{number}jxqz" for number, text in enumerate(self._ids)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, encoded in one piece without added special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def count(self, token_ids: list[int]) -> int:
        """Return the number of control tokens among ids, except the unknown token."""
        return sum(map(self._counted.__contains__, token_ids))

    def occur_in(self, values: Any) -> bool:
        """Return True if a control token occurs in a text, or in nested lists and mappings."""
        return any(next(self._places(text), None) is not None for text in _texts(values))

    def mask(self, values: Any, *other_texts: str) -> Masked:
        """Replace each control token in nested `values` by a character.

        The characters occur neither in `values` nor in `other_texts`.
        """
        texts = [*_texts(values)]
        present = set().union(*texts, *other_texts)
        occurring = dict.fromkeys(token for text in texts for _, token in self._places(text))
        free = (
            chr(code) for code in range(_FIRST_PLACEHOLDER, 0x10FFFE) if chr(code) not in present
        )
        characters = dict(zip(occurring, free, strict=False))
        return Masked(
            values=self._replaced(values, characters),
            originals={new: old for old, new in characters.items()},
        )

    def encode_words(self, text: str, masked: Masked) -> list[int] | None:
        """Return the ids of a text rendered from masked values, its words kept as text.

        Return None if the tokenizer has no other ids for these words.
        """
        copy = self._copy
        if copy is None or any(
            self._unknown in copy.encode(words).ids for words in masked.originals.values()
        ):
            return None
        aliased, num_written = self._aliased(text)
        ids: list[int] = copy.encode(masked.restore(aliased), add_special_tokens=False).ids
        # More control tokens than the template wrote: a word still became one.
        return ids if self.count(ids) == num_written else None

    def _places(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield start and text of the control tokens in a text, the longest at each start."""
        match = self._beginning.search(text)
        while match is not None:
            start = match.start()
            candidates = (text[start : start + length] for length in self._lengths)
            token = next((candidate for candidate in candidates if candidate in self._ids), None)
            if token is not None:
                yield start, token
            match = self._beginning.search(text, start + len(token or text[start]))

    def _replaced(self, values: Any, names: Mapping[str, str]) -> Any:
        if isinstance(values, str):
            return _substituted(values, self._places(values), names)
        if isinstance(values, Mapping):
            return {key: self._replaced(value, names) for key, value in values.items()}
        if isinstance(values, list | tuple):
            return [self._replaced(value, names) for value in values]
        return values

    def _aliased(self, text: str) -> tuple[str, int]:
        """Return a text with aliases for its control tokens, and their number for `count`.

        Only tokens found by the tokenizer itself are renamed. If its normalizer writes spaces, it
        may find a token only after a space.
        """
        encoding = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        spans = [
            (number, *span) for number, span in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        # Offsets of a token may include a space before it, so its start is looked up in the span.
        covered = {
            (number, place)
            for number, start, end in spans
            if number in self._numbers
            for place in range(start, end)
        }
        places = [
            (start, token)
            for start, token in self._places(text)
            if (self._ids[token], start) in covered
        ]
        return _substituted(text, places, self._aliases), sum(
            self._ids[token] in self._counted for _, token in places
        )

    @functools.cached_property
    def _copy(self) -> Any:
        """Return a copy with aliases; None if the tokenizer is not from the tokenizers library."""
        from tokenizers import Tokenizer

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        copy = Tokenizer.from_str(json.dumps(_renamed(json.loads(backend.to_str()), self._aliases)))
        copy.encode_special_tokens = backend.encode_special_tokens
        # A tokenizer that does not encode aliases as the tokens themselves has no usable copy.
        sample = "".join(f"a {token}\n{token} b " for token in [*self._ids][:8])
        aliased, _ = self._aliased(sample)
        return (
            copy
            if copy.encode(aliased, add_special_tokens=False).ids == self.encode(sample)
            else None
        )


def _controls(text: str, *, special: bool) -> bool:
    """Return True if an added token of this text is a control token.

    Bytes that spell unknown characters (`<0x0A>`) are ordinary vocabulary.
    """
    if _BYTE.fullmatch(text):
        return False
    if special:
        return bool(text.strip())
    return bool(_MARK.fullmatch(text)) and not _HTML.fullmatch(text)


def _substituted(text: str, places: Iterable[tuple[int, str]], names: Mapping[str, str]) -> str:
    """Return a text with the tokens at `places` renamed."""
    pieces = []
    end = 0
    for start, token in places:
        pieces += [text[end:start], names[token]]
        end = start + len(token)
    return "".join([*pieces, text[end:]])


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _texts(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value)


def _renamed(document: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return tokenizer.json with tokens renamed in added tokens, vocabulary and merges.

    A text can reach a token through these places only.
    """
    model = dict(document["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {
            names.get(token, token): number for token, number in model["vocab"].items()
        }
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    # Merges could otherwise build a control token from the letters of a word.
    if model.get("merges"):
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [
            pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))
        ]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    tokens = [
        {**token, "content": names.get(token["content"], token["content"])}
        for token in document["added_tokens"]
    ]
    # Prompts are encoded without added tokens, padding or truncation.
    return {
        **document,
        "model": model,
        "added_tokens": tokens,
        "post_processor": None,
        "padding": None,
        "truncation": None,
    }
