"""Roles of a confined process: a program, a function, a check, LiveCodeBench's grader.

- A conversation has one line of the wire for a message, and one for its answer.
- Nothing is decided here, so a program gains nothing by changing this module in its process.

Runs in a bare interpreter. Imports the standard library only.
"""

from __future__ import annotations

import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    from ssd_ray import wire
    from ssd_ray.evaluation.sandbox.inside import (
        check_role,
        definitions,
        lcb_role,
        objects,
        shortage,
    )
    from ssd_ray.wire import restored
else:
    import check_role
    import definitions
    import lcb_role
    import objects
    import restored
    import shortage
    import wire


_WRITE = os.write


def play(role: str, units: list[str], entry_points: str, pipes: list[int]) -> NoReturn:
    """Play `role` to its end and end the process."""
    sys.argv[:] = ["program.py"]
    if any("random" in unit for unit in units):
        sys.modules["random"].seed()
    if role == "program":
        _run_program(units)
    restored.use_numpy_itself()
    # Processes of a program on standard input never get here: _run_program does not return.
    receive, send = _conversation(*pipes)
    # Each role loads the program at its first message, so errors of loading are answers too.
    match role:
        case "check":
            check_role.serve(units, entry_points, receive, send)
        case "lcb":
            lcb_role.serve(units, entry_points, receive, send)
        case _:
            _answer_calls(
                _call_on_objects if role == "objects" else _call, units, entry_points, receive, send
            )
    os._exit(0)


def _run_program(units: list[str]) -> NoReturn:
    """Run a program as `__main__`, and end as the interpreter would.

    Join threads, run exit handlers, flush the streams.
    """
    # Bound before the program runs, because it may replace them.
    leave = os._exit
    write = os.write
    threading = sys.modules["threading"]
    atexit = sys.modules["atexit"]
    namespace = definitions.new_module("__main__")
    namespace["__file__"] = "program.py"
    status = 0
    try:
        status = _status_of(lambda: definitions.execute(units, namespace))
        threading._shutdown()
        atexit._run_exitfuncs()
        if sys.stdout is not None:
            sys.stdout.flush()
        if sys.stderr is not None:
            sys.stderr.flush()
    # Exit handlers and streams are the program's own: any error can come out of them.
    except BaseException as error:
        write(2, f"\n{type(error).__name__} as the program ended\n".encode())
        status = status or 120
    leave(status)


def _status_of(run: Callable[[], None]) -> int:
    """Return the exit status of a program: its SystemExit's, or 1 after an exception.

    Prints the traceback of an exception, from the program's first frame on.
    """
    try:
        run()
    except SystemExit as ending:
        code = ending.code
        if code is None or isinstance(code, int):
            return int(code or 0) & 0xFF
        print(code, file=sys.stderr)
        return 1
    # As at the end of an interpreter: every other error has a traceback and status 1.
    except BaseException as error:
        trace = error.__traceback__
        # The sandbox's own frames come first, and mean nothing to a reader.
        while trace is not None and trace.tb_frame.f_code.co_filename != "program.py":
            trace = trace.tb_next
        try:
            sys.excepthook(type(error), error.with_traceback(trace), trace)
        # The program may have replaced the hook.
        except BaseException:
            os.write(2, f"\n{type(error).__name__}\n".encode())
        if shortage.is_out_of_memory(error):
            _WRITE(2, f"\nMemoryError: {definitions.describe(error)[1]}\n".encode(errors="replace"))
        return 1
    return 0


def _conversation(
    request_fd: int, reply_fd: int
) -> tuple[Callable[[], Any], Callable[[object], None]]:
    """Return `receive`, for the next message or None, and `send`, for an answer.

    `send` raises UnsupportedValueError for an answer without a form on the wire.
    """
    requests = open(request_fd, "rb")  # noqa: SIM115
    # Bound before the program runs, because it may replace them.
    write = os.write
    dumps = wire.dumps
    loads = wire.loads

    def receive() -> Any:
        line = requests.readline()
        return loads(line) if line else None

    def send(value: object) -> None:
        rest = memoryview(f"{dumps(value)}\n".encode())
        while rest:
            rest = rest[write(reply_fd, rest) :]

    return receive, send


def _answer_calls(
    replies: Callable[[Callable[..., object], Any], Iterator[object]],
    units: list[str],
    entry_points: str,
    receive: Callable[[], Any],
    send: Callable[[object], None],
) -> None:
    """Answer every message by the first of its replies that can cross.

    An exception of the program is `["error", type, message]`. A value without a form on the wire is
    `["unsupported", reason]`.
    """
    function = None
    describe = definitions.describe
    unsupported = wire.UnsupportedValueError
    while (message := receive()) is not None:
        try:
            if function is None:
                function = _load(units, entry_points)
            _send_one(replies(function, message), send)
        except unsupported as error:
            send(["unsupported", str(error)])
        # The program's own code: SystemExit and KeyboardInterrupt are answers of a call, too.
        except BaseException as error:
            send(["error", *describe(error)])


def _send_one(replies: Iterator[object], send: Callable[[object], None]) -> None:
    """Send the first reply that can be sent, or raise the error of the last."""
    failure: Exception | None = None
    for reply in replies:
        try:
            return send(reply)
        # Reading a value of the program's own class may run its code.
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
    return None


