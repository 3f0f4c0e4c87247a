"""Source texts in one module: names bound by a program, and names lent to it by other texts.

- Only a name bound by the program's own text is its answer: by `def`, `class`, assignment or
  import, starred or not.
- A program may use names bound by other texts, such as a judge's imports and the helpers of
  starter code. Those names are not its answer.

Runs in a bare interpreter. Imports the standard library only.
"""

from __future__ import annotations

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Any

    Namespace = dict[str, Any]
if TYPE_CHECKING or __name__ != "definitions":
    from ssd_ray.evaluation.sandbox.inside import shortage
else:
    import shortage

_NOTHING = object()


def add_quitters() -> None:
    """Add `exit` and `quit` to the builtins; a bare interpreter lacks both.

    The zygote calls it once, so that no child copies memory pages for it.
    """
    import _sitebuiltins

    for word in ("exit", "quit"):
        setattr(builtins, word, _sitebuiltins.Quitter(word, "Ctrl-D"))


def new_module(name: str) -> Namespace:
    """Register a fresh module under `name` and return its dictionary."""
    module = type(sys)(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    return module.__dict__


def execute(units: Sequence[str], namespace: Namespace) -> None:
    """Compile and run source texts one after another."""
    for unit in units:
        exec(
            compile(unit.removeprefix("\ufeff"), "program.py", "exec", dont_inherit=True), namespace
        )


def lend(units: Sequence[str], names: Collection[str], module: str) -> Namespace:
    """Run the texts before a program in a new module; return its dictionary without `names`.

    The program finds the values of `names` among its builtins, and any other name as usual. So any
    of `names` found in the dictionary later was bound by the program itself.
    """
    namespace = new_module(module)
    execute(units, namespace)
    if namespace.keys().isdisjoint(names):
        return namespace
    # A function keeps the builtins that its module had when it was made. So the texts run again.
    lent = type(sys)("builtins")
    vars(lent).update(vars(builtins))
    namespace = new_module(module)
    namespace["__builtins__"] = lent
    execute(units, namespace)
    for name in namespace.keys() & set(names):
        setattr(lent, name, namespace.pop(name))
    return namespace


def entries(entry_points: str) -> list[str]:
    """Return functions, or methods as `Solution().f`, in the order of their lookup.

    A bare `f` means the function `f`, or else a method of the class Solution.
    """
    first, *others = entry_points.split()
    return [first, *others] if others or "()." in first else [first, f"Solution().{first}"]


def find(namespace: Namespace, entry_points: str) -> Callable[..., object]:
    """Return the first entry point bound by a program in its module.

    Raises:
        NameError: The program binds none of them.
    """
    for entry in entries(entry_points):
        name, is_method, method = entry.partition("().")
        function: Any = namespace.get(name)
        if is_method and callable(function):
            function = _method(function(), method)
        if callable(function):
            callee: Callable[..., object] = function
            return callee
    raise NameError(f"no {entries(entry_points)[0]} is defined")


def _method(instance: object, name: str) -> Any:
    """Return a method defined by the program; None for one inherited from `object`."""
    inherited = getattr(type(instance), name, None) is getattr(object, name, _NOTHING)
    return None if inherited else getattr(instance, name, None)


def describe(error: BaseException) -> list[str]:
    """Return the type and the message of an exception, at most 100 and 300 characters.

    The type is MemoryError for any exception that means a shortage of memory.
    """
    try:
        message = str(error)
    # An exception of the program's own class may raise anything here.
    except BaseException:
        message = ""
    name = "MemoryError" if shortage.is_out_of_memory(error) else type(error).__name__[:100]
    return [name, message[:300]]
