"""The sandbox runs honest programs and functions. For hostile ones see test_attacks.py."""

import concurrent.futures
import os
import signal
import sys
import textwrap
import time

import psutil
import pytest

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.sandbox import (
    Limits,
    Sandbox,
    Unsupported,
    best_level,
    bootstrap,
    call,
    levels,
    supervisor,
)
from ssd_ray.evaluation.sandbox.child import Child
from tests.support.idioms import IDIOM_INPUT, IDIOM_OUTPUT, IDIOMS, MODULES

LIMITS = Limits(time_s=20, memory_mib=1024, output_kib=64)
SHORT = Limits(time_s=0.5, memory_mib=256, output_kib=64)
BY_NAME = {level.name: level for level in levels.candidates()}
LEVELS = sorted({"L1", best_level().name}, key=levels.rank)


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request):
    """Yield a sandbox at the machine's highest level, and one at L1, without namespaces."""
    with Sandbox(level=BY_NAME[request.param]) as made:
        yield made


@pytest.fixture(scope="module")
def best():
    with Sandbox() as made:
        yield made


def run(sandbox, code, stdin="", limits=LIMITS):
    return sandbox.run_program(textwrap.dedent(code), stdin, limits)


def call_once(sandbox, code, *args, limits=LIMITS, entry_point="f"):
    with sandbox.converse(
        "calls", [textwrap.dedent(code)], limits, entry_point=entry_point
    ) as conversation:
        return call(conversation, args)


# Honest programs


@pytest.mark.slow
@pytest.mark.parametrize("name", IDIOMS)
def test_honest_programs_work(sandbox, name):
    execution = sandbox.run_program(IDIOMS[name], IDIOM_INPUT, LIMITS)
    assert (execution.status, execution.stdout) == ("ok", IDIOM_OUTPUT), execution


@pytest.mark.slow
def test_every_module_of_the_standard_library_imports(sandbox):
    modules = MODULES.split()
    for start in range(0, len(modules), 12):
        names = modules[start : start + 12]
        execution = run(sandbox, f"import {', '.join(names)}\nprint('ok')")
        assert execution.stdout == "ok\n", (names, execution)


def test_a_program_is_main_and_its_exit_handlers_run(sandbox):
    code = """
        import atexit, sys, threading
        total = 0
        def add():
            global total
            total += 1
        atexit.register(lambda: print("atexit"))
        if __name__ == "__main__":
            late = lambda: (__import__("time").sleep(0.05), print("thread"))
            threading.Thread(target=late).start()
            add()
            print(total, sys.argv, __import__("__main__").total)
            exit()
    """
    execution = run(sandbox, code)
    assert (execution.status, execution.stdout) == ("ok", "1 ['program.py'] 1\nthread\natexit\n")


@pytest.mark.parametrize(
    "ending",
    [
        "1/0",
        "exit(1)",
        "exit('why')",
        "import os; os._exit(250)",
        "import os; os.abort()",
        "def f(:",
    ],
)
def test_an_end_with_an_error_is_a_runtime_error(sandbox, ending):
    assert run(sandbox, f"print(1)\n{ending}").status == "runtime_error"


def test_the_end_of_input_is_an_eoferror_in_one_line(best):
    execution = run(best, "input()\ninput()", "only one\n")
    assert (execution.status, execution.detail) == (
        "runtime_error",
        "EOFError: EOF when reading a line",
    )


def test_a_traceback_shows_the_program_and_no_sandbox(best):
    code = "import sys\nsys.stderr = sys.stdout\ndef f():\n    1/0\nf()"
    lines = run(best, code).stdout.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line for line in lines if line.startswith("  File")] == [
        '  File "program.py", line 5, in <module>',
        '  File "program.py", line 4, in f',
    ]


def test_two_runs_have_equal_hashes_and_different_seeds(best):
    code = "print(hash('a'), {'x', 'y', 'z'})"
    assert run(best, code).stdout == run(best, code).stdout != ""
    assert (
        run(best, "import random; print(random.random())").stdout
        != run(best, "import random; print(random.random())").stdout
    )


def test_nothing_stays_from_one_program_to_the_next(best):
    run(best, "import sys, builtins\nbuiltins.seen = sys.seen = 1\nsys.path.append('x')\nprint(1)")
    code = (
        "import sys, builtins\nprint(hasattr(builtins, 'seen'), hasattr(sys, 'seen'), 'x' in "
        "sys.path)"
    )
    assert run(best, code).stdout == "False False False\n"


def test_a_program_finds_no_module_of_the_sandbox(best):
    names = sorted(bootstrap._codes())
    assert {"zygote", "kinds", "wire"} <= set(names)
    code = f"""
        import importlib.util
        print([name for name in {names!r} if importlib.util.find_spec(name)])
    """
    assert run(best, code).stdout == "[]\n"


