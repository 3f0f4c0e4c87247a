"""Load a program as LiveCodeBench's own grader does: after its header, as one callable.

- Star imports come before the program.
- The statements of a program for standard input are the body of a function.

Source: LiveCodeBench 28fef95, lcb_runner/evaluation/testing_util.py. Runs in a bare interpreter.
Imports the standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ast
import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_BY_NAME = (
    "string",
    "re",
    "datetime",
    "collections",
    "heapq",
    "bisect",
    "copy",
    "math",
    "random",
    "statistics",
    "itertools",
    "functools",
    "operator",
    "io",
    "sys",
    "json",
)
_STARRED = (*_BY_NAME, "builtins", "typing")
HEADER = "".join(
    [*(f"from {name} import *\n" for name in _STARRED), *(f"import {name}\n" for name in _BY_NAME)]
)
"""Imports before every program; their order decides between equal names."""
_LAST_OF_HEADER = "sys.setrecursionlimit(50000)\n"
_WRAPPER = "wrapped_function"
_FUNCTION: Any = ast.parse(f"def {_WRAPPER}(): pass").body[0]
_CHANGED = {builtins: ("exit", "quit", "help"), sys: ("stdin", "stdout", "stderr")}
"""Names of the header whose values in a program's process differ from those in the zygote."""


def load(code: str, entry_point: str, limit_s: int) -> Callable[..., object]:
    """Return the program as one callable.

    Raises:
        AttributeError: The program defines no `entry_point`.
    """
    _signal.alarm(limit_s)
    source = f"{_LAST_OF_HEADER}{code}" if entry_point else _wrapped(code)
    for owner, names in _CHANGED.items():
        for name in names:
            setattr(_MODULE, name, getattr(owner, name))
    _signal.alarm(limit_s)
    try:
        exec(compile(source, "<string>", "exec", dont_inherit=True), _MODULE.__dict__)
        program = _MODULE.Solution() if "class Solution" in source else _MODULE
    finally:
        _signal.alarm(0)
    function: Callable[..., object] = getattr(program, entry_point or _WRAPPER)
    return function


def _wrapped(code: str) -> str:
    """Return a program's imports, and its other statements as the body of a function.

    - A guard `if __name__ == '__main__'` as the last statement is replaced by its body.
    - A program with a syntax error is returned as it is, without the last line of the header.
    """
    try:
        statements = ast.parse(code).body
        if (
            statements
            and isinstance(statements[-1], ast.If)
            and ast.unparse(statements[-1].test) == "__name__ == '__main__'"
        ):
            statements = [*statements[:-1], *statements[-1].body]
        imports = [
            statement
            for statement in statements
            if isinstance(statement, ast.Import | ast.ImportFrom)
        ]
        _FUNCTION.body = [statement for statement in statements if statement not in imports]
        return f"{_LAST_OF_HEADER}{_unparsed(imports)}\n{_unparsed([_FUNCTION])}"
    # As in the official grader, a program that cannot be parsed runs as it is, and fails.
    except Exception:
        return code


def _unparsed(statements: Sequence[ast.stmt]) -> str:
    return ast.unparse(ast.Module(body=list(statements), type_ignores=[]))


def _header_module() -> Any:
    """Return the module in which programs run, with the header's imports done.

    Made once in the zygote, because the header takes a millisecond. A fork gives each program a
    copy.
    """
    module = type(sys)("tmp_sol", "")
    exec(compile(HEADER, "<string>", "exec", dont_inherit=True), module.__dict__)
    for _ in range(20):
        # Code that ran before the fork is specialized once for all, on pages that stay shared.
        compile(
            _wrapped("import sys\nif __name__ == '__main__':\n    print(input())"),
            "<string>",
            "exec",
        )
    return module


_MODULE = _header_module()
