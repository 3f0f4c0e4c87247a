"""Every attack on the sandbox fails at every level with a claim to stop it."""

import contextlib
import dataclasses
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.judging.judge import Rules, grade_code
from ssd_ray.evaluation.sandbox import Limits, Sandbox, best_level, call, levels
from ssd_ray.schema import Problem, Test
from tests.support.hostile_arguments import CHECK as IN_PLACE
from tests.support.hostile_arguments import MESSAGES as ANSWERS
from tests.support.hostile_arguments import WITHIN, sending, within
from tests.support.hostile_forging import FORGERIES, MESSAGES, PRETENDING, forging
from tests.support.hostile_values import FORGED_LINES, HEAVY, LIARS
from tests.support.processes import is_alive
from tests.support.scene import PROGRAMS, descendants, scene_and_sandbox, trespasses

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LIMITS = Limits(time_s=20, memory_mib=256, output_kib=64)
SHORT = Limits(time_s=0.5, memory_mib=256, output_kib=64)
NOBODY = 65534
BY_NAME = {level.name: level for level in levels.candidates()}
LEVELS = sorted({"L1", best_level().name}, key=levels.rank)


@pytest.fixture(scope="module", params=LEVELS)
def place(request):
    """A scene and a sandbox, for each of the levels."""
    with scene_and_sandbox(BY_NAME[request.param]) as made:
        yield made


@pytest.mark.parametrize(
    "program", PROGRAMS, ids=lambda program: f"{program.category}: {program.name}"
)
def test_a_hostile_program_gets_nothing_and_harms_nothing(place, program):
    scene, sandbox = place
    effects = trespasses(program, sandbox, scene)
    if effects:
        scene.refresh()
    assert effects == []


def test_without_landlock_the_other_claims_hold():
    """L1- makes no claim about reading files, and therefore none about answers and secrets."""
    with scene_and_sandbox(BY_NAME["L1-"]) as (scene, sandbox):
        for program in PROGRAMS:
            if program.category in ("processes", "network", "files", "kernel"):
                assert (program.name, trespasses(program, sandbox, scene)) == (program.name, [])