def test_no_file_can_be_created(sandbox):
    """There is no scratch space: creating a file raises an error."""
    for code in (
        "open('x', 'w')",
        "import tempfile; tempfile.TemporaryFile()",
        "import os; os.mkdir('d')",
    ):
        execution = run(sandbox, code)
        assert execution.status == "runtime_error"
        assert execution.detail.split(":")[0] in {
            "PermissionError",
            "OSError",
            "FileNotFoundError",
        }, execution


def test_any_bytes_may_be_printed(best):
    execution = run(best, r"import sys; sys.stdout.buffer.write(b'\0\xff\xfe a\n')")
    assert (execution.status, execution.stdout) == ("ok", "\0\\xff\\xfe a\n")


def test_any_input_arrives_complete(best):
    assert (
        run(best, "import sys; print(len(sys.stdin.buffer.read()))", "x" * 50_000_000).stdout
        == "50000000\n"
    )
    assert (
        run(best, "print(ascii(input()))", "één \u2713\r\n").stdout == "'\\xe9\\xe9n \\u2713\\r'\n"
    )  # as any Python on Linux
    assert (
        run(best, "import sys; print(sys.stdin.buffer.read())", "a\r\n\0b").stdout
        == "b'a\\r\\n\\x00b'\n"
    )
    assert run(best, "import sys; print(repr(sys.stdin.read()))", "").stdout == "''\n"
    assert run(best, "print(ascii(input()))", "\udcff\n").status == "ok"


def test_output_is_complete_up_to_the_limit(sandbox):
    size = 64 << 10
    whole = run(sandbox, f"print('x' * {size}, end='')")
    assert (whole.status, whole.stdout) == ("ok", "x" * size)
    assert run(sandbox, f"print('x' * {size + 1}, end='')").status == "output_limit"


def test_no_detail_holds_terminal_control_characters(best):
    detail = run(best, r"raise ValueError('\x1b[2J\r\u202e' + 'x' * 1000)").detail
    assert detail.startswith("ValueError: ")
    assert detail.isprintable()
    assert len(detail) <= 300


def test_memory_that_was_used_is_reported(best):
    small, large = (
        run(best, "pass"),
        run(best, "x = bytearray(100 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1"),
    )
    assert 5 << 20 < small.peak_bytes < 60 << 20
    assert 100 << 20 < large.peak_bytes < 200 << 20


def test_many_threads_may_grade_at_once_with_a_sandbox_each():
    def square(number):
        with Sandbox() as own:
            return own.run_program("print(int(input()) ** 2)", str(number), LIMITS).stdout

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, range(8))) == [f"{number**2}\n" for number in range(8)]


def test_a_grader_that_ignores_sigchld_still_sees_statuses():
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Sandbox() as own:
            assert run(own, "exit(3)").status == "runtime_error"
    finally:
        signal.signal(signal.SIGCHLD, previous)


# Time


def test_cpu_time_is_limited_too_and_over_all_threads(best):
    began = time.monotonic()
    code = "import hashlib, threading\ndef f():\n    while True: hashlib.sha256(bytes(1 << 20))\n"
    execution = run(
        best, code + "for _ in range(4): threading.Thread(target=f).start()", limits=SHORT
    )
    assert execution.status == "time_limit"
    assert time.monotonic() - began < 6


def test_a_sleeping_program_gets_no_more_time(best):
    execution = run(best, "import time; time.sleep(30)", limits=SHORT)
    assert execution.status == "time_limit"
    assert execution.time_s < 2 * SHORT.time_s


@pytest.mark.parametrize(("share", "limits"), [(0.5, 2), (1.0, 4)])
def test_waiting_for_a_core_extends_the_limit_up_to_three_times(best, monkeypatch, share, limits):
    """The kernel reports the program's time of waiting for a core."""
    began = time.monotonic()
    monkeypatch.setattr(Child, "_waited_s", lambda self: share * (time.monotonic() - began))
    short = Limits(time_s=0.3, memory_mib=256, output_kib=64)
    execution = run(best, "while True: pass", limits=short)
    assert execution.status == "time_limit"
    assert 0.95 * limits * short.time_s < execution.time_s < limits * short.time_s + 0.5


def test_the_kernel_is_asked_how_long_a_program_waited(best, monkeypatch):
    asked, ask = [], Child._waited_s
    monkeypatch.setattr(Child, "_waited_s", lambda self: asked.append(ask(self)) or asked[-1])
    assert (
        run(
            best,
            (
                "import threading\nfor _ in range(2): threading.Thread(target=sum, "
                "args=([1],)).start()"
            ),
        ).status
        == "ok"
    )
    assert asked
    assert all(0 <= waited < 60 for waited in asked)


