"""Every shortage of memory is reported as one, and deep stacks of contest programs fit."""

import dataclasses

import pytest

from ssd_ray.evaluation.judging.judge import Rules, grade_code
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.schema import Problem, Test
from tests.support.problems import condition_problem, function_problem

LIMITS = Limits(time_s=20, memory_mib=1024, output_kib=1024)
RULES = {profile: Rules(limits=LIMITS, profile=profile) for profile in ("strict", "lcb-compat")}
STDIN = Problem(
    problem_id="p",
    source="t",
    statement="",
    tests=(Test(input="3\n1 2 3\n", output="6\n"),),
    comparison="lcb",
)
FUNCTION = function_problem(3, 3)
ASSERTS = condition_problem("candidate(3) == 3")
IDIOM = """
import sys, threading
sys.setrecursionlimit(10**9)
threading.stack_size({size})
def main():
    input()
    print(sum(map(int, input().split())))
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""


def test_stacks_of_one_test_leave_room_for_those_of_the_next(sandbox):
    tests = tuple(
        Test(input=f"3\n1 2 {number}\n", output=f"{3 + number}\n") for number in range(12)
    )
    problem = dataclasses.replace(STDIN, tests=tests)
    for _ in range(5):
        graded = grade_code(problem, IDIOM.format(size="1 << 30"), RULES["lcb-compat"], sandbox)
        assert graded.outcome == "accepted", graded


@pytest.mark.parametrize(
    "size", ["1 << 29", "1 << 30", "(1 << 30) - 1", "1 << 31", "1 << 32", "1 << 40"]
)
@pytest.mark.parametrize("profile", RULES)
def test_a_thread_with_a_stack_of_any_size_starts(size, profile, sandbox):
    graded = grade_code(STDIN, IDIOM.format(size=size), RULES[profile], sandbox)
    assert graded.outcome == "accepted", graded


@pytest.mark.parametrize(
    "code",
    [
        IDIOM.format(size="1 << 30").replace("import sys", "import numpy, sys"),
        IDIOM.format(size="1 << 28")
        + IDIOM.format(size="1 << 30").replace("print", "str").replace("input()", "''"),
        "import threading\nfrom threading import stack_size\nstack_size(1 << 30)\n"
        "threading.Thread(target=lambda: (input(), print(sum(map(int, input().split()))))).start()",
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (-1, -1))\n"
        "sys.setrecursionlimit(1 << 20)\ninput()\n"
        "print(sum(map(int, input().split())))",
        "import sys, threading\nsys.setrecursionlimit(1 << 25)\nthreading.stack_size(1 << 30)\n"
        "def down(n):\n"
        "    return down(n - 1) if n else 6\n"
        "thread = threading.Thread(target=lambda: print(down(50_000)))\nthread.start()\n"
        "thread.join()",
    ],
)
def test_idioms_of_deep_recursion_are_accepted(code, sandbox):
    graded = grade_code(STDIN, code, RULES["strict"], sandbox)
    assert graded.outcome == "accepted", graded


def test_the_interface_of_stack_sizes_is_unchanged(sandbox):
    code = (
        "import _thread, threading\nprint(threading.stack_size(), threading.stack_size(1 << 20), "
        "_thread.stack_size())\n"
        "for bad in (-1, 5):\n    try: threading.stack_size(bad)\n"
        "    except ValueError: print('bad')\n"
    )
    execution = sandbox.run_program(code, "", LIMITS)
    assert execution.stdout == f"0 0 {1 << 20}\nbad\nbad\n", execution


SHORT = {
    "threads": (
        "import threading, time\nfor _ in range(300): threading.Thread(target=time.sleep, "
        "args=(9,), daemon=True).start()"
    ),
    "threads with stacks": "import threading, time\nthreading.stack_size(1 << 30)\n"
    "for _ in range(9): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "a pool": "import concurrent.futures as c, threading, time\nthreading.stack_size(1 << 30)\n"
    "pool = c.ThreadPoolExecutor(9)\n"
    "try:\n    [pool.submit(time.sleep, 1) for _ in range(9)]\nexcept RuntimeError:\n    raise",
    "a map": "import mmap\nmmap.mmap(-1, 1 << 34)",
    "maps": "import mmap\nkept = []\nwhile True: kept.append(mmap.mmap(-1, 1 << 27))",
    "an array of numpy": "import numpy\nnumpy.ones(10**10)",
    "arrays of numpy": "import numpy\nkept = []\nwhile True: kept.append(numpy.zeros(10**7))",
    "a list": "x = [0] * 10**10",
    "an array": "import array\narray.array('q', [0]) * 10**10",
    "its own error": "class TooLarge(MemoryError): pass\nraise TooLarge('by its own word')",
    "a memory error with a cause": (
        "try:\n    [0] * 10**10\nexcept MemoryError as one:\n"
        "    raise MemoryError('again') from one"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_lack_of_memory_is_a_memory_limit(name, sandbox):
    graded = grade_code(STDIN, SHORT[name], RULES["strict"], sandbox)
    assert graded.outcome == "memory_limit", graded
    assert "MemoryError within 1024 MiB" in graded.detail
    body = "".join(f"    {line}\n" for line in SHORT[name].split("\n"))
    for problem in (FUNCTION, ASSERTS):
        graded = grade_code(problem, f"def f(n):\n{body}    return n\n", RULES["strict"], sandbox)
        assert graded.outcome == "memory_limit", graded
        assert "MemoryError" in graded.detail
    graded = grade_code(STDIN, SHORT[name], RULES["lcb-compat"], sandbox)
    assert graded.outcome == "memory_limit", graded


THREADED = (
    "import threading\ndef main():\n    {}\nthread = threading.Thread(target=main)\n"
    "thread.start()\nthread.join()\n"
)


@pytest.mark.parametrize(
    "act",
    [
        "x = [0] * 10**10",
        "import numpy; numpy.ones(10**10)",
        "import mmap; mmap.mmap(-1, 1 << 34)",
        (
            "threading.stack_size(1 << 30); [threading.Thread(target=threading.Event().wait, "
            "args=(1,)).start() for _ in range(9)]"
        ),
    ],
)
@pytest.mark.parametrize("profile", RULES)
def test_a_lack_of_memory_in_a_thread_is_a_memory_limit(act, profile, sandbox):
    graded = grade_code(STDIN, THREADED.format(act), RULES[profile], sandbox)
    assert graded.outcome == "memory_limit", graded
    assert "MemoryError within 1024 MiB" in graded.detail


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (
            "import threading\nthreading.Thread(target=lambda: [0] * 10**10).start()\nprint(6)",
            "accepted",
        ),
        (
            "print('MemoryError: not really', file=__import__('sys').stderr)\nraise ValueError",
            "runtime_error",
        ),
        ("raise RuntimeError('a thread was lost')", "runtime_error"),
        ("raise OSError(1, 'no')", "runtime_error"),
        ("raise ImportError('no such module')", "runtime_error"),
        ("print(7)", "wrong_answer"),
    ],
)
def test_no_other_failure_is_a_memory_limit(code, outcome, sandbox):
    graded = grade_code(STDIN, code, RULES["strict"], sandbox)
    assert graded.outcome == outcome, graded


@pytest.mark.slow
def test_too_many_threads_are_a_runtime_error(sandbox):
    code = (
        "import threading, time\nthreading.stack_size(1 << 15)\n"
        "for _ in range(600): threading.Thread(target=time.sleep, args=(9,)).start()"
    )
    rules = dataclasses.replace(
        RULES["strict"], limits=dataclasses.replace(LIMITS, memory_mib=2048)
    )
    graded = grade_code(STDIN, code, rules, sandbox)
    assert graded.outcome == "runtime_error", graded
