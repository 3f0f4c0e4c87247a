"""Level L4: values across the border of gVisor's kernel, crashes, and hostile programs.

The guest agent and its client also run without gVisor, so any machine tests them.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.judging.judge import Rules, grade_code
from ssd_ray.evaluation.sandbox import (
    Limits,
    Sandbox,
    best_level,
    call,
    levels,
    selftest,
    supervisor,
)
from ssd_ray.evaluation.sandbox.gvisor import client
from ssd_ray.schema import Problem, Test
from tests.support.hostile_forging import FORGERIES
from tests.support.idioms import IDIOM_INPUT, IDIOM_OUTPUT, IDIOMS, MODULES
from tests.support.scene import PROGRAMS, descendants, scene_and_sandbox, trespasses

ROOT = Path(__file__).parents[2]
LIMITS = Limits(time_s=20, memory_mib=1024, output_kib=64)
SHORT = Limits(time_s=0.5, memory_mib=256, output_kib=64)
PRESENT = levels.L4 in levels.candidates()
needs_gvisor = pytest.mark.skipif(not PRESENT, reason="runsc and mkfs.erofs are not installed here")
within_gvisor = pytest.param("gVisor", marks=[needs_gvisor, pytest.mark.real])
AGENT_ALONE = ("ssd_ray.evaluation.sandbox.gvisor.guest_agent",)
BUNDLES = Path("/tmp/ray/sandbox")

NOT_WITHIN = {"mmap", "/dev/stdout", "/dev/null"}
"""Idioms that L4 does not support: mapping the input, and opening a file for writing."""
SHOWN = {
    ("secrets", name)
    for name in (
        "memory of others through /proc",
        "programs beside it",
        "files of the machine",
        "descriptors",
    )
}
"""Hostile programs that L4 lets succeed: they see only gVisor's own files and processes."""
OTHERWISE = {("processes", "clone with namespaces"), ("output", "another opening")}
"""Hostile programs that L4 refuses in another way than other levels."""

SECRET = "9-right"
TESTS = (Test(input="3\n", output=f"{SECRET}\n"),)
STDIN = Problem(problem_id="s", source="t", statement="", tests=TESTS)
LCB = Problem(problem_id="l", source="t", statement="", comparison="lcb", tests=TESTS)
FUNCTION = Problem(
    problem_id="f",
    source="t",
    statement="",
    kind="function",
    entry_point="f",
    tests=(Test(input="[3]", output=f'"{SECRET}"'),),
)
ASSERTS = Problem(
    problem_id="a",
    source="t",
    statement="",
    kind="asserts",
    entry_point="f",
    tests=(
        Test(input=f"def check(candidate):\n    assert candidate(3) == '{SECRET}'\n", output=""),
    ),
)
PROBLEMS = [STDIN, LCB, FUNCTION, ASSERTS]
RIGHT = (
    "def f(x):\n    return f'{x * x}-ri' + 'ght'\nif __name__ == '__main__':\n"
    "    print(f(int(input())))\n"
)
WRONG = "def f(x):\n    return 'wrong'\nif __name__ == '__main__':\n    print('wrong')\n"


