"""Source texts of a program and of a check, and the names to call in them.

Each text is compiled alone. Starter code, imports and references of a problem come before the
program. Does no I/O.
"""

from __future__ import annotations

import ast
import functools
import io
import re
from collections.abc import Sequence

from ssd_ray.evaluation.judging.outcomes import ungradable
from ssd_ray.extraction import is_python
from ssd_ray.schema import Problem, Test

_STARRED = (
    "string re datetime collections heapq bisect copy math random statistics itertools "
    "functools operator io sys json"
)
_LEETCODE_IMPORTS = "\n".join(
    [
        *(f"from {name} import *" for name in [*_STARRED.split(), "builtins", "typing"]),
        f"import {_STARRED.replace(' ', ', ')}",
    ]
)
"""Imports of LeetCode's judge, whose starter code names `List` and imports nothing."""


def entry_points(problem: Problem) -> str:
    """Return the names to call in a program, in the form of sandbox/inside/definitions.py.

    - LiveCodeBench: a method of class Solution comes before a function of its name, as officially.
    - Elsewhere the function comes first.
    - `Solution().name` (LeetCodeDataset) is that method alone.
    """
    name = problem.entry_point or ""
    if problem.comparison == "lcb" and "()." not in name:
        return f"Solution().{name} {name}"
    return name


def program_units(problem: Problem, code: str) -> Sequence[str]:
    """Return the source texts to run: imports and helpers for the program, then the program.

    - LiveCodeBench's function problems are LeetCode's and come with LeetCode's imports.
    - Each text is compiled alone, so neither changes how the other is read.

    Raises:
        UngradableError: the starter code is not Python before the entry point.
    """
    if problem.comparison == "lcb" and problem.kind == "function":
        return (_LEETCODE_IMPORTS, code)
    preamble = starter_preamble(problem)
    return (preamble, code) if preamble.strip() else (code,)


def check_units(problem: Problem, test: Test) -> Sequence[str]:
    """Return the source texts of a check: starter code, reference, then the check itself.

    The check may use helpers of both. If the starter code ends in a function's header, only the
    part before the header runs.
    """
    starter = problem.starter_code or ""
    if starter and not _is_python(starter):
        starter = starter_preamble(problem)
    return [unit for unit in (starter, problem.reference, test.input) if unit and unit.strip()]


def starter_preamble(problem: Problem) -> str:
    """Return the starter code before the entry point's decorators, blank if there is none.

    Raises:
        UngradableError: this part is not Python.
    """
    if not problem.starter_code or not problem.entry_point:
        return ""
    preamble = _preamble(problem.starter_code, problem.entry_point.partition("().")[0])
    if preamble is None:
        raise ungradable(problem, "its starter code is not Python before the entry point")
    return preamble


@functools.lru_cache(maxsize=1024)
def _preamble(starter: str, name: str) -> str | None:
    """Return the text before the definition of a name; None if it does not parse."""
    name = re.escape(name)
    entry = re.compile(
        rf"^(?:(?:async[ \t]+)?def[ \t]+{name}|class[ \t]+(?:Solution|{name}))\b", re.MULTILINE
    )
    places = [match.start() for match in entry.finditer(starter)]
    # The first match may lie within a docstring. So each match is replaced by a stub in turn: only
    # at the true definition does the text parse with the stub as its last function.
    for place in places:
        tree = _parsed(f"{starter[:place]}def _(): pass")
        if tree is not None and isinstance(definition := tree.body[-1], ast.FunctionDef):
            first = min(
                [definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)]
            )
            return "".join(io.StringIO(starter[:place], newline="").readlines()[: first - 1])
    return None if places else ""


@functools.lru_cache(maxsize=1024)
def _is_python(source: str) -> bool:
    return is_python(source)


def _parsed(source: str) -> ast.Module | None:
    return ast.parse(source) if _is_python(source) else None
