"""The program in an answer."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.extraction import extract_code
from ssd_ray.reasoning import ANY, content_of_text
from ssd_ray.reasoning.marks import CLOSINGS, OPENINGS, START

lines = st.text(
    st.characters(blacklist_characters="\r\n`~", blacklist_categories=["Cs"]), max_size=30
)
untagged = lines.filter(
    lambda line: (
        content_of_text(line).reasoning == "none"
        and not any(mark in line for mark in (*OPENINGS, *CLOSINGS, START))
    )
)
"""Lines without marks of reasoning. Hypothesis draws strings of the code under test, too."""
programs = st.lists(untagged, min_size=1, max_size=8).map("\n".join).filter(str.strip)
proses = st.lists(untagged, max_size=5).map("\n".join)
tags = st.sampled_from(
    ["", "python", "py", "Python3", " python ", "c++", "python title=solution.py"]
)


@given(programs, proses, proses, tags)
def test_a_fenced_program_comes_out_as_it_went_in(program, before, after, tag):
    assert extract_code(f"{before}\n```{tag}\n{program}\n```\n{after}") == program


@given(programs, programs, proses)
def test_the_last_of_several_blocks_is_the_answer(first, last, between):
    assert extract_code(f"```python\n{first}\n```\n{between}\n~~~\n{last}\n~~~") == last


@given(programs, st.integers(1, 8))
def test_the_indentation_of_an_indented_fence_is_taken_off(program, width):
    margin = " " * width
    answer = "\n".join(margin + line for line in ["```python", *program.split("\n"), "```"])
    assert extract_code(answer) == program


@given(programs)
def test_windows_line_ends_become_plain_ones(program):
    assert extract_code(f"Here:\n```\n{program}\n```\n".replace("\n", "\r\n")) == program


fenced = st.lists(
    st.one_of(
        lines,
        st.sampled_from(["```", "```python", "~~~", "  ```", "a ``` b", "</think>", "<think>", ""]),
    )
)
answers = st.one_of(fenced.map("\n".join), st.text(st.sampled_from(string.printable), max_size=300))


@given(answers, st.sampled_from(["last-block", "first-block"]), st.booleans())
def test_no_text_makes_extraction_fail_and_none_gives_blank_code(text, rule, thinking):
    code = extract_code(text, rule, thinking=thinking)
    assert code is None or code.strip()


def test_an_answer_without_a_block_has_no_code():
    assert extract_code("") is None
    assert extract_code("print(1)") is None
    assert extract_code("Use `print(1)`, or ```print(1)``` in one line.") is None


def test_an_unclosed_last_block_is_no_code():
    assert extract_code("```python\nprint(1)") is None
    assert extract_code("```python\nprint(1)\n```\nBetter:\n```python\nprint(2") is None


def test_a_stray_fence_after_the_answer_changes_nothing():
    assert extract_code("```python\nprint(1)\n```\n```\n") == "print(1)"


@pytest.mark.parametrize(
    "mark",
    [
        "</answer>",
        "<|im_end|>",
        " </s>",
        "<|eot_id|><|eot_id|>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<end_of_turn>",
        "</a> </b>",
    ],
)
@pytest.mark.parametrize("fence", ["```", "~~~~"])
def test_a_mark_after_the_last_fence_is_ignored(fence, mark):
    assert extract_code(f"{fence}python\nprint(1)\n{fence}{mark}") == "print(1)"
    assert (
        extract_code(f"{fence}python\nprint(1)\n{fence}{mark}\nDone.", "first-block") == "print(1)"
    )
    assert extract_code(f"{fence}python\nprint(1)\n{fence} {mark} and more") is None


def test_a_blank_last_block_is_no_code():
    assert extract_code("```python\nprint(1)\n```\n```\n\n```") is None


def test_a_missing_fence_before_the_next_block_is_forgiven():
    assert (
        extract_code("```python\nprint(1)\n\nNo, rather:\n```python\nprint(2)\n```") == "print(2)"
    )


def test_reasoning_is_not_searched_for_code():
    assert extract_code("<think>\n```python\nprint(1)\n```\n</think>\nI do not know.") is None
    assert (
        extract_code("<think>try\n```\nprint(1)\n</think>\n```python\nprint(2)\n```") == "print(2)"
    )
    assert extract_code("try\n```\nprint(1)\n</think>\n```python\nprint(2)\n```") == "print(2)"
    assert extract_code("<think>\n```python\nprint(1)\n```\nand then") is None


def test_a_tag_of_reasoning_inside_the_program_is_part_of_it():
    program = "print(input().split('</think>')[-1])"
    assert extract_code(f"<think>hm</think>```\n\n```python\n{program}\n```") == program


def test_a_reasoning_tag_in_a_plain_answer_is_text():
    program = "print('</think>')\nprint(input())"
    for thinking, before in (
        (False, "So:"),
        (False, "Use `</think>` here:"),
        (True, "hm\n</think>\nSo:"),
        (True, "hm</think>So:"),
    ):
        assert extract_code(f"{before}\n```python\n{program}\n```", thinking=thinking) == program
    assert (content_of_text("The answer, after </think> as it is, is 4").text or "").startswith(
        "The answer"
    )
    assert content_of_text("2 + 2 is 4.</think>\n4").text == "\n4"
    assert content_of_text("2 + 2 is 4.</think>", ANY).text == ""
    assert content_of_text("2 + 2 is", ANY).text is None


def test_fences_inside_of_strings_stay_in_the_program():
    program = 'def f():\n    """Doc.\n\n    ```python\n    f()\n    ```\n    """\n    return "```"'
    assert extract_code(f"```python\n{program}\n```") == program
    quoted = 's = """\n```\n"""'
    assert extract_code(f"````python\n{quoted}\n````") == quoted
    assert extract_code(f"~~~python\n{quoted}\n~~~") == quoted


@given(programs, programs, proses)
def test_the_first_block_rule_takes_the_first_of_several(first, last, between):
    assert (
        extract_code(f"```python\n{first}\n```\n{between}\n~~~\n{last}\n~~~", "first-block")
        == first
    )


@given(programs, proses, proses)
def test_with_one_block_every_rule_finds_the_same_program(program, before, after):
    answer = f"{before}\n```python\n{program}\n```\n{after}"
    assert {extract_code(answer, rule) for rule in ("last-block", "first-block", "lcb")} == {
        program
    }


def test_a_first_block_that_is_blank_or_never_closed_is_no_code():
    assert extract_code("```\n\n```\n```\nprint(1)\n```", "first-block") is None
    assert extract_code("```python\nprint(1)", "first-block") is None
    assert extract_code("```python\nprint(1)\n```\n```python\nprint(2", "first-block") == "print(1)"


