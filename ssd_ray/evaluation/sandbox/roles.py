"""What a sandboxed process does once it is confined: be a program, answer calls, or run a trusted check.

A conversation is one line of wire text for a message and one for its answer. What a program does to this module in its
own process harms only itself: nothing here decides anything. Runs in a bare interpreter; imports the standard library.
"""

from __future__ import annotations

import builtins
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from ssd_ray.evaluation.sandbox import lcb_role, restored, wire
else:
    import lcb_role
    import restored
    import wire


def play(role: str, units: list[str], entry_point: str, pipes: list[int]) -> NoReturn:
    """Play `role` to its end and end the process."""
    sys.argv[:] = ["program.py"]
    if any("random" in unit for unit in units):
        sys.modules["random"].seed()
    if role == "program":
        _be_program(units)
    restored.use_numpy_itself()
    receive, send = _conversation(*pipes)
    {"calls": _answer_calls, "check": _run_check, "lcb": lcb_role.serve}[role](units, entry_point, receive, send)
    os._exit(0)


def _namespace(name: str) -> dict[str, Any]:
    """The dictionary of a fresh module that is registered under `name`."""
    import _sitebuiltins

    for word in ("exit", "quit"):
        setattr(builtins, word, _sitebuiltins.Quitter(word, "Ctrl-D"))
    module = type(sys)(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    return module.__dict__


def _execute(units: list[str], namespace: dict[str, Any]) -> None:
    for unit in units:
        exec(compile(unit.removeprefix("\ufeff"), "program.py", "exec", dont_inherit=True), namespace)


def _be_program(units: list[str]) -> NoReturn:
    """Run as `__main__` and end as the interpreter would: threads joined, exit handlers run, streams flushed."""
    leave, write, threading, atexit = os._exit, os.write, sys.modules["threading"], __import__("atexit")
    namespace = _namespace("__main__")
    namespace["__file__"] = "program.py"
    status = 0
    try:
        status = _status_of(lambda: _execute(units, namespace))
        threading._shutdown()
        atexit._run_exitfuncs()
        if sys.stdout is not None:
            sys.stdout.flush()
        if sys.stderr is not None:
            sys.stderr.flush()
    except BaseException as error:
        write(2, f"\n{type(error).__name__} as the program ended\n".encode())
        status = status or 120
    leave(status)


def _status_of(run: Callable[[], None]) -> int:
    """The exit status of a program: that of its SystemExit, 1 after an exception, whose traceback is printed."""
    try:
        run()
    except SystemExit as ending:
        code = ending.code
        if code is None or isinstance(code, int):
            return int(code or 0) & 0xFF
        print(code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != "program.py":
            trace = trace.tb_next
        try:
            sys.excepthook(type(error), error.with_traceback(trace), trace)
        except BaseException:
            os.write(2, f"\n{type(error).__name__}\n".encode())
        return 1
    return 0


def _conversation(request_fd: int, reply_fd: int) -> tuple[Callable[[], Any], Callable[[object], None]]:
    """`receive` the next message, None when there is none, and `send` an answer; UnsupportedValueError where it has no form."""
    requests = open(request_fd, "rb")  # noqa: SIM115
    write, dumps, loads = os.write, wire.dumps, wire.loads

    def receive() -> Any:
        line = requests.readline()
        return loads(line) if line else None

    def send(value: object) -> None:
        rest = memoryview(f"{dumps(value)}\n".encode())
        while rest:
            rest = rest[write(reply_fd, rest) :]

    return receive, send


def _lookup(namespace: dict[str, Any], entry_point: str) -> Any:
    """The function to be called: of the module, or a method of its class Solution."""
    if callable(namespace.get(entry_point)):
        return namespace[entry_point]
    if hasattr(namespace.get("Solution"), entry_point):
        return getattr(namespace["Solution"](), entry_point)
    raise NameError(f"the program defines no {entry_point}")


def _describe(error: BaseException) -> list[str]:
    try:
        message = str(error)
    except BaseException:
        message = ""
    return [type(error).__name__[:100], message[:300]]


def _answer_calls(units: list[str], entry_point: str, receive: Callable[[], Any], send: Callable[[object], None]) -> None:
    """Answer every list of arguments by `["value", value]`, or by what was raised: `["error", type, message]`."""
    function, describe, unsupported = None, _describe, wire.UnsupportedValueError
    while (args := receive()) is not None:
        try:
            if function is None:
                namespace = _namespace("solution")
                _execute(units, namespace)
                function = _lookup(namespace, entry_point)
            answer = ["value", function(*args)]
        except BaseException as error:
            answer = ["error", *describe(error)]
        try:
            send(answer)
        except unsupported as error:
            send(["unsupported", str(error)])
        except BaseException as error:
            send(["error", *describe(error)])


def _run_check(units: list[str], entry_point: str, receive: Callable[[], Any], send: Callable[[object], None]) -> None:
    """Run the trusted `check(candidate)`; its calls go out, lists of one value come in, after a first one that starts it."""
    num_calls = 0

    def candidate(*args: object) -> object:
        nonlocal num_calls
        num_calls += 1
        send(["call", *args])
        return receive()[0]

    receive()
    try:
        namespace = _namespace("check")
        _execute(units, namespace)
        if any("random" in unit for unit in units):
            __import__("random").seed(0)
        namespace["check"](candidate)
    except BaseException as error:
        send(["failed" if num_calls else "broken", *_describe(error)])
    else:
        send(["passed"] if num_calls else ["broken", "Error", "it never calls the candidate"])
