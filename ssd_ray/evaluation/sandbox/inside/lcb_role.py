"""What runs inside the sandbox under the `lcb-compat` profile: a program made to run as LiveCodeBench's own grader runs it.

One process runs all tests of one program, one message a test, and state stays between them. Official habits that change
verdicts are kept: star imports before the program, its statements made the body of a function, a text in place of
standard input that knows some of a file's methods, an alarm that the program can catch, functions set to None. What
decides is not here: a reply carries what was printed or returned, and expected outputs stay outside.
Described from LiveCodeBench 28fef95, lcb_runner/evaluation/testing_util.py. Standard library only; the descriptors 0 and 1
must be /dev/null, as officially what does not go through sys.stdin and sys.stdout is.

The first message is a test's limit in whole seconds, and loads the program; every other is a text for standard input, or a
list of arguments. Replies are `["loaded"]`, `["printed", text]`, `["value", value]`, `["unsupported", reason]`, or
`["error", kind, name, message]` with kind "load", "time" or "run". A name of lcb_stdin.NOTES at the end of `printed` or
`error` says how standard input was not what a file is.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _sitebuiltins
import ast
import builtins
import contextlib
import faulthandler
import io
import os
import shutil
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Reply = list[Any]
if TYPE_CHECKING or __name__ != "lcb_role":
    from ssd_ray.evaluation.sandbox.inside import lcb_stdin, shortage
    from ssd_ray.wire import foreign
else:
    import foreign
    import lcb_stdin
    import shortage

_BY_NAME = (
    *(
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
    ),
    *("functools", "operator", "io", "sys", "json"),
)
_STARRED = (*_BY_NAME, "builtins", "typing")
HEADER = "".join(
    [*(f"from {name} import *\n" for name in _STARRED), *(f"import {name}\n" for name in _BY_NAME)]
)
"""What every program may take for granted; the order decides which of two equal names it gets."""
_LAST_OF_HEADER = "sys.setrecursionlimit(50000)\n"
_WRAPPER = "wrapped_function"
_FUNCTION: Any = ast.parse(f"def {_WRAPPER}(): pass").body[0]
_MAX_INT_DIGITS = 50_000

_DISABLED = {
    os: "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename renames truncate replace unlink "
    "fchmod fchown chmod chown chroot lchflags lchmod lchown getcwd chdir",
    shutil: "rmtree move chown",
    subprocess: "Popen",
    builtins: "quit help",
}
_CHANGED = {builtins: ("exit", "quit", "help"), sys: ("stdin", "stdout", "stderr")}
"""Names of the header that mean something else in a program's process than where the header was run."""
_HIDDEN_MODULES = ("ipdb", "joblib", "resource", "psutil", "tkinter")


class TimeIsUpError(Exception):
    """Raised by the alarm within the program; officially too an Exception, which the program can catch."""


def serve(
    units: Sequence[str],
    entry_point: str,
    receive: Callable[[], Any],
    send: Callable[[object], None],
) -> None:
    """Load the one unit and answer every message until `receive` returns None; an `entry_point` means functional tests.

    `send` raises, with nothing sent, for a value that has no form on the wire. Whatever is not an Exception (SystemExit
    outside of a stdin test, KeyboardInterrupt) ends the process, as officially.
    """
    leave = os._exit
    try:
        _converse(units, entry_point, receive, send)
    except BaseException:
        leave(1)


def _converse(
    units: Sequence[str],
    entry_point: str,
    receive: Callable[[], Any],
    send: Callable[[object], None],
) -> None:
    (code,) = units
    limit_s = receive()
    if "numpy" in code:
        # Officially it is there before the functions that its import needs are gone.
        with contextlib.suppress(ImportError):
            __import__("numpy")
    _prepare()
    try:
        method = _load(code, entry_point, limit_s)
    except Exception as error:
        send(_error("load", error))
        return
    send(["loaded"])
    run = _call if entry_point else _feed
    while (given := receive()) is not None:
        reply = run(method, given, limit_s)
        if reply[0] == "value":
            _send_value(reply, send)
        else:
            send(reply)


def _prepare() -> None:
    """The process as a program finds it officially: functions and modules gone, the alarm's handler, longer integers."""
    _signal.signal(_signal.SIGALRM, _on_alarm)
    if not hasattr(builtins, "exit"):
        builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D")
    faulthandler.disable()
    os.environ["OMP_NUM_THREADS"] = "1"
    for owner, names in _DISABLED.items():
        vars(owner).update(dict.fromkeys(names.split()))
    sys.modules.update(dict.fromkeys(_HIDDEN_MODULES))  # type: ignore[arg-type]
    sys.set_int_max_str_digits(_MAX_INT_DIGITS)