def _load(units: list[str], entry_points: str) -> Callable[..., object]:
    """Run the program, the last of the units, and return its function."""
    *lent, program = units
    names = {entry.partition("().")[0] for entry in definitions.entries(entry_points)}
    namespace = definitions.lend(lent, names, "solution")
    definitions.execute([program], namespace)
    return definitions.find(namespace, entry_points)


def _call(function: Callable[..., object], arguments: list[object]) -> Iterator[object]:
    """Call a function with a list of arguments; the reply is `["value", value]`."""
    yield ["value", function(*arguments)]


def _call_on_objects(function: Callable[..., object], message: list[Any]) -> Iterator[object]:
    """Call a function with objects, the last of them as keyword arguments.

    | outcome | reply |
    |---|---|
    | a value, nothing shared or changed | `["returned", value]` |
    | any other value | `["returned", slots, entries]` |
    | an exception | `["raised", names, message, entries, arguments]` |
    | a coroutine, run to its end | `["awaited", reply]` |

    - `names` are the exception's type and its bases.
    - The last reply drops the contents of changed arguments.

    Raises:
        MemoryError: The program ran out of memory.
        BaseException: The program raised it, and it is not an Exception.
    """
    call = objects.Objects()
    _, names, values, *entries = message
    if entries:
        values = call.read(values, entries[0])
    else:
        call.adopt(values)
    call.mark()
    num_positional = len(values) - len(names)
    awaited = False
    try:
        value = function(
            *values[:num_positional], **dict(zip(names, values[num_positional:], strict=True))
        )
        awaited = type(value) is types.CoroutineType
        if awaited:
            value = __import__("asyncio").run(value)
    # The program's own code.
    except Exception as error:
        if shortage.is_out_of_memory(error):
            raise
        for lost in (False, True):
            reply = _raised(error, call.write([], lost=lost)[1])
            yield ["awaited", reply] if awaited else reply
        return
    if not awaited and call.shows_nothing([value]):
        yield ["returned", value]
    # The second reply is for arguments that were changed to hold a value without a form.
    for lost in (False, True):
        reply = ["returned", *call.write([value], lost=lost)]
        yield ["awaited", reply] if awaited else reply


def _raised(error: Exception, entries: list[list[Any]]) -> list[Any]:
    """Return the reply for an exception: its bases, message, entries and plain arguments."""
    bases = type(error).__mro__[:20]
    names = [f"{base.__module__}.{base.__name__}"[:200] for base in bases]
    arguments = error.args
    plain = len(arguments) <= 10 and all(
        type(item) in _PLAIN_TYPES and len(str(item)) <= 300 for item in arguments
    )
    return [
        "raised",
        names,
        definitions.describe(error)[1],
        entries,
        list(arguments) if plain else [],
    ]


_PLAIN_TYPES = (type(None), bool, int, float, str, bytes)


_WARM_UP_RUNS = 20
"""Python 3.11 and later specialize code once it has run some times."""
_PLAIN = b'["call",["b"],[[1,[2]],"x",2.5]]\n'
_SHARED = (
    b'["call",["b"],[[0],{"tuple":[1,"x"]},2.5],[[0,1],["list","dict"],[[1,[1]],[["k"],[2]]]]]\n'
)
_RETURNED = b'["returned",[3]]\n["returned",[[2]],[[0,2],["list","list"],[[1,2],[3]]]]\n'
_CHECK = (
    "def check(candidate):\n"
    "    for _ in range(2):\n"
    "        candidate([1, {'k': 2}], (1, 'x'), b=2.5)\n"
)
_PROGRAM = (
    "def f(a, *_, **__):\n"
    "    if isinstance(a, list) and a[-1] != [2]:\n"
    "        a.append(2)\n"
    "    return [3]\n"
)


def warm_up() -> None:
    """Prepare the builtins and run short conversations before any process is forked.

    Code that ran before the fork is specialized once for all, on pages that stay shared.
    """
    definitions.add_quitters()
    shortage.bound_stacks()
    for _ in range(_WARM_UP_RUNS):
        _serve_lines(
            lambda *ends: _answer_calls(_call, ["", _PROGRAM], "f", *ends),
            b'[[1,2],"x"]\n[]\n[1]\n',
        )
        _serve_lines(
            lambda *ends: _answer_calls(_call_on_objects, ["", _PROGRAM], "f", *ends),
            _PLAIN + _SHARED,
        )
        _serve_lines(
            lambda *ends: check_role.serve(["", _CHECK], "f", *ends), b"null\n" + _RETURNED
        )
    for name in ("solution", "check"):
        del sys.modules[name]


def _serve_lines(
    serve: Callable[[Callable[[], Any], Callable[[object], None]], None], lines: bytes
) -> None:
    """Serve lines from a pipe and drop the replies; both fit into the buffer of a pipe."""
    requests = os.pipe()
    replies = os.pipe()
    os.write(requests[1], lines)
    os.close(requests[1])
    serve(*_conversation(requests[0], replies[1]))
    for fd in replies:
        os.close(fd)
