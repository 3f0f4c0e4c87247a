"""Kind `format` of a panel: instructions on the form of an answer, and answers from files.

    instructions (JSONL), answers of base and student (JSONL or Parquet) ─> counts, share kept

- An answer keeps its format if it keeps every rule of its instruction.
- Some instructions have an expected text: a right format with wrong contents is counted apart.
- Reasoning before an answer is left out.

Reads files; writes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging.format_rules import RuleValue, broken, problem_of
from ssd_ray.problems.benchmarks.files import Row
from ssd_ray.reasoning import content_of_text
from ssd_ray.reporting.panel import Counts
from ssd_ray.standalone.panel_files import read_file_rows
from ssd_ray.statistics.metrics import Values

BUILTIN = Path(__file__).parents[1] / "problems" / "builtin" / "formats.jsonl"
_IDS = ("problem_id", "prompt_id")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A question with rules on the form of its answer."""

    problem_id: str
    question: str
    rules: Mapping[str, RuleValue]
    expects: str
    """Text within a right answer, in any case; "" if any contents are right."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Answers of one model: classes, and for each instruction the share in the right format."""

    counts: Counts
    shares: Values
    most: int
    """Answers to the instruction with most of them."""


def read_instructions(source: str, limit: int | None) -> tuple[Instruction, ...]:
    """Read instructions from a file, or those of the package for the source `builtin`.

    Raises:
        UserError: the file is missing, a row lacks a field, or a rule is unknown.
    """
    path = BUILTIN if source == "builtin" else Path(source)
    rows = read_file_rows(path, limit)
    instructions = [_instruction(path, number, row) for number, row in enumerate(rows, start=1)]
    if not instructions:
        raise UserError(f"{path} has no instruction: add rows with problem_id, question and rules")
    if len({each.problem_id for each in instructions}) < len(instructions):
        raise UserError(f"{path}: a problem_id occurs twice: give each row its own")
    return tuple(instructions)


def read_answers(path: Path, instructions: Sequence[Instruction]) -> dict[str, list[str]]:
    """Read the answers to instructions: rows with a problem's id and a text.

    Answers to other problems are left out, as those beyond a limit.

    Raises:
        UserError: the file is missing, a row has no id or text, or an instruction has no answer.
    """
    answers = defaultdict(list)
    for number, row in enumerate(read_file_rows(path, None, "file of answers of a panel"), start=1):
        problem_id = next((row[name] for name in _IDS if row.get(name)), None)
        text = row.get("text")
        if not isinstance(problem_id, str) or not isinstance(text, str):
            raise UserError(f"{path}: row {number} needs the texts problem_id and text: add them")
        answers[problem_id].append(text)
    lacking = [each.problem_id for each in instructions if each.problem_id not in answers]
    if lacking:
        raise UserError(
            f"{path} has no answer to {lacking[0]!r} and {len(lacking) - 1} more of "
            f"{len(instructions)} instructions: add answers, or set limit"
        )
    return dict(answers)


def kept(instructions: Sequence[Instruction], answers: Mapping[str, Sequence[str]]) -> Kept:
    """Check every answer by the rules of its instruction."""
    counts = {"right": 0, "wrong": 0, "wrong_format": 0}
    shares = []
    for each in instructions:
        classes = [kind_of(each, text) for text in answers[each.problem_id]]
        for name in counts:
            counts[name] += classes.count(name)
        shares.append(1 - classes.count("wrong_format") / len(classes))
    return Kept(
        counts=Counts(**counts, ungraded=0),
        shares=np.array(shares, dtype=np.float64),
        most=max(len(answers[each.problem_id]) for each in instructions),
    )


def kind_of(instruction: Instruction, text: str) -> str:
    """Return `right`, `wrong` or `wrong_format` for one answer.

    An answer cut off within its reasoning is in no format.
    """
    content = content_of_text(text).text
    if content is None or broken(instruction.rules, content):
        return "wrong_format"
    return "right" if instruction.expects.casefold() in content.casefold() else "wrong"


def _instruction(path: Path, number: int, row: Row) -> Instruction:
    texts = {name: row.get(name) for name in ("problem_id", "question")}
    lacking = [name for name, value in texts.items() if not isinstance(value, str) or not value]
    if lacking:
        raise UserError(f"{path}: row {number} has no text in {lacking[0]}: add it")
    mistake = problem_of(row.get("rules"))
    if mistake:
        raise UserError(f"{path}: row {number}: {mistake}")
    expects = row.get("expects", "")
    if not isinstance(expects, str):
        raise UserError(f"{path}: row {number}: expects={expects!r} must be a text")
    return Instruction(
        problem_id=str(texts["problem_id"]),
        question=str(texts["question"]),
        rules=row["rules"],
        expects=expects,
    )