def test_reasoning_that_the_prompt_opened_must_be_closed():
    cut_off = "Let me try\n```python\nprint(1)\n```\nbut"
    for rule in ("last-block", "first-block"):
        assert extract_code(cut_off, rule) == "print(1)"
        assert extract_code(cut_off, rule, thinking=True) is None
        assert (
            extract_code(f"{cut_off}\n</think>\n```\nprint(2)\n```", rule, thinking=True)
            == "print(2)"
        )


def _official(text: str) -> str | None:
    """Return text between the last two fences, scanning lines from the end."""
    collected, num_fences = [], 0
    for line in reversed(text.split("\n")):
        if line.count("```"):
            num_fences += 1
            if num_fences == 2:
                return "\n".join(reversed(collected))
        elif num_fences:
            collected.append(line)
    return None


@given(answers, st.booleans())
def test_the_lcb_rule_takes_text_between_the_last_two_fences(text, thinking):
    assert extract_code(text, "lcb", thinking=thinking) == _official(text)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("print(1)", None),
        ("```python\nprint(1)", None),
        ("```print(1)```", None),
        ("```python\nprint(1)\n```", "print(1)"),
        ("```python\nprint(1)\n```\nIt prints\n```\n1\n```", "1"),
        ("```python\nprint(1)\n```\nDone.\n```", "Done."),
        ("```python\nprint(1)\n```\n```python\nprint(2)", ""),
        ("  ```python\n  print(1)\n  ```", "  print(1)"),
        ("see ``` here\nprint(1)\nand ``` there", "print(1)"),
        ("~~~\nprint(1)\n~~~", None),
        ("```python\r\nprint(1)\r\n```", "print(1)\r"),
        ("<think>\n```\nprint(1)\n```\n", "print(1)"),
        ("```\n```", ""),
    ],
)
def test_the_lcb_rule_is_kept_to_the_letter(answer, code):
    assert extract_code(answer, "lcb") == code


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("```python\na\n```\nthen\n```py\nb\n```", "b"),
        ("<think>\n```python\ndraft\n```\nstill thinking", "draft"),
        ("```python\ndraft\n```\n```python\ncut off", "draft"),
        ("Inline ```\nx\n``` too", "x"),
        ("~~~python\na\n~~~", None),
        ("```python\ncut off", None),
        ("```python\n\n```", None),
        ("```c++\nx\n```", None),
    ],
)
def test_the_released_rule_takes_the_last_closed_block_anywhere(answer, expected):
    assert extract_code(answer, "release") == expected