def ordinary_python():
    """Return an interpreter that any user may run; skip the test if there is none."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        words = [
            candidate,
            "-B",
            "-c",
            "import sys; import ssd_ray.evaluation.sandbox; sys.exit(sys.version_info < (3, 11))",
        ]
        with contextlib.suppress(OSError):
            if (
                subprocess.run(
                    words, cwd=ROOT, user=NOBODY, capture_output=True, check=False
                ).returncode
                == 0
            ):
                return candidate
    return pytest.skip("no interpreter here that an ordinary user may run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    "container", [False, True], ids=["any system call", "a container's default filter"]
)
def test_programs_of_an_ordinary_user_are_confined_too(container):
    chosen = [program.name for program in PROGRAMS if program.category not in ("time", "memory")]
    order = {
        "level": "",
        "uid": NOBODY,
        "container": container,
        "names": [*chosen, "a loop", "sleep", "a list"],
    }
    helper = subprocess.run(
        [ordinary_python(), "-B", "tests/support/scene.py", json.dumps(order)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert helper.returncode == 0, helper.stderr
    report = json.loads(helper.stdout)
    assert report["uid"] == NOBODY
    assert {name: effects for name, effects in report["found"].items() if effects} == {}
    assert len(report["found"]) > 50
    if container:
        assert report["level"] == "L1"
    assert levels.rank(report["level"]) >= levels.rank("L1")


# Forged reports

STDIN = Problem(
    problem_id="s", source="t", statement="", tests=(Test(input="3\n", output="9-right\n"),)
)
FUNCTION = Problem(
    problem_id="f",
    source="t",
    statement="",
    kind="function",
    entry_point="f",
    tests=(Test(input="[3]", output="[3, 9]"),),
)
ASSERTS = Problem(
    problem_id="a",
    source="t",
    statement="",
    kind="asserts",
    entry_point="f",
    tests=(Test(input="def check(candidate):\n    assert candidate(3) == [3, 9]\n", output=""),),
)
LCB = Problem(problem_id="l", source="t", statement="", comparison="lcb", tests=STDIN.tests)
CHANGES = Problem(
    problem_id="c",
    source="t",
    statement="",
    kind="asserts",
    entry_point="f",
    tests=(Test(input=IN_PLACE, output=""),),
)
RULES = {profile: Rules(limits=LIMITS, profile=profile) for profile in ("strict", "lcb-compat")}
WRONG = "def f(x):\n    return 'wrong'\nif __name__ == '__main__':\n    print('wrong')\n"


@pytest.mark.parametrize(
    "problem", [STDIN, FUNCTION, ASSERTS, CHANGES, LCB], ids=lambda problem: problem.problem_id
)
@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_makes_a_wrong_answer_right(name, problem, sandbox):
    wrong = WRONG if problem is not CHANGES else within("given.reverse()")
    for code in (FORGERIES[name] + wrong, wrong + FORGERIES[name]):
        graded = grade_code(
            problem, code, RULES["lcb-compat" if problem is LCB else "strict"], sandbox
        )
        assert graded.outcome in {"wrong_answer", "runtime_error", "output_limit"}, graded
        assert "FOUND" not in graded.detail


@pytest.mark.parametrize("pretender", PRETENDING)
def test_no_object_is_equal_to_what_was_expected(pretender, sandbox, tmp_path):
    mark = tmp_path / "mark"
    code = pretender.replace("/tmp/@TOKEN@", str(mark)) + "def f(x): return Yes()\n"
    for problem in (FUNCTION, ASSERTS):
        assert grade_code(problem, code, RULES["strict"], sandbox).outcome in {
            "wrong_answer",
            "runtime_error",
        }
    assert not mark.exists()


def by(comparison):
    return dataclasses.replace(FUNCTION, comparison=comparison)


NEVER_RIGHT = {
    "own": (FUNCTION, "strict"),
    "lcb": (by("lcb"), "strict"),
    "lcb-compat": (by("lcb"), "lcb-compat"),
    "evalplus": (by("evalplus"), "strict"),
    "check": (ASSERTS, "strict"),
}


@pytest.mark.parametrize("name", LIARS)
def test_no_foreign_value_is_believed_to_be_equal(name, sandbox):
    code = LIARS[name] + "def f(x): return Yes()\n"
    for kind, (problem, profile) in NEVER_RIGHT.items():
        graded = grade_code(problem, code, RULES[profile], sandbox)
        assert graded.outcome in {"wrong_answer", "runtime_error"}, (kind, graded)


@pytest.mark.parametrize("name", HEAVY)
def test_no_foreign_value_costs_its_reader_much(name, sandbox):
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    rules = Rules(limits=dataclasses.replace(LIMITS, time_s=1, memory_mib=512, output_kib=8192))
    for problem in (FUNCTION, ASSERTS, by("evalplus-set")):
        graded = grade_code(problem, HEAVY[name], rules, sandbox)
        assert graded.outcome not in {"accepted", "infrastructure_error"}, graded
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 5
    assert after.ru_maxrss - before.ru_maxrss < 700 << 10
    assert time.monotonic() - began < 120


@pytest.mark.parametrize("line", FORGED_LINES, ids=lambda line: line[:30].decode())
def test_a_forged_foreign_value_is_no_answer(line, sandbox):
    code = f"{forging(line)}def f(x):\n    os._exit(0)\n"
    for kind, (problem, profile) in NEVER_RIGHT.items():
        graded = grade_code(problem, code, RULES[profile], sandbox)
        assert graded.outcome in {"wrong_answer", "runtime_error", "output_limit"}, (kind, graded)
        assert graded.detail.isprintable()


@pytest.mark.parametrize(
    "splice",
    ["@", "@lambda _: lambda *_: None", "if 0: \\", "x = '''", "def check(_): pass\n(", "\f#"],
)
def test_no_end_of_a_program_changes_how_its_tests_are_read(splice, sandbox):
    assert grade_code(ASSERTS, f"{WRONG}{splice}", RULES["strict"], sandbox).outcome in {
        "wrong_answer",
        "runtime_error",
    }


@pytest.mark.parametrize("message", MESSAGES)
def test_a_forged_message_is_an_error_of_the_program(message, sandbox):
    with sandbox.converse(
        "calls", [forging(message) + "os._exit(0)"], LIMITS, entry_point="f"
    ) as conversation:
        execution = call(conversation, [1])
    assert execution.status in {"runtime_error", "ok"}, execution
    assert execution.result in (None, 0), execution
    assert (
        sandbox.run_program(forging(message) + "os._exit(1)", "", LIMITS).status == "runtime_error"
    )
    assert sandbox.run_program("print(1)", "", LIMITS).stdout == "1\n"


FAILURES = {"wrong_answer", "runtime_error", "output_limit", "memory_limit", "time_limit"}


@pytest.mark.parametrize("act", WITHIN.values(), ids=WITHIN)
def test_no_change_of_arguments_passes_a_check_of_them(act, sandbox):
    began = time.monotonic()
    graded = grade_code(CHANGES, within(act), RULES["strict"], sandbox)
    assert graded.outcome in FAILURES, graded
    assert time.monotonic() - began < 60
    right = within("given.sort(key=lambda v: v == 0)")
    assert grade_code(CHANGES, right, RULES["strict"], sandbox).outcome == "accepted"


@pytest.mark.parametrize("message", ANSWERS, ids=lambda message: json.dumps(message)[:60])
def test_no_forged_reply_passes_a_check_of_arguments(message, sandbox):
    graded = grade_code(CHANGES, sending(message), RULES["strict"], sandbox)
    assert graded.outcome in FAILURES, graded


def test_no_program_makes_its_problem_ungradable(sandbox):
    """Ungradable problems leave the score, so no output of a program may cause one."""
    for message in (
        ["unable", "x"],
        ["broken", "x", "y"],
        ["infrastructure_error"],
        ["call", [], [], []],
    ):
        assert (
            grade_code(CHANGES, sending(message), RULES["strict"], sandbox).outcome
            == "runtime_error"
        )


def test_every_exit_status_is_a_failure_of_the_program(sandbox):
    statuses = {
        sandbox.run_program(f"import os; os._exit({status})", "", LIMITS).status
        for status in (1, 2, 77, 120, 250, 255)
    }
    assert statuses == {"runtime_error"}


def test_a_pretended_lack_of_memory_is_a_runtime_error(sandbox):
    for code in (
        "import os; os.kill(os.getpid(), 9)",
        "import sys; print('MemoryError', file=sys.stderr); 1/0",
    ):
        assert sandbox.run_program(code, "", LIMITS).status == "runtime_error"


# Crashes of the sandbox


def test_a_zygote_crash_under_a_program_changes_no_verdict():
    others = descendants()
    with Sandbox() as sandbox:
        sandbox.run_program("", "", LIMITS)
        zygote = min(descendants() - others)
        killer = threading.Timer(0.2, os.kill, (zygote, signal.SIGKILL))
        killer.start()
        execution = sandbox.run_program(
            "import time; time.sleep(0.6); print(input())", "once more", LIMITS
        )
        killer.join()
    assert (execution.status, execution.stdout) == ("ok", "once more\n")


def test_a_zygote_that_always_crashes_yields_no_verdict():
    others, stop = descendants(), threading.Event()

    def kill_all():
        while not stop.wait(0.02):
            for pid in descendants() - others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with Sandbox() as sandbox:
            execution = sandbox.run_program("import time; time.sleep(2)", "", LIMITS)
    finally:
        stop.set()
        killer.join()
    assert execution.status == "infrastructure_error", execution


@contextlib.contextmanager
def programs_killed(times):
    """SIGKILL the first `times` programs named `sleeper`, as an out-of-memory kill would."""
    stop, left = threading.Event(), [times]

    def sleeps(pid):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/comm").read_text() == "sleeper\n"
        return False

    def kill():
        seen = set()
        while not stop.wait(0.02):
            for pid in descendants() - seen:
                if left[0] and sleeps(pid):
                    seen.add(pid)
                    left[0] -= 1
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield left
    finally:
        stop.set()
        killer.join()


SLEEPER = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'sleeper', 0, 0, 0)\ntime.sleep(0.6)\n"


def test_a_program_killed_by_the_machine_is_retried():
    with Sandbox(floor="L1-") as sandbox:
        with programs_killed(times=1) as left:
            execution = sandbox.run_program(f"{SLEEPER}print(input())", "once more", LIMITS)
        assert (execution.status, execution.stdout, left) == ("ok", "once more\n", [0])
        with programs_killed(times=99):
            execution = sandbox.run_program(f"{SLEEPER}print(input())", "never", LIMITS)
        assert execution.status == "infrastructure_error"
        assert "short of memory" in execution.detail
        talk = sandbox.converse("calls", [f"{SLEEPER}f = len"], LIMITS, entry_point="f")
        with (
            programs_killed(times=99),
            talk,
            pytest.raises(InfrastructureError, match="short of memory"),
        ):
            call(talk, [[]])


def test_a_program_cannot_pretend_that_the_machine_killed_it(sandbox):
    tries = (
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import signal, threading; signal.pthread_kill(threading.get_ident(), signal.SIGKILL)",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (0, 0))\nwhile True: pass",
        (
            "import os, signal\nfor pid in (0, -1, os.getpid()):\n    try: os.kill(pid, 9)\n"
            "    except OSError: pass\nos.abort()"
        ),
        "import ctypes; ctypes.CDLL(None).raise_(9)",
    )
    for code in tries:
        execution = sandbox.run_program(code, "", LIMITS)
        assert execution.status == "runtime_error", (code, execution)


GRADE_FOR_EVER = """
import sys, threading
from ssd_ray.evaluation.sandbox import Limits, Sandbox, levels
level = next(level for level in levels.candidates() if level.name == sys.argv[1])
threading.Timer(1, print, ("running",), dict(flush=True)).start()
with Sandbox(level=level) as sandbox:
    limits = Limits(time_s=60, memory_mib=256, output_kib=1)
    sandbox.run_program("import time; time.sleep(60)", "", limits)
"""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "user",
    [None, pytest.param(NOBODY, marks=pytest.mark.skipif(os.geteuid() != 0, reason="not root"))],
)
def test_nothing_outlives_a_killed_grader(level, user, tmp_path):
    tmp_path.chmod(0o777)
    python = sys.executable if user is None else ordinary_python()
    grader = subprocess.Popen(
        [python, "-B", "-c", GRADE_FOR_EVER, level],
        cwd=ROOT,
        user=user,
        stdout=subprocess.PIPE,
        env={"TMPDIR": str(tmp_path), "PATH": os.defpath},
    )
    try:
        assert grader.stdout.readline() == b"running\n"
        before = descendants(grader.pid)
        assert len(before) >= 2
    finally:
        grader.kill()
        grader.wait()
        grader.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(is_alive, before)):
        assert time.monotonic() < deadline, before
        time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []


def test_this_machine_has_the_attacks_written_for_it():
    assert platform.machine() in {"x86_64", "aarch64"}
    assert len(PROGRAMS) >= 60
