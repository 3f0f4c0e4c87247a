"""The panel's formats: files of answers, a planted regression, wrong contents counted apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import recipes
from ssd_ray.cli.app import main
from ssd_ray.errors import UserError
from ssd_ray.standalone.panel_formats import kept, kind_of, read_answers, read_instructions
from tests.support.synthetic_run import make_run, recipe, reported

# One right answer for each instruction of the package.
GOOD = {
    "json-capital": '{"capital": "Oslo"}',
    "json-sum": '```json\n{"sum": 43}\n```',
    "sentences-river": "The Danube flows through Vienna. It ends in the Black Sea.",
    "bullets-planets": "- Mercury\n- Venus\n- Earth\n- Mars",
    "lowercase-author": "william shakespeare wrote it.",
    "lowercase-ocean": "the pacific ocean",
    "commas-water": "It boils at 100 degrees.",
    "commas-email": "The meeting on Monday is canceled.",
    "words-japan": "It is Tokyo.",
    "keywords-garden": "A shadow lies on the stone near the water.",
}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers_file(path: Path, texts: dict[str, str], times: int = 1) -> Path:
    rows = [{"problem_id": f"formats/{name}", "text": text} for name, text in texts.items()]
    return write_rows(path, *rows * times)


def own_instructions(path: Path) -> Path:
    chosen = [each for each in read_rows() if each["problem_id"].split("/")[1] in GOOD]
    return write_rows(path, *chosen)


def read_rows() -> list[dict[str, Any]]:
    from ssd_ray.standalone.panel_formats import BUILTIN

    return [json.loads(line) for line in BUILTIN.read_text().splitlines()]


def test_the_instructions_of_the_package_are_sound() -> None:
    every = read_instructions("builtin", None)
    assert len(every) == 40
    assert {name for each in every for name in each.rules} == {
        *("json", "sentences", "bullets", "words", "lowercase", "no_commas", "no_code_block"),
        "keywords",
    }
    # No rule of prose is kept by an answer in code.
    code = "```python\nprint('Hello, World')\n```"
    assert {kind_of(each, code) for each in every} == {"wrong_format"}
    assert len(read_instructions("builtin", 7)) == 7


@pytest.mark.parametrize("name", GOOD)
def test_a_good_answer_is_right_and_others_are_told_apart(name: str) -> None:
    (each,) = [one for one in read_instructions("builtin", None) if one.problem_id.endswith(name)]
    assert kind_of(each, GOOD[name]) == "right"
    assert kind_of(each, f"<think>Let me see, a list: 1, 2</think>\n{GOOD[name]}") == "right"
    assert kind_of(each, "<think>Let me see") == "wrong_format"
    assert kind_of(each, f"Sure, HERE it is:\n```\n{GOOD[name]}\n```\n") == "wrong_format"


def test_a_right_format_with_wrong_contents_is_wrong() -> None:
    instructions = read_instructions("builtin", 1)
    answers = {"formats/json-capital": ['{"capital": "Bergen"}', '{"capital": "Oslo"}', "Oslo", ""]}
    result = kept(instructions, answers)
    counts = result.counts
    assert (counts.right, counts.wrong, counts.wrong_format, counts.ungraded) == (1, 1, 2, 0)
    assert result.shares.tolist() == [0.5]
    assert result.most == 4


def test_a_planted_loss_of_formats_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run(tmp_path / "run", recipe())
    reported(made)
    (made.path / "recipe.yaml").write_text(recipes.dump(made.recipe))
    source = own_instructions(tmp_path / "formats.jsonl")
    base = answers_file(tmp_path / "base.jsonl", GOOD, times=3)
    code = {name: f"```python\nprint({text!r})\n```" for name, text in GOOD.items()}
    student = answers_file(tmp_path / "ssd.jsonl", code, times=3)
    fields = {"kind": "format", "source": source, "tolerance": 0.05, "base_answers": base}
    for answers, expected in ((student, "regressed"), (base, "")):
        pairs = {**fields, "answers": answers}.items()
        options = [part for key, value in pairs for part in ("--set", f"panel.forms.{key}={value}")]
        out = tmp_path / f"out{expected}"
        command = ["panel", str(made.path), "--out", str(out), "--quiet"]
        with pytest.raises(SystemExit) as end:
            main([*command, *options, "--fail-on-regression"])
        assert end.value.code == (3 if expected else 0)
        (measured,) = json.loads((out / "panel.json").read_text())["capabilities"]
        assert (measured["regression"]["verdict"] == "regressed") == bool(expected)
        assert measured["student"]["wrong_format"] == (30 if expected else 0)
        assert measured["base"]["right"] == 30
    capsys.readouterr()


ROW = {"problem_id": "a", "question": "Why?", "rules": {"json": True}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no instruction"),
        ([{**ROW, "question": ""}], "row 1 has no text in question"),
        ([{**ROW, "rules": {"jason": True}}], "row 1: the rule 'jason' is unknown"),
        ([{**ROW, "expects": 5}], "expects=5 must be a text"),
        ([ROW, ROW], "a problem_id occurs twice"),
    ],
)
def test_a_bad_instruction_is_refused(
    rows: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_instructions(str(write_rows(tmp_path / "own.jsonl", *rows)), None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem_id": "a"}, "row 1 needs the texts problem_id and text"),
        ({"text": "b"}, "row 1 needs the texts problem_id and text"),
        ({"problem_id": "b", "text": "c"}, "has no answer to 'a'"),
    ],
)
def test_a_bad_answer_is_refused(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    instructions = read_instructions(str(write_rows(tmp_path / "own.jsonl", ROW)), None)
    with pytest.raises(UserError, match=message):
        read_answers(write_rows(tmp_path / "answers.jsonl", row), instructions)


def test_a_missing_file_of_answers_is_named(tmp_path: Path) -> None:
    instructions = read_instructions("builtin", 1)
    with pytest.raises(UserError, match=r"file of answers of a panel '.*none.jsonl': no JSONL"):
        read_answers(tmp_path / "none.jsonl", instructions)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("kind: format", "set answers and base_answers"),
        ("kind: kl, answers: a.jsonl", "reads no files of answers"),
        ("kind: format, answers: a, base_answers: b, arm: ssd", "leave arm and against out"),
    ],
)
def test_a_capability_has_the_fields_of_its_kind(fields: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipes.load("quickstart", [f"panel.x={{{fields}, source: builtin, tolerance: 0.1}}"])
