"""The trusted check of a problem, in a process of its own, with a proxy for the program.

    check(candidate) ─ a call with its arguments ─> grader ─> the program's process
                     <─ what it returned or raised, and the arguments that it changed ─

- A call may have keyword arguments. Containers changed by the program are changed here as well.
- An exception of the program is raised here, so that a check may expect it.
- A failure of the proxy is never raised here: the check could take it for the program's.

Messages are lists. Those received are `returned`, `raised`, and `awaited` around one of them. Those
sent are `call` and, at the end, one of

| message | meaning |
|---|---|
| `passed`, `failed` | the outcome of the check |
| `raised` | the check ended by the program's own exception |
| `broken` | the check failed before its first call |
| `unable` | the proxy lacks something that the check needs |
| `forged` | no honest process sends the answer received |

Runs in a bare interpreter. Imports the standard library only.
"""

from __future__ import annotations

import builtins
import os
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    Namespace = dict[str, Any]
    Receive = Callable[[], Any]
    Send = Callable[[object], None]
if TYPE_CHECKING or __name__ != "check_role":
    from ssd_ray import wire
    from ssd_ray.evaluation.sandbox.inside import definitions, objects
else:  # in a sandbox, where there are modules and no packages
    import definitions
    import objects
    import wire


def serve(units: Sequence[str], entry_points: str, receive: Receive, send: Send) -> None:
    """Run the `check` of the last text on a proxy; the texts before it lend their names."""
    *lent, text = units
    receive()
    candidate = Candidate(entry_points, receive, send, text=text)
    try:
        namespace = definitions.lend(lent, {"check"}, "check")
        candidate.replace_reference(namespace)
        definitions.execute([text], namespace)
        if any("random" in unit for unit in units):
            __import__("random").seed(0)
        namespace["check"](candidate)
    # A check is code of a benchmark: any error can come out of it, SystemExit included.
    except BaseException as error:
        if error is candidate.raised:
            send(["raised", candidate.reason])
        else:
            send(["failed" if candidate.num_calls else "broken", *definitions.describe(error)])
    else:
        uncalled = ["broken", "Error", "it never calls the candidate"]
        # A check without a call would accept every program.
        send(["passed"] if candidate.num_calls else uncalled)


