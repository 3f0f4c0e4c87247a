"""Files of a panel: multiple-choice questions, and general prompts.

Formats of questions:

- CommonsenseQA as published: `question` with `stem` and `choices`, `answerKey`;
- the same on the hub: `question`, `choices` with `label` and `text`, `answerKey`;
- plain: `question`, `choices` as a list of texts, `answer` as the index of the right one.

General prompts have a field `prompt`, `question` or `text`. Reads files; writes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_ray.errors import UserError
from ssd_ray.problems.benchmarks.files import Row, RowError, list_files, read_rows

LABELS = "ABCDEFGHIJ"
_PROMPT_FIELDS = ("prompt", "question", "text")


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestion:
    """A question with labeled choices."""

    name: str
    text: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""

    @property
    def prompt(self) -> str:
        """The question as one user message that asks for a label alone."""
        listed = "\n".join(
            f"{label}. {choice}" for label, choice in zip(LABELS, self.choices, strict=False)
        )
        return f"{self.text}\n{listed}\nAnswer with the letter alone."


def read_questions(path: Path, limit: int | None) -> tuple[ChoiceQuestion, ...]:
    """Read multiple-choice questions with their answers.

    Raises:
        UserError: the file is missing, or a row lacks a question, choices or an answer.
    """
    rows = read_file_rows(path, limit)
    questions = tuple(_question(path, number, row) for number, row in enumerate(rows, start=1))
    if not questions:
        raise UserError(f"{path} has no question: add rows in a format of docs/panel.md")
    return questions


def read_prompts(path: Path, limit: int | None) -> tuple[str, ...]:
    """Read the texts of general prompts.

    Raises:
        UserError: the file is missing, or a row has no text.
    """
    texts = []
    for number, row in enumerate(read_file_rows(path, limit), start=1):
        stated = next((row[name] for name in _PROMPT_FIELDS if row.get(name)), None)
        if not isinstance(stated, str):
            raise UserError(
                f"{path}: row {number} has no text in {', '.join(_PROMPT_FIELDS)}: add one of them"
            )
        texts.append(stated)
    if not texts:
        raise UserError(f"{path} has no text: add rows with one of {', '.join(_PROMPT_FIELDS)}")
    return tuple(texts)


def read_file_rows(path: Path, limit: int | None, what: str = "source of a panel") -> Iterator[Row]:
    """Yield the first rows of the files of a panel, all for None.

    `what` names the file in a refusal.

    Raises:
        UserError: the file is missing, or a row is unreadable.
    """
    return itertools.islice(_rows(path, what), limit)


def _rows(path: Path, what: str) -> Iterator[Row]:
    for file in list_files(path, what):
        for number, row in read_rows(file):
            if isinstance(row, RowError):
                raise UserError(f"{file}: row {number}: {row}: correct or remove this row")
            yield row


def _question(path: Path, number: int, row: dict[str, Any]) -> ChoiceQuestion:
    where = f"{path}: row {number}"
    stated = row.get("question")
    choices: Any = row.get("choices")
    if isinstance(stated, dict):
        choices = stated.get("choices")
        stated = stated.get("stem")
    labels: list[str] = list(LABELS)
    if isinstance(choices, dict):
        labels = [str(each) for each in choices.get("label", [])]
        choices = choices.get("text")
    elif isinstance(choices, list) and choices and isinstance(choices[0], dict):
        labels = [str(each.get("label")) for each in choices]
        choices = [each.get("text") for each in choices]
    if not isinstance(stated, str) or not isinstance(choices, list | tuple):
        raise UserError(f"{where} has no question with choices: see the formats of docs/panel.md")
    if not 2 <= len(choices) <= len(LABELS):
        raise UserError(f"{where} has {len(choices)} choices: use 2 to {len(LABELS)}")
    return ChoiceQuestion(
        name=str(row.get("id", number)),
        text=stated,
        choices=tuple(str(each) for each in choices),
        answer=_answer(where, row, labels, len(choices)),
    )


def _answer(where: str, row: dict[str, Any], labels: list[str], size: int) -> int:
    key = row.get("answerKey")
    index = labels.index(key) if key in labels else row.get("answer")
    if not isinstance(index, int) or not 0 <= index < size:
        raise UserError(
            f"{where} has no answer: a panel needs answerKey, or answer as the index of a choice"
        )
    return index
