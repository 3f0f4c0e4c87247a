"""The role of the `lcb-compat` profile: run a program as LiveCodeBench's own grader does.

One process runs all tests of one program, one message a test, and keeps state between them. Nothing
is decided here: replies carry printed or returned values, and expected outputs stay outside.

Official behavior that changes verdicts is kept:

- the program loaded as in `lcb_program`,
- a text with some of a file's methods as standard input,
- an alarm that the program can catch,
- functions set to None.

Messages:

| message | replies |
|---|---|
| first: the time limit of a test in seconds, an integer | `["loaded"]` |
| a text for standard input | `["printed", text]` |
| a list of arguments | `["value", value]`, `["unsupported", reason]` |
| any | `["error", kind, name, message]`, with kind `load`, `time` or `run` |

An optional last item of `printed` or `error` names a note of `lcb_stdin.NOTES`.

Source: LiveCodeBench 28fef95, lcb_runner/evaluation/testing_util.py. Runs in a bare interpreter.
Imports the standard library only. Descriptors 0 and 1 must be /dev/null: officially, only
sys.stdin and sys.stdout count.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _sitebuiltins
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
    from ssd_ray.evaluation.sandbox.inside import lcb_program, lcb_stdin, shortage
    from ssd_ray.wire import foreign
else:
    import foreign
    import lcb_program
    import lcb_stdin
    import shortage

_MAX_INT_DIGITS = 50_000

_DISABLED = {
    os: "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename "
    "renames truncate replace unlink fchmod fchown chmod chown chroot lchflags lchmod lchown "
    "getcwd chdir",
    shutil: "rmtree move chown",
    subprocess: "Popen",
    builtins: "quit help",
}
_HIDDEN_MODULES = ("ipdb", "joblib", "resource", "psutil", "tkinter")


class TimeIsUpError(Exception):
    """The alarm within a program; an Exception as officially, so the program can catch it."""


def serve(
    units: Sequence[str],
    entry_point: str,
    receive: Callable[[], Any],
    send: Callable[[object], None],
) -> None:
    """Load a program and answer messages until there are no more.

    An error that is not an Exception ends the process as officially, such as KeyboardInterrupt, or
    SystemExit outside of a test of standard input.

    Args:
        units: The program alone.
        entry_point: The function of functional tests; empty for tests of standard input.
        receive: Return the next message, None at the end.
        send: Send a reply. For a value without a form on the wire, raise and send nothing.
    """
    leave = os._exit
    try:
        _converse(units, entry_point, receive, send)
    # As officially: a program may end its process by any error that is not an Exception.
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
        # Its import needs functions that are disabled below. Officially it comes first as well.
        with contextlib.suppress(ImportError):
            __import__("numpy")
    _prepare()
    try:
        method = lcb_program.load(code, entry_point, limit_s)
    # The program's own code: any error can come out of it, here and in the tests below.
    except Exception as error:
        send(_error("load", error))
        return
    send(["loaded"])
    run = _call if entry_point else _feed
    while (message := receive()) is not None:
        reply = run(method, message, limit_s)
        if reply[0] == "value":
            _send_value(reply, send)
        else:
            send(reply)


def _prepare() -> None:
    """Prepare this process as officially.

    Disable functions and modules, set the alarm's handler and allow longer integers.
    """
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
    # A line goes to standard output as officially: a program that swallows the exception is wrong.
    print("the test's time is up")
    raise TimeIsUpError


def _feed(method: Callable[[], object], text: str, limit_s: int) -> Reply:
    """Run one test of standard input; return a reply with the output or the failure."""
    printed = io.StringIO()
    stdout = sys.stdout
    notes = lcb_stdin.Notes()
    # Closing it is a TypeError as officially: the stand-in lacks an argument.
    printed.close = lambda _: None  # type: ignore[method-assign, assignment, misc]
    _signal.alarm(limit_s)
    try:
        _require_stderr()
        sys.stdout = printed
        _run_on_text(method, text, notes)
    # The program's own code.
    except Exception as error:
        _signal.alarm(0)
        return [*_error("run", error), *noted(notes)]
    finally:
        _signal.alarm(0)
        sys.stdout = stdout
    return ["printed", printed.getvalue(), *noted(notes)]


def noted(notes: lcb_stdin.Notes) -> list[str]:
    """Return the first note, as a list to append to a reply; empty without notes."""
    return [notes.first] if notes.first else []


def _require_stderr() -> None:
    """Fail if sys.stderr is unusable, as the official `faulthandler.enable()` before each test.

    Raises:
        RuntimeError: sys.stderr is None.
        Exception: sys.stderr has no descriptor.
    """
    if sys.stderr is None:
        raise RuntimeError("sys.stderr is None")
    sys.stderr.fileno()
    # The program may have replaced it by an object of its own.
    with contextlib.suppress(Exception):
        sys.stderr.flush()


def _run_on_text(method: Callable[[], object], text: str, notes: lcb_stdin.Notes) -> None:
    """Call the program with `text` as standard input; any SystemExit is a success.

    A program may have imported the true sys.stdin as it was loaded. It then reads the text by three
    of its methods, without line ends. Any other program reads the stand-in.
    """
    true_stdin = sys.stdin
    true_open = builtins.open
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
    """Run one functional test; return a reply with the value or the failure."""
    _signal.alarm(limit_s)
    try:
        _require_stderr()
        value = method(*arguments)
    # The program's own code.
    except Exception as error:
        _signal.alarm(0)
        return _error("run", error)
    finally:
        _signal.alarm(0)
    return ["value", value]


def _error(kind: str, error: Exception) -> Reply:
    try:
        message = str(error)[:300]
    # An exception of the program's own class may raise anything here.
    except Exception:
        message = ""
    if kind == "run" and isinstance(error, TimeIsUpError):
        kind = "time"
    name = "MemoryError" if shortage.is_out_of_memory(error) else type(error).__name__[:100]
    return ["error", kind, name, message]


def _send_value(reply: Reply, send: Callable[[object], None]) -> None:
    """Send a returned value, or the reason why it cannot be sent."""
    # Officially, such a value is equal to no expected one either.
    unsupported = foreign.UnsupportedValueError
    try:
        send(reply)
    except unsupported as error:
        send(["unsupported", str(error)])
    # Reading a value of the program's own class may run its code.
    except Exception as error:
        kind = foreign.type_name(reply[1])
        send(["unsupported", f"a value of type {kind}, which raises {type(error).__name__}"[:200]])