# The floor, and sandboxes that do not start


def test_a_machine_below_the_floor_is_refused_with_what_to_do():
    with pytest.raises(
        UserError, match=r"below the floor L1.*evaluate.sandbox_floor.*--sandbox-floor"
    ):
        Sandbox(floor="L1", level=BY_NAME["L0"])
    assert Sandbox(floor="L0", level=BY_NAME["L0"]).level == "L0"


@pytest.mark.slow
def test_every_level_of_this_machine_runs_programs():
    names = []
    for level, why in supervisor.try_levels():
        if not why:
            names.append(level.name)
            with Sandbox(floor="L0", level=level) as own:
                assert run(own, "print(1)").stdout == "1\n"
    assert names[-1] == "L0"
    assert best_level().name == next(name for name in names if name != "L4")


def test_a_sandbox_that_cannot_start_is_an_infrastructure_error(monkeypatch):
    best_level()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with Sandbox() as own:
        assert run(own, "print(1)").status == "infrastructure_error"
        with pytest.raises(InfrastructureError):
            call_once(own, "def f(): pass")


def test_descriptors_and_processes_are_given_back():
    def held():
        return len(os.listdir("/proc/self/fd")), {
            child.pid for child in psutil.Process().children()
        }

    before = held()
    with Sandbox() as own:
        for _ in range(20):
            run(own, "print(1)")
            call_once(own, "def f(): return 1")
            run(own, "while True: print(1)")
    assert held() == before


# Functions


def test_a_function_is_called_with_values_and_returns_them(best):
    units = [
        "from math import inf\n",
        "count = 0\ndef f(*args):\n    global count; count += 1\n    return count, args",
    ]
    with best.converse("calls", units, LIMITS, entry_point="f") as conversation:
        values = [
            (1, 2.5),
            {"a": {1: {2}}},
            None,
            True,
            b"x",
            [frozenset({1})],
            float("inf"),
            10**300,
            1j,
        ]
        for number, value in enumerate(values, start=1):
            assert call(conversation, [value]).result == (number, (value,))
        assert conversation.peak_bytes > 5 << 20


def test_arguments_larger_than_a_pipe_arrive(best):
    assert call_once(best, "def f(text): return len(text)", "x" * 1_000_000).result == 1_000_000


def test_a_method_of_a_solution_class_is_called_too(best):
    assert call_once(best, "class Solution:\n    def f(self, x): return x + 1", 1).result == 2


def test_a_main_guard_does_not_run_in_a_function_test(best):
    assert (
        call_once(best, "def f(): return __name__\nif __name__ == '__main__':\n    exit(1)").result
        == "solution"
    )


def test_printing_and_reading_do_not_disturb_a_call(best):
    assert (
        call_once(best, "print('noise' * 10**6)\ndef f():\n    print('more')\n    return 1").result
        == 1
    )
    assert call_once(best, "def f(): return input()").detail.startswith("EOFError")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("def g(): pass", "runtime_error"),
        ("def f(:", "runtime_error"),
        ("def f(): 1/0", "runtime_error"),
        ("def f(): exit(0)", "runtime_error"),
        ("import os\ndef f(): os._exit(0)", "runtime_error"),
        ("import os; os._exit(0)", "runtime_error"),
        ("import sys; sys.exit(0)", "runtime_error"),
        ("def f():\n    while True: pass", "time_limit"),
        ("while True: pass", "time_limit"),
        ("import os\ndef f():\n    os.closerange(0, 64)\n    while True: pass", "time_limit"),
        ("def f(): return [0] * 10**9", "memory_limit"),
        ("def f(): return 'x' * 10**6", "output_limit"),
        ("import sys\ndef f():\n    while True: sys.stderr.write('x' * 9999)", "output_limit"),
        ("def f(): raise type('E', (BaseException,), {'__str__': lambda s: 1/0})", "runtime_error"),
    ],
)
def test_a_call_that_does_not_return_is_no_result(sandbox, code, status):
    execution = call_once(sandbox, code, limits=SHORT if status == "time_limit" else LIMITS)
    assert (execution.status, execution.result) == (status, None), execution


@pytest.mark.parametrize(
    "value",
    ["object()", "int", "f", "__import__('functools').reduce(lambda x, _: [x], range(5000), 1)"],
)
def test_a_value_that_cannot_cross_is_named(best, value):
    assert isinstance(call_once(best, f"def f(): return {value}").result, Unsupported)


@pytest.mark.slow
def test_a_value_that_grows_on_the_wire_is_cut(best):
    execution = call_once(
        best, "def f():\n    x = [1]\n    for _ in range(60): x = [x, x]\n    return x"
    )
    assert execution.status == "output_limit" or isinstance(execution.result, Unsupported)