class Candidate:
    """The proxy for the program's function.

    - `num_calls` counts the calls answered.
    - `raised` is the exception of the last answer, and `reason` its type and message.
    """

    def __init__(self, entry_points: str, receive: Receive, send: Send, *, text: str = "") -> None:
        """Make a proxy for a check with the source `text`."""
        self._entry_points = entry_points
        self._receive = receive
        self._send = send
        self._text = text
        self._lock = threading.Lock()  # a check may call from several threads
        self._lent: Namespace = {}
        self.__name__ = self.__qualname__ = entry_points.split()[0].rpartition("().")[2]
        self.num_calls = 0
        self.raised: Exception | None = None
        self.reason = ""

    def replace_reference(self, namespace: Namespace) -> None:
        """Bind the entry points' names to the proxy, as if check and program shared a module.

        A builtin such as `abs` stays itself in a check, even if the entry point has its name.
        """
        self._lent = dict(namespace)
        for place, entry in enumerate(definitions.entries(self._entry_points)):
            name, is_method, method = entry.partition("().")
            if is_method and (place == 0 or name in namespace):
                owner = namespace.get(name)
                namespace[name] = owner if isinstance(owner, type) else type(name, (), {})
                setattr(namespace[name], method, staticmethod(self))
            elif not is_method and hasattr(builtins, name):
                namespace.pop(name, None)
            elif not is_method:
                namespace[name] = self

    def __call__(self, /, *args: object, **kwargs: object) -> object:
        """Have the program called, and return its value or raise its exception."""
        with self._lock:
            call = self._ask([*args, *kwargs.values()], list(kwargs))
            try:
                return self._answer(call, self._receive())
            except wire.MalformedError as error:
                self._end(["forged", str(error)])

    def __getattr__(self, name: str) -> Any:
        """End the check, which looks for more than a call; names with an underscore are missing."""
        if name.startswith("_"):
            raise AttributeError(name)
        self._end(["unable", f"it looks for an attribute {name!r} of the candidate"])

    def _ask(self, values: list[object], names: list[str]) -> objects.Objects:
        """Send a call, the last values by name; return the objects in it."""
        try:
            return self._sent(values, names)
        except (wire.UnsupportedValueError, wire.MalformedError) as error:
            reason = str(error)
        except RecursionError:
            reason = "a value that is nested too deeply"
        # The check's own class may raise anything as its object is read.
        except Exception as error:
            reason = f"a value that raises {type(error).__name__} as it is read"
        return self._end(["unable", f"it calls the program with {reason}"])

    def _sent(self, values: list[object], names: list[str]) -> objects.Objects:
        call = objects.Objects()
        if call.adopt(values):
            try:
                self._send(["call", names, values])
                return call
            except wire.UnsupportedValueError:
                pass  # deeply nested values cross as objects only
        # A fresh one, because `adopt` may have numbered some objects already.
        call = objects.Objects()
        slots, entries = call.write(values)
        self._send(["call", names, slots, entries])
        return call

    def _answer(self, call: objects.Objects, reply: object) -> object:
        """Return the value of a reply, or raise its exception; for `awaited`, in a coroutine."""
        awaited = False
        raised = None
        match reply:
            case ["awaited", list(inner)]:
                awaited, reply = True, inner
        match reply:
            case ["returned", value]:
                values = [value]
            case ["returned", [slot], [list(), *_] as entries]:
                values = call.read([slot], entries)
                call.require_bounded(values)
            case ["raised", list(names), str(message), [list(), *_] as entries, list(arguments)]:
                values = call.read([None], entries)
                call.require_bounded([])
                raised = self._exception(names, message, arguments)
            case _:
                raise wire.MalformedError("an answer of no known form")
        self.num_calls += 1
        self.raised = raised
        if awaited:
            return _awaited(values[0], raised)
        if raised is not None:
            raise raised
        return values[0]

    def _exception(self, names: list[object], message: str, arguments: list[object]) -> Exception:
        """Make an exception of the first known name of the type and its bases.

        Names bound by the check's own text do not count: the program cannot mean them.
        """
        type_name = str(names[0] if names else "").rpartition(".")[2][:100]
        self.reason = f"{type_name}: {message}"[:400]
        for name in names:
            known = self._known(name) if isinstance(name, str) else None
            if not (isinstance(known, type) and issubclass(known, Exception)):
                continue
            if (
                issubclass(known, StopIteration | StopAsyncIteration)
                and known.__name__ not in self._text
            ):
                # It would end a loop over calls as if all of them had been made (PEP 479).
                return RuntimeError(f"the program raised {type_name}")
            try:
                return _made(known, type_name, message, arguments)
            # The constructor of an unknown class may raise anything; the next name is tried.
            except Exception:
                continue
        return Exception(message)

    def _known(self, name: str) -> object:
        """Return the object of a dotted name: one lent, a builtin, or one of a loaded library."""
        module, _, last = name.rpartition(".")
        if module.partition(".")[0] in _LIBRARIES:
            return getattr(sys.modules.get(module), last, None)
        return self._lent.get(last, getattr(builtins, last, None))

    def _end(self, message: list[object]) -> NoReturn:
        """Send a message and end the process, unseen by the code of the check."""
        self._send(message)
        os._exit(0)


_LIBRARIES = (sys.stdlib_module_names | {"numpy"}) - {
    "__main__",
    "builtins",
    "bdb",
    "doctest",
    "unittest",
}
"""Packages whose exceptions a program can raise here.

Exceptions of test runners are left out, because they would skip tests of a check.
"""


def _made(known: type[Exception], name: str, message: str, arguments: list[object]) -> Exception:
    """Make an exception of a known class with a message."""
    plain = all(
        item is None or isinstance(item, bool | int | float | str | bytes) for item in arguments
    )
    used = arguments if arguments and plain else [message]
    # A program's class keeps its name. Only a builtin's __init__ is known to take the arguments.
    kind: Any = known if known.__name__ == name else type(name, (known,), {})
    builtin = known.__module__ == "builtins" and used is arguments
    error: Exception = kind(*used) if builtin else kind.__new__(kind, *used)
    if str(error) == message:
        return error
    # A check may compare the text, so a subclass gives it.
    worded: Any = type(name, (known,), {"__str__": lambda _: message})
    made: Exception = worded.__new__(worded, *used)
    return made


async def _awaited(value: object, raised: Exception | None) -> object:
    if raised is not None:
        raise raised
    return value