def _on_alarm(*_: object) -> None:
    # Officially too a line goes to standard output: a program that swallows the exception has a wrong answer.
    print("the test's time is up")
    raise TimeIsUpError


def _load(code: str, entry_point: str, limit_s: int) -> Callable[..., object]:
    """The program as one callable; AttributeError where it has none of that name."""
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
    """The program's imports, then the rest of it as a function; unchanged, without a header, where it cannot be parsed.

    A last statement that is the usual guard, spelt one way, is first replaced by its body.
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
    except Exception:
        return code


def _unparsed(statements: Sequence[ast.stmt]) -> str:
    return ast.unparse(ast.Module(body=list(statements), type_ignores=[]))


def _feed(method: Callable[[], object], text: str, limit_s: int) -> Reply:
    """One stdin test: what the program printed, or how it failed."""
    printed, stdout, notes = io.StringIO(), sys.stdout, lcb_stdin.Notes()
    # Closing it is officially a TypeError, for want of an argument.
    printed.close = lambda _: None  # type: ignore[method-assign, assignment, misc]
    _signal.alarm(limit_s)
    try:
        _require_stderr()
        sys.stdout = printed
        _run_on_text(method, text, notes)
    except Exception as error:
        _signal.alarm(0)
        return [*_error("run", error), *noted(notes)]
    finally:
        _signal.alarm(0)
        sys.stdout = stdout
    return ["printed", printed.getvalue(), *noted(notes)]


def noted(notes: lcb_stdin.Notes) -> list[str]:
    """Return the name of a difference to a file, if there was one, to be appended to a reply."""
    return [notes.first] if notes.first else []


def _require_stderr() -> None:
    """Fail as officially `faulthandler.enable()` does before a test where sys.stderr was replaced by what has no descriptor."""
    if sys.stderr is None:
        raise RuntimeError("sys.stderr is None")
    sys.stderr.fileno()
    with contextlib.suppress(Exception):
        sys.stderr.flush()


def _run_on_text(method: Callable[[], object], text: str, notes: lcb_stdin.Notes) -> None:
    """Call the program with `text` for standard input; any SystemExit is a success.

    Who took hold of the true sys.stdin while the program was loaded (`from sys import stdin`) reads the text through three
    of its methods only, without line ends; everyone else gets the mock.
    """
    true_stdin, true_open = sys.stdin, builtins.open
    patched = lcb_stdin.methods_of_the_true_stdin(text, notes)
    vars(true_stdin).update(patched)
    try:
        sys.stdin = lcb_stdin.Stdin(text, notes)
        builtins.open = lambda *_, **__: lcb_stdin.Opened(text)  # type: ignore[assignment]
        method()
    except SystemExit:
        return
    finally:
        sys.stdin, builtins.open = true_stdin, true_open
        for name in patched:
            vars(true_stdin).pop(name, None)


def _call(method: Callable[..., object], arguments: list[object], limit_s: int) -> Reply:
    """One functional test: the value returned, or how it failed."""
    _signal.alarm(limit_s)
    try:
        _require_stderr()
        value = method(*arguments)
    except Exception as error:
        _signal.alarm(0)
        return _error("run", error)
    finally:
        _signal.alarm(0)
    return ["value", value]


def _error(kind: str, error: Exception) -> Reply:
    try:
        message = str(error)[:300]
    except Exception:
        message = ""
    if kind == "run" and isinstance(error, TimeIsUpError):
        kind = "time"
    name = "MemoryError" if shortage.is_out_of_memory(error) else type(error).__name__[:100]
    return ["error", kind, name, message]


def _send_value(reply: Reply, send: Callable[[object], None]) -> None:
    """Send a returned value; one that cannot be sent, or read, is officially equal to nothing either."""
    unsupported = foreign.UnsupportedValueError
    try:
        send(reply)
    except unsupported as error:
        send(["unsupported", str(error)])
    except Exception as error:
        send(
            [
                "unsupported",
                f"a value of type {foreign.type_name(reply[1])}, which raises {type(error).__name__}"[
                    :200
                ],
            ]
        )


def _header_module() -> Any:
    """The module that a program is to be run in, with the header run.

    One for all programs of a zygote: each has its own copy by the fork. To run the header in every one costs a millisecond.
    """
    module = type(sys)("tmp_sol", "")
    exec(compile(HEADER, "<string>", "exec", dont_inherit=True), module.__dict__)
    for _ in range(20):
        # What has run before the fork need not be specialised, and its pages not be copied, in every process after it.
        compile(
            _wrapped("import sys\nif __name__ == '__main__':\n    print(input())"),
            "<string>",
            "exec",
        )
    return module


_MODULE = _header_module()
