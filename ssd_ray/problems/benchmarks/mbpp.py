"""MBPP rows, full or sanitized (Austin et al. 2021, arXiv 2108.07732).

- A row has a sentence, a solution and three assertions.
- Each assertion becomes a test with its own `check(candidate)`, in which the function's name is the
  candidate.
- The hub's form of MBPP+ (evalplus/mbppplus) has a script `test` with base and plus inputs. It is
  the only test there, since `test_list` is MBPP's own.
- The assertions are part of the statement, as published, since only they name the function.

Does no I/O.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from ssd_ray.errors import UserError
from ssd_ray.problems.benchmarks.files import (
    Row,
    RowError,
    identifier,
    json_field,
    optional_text,
    shown,
    text,
)
from ssd_ray.schema import Problem, Test

SPLITS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
"""Task ids of the four splits of the full set (its README).

If a recipe names a split, its number of problems is checked.
"""


def problem(row: Row, number: int) -> Problem:
    """Return the problem of a row, of kind `asserts`, named mbpp/N.

    Values in tests must cross to the program's process. Types, and objects of the solution's own
    classes, cannot.

    Raises:
        RowError: A field is missing, an assertion is not an assertion on a function of the
            solution, or a test holds a value that cannot cross.
    """
    code = text(row, "code")
    sources = json_field(row, "test_list", list)
    if not sources:
        raise RowError("field 'test_list' is empty, so nothing could be graded")
    assertions = [_assertion(source) for source in sources]
    tree = _parse(code, "code")
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    entry_point = _entry_point(assertions, defined)
    imports = "\n".join(_imports(row))
    setup_code = optional_text(row, "test_setup_code") or ""
    setup = f"{imports}\n{setup_code}".strip()
    tests = "\n".join(source.strip() for source in sources)
    _require_plain_values(
        tree, {"test_list": tests, "test_imports": imports, "test_setup_code": setup_code}
    )
    callables = [name for node in assertions for name in _callable_arguments(node, entry_point)]
    if callables:
        raise RowError(
            f"field 'test_list' passes {callables[0]} itself as an argument, which cannot cross "
            "to a program in its own process"
        )
    statement = optional_text(row, "text") or text(row, "prompt")
    script = optional_text(row, "test")
    checks = [_check(setup, entry_point, node) for node in assertions]
    return Problem(
        problem_id=f"mbpp/{identifier(row, 'task_id')}",
        source="mbpp+" if script else "mbpp",
        statement="{}\n\nYour code should pass these tests:\n\n{}".format(
            statement.strip(), "\n".join(sources)
        ),
        kind="asserts",
        entry_point=entry_point,
        reference=code,
        tests=tuple(
            Test(input=check, output="")
            for check in ([_script(setup, entry_point, script)] if script else checks)
        ),
    )


def in_split(row: Row, split: str) -> bool:
    """Return True if a row's task id belongs to a split of SPLITS.

    Raises:
        RowError: The id is not a number.
    """
    task_id = identifier(row, "task_id")
    if not task_id.isdecimal():
        raise RowError(f"field 'task_id' must be a number, not {shown(task_id)}")
    return int(task_id) in SPLITS[split]


def require_split(name: str) -> None:
    """Refuse a split unknown to MBPP.

    Raises:
        UserError: There is no such split.
    """
    if name not in SPLITS:
        raise UserError(f"MBPP has no split {name!r}: release is one of {', '.join(SPLITS)}")


def _require_plain_values(solution: ast.Module, texts: Mapping[str, str]) -> None:
    """Refuse test code that uses a class of the solution; `texts` holds the code by field."""
    classes = {node.name for node in solution.body if isinstance(node, ast.ClassDef)}
    for field, source in texts.items():
        used = classes.intersection(_names(_parse(source, field)))
        if used:
            raise RowError(
                f"field {field!r} builds objects of the solution's own class "
                f"{min(used)}, which cannot cross to a program in its own process"
            )


def _imports(row: Row) -> Sequence[str]:
    lines = json_field(row, "test_imports", list) if row.get("test_imports") else []
    if not all(isinstance(line, str) for line in lines):
        raise RowError("field 'test_imports' must hold lines of source")
    return lines


def _parse(source: str, field: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise RowError(f"field {field!r} is not Python: {error}") from error


def _assertion(source: Any) -> ast.Assert:
    if not isinstance(source, str):
        raise RowError(f"field 'test_list' must hold assertions, not {shown(source)}")
    # Exactly one: a second statement of a published row would be lost from its test.
    body = _parse(source.strip(), "test_list").body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise RowError(f"field 'test_list': {shown(source)} is not one assertion")
    return body[0]


def _names(tree: ast.AST) -> list[str]:
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def _entry_point(assertions: Sequence[ast.Assert], defined: set[str]) -> str:
    """Return the function of the solution that every assertion names.

    If there are several, the first one in the first assertion counts.
    """
    common = [
        name
        for name in _names(assertions[0])
        if name in defined and all(name in _names(node) for node in assertions)
    ]
    if not common:
        raise RowError("field 'test_list': no function of 'code' is named in every assertion")
    return common[0]


def _callable_arguments(assertion: ast.Assert, entry_point: str) -> list[str]:
    calls = [node for node in ast.walk(assertion) if isinstance(node, ast.Call)]
    arguments = [
        argument for call in calls if entry_point in _names(call.func) for argument in call.args
    ]
    return [
        name.id
        for name in arguments
        if isinstance(name, ast.Name) and callable(getattr(builtins, name.id, None))
    ]


def _check(setup: str, entry_point: str, assertion: ast.Assert) -> str:
    lines = [setup] if setup else []
    return "\n".join(
        [
            *lines,
            "def check(candidate):",
            f"    {entry_point} = candidate",
            f"    {ast.unparse(assertion)}",
            "",
        ]
    )


def _script(setup: str, entry_point: str, script: str) -> str:
    """Return a `check(candidate)` to run a script of tests with the candidate under its name."""
    if entry_point not in _names(_parse(script, "test")):
        raise RowError(f"field 'test' never calls {entry_point}, so nothing could be graded")
    source = f"{setup}\n{script}" if setup else script
    return "\n".join(
        [
            "def check(candidate):",
            f"    names = dict(globals(), {entry_point}=candidate)",
            # The candidate is a global there, since functions of the script look it up as one.
            f"    exec(compile({source!r}, 'test', 'exec'), names)",
            "",
        ]
    )
