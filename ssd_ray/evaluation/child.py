"""What runs inside the sandbox: exec'ed afresh for every test, it confines itself, and only then compiles the program.

Three processes come of one exec, so that the program's death, however it comes, is seen and cleans up: the launcher, which
the grader can stop by SIGTERM; the guard, process 1 of the new process namespace, whose end is every member's end (where
there is no such namespace the launcher is its own guard); and the program. Options are `name=value` arguments, the
payload is a file descriptor: a line of lengths, then the source texts. On the descriptor `status` it writes `denied` or
`failed` with a reason, or `ready` before the first byte of untrusted code is compiled, and after the program's end
`exit` or `signal`, its number, peak memory in KiB and CPU seconds. No expected output ever comes here.

The start is most of a test's cost, so this file, confinement.py and wire.py come compiled, by a descriptor, as modules of
those names, and import little: not even typing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import builtins
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ssd_ray.evaluation import confinement, wire
else:
    import confinement

    wire = sys.modules.get("wire")

Options = dict[str, str]


def _say(status_fd: int, text: str) -> None:
    os.write(status_fd, f"{text}\n".encode())


def _guard(status_fd: int | None, child: int) -> None:
    """Wait for `child`, reaping whatever else ends here, and end too, with a report where this is the guard."""
    pid = 0
    while pid != child:
        pid, code, usage = os.wait4(-1, 0)
    if status_fd is not None:
        how = f"signal {os.WTERMSIG(code)}" if os.WIFSIGNALED(code) else f"exit {os.WEXITSTATUS(code)}"
        _say(status_fd, f"{how} {usage.ru_maxrss} {usage.ru_utime + usage.ru_stime:.3f}")
    os._exit(0)


def _fork_below(status_fd: int | None, *, stoppable: bool) -> None:
    """Go on in a child that cannot outlive this process; this process only waits for it, and SIGTERM kills it."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGTERM})
    child = os.fork()
    if child:
        if stoppable:
            _signal.signal(_signal.SIGTERM, lambda *_: os.kill(child, _signal.SIGKILL))
        _signal.pthread_sigmask(_signal.SIG_SETMASK, set())
        _guard(status_fd, child)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, set())
    confinement.die_with_parent()


def _confine(options: Options, status_fd: int) -> None:
    """Return in the program's process, confined, with nothing but standard streams and the named pipes open."""
    directory, readable = os.getcwd(), options["readable"] == "1"
    namespaces, files = options["namespaces"] == "1", options["files"] == "1"
    own_user = namespaces and os.geteuid() != 0
    if namespaces:
        confinement.unshare(mounts=files)
    confinement.hide_memory(True)
    uid = confinement.spare_uid(interpreter_readable=readable)
    if uid is not None:
        os.chown(directory, uid, uid)
    if namespaces:
        _fork_below(None, stoppable=True)
    if files:
        confinement.seal_files(directory)
    _fork_below(status_fd, stoppable=not namespaces)
    os.setsid()
    os.chdir(directory)
    for fd in (1, 2):
        if uid is not None and stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, uid, uid)
    confinement.limit_resources(
        memory_bytes=int(options["memory_bytes"]),
        cpu_s=int(options["cpu_s"]),
        file_bytes=int(options["file_bytes"]),
        limit_processes=uid is not None or own_user,
    )
    confinement.drop_privileges(uid, interpreter_readable=readable)
    confinement.hide_memory(options["role"] == "check")


def _read_payload(fd: int) -> list[str]:
    with open(fd, "rb") as file:
        lengths = [int(length) for length in file.readline().split()]
        return [file.read(length).decode("utf-8", "surrogatepass") for length in lengths]


def _open_sandbox(options: Options) -> list[str]:
    """Confine this process, take the payload, say `ready`, and forget the way."""
    status_fd = int(options["status"])
    try:
        confinement.die_with_parent()
        if os.getppid() != int(options["parent"]):
            os._exit(1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        _confine(options, status_fd)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        units = _read_payload(int(options["payload"]))
    except OSError as error:
        _say(status_fd, f"{'denied' if options['namespaces'] == '1' else 'failed'} {error}")
        os._exit(1)
    _say(status_fd, "ready")
    os.close(status_fd)
    return units


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
        exec(compile(unit, "program.py", "exec", dont_inherit=True), namespace)


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


def _answer_calls(units: list[str], options: Options) -> None:
    """Answer every line of arguments on `request` by one line, a value or an error, on `reply`."""
    write, reply_fd, dumps, loads = os.write, int(options["reply"]), wire.dumps, wire.loads
    function = None
    with open(int(options["request"]), "rb") as requests:
        for line in requests:
            try:
                if function is None:
                    namespace = _namespace("solution")
                    _execute(units, namespace)
                    function = _lookup(namespace, options["entry_point"])
                args = loads(line)
                assert isinstance(args, list)
                text = dumps({"value": function(*args)})
            except wire.UnsupportedValueError as error:
                text = dumps({"unsupported": str(error)})
            except BaseException as error:
                text = dumps({"error": _describe(error)})
            rest = memoryview(f"{text}\n".encode())
            while rest:
                rest = rest[write(reply_fd, rest) :]


def _run_check(units: list[str], options: Options) -> None:
    """Run the trusted `check(candidate)`; its calls go out on `reply`, their values come in on `request` after a first line."""
    num_calls = 0
    with open(int(options["request"]), "rb") as values, open(int(options["reply"]), "wb") as replies:

        def send(kind: str, body: object) -> None:
            replies.write(f"{wire.dumps({kind: body})}\n".encode())
            replies.flush()

        def candidate(*args: object) -> object:
            nonlocal num_calls
            num_calls += 1
            send("call", args)
            return wire.loads(values.readline())

        values.readline()
        try:
            namespace = _namespace("check")
            _execute(units, namespace)
            if any("random" in unit for unit in units):
                __import__("random").seed(0)
            namespace["check"](candidate)
        except BaseException as error:
            send("failed" if num_calls else "broken", _describe(error))
        else:
            send("passed" if num_calls else "broken", ["Error", "it never calls the candidate"])


def main(arguments: list[str]) -> None:
    """Do what the options say; for a program this returns, or raises, as the program does."""
    options = dict(argument.split("=", 1) for argument in arguments)
    for name in ("child", "confinement", "wire"):
        sys.modules.pop(name, None)
    sys.argv[:] = ["program.py"]
    units = _open_sandbox(options)
    if options["role"] == "program":
        _execute(units, _namespace("__main__"))
    elif options["role"] == "function":
        _answer_calls(units, options)
    else:
        _run_check(units, options)
