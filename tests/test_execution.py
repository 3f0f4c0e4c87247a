"""What the sandbox does for honest programs and functions; what it does about the others is in test_attacks.py."""

import concurrent.futures
import os
import signal
import sys
import textwrap

import pytest

from ssd_ray.evaluation import execution
from ssd_ray.evaluation.execution import FunctionCaller, Isolation, Limits, Unsupported, isolation, run_program

LIMITS = Limits(time_s=20, memory_mib=256, output_kib=64)
SHORT = Limits(time_s=0.5, memory_mib=256, output_kib=64)


@pytest.fixture(params=["best", "bare"])
def level(request, monkeypatch):
    """Each promise is kept with namespaces, where there are any, and without."""
    if request.param == "bare":
        monkeypatch.setattr(execution, "isolation", lambda: Isolation(network=False, processes=False, files=False))
    return request.param


def run(code, stdin="", limits=LIMITS):
    return run_program(textwrap.dedent(code), stdin, limits)


def call(code, *args, entry_point="f", limits=LIMITS):
    with FunctionCaller([textwrap.dedent(code)], entry_point, limits) as caller:
        return caller.call(args)


# Honest programs


@pytest.mark.parametrize(
    "read",
    [
        "input() + '\\n' + input()",
        "__import__('sys').stdin.read()",
        "''.join(__import__('sys').stdin)",
        "__import__('sys').stdin.buffer.readline().decode() + input()",
        "open(0).read()",
        "open('/dev/stdin').read()",
        "__import__('os').read(0, 100).decode()",
    ],
)
def test_a_program_reads_its_input_however_it_likes(read):
    execution_ = run(f"print({read})", "één\ntwo\n")
    assert execution_.status == "ok", execution_
    assert execution_.stdout.split() == ["één", "two"]


def test_a_program_is_main_and_ends_as_programs_do(level):
    code = """
        import atexit, sys, threading
        total = 0
        def add():
            global total
            total += 1
        atexit.register(lambda: print("atexit"))
        if __name__ == "__main__":
            threading.Thread(target=lambda: (__import__("time").sleep(0.05), print("thread"))).start()
            add()
            print(total, sys.argv, __import__("__main__").total)
            exit()
    """
    execution_ = run(code)
    assert (execution_.status, execution_.stdout) == ("ok", "1 ['program.py'] 1\nthread\natexit\n")


@pytest.mark.parametrize(
    "ending", ["import sys; sys.exit(0)", "exit(0)", "quit()", "raise SystemExit", "import os; os._exit(0)", ""]
)
def test_ending_with_status_zero_is_ok_and_no_more(ending):
    assert run(ending).status == "ok"
    assert run(ending).stdout == ""


@pytest.mark.parametrize(
    "ending", ["exit(1)", "exit('why')", "1/0", "import os; os._exit(250)", "import os; os.abort()", "def f(:"]
)
def test_ending_otherwise_is_a_runtime_error(ending, level):
    assert run(f"print(1)\n{ending}").status == "runtime_error"


def test_the_standard_library_is_there_to_the_last_import():
    modules = "decimal, fractions, asyncio, heapq, bisect, itertools, typing, dataclasses, multiprocessing, sqlite3, zoneinfo"
    execution_ = run(f"import {modules}\nasyncio.run(asyncio.sleep(0))\nprint('ok')")
    assert execution_.stdout == "ok\n", execution_


def test_scratch_files_work_and_are_gone_afterwards(level):
    code = (
        "import os, tempfile\ntempfile.TemporaryFile().close()\nopen('x', 'w').write('1')\nprint(open('x').read(), os.getcwd())"
    )
    content, directory = run(code).stdout.split()
    assert content == "1"
    assert not os.path.exists(directory)


def test_even_a_directory_made_to_be_undeletable_is_gone_afterwards(level):
    code = """
        import os
        print(os.getcwd())
        for _ in range(600):
            os.mkdir("d")
            os.chdir("d")
        os.chmod(".", 0)
    """
    execution_ = run(code)
    assert execution_.status == "ok", execution_
    assert not os.path.exists(execution_.stdout.strip())


def test_two_runs_hash_alike():
    code = "print(hash('a'), {'x', 'y', 'z'})"
    assert run(code).stdout == run(code).stdout != ""


def test_many_threads_may_grade_at_once():
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(lambda number: run("print(int(input()) ** 2)", str(number)).stdout, range(18)))
    assert outputs == [f"{number**2}\n" for number in range(18)]


def test_a_grader_that_ignores_its_children_still_sees_how_they_end():
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run("exit(3)").status == "runtime_error"
    finally:
        signal.signal(signal.SIGCHLD, previous)


def test_a_sandbox_that_cannot_start_is_an_infrastructure_error(monkeypatch):
    isolation()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert run("print(1)").status == "infrastructure_error"


# Functions


def test_a_function_is_called_with_values_and_returns_them():
    with FunctionCaller(
        ["from math import inf\n", "count = 0\ndef f(*args):\n    global count; count += 1\n    return count, args"], "f", LIMITS
    ) as caller:
        for number, value in enumerate([(1, 2.5), {"a": {1: {2}}}, None, True, b"x", [frozenset({1})]], start=1):
            assert caller.call([value]).result == (number, (value,))
        large = [list(range(20_000))]
        execution_ = caller.call(large)
        assert execution_.status == "output_limit" or execution_.result == (7, tuple(large))


def test_arguments_larger_than_a_pipe_arrive():
    text = "x" * 1_000_000
    assert call("def f(text): return len(text)", text).result == 1_000_000


def test_a_method_of_a_solution_class_is_called_too():
    assert call("class Solution:\n    def f(self, x): return x + 1", 1).result == 2


def test_a_module_part_guarded_by_main_does_not_run_in_a_function_test():
    assert call("def f(): return __name__\nif __name__ == '__main__':\n    exit(1)").result == "solution"


def test_printing_and_reading_do_not_disturb_a_call():
    assert call("print('noise' * 10**6)\ndef f():\n    print('more')\n    return 1").result == 1
    assert call("def f(): return input()").detail.startswith("EOFError")


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
        ("def f(): return [0] * 10**9", "memory_limit"),
        ("def f(): return 'x' * 10**6", "output_limit"),
        ("def f(): raise type('E', (BaseException,), {'__str__': lambda s: 1/0})", "runtime_error"),
    ],
)
def test_a_call_that_does_not_return_is_no_result(code, status, level):
    execution_ = call(code, limits=SHORT if status == "time_limit" else LIMITS)
    assert (execution_.status, execution_.result) == (status, None), execution_


@pytest.mark.parametrize(
    "value", ["object()", "(i for i in 'ab')", "1j", "f", "__import__('functools').reduce(lambda x, _: [x], range(5000), 1)"]
)
def test_a_value_that_cannot_travel_is_named_and_not_guessed(value):
    assert isinstance(call(f"def f(): return {value}").result, Unsupported)


def test_a_value_that_grows_on_the_wire_is_cut():
    execution_ = call("def f():\n    x = [1]\n    for _ in range(60): x = [x, x]\n    return x")
    assert execution_.status == "output_limit" or isinstance(execution_.result, Unsupported)