@pytest.fixture(scope="module", params=["a guest agent without gVisor", within_gvisor])
def sandbox(request):
    """Level L4 with a guest agent on this machine's own kernel, and with one in gVisor."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "gVisor":
            patch.setattr(supervisor, "GVisor", functools.partial(client.GVisor, AGENT_ALONE))
        with Sandbox(level=levels.L4) as made:
            yield made


@pytest.fixture(scope="module")
def place():
    with scene_and_sandbox(levels.L4) as made:
        yield made


def grade(problem, code, sandbox):
    rules = Rules(limits=LIMITS, profile="lcb-compat" if problem is LCB else "strict")
    return grade_code(problem, code, rules, sandbox)


# Without and with gVisor


@pytest.mark.parametrize(
    ("code", "stdin", "status", "stdout"),
    [
        ("print(int(input()) + 1)", "41\n", "ok", "42\n"),
        ("print(len(open(0).read()))", "x[{,\n" * 2_000_000, "ok", "10000000\n"),
        (r"import sys; sys.stdout.buffer.write(b'\0\xff a\n')", "", "ok", "\0\\xff a\n"),
        ("print('x' * (64 << 10), end='')", "", "ok", "x" * (64 << 10)),
        ("print('x' * (64 << 10))", "", "output_limit", None),
        ("while True: print('x' * 9999)", "", "output_limit", None),
        ("1/0", "", "runtime_error", ""),
        ("exit(3)", "", "runtime_error", ""),
        ("import os; os.kill(os.getpid(), 11)", "", "runtime_error", ""),
        ("x = [0] * 10**9", "", "memory_limit", ""),
        ("input()", "\udcff\n", "ok", ""),
    ],
)
def test_a_program_has_the_same_outcome_as_at_other_levels(sandbox, code, stdin, status, stdout):
    execution = sandbox.run_program(code, stdin, LIMITS)
    assert execution.status == status, execution
    assert stdout is None or execution.stdout == stdout
    assert execution.status != "ok" or execution.peak_bytes > 5 << 20


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import os; os.closerange(0, 64)\nwhile True: pass",
    ],
)
def test_an_endless_program_is_killed(sandbox, code):
    execution = sandbox.run_program(code, "", SHORT)
    assert execution.status == "time_limit"
    assert execution.time_s < 5
    assert sandbox.run_program("print(1)", "", LIMITS).stdout == "1\n"


def test_conversations_keep_their_state_and_can_overlap(sandbox):
    units = ["count = 0\ndef f(*args):\n    global count; count += 1\n    return count, args"]
    with (
        sandbox.converse("calls", units, LIMITS, entry_point="f") as first,
        sandbox.converse("calls", units, LIMITS, entry_point="f") as second,
    ):
        for number, value in enumerate(
            [(1, 2.5), {"a": {1: {2}}}, b"x", float("inf"), 10**300, "y" * 40_000], start=1
        ):
            assert call(first, [value]).result == (number, (value,))
        assert call(second, []).result == (1, ())
        assert first.peak_bytes > 5 << 20
    with sandbox.converse(
        "calls", ["def f():\n    while True: pass"], SHORT, entry_point="f"
    ) as endless:
        assert call(endless, []).status == "time_limit"
    with sandbox.converse(
        "calls", ["import os\ndef f(): os._exit(0)"], LIMITS, entry_point="f"
    ) as gone:
        assert call(gone, []).status == "runtime_error"
    with sandbox.converse(
        "calls", ["def f(): return 'x' * 10**6"], LIMITS, entry_point="f"
    ) as flood:
        assert call(flood, []).status == "output_limit"


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.problem_id)
def test_right_programs_pass_and_forgeries_fail(sandbox, problem):
    assert grade(problem, RIGHT, sandbox).outcome == "accepted"
    for name in FORGERIES:
        graded = grade(problem, FORGERIES[name] + WRONG, sandbox)
        assert graded.outcome in {"wrong_answer", "runtime_error", "output_limit"}, (name, graded)


def test_no_expected_output_enters_the_sandbox(sandbox, monkeypatch):
    requests, send = [], client.GVisor.send
    monkeypatch.setattr(
        client.GVisor,
        "send",
        lambda self, request, *rest: requests.append(str(request)) or send(self, request, *rest),
    )
    for problem in PROBLEMS:
        assert grade(problem, RIGHT, sandbox).outcome == "accepted"
    assert any("print(f(int(input())))" in text for text in requests)
    assert not any(SECRET in text for text in requests)


@pytest.mark.slow
def test_a_late_answer_is_not_taken_for_that_of_another_request(monkeypatch):
    monkeypatch.setattr(supervisor, "GVisor", functools.partial(client.GVisor, AGENT_ALONE))
    with (
        Sandbox(level=levels.L4) as sandbox,
        sandbox.converse("calls", ["f = abs"], LIMITS, entry_point="f") as before,
    ):
        assert call(before, [-1]).result == 1
        agent = sandbox._zygote._launcher.pid
        monkeypatch.setattr(client, "_GRACE_S", 2.0)
        monkeypatch.setattr(client, "_END_TIMEOUT_S", 1.0)
        os.kill(agent, signal.SIGSTOP)
        assert sandbox.run_program("print(input())", "late", LIMITS).stdout == "late\n"
        assert not os.path.exists(f"/proc/{agent}")
        with pytest.raises(InfrastructureError):
            call(before, [-2])


# Where gVisor is missing


def test_gvisor_is_not_offered_where_its_programs_are_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert levels.L4 not in levels.candidates()
    assert (
        "not on the PATH" in dict((level.name, why) for level, why in supervisor.try_levels())["L4"]
    )
    supervisor._probe.cache_clear()
    try:
        with pytest.raises(UserError, match="below the floor L4"):
            Sandbox(floor="L4")
    finally:
        supervisor._probe.cache_clear()


# Within gVisor


def _words(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return []


def _sandboxes():
    """Return names of sandboxes with a process, a bundle, or a lock on an image."""
    words = [word for entry in os.listdir("/proc") if entry.isdecimal() for word in _words(entry)]
    files = [*BUNDLES.glob("ray-sandbox-*"), *(BUNDLES / "images").glob("*/.users/ray-sandbox-*")]
    return {
        word for word in (*words, *(file.name for file in files)) if word.startswith("ray-sandbox-")
    }


@pytest.fixture
def others():
    """Yield the sandboxes that exist before a test; afterwards, no other may be left."""
    before = _sandboxes()
    yield before
    assert _sandboxes() - before == set()


@needs_gvisor
@pytest.mark.real
def test_l4_is_used_only_if_the_floor_asks_for_it(others):
    assert best_level("L4") == levels.L4
    assert best_level().name != "L4"
    with Sandbox(floor="L4") as sandbox:
        assert sandbox.level == "L4"
        kernel = sandbox.run_program(
            "import os; print(os.uname().release)", "", LIMITS
        ).stdout.strip()
        assert kernel not in {"", os.uname().release}


@needs_gvisor
@pytest.mark.real
def test_the_claims_of_l4_hold():
    assert [finding for finding in selftest.findings(levels.L4) if not finding.held] == []


@needs_gvisor
@pytest.mark.real
def test_honest_programs_work_at_l4(place):
    _, sandbox = place
    for name in IDIOMS.keys() - NOT_WITHIN:
        execution = sandbox.run_program(IDIOMS[name], IDIOM_INPUT, LIMITS)
        assert (execution.status, execution.stdout) == ("ok", IDIOM_OUTPUT), (name, execution)
    modules = MODULES.split()
    for start in range(0, len(modules), 12):
        execution = sandbox.run_program(
            f"import {', '.join(modules[start : start + 12])}\nprint('ok')", "", LIMITS
        )
        assert execution.stdout == "ok\n", execution


@needs_gvisor
@pytest.mark.real
@pytest.mark.parametrize(
    "program",
    [program for program in PROGRAMS if (program.category, program.name) not in SHOWN | OTHERWISE],
    ids=lambda program: f"{program.category}: {program.name}",
)
def test_a_hostile_program_gets_nothing_and_harms_nothing(place, program):
    scene, sandbox = place
    effects = trespasses(program, sandbox, scene)
    assert [
        line for line in effects if " processes where there were " not in line
    ] == []  # gVisor's own processes come and go


@needs_gvisor
@pytest.mark.real
@pytest.mark.parametrize("whose", ["exec", "boot"])
def test_a_sandbox_crash_under_a_program_changes_no_verdict(whose, others):
    with Sandbox(level=levels.L4) as sandbox:
        sandbox.run_program("", "", LIMITS)
        execution = _run_as(sandbox, _process(whose, others), signal.SIGKILL)
    assert (execution.status, execution.stdout) == ("ok", "once more\n"), execution


@needs_gvisor
@pytest.mark.real
def test_a_sandbox_that_does_not_answer_is_replaced(monkeypatch, others):
    with Sandbox(level=levels.L4) as sandbox:
        sandbox.run_program("", "", LIMITS)
        monkeypatch.setattr(client, "_GRACE_S", 5.0)
        execution = _run_as(
            sandbox,
            _process("boot", others),
            signal.SIGSTOP,
            Limits(time_s=2, memory_mib=256, output_kib=64),
        )
    assert (execution.status, execution.stdout) == ("ok", "once more\n"), execution


def _process(verb, others):
    """Return the process on this machine of the one sandbox that is not among `others`.

    Processes of gVisor are `runsc exec`, and `runsc boot`, the kernel.
    """
    (name,) = _sandboxes() - others
    return min(pid for pid in descendants() if {verb, name} <= set(_words(pid)))


def _run_as(sandbox, pid, number, limits=LIMITS):
    """Run a program while a process gets a signal."""
    killer = threading.Timer(0.3, os.kill, (pid, number))
    killer.start()
    try:
        return sandbox.run_program(
            "import time; time.sleep(0.9); print(input())", "once more", limits
        )
    finally:
        killer.join()


GRADE_FOR_EVER = """
import threading
from ssd_ray.evaluation.sandbox import Limits, Sandbox, levels
with Sandbox(level=levels.L4) as sandbox:
    sandbox.run_program("", "", Limits(time_s=60, memory_mib=256, output_kib=1))
    print("running", flush=True)
    limits = Limits(time_s=60, memory_mib=256, output_kib=1)
    sandbox.run_program("import time; time.sleep(60)", "", limits)
"""


@needs_gvisor
@pytest.mark.real
def test_nothing_outlives_a_killed_grader(others):
    grader = subprocess.Popen(
        [sys.executable, "-c", GRADE_FOR_EVER], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert grader.stdout.readline() == b"running\n"
        before = {pid: _words(pid) for pid in descendants(grader.pid)}
        assert len(before) >= 3
    finally:
        grader.kill()
        grader.wait()
        grader.stdout.close()
    deadline = time.monotonic() + 30
    while (
        any(any(words) and _words(pid) == words for pid, words in before.items())
        or _sandboxes() - others
    ):
        assert time.monotonic() < deadline, (before, _sandboxes() - others)
        time.sleep(0.1)
