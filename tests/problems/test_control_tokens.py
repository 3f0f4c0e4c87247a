"""Control tokens come from the chat template alone, for tokenizers of every kind."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.artifacts import shards
from ssd_ray.problems.control_tokens import ControlTokens, Masked
from ssd_ray.problems.renderer import Renderer
from ssd_ray.problems.rendering import ContextBudget, Mode, render, renderer, user_message
from ssd_ray.schema import Problem, Prompt
from tests.support.tokenizer_kinds import CHATML, KINDS, MARKS, SPECIAL, corpus, tokenizer_of

SYSTEM = "Solve it."
TURN_TOKENS = 5  # of CHATML around a system and a user turn


def _problem(statement: str, **fields: Any) -> Problem:
    return Problem(problem_id="x/1", source="x", statement=statement, **fields)


def _put(tokenizer: Any, mode: Mode = "paper", **arguments: Any) -> Renderer:
    return renderer(tokenizer, mode, SYSTEM, arguments, field="prompts.mode")


def _controls(tokenizer: Any, ids: tuple[int, ...]) -> list[str]:
    control = {tokenizer.convert_tokens_to_ids(token): token for token in (*SPECIAL[1:], *MARKS)}
    return [control[number] for number in ids if number in control]


FRAME = ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("rstrip", [False, True])
def test_ordinary_statements_keep_the_ids_of_one_piece(
    kind: str, normalized: bool, rstrip: bool
) -> None:
    """Both encodings agree for statements without control tokens, also where pieces join."""
    tokenizer = tokenizer_of(kind, normalized=normalized, rstrip=rstrip)
    control = ControlTokens(tokenizer)
    nothing = Masked(values=None, originals={})
    put = _put(tokenizer)
    for statement in corpus():
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": statement}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        expected = tokenizer.encode(text, add_special_tokens=False)
        assert control.encode_words(text, nothing) == expected
        prompt, ids = put(_problem(statement))
        assert list(ids) == tokenizer.encode(prompt, add_special_tokens=False)
    assert (put.kept_words, put.unwritable) == (0, [])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "wordpiece"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("token", [*SPECIAL, *MARKS])
def test_control_tokens_in_a_statement_stay_text(kind: str, normalized: bool, token: str) -> None:
    tokenizer = tokenizer_of(kind, normalized=normalized)
    put = _put(tokenizer)
    frame = _controls(tokenizer, put(_problem("Count X in a line."))[1])
    for statement in (
        f"Count {token} in a line.",
        token,
        f"{token}{token} a",
        f"before\n{token}\nafter",
        f"a{token}b",
    ):
        text, ids = put(_problem(statement))
        assert statement in text
        assert _controls(tokenizer, ids) == frame
        if kind in ("byte-level", "byte-level-nfc"):
            assert tokenizer.decode(ids) == text
    # This normalizer writes marks of spaces: the tokenizer finds a token only after a space.
    kept_words = 1 if kind == "prepend" and normalized else 5
    assert (put.kept_words, put.first_kept, put.unwritable) == (kept_words, "x/1", [])


@pytest.mark.parametrize("kind", ["byte-level", "metaspace-always"])
def test_control_tokens_in_words_have_the_ids_of_their_pieces(kind: str) -> None:
    """Expected are the ids of each piece alone, by a tokenizer with special tokens as text."""
    tokenizer, bare = tokenizer_of(kind), tokenizer_of(kind).backend_tokenizer
    bare.encode_special_tokens = True
    for statement in (
        f"{before}{token}{after}"
        for token in SPECIAL
        for before, after in itertools.product(["", "It. ", "\n"], repeat=2)
    ):
        message = user_message(_problem(statement))
        pieces = [f"system\n{SYSTEM}", "\n", f"user\n{message}", "\n", "assistant\n"]
        expected: list[int] = []
        for token, piece in zip(FRAME, pieces, strict=True):
            expected += [
                tokenizer.convert_tokens_to_ids(token),
                *bare.encode(piece, add_special_tokens=False).ids,
            ]
        _, ids = _put(tokenizer)(_problem(statement))
        assert list(ids) == expected


@pytest.mark.parametrize("mode", ["paper", "chat", "release", "release-eval", "published"])
def test_no_mode_lets_a_statement_end_its_turn(mode: Mode) -> None:
    tokenizer = tokenizer_of("byte-level")
    expected = {"paper": FRAME, "published": FRAME, "release": []}.get(mode, FRAME[2:])
    text, ids = _put(tokenizer, mode)(
        _problem("Find <|im_end|><s>.", starter_code="def f():\n    '</s>'", kind="function")
    )
    assert "<|im_end|><s>." in text
    assert _controls(tokenizer, ids) == expected
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "fields", [{"kind": "asserts"}, {"kind": "numeric"}, {"kind": "function", "entry_point": "f"}]
)
def test_every_kind_of_problem_keeps_its_words(fields: dict[str, Any]) -> None:
    tokenizer = tokenizer_of("byte-level")
    _, ids = _put(tokenizer, "chat")(_problem("What is </s>?", **fields))
    assert _controls(tokenizer, ids) == FRAME[2:]


def test_a_system_message_and_template_arguments_stay_text() -> None:
    template = CHATML.replace("{% if add", "{{ note }}{{ rows[0].text }}{% if add")
    tokenizer = tokenizer_of("byte-level", template=template)
    put = renderer(
        tokenizer,
        "paper",
        "Never write <|im_end|>.",
        {"note": "n <think> ", "rows": [{"text": "</s>", "number": 3}]},
        field="prompts.mode",
    )
    text, ids = put(_problem("Add."))
    assert "Never write <|im_end|>." in text
    assert "n <think> </s><|im_start|>assistant" in text
    assert _controls(tokenizer, ids) == FRAME
    assert put.kept_words == 1


def test_an_argument_named_like_a_special_token_stays_one() -> None:
    tokenizer = tokenizer_of("byte-level", template="{{ bos_token }}" + CHATML)
    for arguments, first in (
        ({}, "<s>"),
        ({"bos_token": "</s>"}, "</s>"),
        ({"bos_token": ""}, FRAME[0]),
    ):
        _, ids = _put(tokenizer, "chat", **arguments)(_problem("Add <s> up."))
        assert _controls(tokenizer, ids)[0] == first
        assert _controls(tokenizer, ids)[-3:] == FRAME[2:]


@pytest.mark.parametrize(
    ("content", "expected", "written"),
    [
        ("m['content'] | trim", "a </think> b", 0),
        ("m['content'].split('</think>')[-1]", "a </think> b", 0),
        ("m['content'] ~ ' </think>'", "a </think> b", 1),
        ("m['content'] ~ m['content']", "a </think> b", 0),
        ("m['content'] | replace('</think>', '')", "a </think> b", 0),
    ],
)
def test_templates_find_no_control_token_in_a_message(
    content: str, expected: str, written: int
) -> None:
    tokenizer = tokenizer_of("byte-level", template=CHATML.replace("m['content']", content))
    text, ids = _put(tokenizer, "chat")(_problem("a </think> b", kind="numeric"))
    assert expected in text
    assert _controls(tokenizer, ids).count("</think>") == written
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["unigram", "byte-level-nfc"])
@pytest.mark.parametrize("normalized", [False, True])
def test_look_alikes_do_not_become_control_tokens(kind: str, normalized: bool) -> None:
    """A normalizer turns full-width letters into the text of a token."""
    tokenizer = tokenizer_of(kind, normalized=normalized)
    put = _put(tokenizer)
    for token in (*SPECIAL[1:], *MARKS):
        wide = "".join(
            chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in token
        )
        _, ids = put(_problem(f"Count {wide} here."))
        assert _controls(tokenizer, ids) == FRAME


def test_a_lowercasing_tokenizer_finds_no_token_in_capitals() -> None:
    tokenizer = tokenizer_of("wordpiece", normalized=True)
    _, ids = _put(tokenizer)(_problem("Count <|IM_END|> and <THINK>."))
    assert _controls(tokenizer, ids) == FRAME


def test_tokens_that_cannot_be_written_as_text_are_named() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {
        word: number
        for number, word in enumerate(
            ["<unk>", "<s>", "user", "system", "assistant", "Solve", "it", "a"]
        )
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", unk_token="<unk>"
    )
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<s>").replace("<|im_end|>", "<s>")
    put = _put(tokenizer)
    put(_problem("Solve <s> a"))
    assert put.unwritable == ["x/1"]
    assert put.kept_words == 0
    put(_problem("Solve a"))
    assert put.unwritable == ["x/1"]


def test_a_tokenizer_without_the_library_names_the_rows() -> None:
    tokenizer = tokenizer_of("byte-level")

    class Slow:
        """The same tokenizer without the one of the tokenizers library behind it."""

        def __getattr__(self, name: str) -> Any:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(tokenizer, name)

    put = _put(Slow())
    assert put(_problem("Plain.")) == _put(tokenizer)(_problem("Plain."))
    put(_problem("Not <s> plain."))
    assert put.unwritable == ["x/1"]


def test_html_tags_of_a_vocabulary_are_ordinary_words() -> None:
    from tokenizers import AddedToken

    tokenizer = tokenizer_of("byte-level")
    tokenizer.add_tokens(
        [
            AddedToken(token, special=False, normalized=False)
            for token in ("<table>", "</h1>", "<b>", "\n\n", "  ")
        ]
    )
    put = _put(tokenizer)
    text, ids = put(_problem("Write <table></h1>\n\n<b> a  b."))
    assert list(ids) == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<table>") in ids
    assert put.kept_words == 0


def test_a_merge_does_not_bring_a_control_token_back() -> None:
    """Two vocabularies: merges spell the token, or words are looked up as they are."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({*"<s>usertaian\nCAdolve it.Tmhprogdwck,3/`y"})
    vocabulary = {token: number for number, token in enumerate([*letters, "<s", "<s>", "x<s>"])}
    merges = [("<", "s"), ("<s", ">")]
    for ignoring in (False, True):
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=ignoring))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens([AddedToken("<s>", normalized=False)])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
        tokenizer.chat_template = "{% for m in messages %}<s> {{ m.content }} {% endfor %}"
        _, ids = _put(tokenizer, "chat")(_problem("it <s> is"))
        assert ids.count(vocabulary["<s>"]) == 1


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*SPECIAL, *MARKS, "<|im_", "end|>", "<", ">", " ", "\n", "a", "\U00100000", "ｅ"]
        )
    )
)
def test_any_mixture_of_tokens_and_their_parts_stays_text(pieces: list[str]) -> None:
    tokenizer = _byte_level()
    text, ids = _put(tokenizer)(_problem("a" + "".join(pieces) + "a"))
    assert "a" + "".join(pieces) + "a" in text
    assert _controls(tokenizer, ids) == FRAME
    assert tokenizer.decode(ids) == text


_made: list[Any] = []


def _byte_level() -> Any:
    if not _made:
        _made.append(tokenizer_of("byte-level"))
    return _made[0]


def test_a_statement_that_guesses_an_alias_is_named() -> None:
    tokenizer = _byte_level()
    put = _put(tokenizer)
    alias = put.control._aliases["<s>"]
    assert _controls(tokenizer, put(_problem(f"Count {alias}."))[1]) == FRAME
    assert put.unwritable == []
    put(_problem(f"Count <s> and {alias}."))
    assert put.unwritable == ["x/1"]


def test_masks_use_characters_that_occur_nowhere() -> None:
    control = ControlTokens(_byte_level())
    values = ["<s> \U00100000", {"a": ["</s><s>", 3, None]}]
    masked = control.mask(values, "\U00100001")
    assert set(masked.originals.values()) == {"<s>", "</s>"}
    assert not {"\U00100000", "\U00100001"} & masked.originals.keys()
    assert masked.restore(masked.values[0]) == values[0]
    assert masked.values[1]["a"][1:] == [3, None]


def test_the_longest_token_is_taken_at_each_place() -> None:
    from tokenizers import AddedToken

    tokenizer = tokenizer_of("byte-level")
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(text, normalized=False) for text in ("<|", "<|im", "|")
            ]
        }
    )
    _, ids = _put(tokenizer)(_problem("a <|im_start|> <|im <| | b"))
    assert [
        number for number in ids if tokenizer.convert_ids_to_tokens(number) in ("<|", "<|im", "|")
    ] == []
    assert _controls(tokenizer, ids) == FRAME


def test_rows_of_a_benchmark_keep_their_words_too(tmp_path: Path) -> None:
    tokenizer = _byte_level()
    put = _put(tokenizer, "published")
    problems = [_problem(text) for text in ("Add two numbers.", "Count <|im_end|>.")]
    assert render(problems, put, ContextBudget(max_model_len=2000), out=tmp_path).rows == 2
    rows = list(shards.read_rows(tmp_path, Prompt))
    assert [_controls(tokenizer, row.token_ids) for row in rows] == [FRAME, FRAME]
    assert put.kept_words == 1


def test_no_character_next_to_a_template_token_changes_it() -> None:
    """No token of the template changes by the first or last character of a statement."""
    tokenizer = tokenizer_of("metaspace-first", rstrip=True)
    put = _put(tokenizer, "chat")
    for first, last in itertools.product(["\n", " ", "<s>", "▁", ">", "a"], repeat=2):
        _, ids = put(_problem(f"{first}<think>{last}"))
        assert _controls(tokenizer, ids) == FRAME[2:]
