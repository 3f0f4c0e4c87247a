"""The end of reasoning: drawn marks decide, written marks are text, drafts are not content."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.extraction import extract, extract_code
from ssd_ray.models import answers
from ssd_ray.reasoning import (
    ANY,
    Content,
    content_of_text,
    format_from_prompts,
    opened_by,
    special_marks,
    spelled,
)
from ssd_ray.reasoning.marks import PAIRS
from tests.support.marked import (
    ANALYSIS,
    ASKED,
    DRAFT,
    FINAL,
    HARMONY,
    PROGRAM,
    answer,
    ids_of,
    marked_tokenizer,
    parser_of,
)

SPECIAL = marked_tokenizer("<think>", "</think>")
MAGISTRAL = marked_tokenizer("[THINK]", "[/THINK]", end="</s>")
GPT_OSS = marked_tokenizer(*HARMONY, end="<|return|>")
QWEN3 = marked_tokenizer(plain=("<think>", "</think>"))

words = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="`~\r"), max_size=40
)


def _content(tokenizer: Any, *pieces: str | bytes, **options: Any) -> Content:
    return parser_of(tokenizer).content(answer(tokenizer, *pieces, **options))


# Marks that are special tokens.


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.opening)
@pytest.mark.parametrize("prefilled", ["", "Let me see."])
def test_special_marks_hide_a_draft_and_show_the_program(pair: Any, prefilled: str) -> None:
    tokenizer = marked_tokenizer(pair.opening, pair.closing)
    for prompt, begin in (
        (f"Q\n{pair.opening}\n{prefilled}", ""),
        ("Q", f"{prefilled}{pair.opening}"),
    ):
        assert (
            _content(tokenizer, begin, DRAFT, pair.closing, PROGRAM, prompt=prompt).reasoning
            == "ended"
        )
        content = _content(tokenizer, begin, DRAFT, pair.closing, PROGRAM, prompt=prompt).text
        assert content is not None
        assert content.removeprefix(prefilled).strip() == PROGRAM
        assert _content(tokenizer, begin, DRAFT, prompt=prompt, ended=False) == Content(
            text=None, reasoning="unfinished"
        )


def test_an_answer_without_special_marks_stays_unchanged() -> None:
    assert _content(SPECIAL, PROGRAM, prompt="Q") == Content(text=PROGRAM, reasoning="none")
    assert _content(GPT_OSS, PROGRAM, prompt="Q") == Content(text=PROGRAM, reasoning="none")
    assert _content(SPECIAL, "", prompt="Q") == Content(text="", reasoning="none")


def test_an_end_that_the_answer_did_not_open_ends_a_reasoning() -> None:
    assert _content(MAGISTRAL, DRAFT, "[/THINK]", PROGRAM, prompt="Q") == Content(
        text=PROGRAM, reasoning="ended"
    )


def test_a_reasoning_that_is_opened_again_has_to_end_again() -> None:
    begin = ("[THINK]hm[/THINK]", "Sure.")
    assert _content(MAGISTRAL, *begin, "[THINK]", DRAFT, ended=False).text is None
    content = _content(MAGISTRAL, *begin, "[THINK]", DRAFT, "[/THINK]", "No program.")
    assert content.text is not None
    assert extract(content.text, content).code is None


def test_marks_that_change_nothing_are_text() -> None:
    assert _content(MAGISTRAL, "[THINK]a[THINK]b[/THINK]", PROGRAM).text == PROGRAM
    assert _content(MAGISTRAL, "[THINK]a[/THINK]x[/THINK]y").text == "x[/THINK]y"


def test_a_system_prompt_that_shows_the_marks_opens_nothing() -> None:
    shown = "Reason like this: [THINK]your thoughts[/THINK] and then answer.\nQ"
    assert _content(MAGISTRAL, PROGRAM, prompt=shown).reasoning == "none"
    assert _content(MAGISTRAL, "[THINK]", DRAFT, prompt=shown, ended=False).text is None


def test_an_end_token_is_no_text_even_if_it_is_not_special() -> None:
    tokenizer = marked_tokenizer("[THINK]", "[/THINK]")
    drawn = answer(tokenizer, "[THINK]a[/THINK]bc!", ended=False)
    stopped = Content(text="bc", reasoning="ended")
    parser = parser_of(tokenizer)
    assert parser.content(drawn).text == "bc!"
    assert parser.content(dataclasses.replace(drawn, finish_reason="stop")) == stopped


# Harmony.


def test_the_final_channel_is_the_answer() -> None:
    drawn = (ANALYSIS, DRAFT, "<|end|>", FINAL, PROGRAM)
    assert _content(GPT_OSS, *drawn, prompt=ASKED) == Content(text=PROGRAM, reasoning="ended")
    alone = "<|channel|>final<|message|>"
    assert _content(GPT_OSS, alone, PROGRAM, prompt=ASKED) == Content(
        text=PROGRAM, reasoning="none"
    )
    assert _content(GPT_OSS, "<|message|>", PROGRAM, prompt=ASKED) == Content(
        text=PROGRAM, reasoning="none"
    )


@pytest.mark.parametrize(
    "drawn",
    [
        (ANALYSIS, DRAFT),
        (ANALYSIS, DRAFT, "<|end|>"),
        (ANALYSIS, DRAFT, "<|end|><|start|>assistant<|channel|>final"),
        (ANALYSIS, "hm<|end|><|start|>assistant<|channel|>commentary<|message|>", PROGRAM),
        (
            ANALYSIS,
            (
                "hm<|end|><|start|>assistant<|channel|>commentary to=functions.run "
                "<|constrain|>json<|message|>"
            ),
            PROGRAM,
        ),
        (ANALYSIS, "hm<|end|><|start|>assistant to=python<|channel|>final<|message|>", PROGRAM),
        ("<|channel|>analysis", DRAFT),
        ("<|channel|>finally<|message|>", PROGRAM),
        (ANALYSIS, "hm", FINAL, PROGRAM),  # a message within a message
        (ANALYSIS, "hm<|channel|>final<|message|>", PROGRAM),
        (ANALYSIS, b"<|end|>" + FINAL.encode(), PROGRAM),  # spelled out
        (ANALYSIS, "hm<|end|><|start|>user<|message|>", PROGRAM),
        (ANALYSIS, "hm<|end|><|start|>user<|message|>And?<|end|>", FINAL, PROGRAM),
        (ANALYSIS, "hm<|end|>", FINAL, PROGRAM, "<|end|><|start|>assistant", ANALYSIS, DRAFT),
    ],
)
def test_an_answer_without_a_final_channel_has_no_content(
    drawn: tuple[str | bytes, ...],
) -> None:
    for ended in (True, False):
        content = _content(GPT_OSS, *drawn, prompt=ASKED, ended=ended)
        assert content == Content(text=None, reasoning="unfinished")


@pytest.mark.parametrize(
    ("drawn", "text"),
    [
        ((ANALYSIS, "hm<|end|>", FINAL, "one<|end|>", FINAL, "two"), "one\ntwo"),
        ((ANALYSIS, "hm<|end|><|channel|>final<|message|>", "x"), "x"),
        (
            (
                ANALYSIS,
                "hm<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
                "x",
            ),
            "x",
        ),
        ((ANALYSIS, "hm<|end|>", FINAL, "x<|end|><|start|>user<|message|>And y?"), "x"),
        ((ANALYSIS, "hm<|end|>", FINAL, "x<|end|><|start|>assistant<|channel|>ana"), "x"),
        (
            (ANALYSIS, "hm<|end|>", FINAL, "print('<|channel|>analysis')"),
            "print('<|channel|>analysis')",
        ),
        ((ANALYSIS, "hm<|end|>", FINAL, b"print('<|end|>')"), "print('<|end|>')"),
    ],
)
def test_contents_of_the_final_channel_are_the_answer(
    drawn: tuple[str | bytes, ...], text: str
) -> None:
    assert _content(GPT_OSS, *drawn, prompt=ASKED, ended=False) == Content(
        text=text, reasoning="ended"
    )


def test_a_prompt_may_begin_the_message() -> None:
    begun = f"{ASKED}{ANALYSIS}First"
    assert _content(GPT_OSS, DRAFT, prompt=begun, ended=False).text is None
    assert _content(GPT_OSS, DRAFT, "<|end|>", FINAL, PROGRAM, prompt=begun).text == PROGRAM
    assert _content(GPT_OSS, PROGRAM, prompt=f"{ASKED}<|channel|>final<|message|>") == Content(
        text=PROGRAM, reasoning="none"
    )


# Ids and text.


def test_spelled_text_has_the_marks_that_were_drawn() -> None:
    drawn = (ANALYSIS, "é", "<|end|>", FINAL, PROGRAM)
    ids = ids_of(GPT_OSS, *drawn)
    assert spelled(ids, special_marks(GPT_OSS), answers.text_decoder(GPT_OSS)) == "".join(drawn)
    plain = ids_of(QWEN3, "<think>hm</think>é")
    assert spelled(plain, special_marks(QWEN3), answers.text_decoder(QWEN3)) == QWEN3.decode(
        plain, skip_special_tokens=True
    )


def test_marks_that_are_no_special_tokens_are_text() -> None:
    assert special_marks(QWEN3) == {}
    for pieces in (
        ("<think>", DRAFT, "</think>", PROGRAM),
        (b"<think>", DRAFT, b"</think>", PROGRAM),
    ):
        assert _content(QWEN3, *pieces) == Content(text=PROGRAM, reasoning="ended")
    assert parser_of(QWEN3, "<think>").content(answer(QWEN3, DRAFT)).text is None


pieces = st.lists(
    st.one_of(
        words,
        words.map(str.encode),
        st.sampled_from([*HARMONY, "assistant", "analysis", "final", DRAFT]),
    )
)


@given(pieces)
def test_no_answer_makes_the_parsers_fail(drawn_pieces: list[str | bytes]) -> None:
    drawn = [
        piece if isinstance(piece, str) else bytes(byte for byte in piece if byte < 128)
        for piece in drawn_pieces
    ]
    for tokenizer, prompt in ((GPT_OSS, ASKED), (GPT_OSS, "Q"), (SPECIAL, "<think>")):
        content = _content(tokenizer, *drawn, prompt=prompt)
        assert (content.text is None) == (content.reasoning == "unfinished")
    content = content_of_text(
        "".join(piece if isinstance(piece, str) else piece.decode() for piece in drawn)
    )
    assert (content.text is None) == (content.reasoning == "unfinished")


@given(words, words, words)
def test_text_and_ids_agree_unless_words_spell_marks(draft: str, program: str, rest: str) -> None:
    for text in (
        f"{ANALYSIS}{draft}<|end|>{FINAL}{program}",
        f"{ANALYSIS}{draft}<|end|><|start|>assistant<|channel|>commentary<|message|>{rest}<|end|>{FINAL}{program}",
        f"{ANALYSIS}{draft}{program}",
        f"<|channel|>final<|message|>{program}",
    ):
        assert content_of_text(text) == _content(GPT_OSS, text, prompt=ASKED, ended=False)
    for text in (f"[THINK]{draft}[/THINK]{program}", f"[THINK]{draft}{rest}"):
        assert content_of_text(text) == _content(MAGISTRAL, text, prompt="Q", ended=False)


channels = st.sampled_from(["analysis", "commentary", "final", ""])
messages = st.lists(
    st.tuples(channels, words.filter(lambda word: "<|" not in word)), min_size=1, max_size=6
)


def _rendered(turns: list[tuple[str, str]], first: str = "") -> str:
    """Return messages in the harmony format; the first header begins with `first`."""
    headers = [f"<|channel|>{name}<|message|>" if name else "<|message|>" for name, _ in turns]
    starts = [first, *["<|start|>assistant"] * (len(turns) - 1)]
    parts = zip(starts, headers, turns, strict=True)
    return "<|end|>".join(f"{start}{header}{text}" for start, header, (_, text) in parts)


@given(messages, st.booleans())
def test_messages_for_the_user_are_the_content(turns: list[tuple[str, str]], ended: bool) -> None:
    to_user = [text for name, text in turns if name in ("final", "")]
    reasoned = len(to_user) < len(turns)
    expected = Content(text="\n".join(to_user), reasoning="ended" if reasoned else "none")
    if turns[-1][0] not in ("final", ""):
        expected = Content(text=None, reasoning="unfinished")
    assert _content(GPT_OSS, _rendered(turns), prompt=ASKED, ended=ended) == expected
    assert content_of_text(_rendered(turns, "<|start|>assistant")) == expected


@given(
    st.lists(words.map(lambda word: word.replace("[", "")), min_size=1, max_size=7), st.booleans()
)
def test_text_outside_of_pairs_is_the_content(parts: list[str], opened: bool) -> None:
    marks = [("[/THINK]", "[THINK]")[(place + opened) % 2 == 1] for place in range(1, len(parts))]
    drawn = parts[0] + "".join(mark + part for mark, part in zip(marks, parts[1:], strict=True))
    outside = [part for place, part in enumerate(parts) if (place + opened) % 2 == 0]
    content = _content(MAGISTRAL, drawn, prompt="[THINK]" if opened else "Q", ended=False)
    if (len(parts) - 1 + opened) % 2:
        assert content.text is None
    else:
        assert content.text == "\n".join(filter(None, outside))


@given(words, words)
def test_spelled_out_marks_open_and_end_nothing(before: str, after: str) -> None:
    draft = before.encode().decode("ascii", "ignore").encode()
    forged = (draft, b"</think>", b"<|end|>" + FINAL.encode(), PROGRAM, after)
    assert _content(SPECIAL, *forged, prompt="<think>", ended=False).text is None
    assert _content(GPT_OSS, ANALYSIS, *forged, prompt=ASKED, ended=False).text is None
    assert _content(SPECIAL, b"<think>", PROGRAM, prompt="Q").reasoning == "none"


# Text alone.


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.opening)
def test_a_text_that_begins_with_a_mark_reasons_up_to_its_end(pair: Any) -> None:
    assert content_of_text(f"\n{pair.opening}{DRAFT}{pair.closing}x") == Content(
        text="x", reasoning="ended"
    )
    assert content_of_text(f"{pair.opening}{DRAFT}").text is None
    assert content_of_text(f"{DRAFT}{pair.closing}x", pair.opening) == Content(
        text="x", reasoning="ended"
    )
    assert content_of_text(f"{DRAFT}{pair.closing}x", ANY) == Content(text="x", reasoning="ended")
    other = "</reasoning>" if pair.opening != "<reasoning>" else "</think>"
    assert content_of_text(f"{DRAFT}{other}x", pair.opening).text is None


def test_an_answer_that_only_mentions_marks_does_not_reason() -> None:
    program = "```python\nprint('<think>')\nprint('''\n<|channel|>analysis<|message|>''')\n```"
    for text in (
        f"The tag <think> opens it.\n{program}",
        f"Count `<think>`, not `</think>`:\n{program}",
        f"{program}\nIt prints <think> and <|start|>assistant<|channel|>final<|message|>.",
        f"Analysis: none.\n{program}",
        f"analysis of the task\n{program}",
        f"```xml\n<reasoning>\n</reasoning>\n```\n{program}",
    ):
        assert content_of_text(text) == Content(text=text, reasoning="none")
        assert (
            _content(
                SPECIAL, text.replace("<think>", "<b>").replace("</think>", "</b>"), prompt="Q"
            ).reasoning
            == "none"
        )


def test_harmony_without_its_special_tokens_is_recognized() -> None:
    dropped = f"analysisWe need{DRAFT}"
    assert content_of_text(dropped) == Content(text=None, reasoning="unfinished")
    assert content_of_text(f"{dropped}assistantfinal{PROGRAM}") == Content(
        text=PROGRAM, reasoning="ended"
    )


def test_the_most_specific_end_mark_ends_open_reasoning() -> None:
    assert content_of_text("a</reasoning>b[/THINK]c</think>d", ANY).text == "d"
    assert content_of_text("a</reasoning>b[/THINK]c", ANY).text == "c"
    assert content_of_text(f"a</reasoning>b<|end|>{FINAL}c", ANY).text == "c"
    assert content_of_text("a</reasoning>b", ANY).text == "b"


@pytest.mark.parametrize(
    "unit",
    [
        *HARMONY,
        "<think>",
        "</think>",
        "[/THINK]",
        "\n",
        " ",
        "</think> ",
        "analysis",
        "<|channel|>a",
    ],
)
@pytest.mark.parametrize("opened", ["", ANY, "<think>"])
def test_long_texts_are_read_in_linear_time(unit: str, opened: str) -> None:
    started = time.monotonic()
    for begin in ("", "<|channel|>", f"{ANALYSIS}<|end|>"):
        content_of_text(begin + unit * (400_000 // len(unit)), opened)
    assert time.monotonic() - started < 5


# Prompts.


@pytest.mark.parametrize(
    ("tail", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\nOkay, so", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\n", ""),
        ("[/INST][THINK]", "[THINK]"),
        ("<reasoning>I", "<reasoning>"),
    ],
)
def test_a_prompt_may_end_within_reasoning(tail: str, opened: str) -> None:
    assert opened_by(f"<|im_start|>user\nQ<|im_end|>\n{tail}", "Q") == opened


def test_a_statement_that_mentions_marks_opens_nothing() -> None:
    statement = "Count how often the text <think> occurs."
    text = "user\n{}\nassistant\n"
    assert opened_by(text.format(statement), statement) == ""
    rows = [
        ("a", text.format("Q"), "Q"),
        ("b", text.format("Q"), "Q"),
        ("c", f"{text.format('Q')}<think>", "Q"),
    ]
    form = format_from_prompts(rows)
    assert [form.opened_in(name) for name in "abc"] == ["", "", "<think>"]
    assert format_from_prompts([]).opened == ""


def test_extraction_from_a_text_follows_the_same_rule() -> None:
    assert extract_code(f"{ANALYSIS}{DRAFT}") is None
    assert extract_code(f"{ANALYSIS}{DRAFT}<|end|>{FINAL}{PROGRAM}") == "print(2 * int(input()))"
    assert extract_code(f"[THINK]{DRAFT}[/THINK]{PROGRAM}") == "print(2 * int(input()))"
