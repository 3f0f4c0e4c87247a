"""What programs try, and what comes of it: every attack on the sandbox here has failed."""

import json
import os
import secrets
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ssd_ray.evaluation import execution
from ssd_ray.evaluation.execution import FunctionCaller, Isolation, Limits, isolation, network_isolated, run_program

LIMITS = Limits(time_s=20, memory_mib=256, output_kib=64)
SHORT = Limits(time_s=0.5, memory_mib=256, output_kib=64)
LARGE = Limits(time_s=30, memory_mib=1024, output_kib=64)
NAME_PROCESS = "import ctypes; ctypes.CDLL(None).prctl(15, {name!r}.encode(), 0, 0, 0)\n"


@pytest.fixture(params=["best", "bare"])
def level(request, monkeypatch):
    """Each promise is kept with namespaces, where there are any, and without."""
    if request.param == "bare":
        monkeypatch.setattr(execution, "isolation", lambda: Isolation(network=False, processes=False, files=False))
    return request.param


@pytest.fixture
def process_name():
    return "t" + secrets.token_hex(6)


def run(code, stdin="", limits=LIMITS):
    return run_program(textwrap.dedent(code), stdin, limits)


def call(code, *args, entry_point="f", limits=LIMITS):
    with FunctionCaller([textwrap.dedent(code)], entry_point, limits) as caller:
        return caller.call(args)


def processes_named(name):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "comm").read_text().strip() == name and "\nState:\tZ" not in (entry / "status").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


# What a program finds around it


def test_a_program_inherits_no_environment_and_no_descriptors(level, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    code = "import os, json; print(json.dumps([sorted(os.environ), sorted(map(int, os.listdir('/proc/self/fd')))]))"
    try:
        environment, descriptors = json.loads(run(code).stdout)
    finally:
        os.close(reader)
        os.close(writer)
    assert environment == ["LANG", "PYTHONHASHSEED", "TMPDIR"]
    assert descriptors == [0, 1, 2, 3]


SEARCH = """
import os, re, sys
needle, texts = {first!r} + {second!r} + "[0-9a-f]" * 16, []
frame = sys._getframe()
while frame:
    texts.append(repr(frame.f_globals))
    frame = frame.f_back
def look(path, start=0, size=1 << 20):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(fd, start, 0) if start else None
        texts.append(os.read(fd, size).decode("latin1"))
        os.close(fd)
    except (OSError, OverflowError):
        pass
for pid in {pids}:
    look(f"/proc/{{pid}}/cmdline")
    look(f"/proc/{{pid}}/environ")
    try:
        for fd in os.listdir(f"/proc/{{pid}}/fd"):
            look(f"/proc/{{pid}}/fd/{{fd}}")
        for line in open(f"/proc/{{pid}}/maps"):
            start, end = (int(end, 16) for end in line.split()[0].split("-"))
            look(f"/proc/{{pid}}/mem", start, min(end - start, 1 << 25))
    except OSError:
        pass
print(len(texts), [re.findall(needle, text) for text in texts if re.search(needle, text)])
"""


@pytest.mark.skipif(not isolation().processes, reason="without process namespaces a user's processes may read one another")
def test_a_secret_of_the_grader_is_nowhere_that_a_program_can_look():
    prefix, secret = "needle-" + secrets.token_hex(4), secrets.token_hex(8)
    expected = f"{prefix}={secret}"
    search = {"first": prefix[:9], "second": prefix[9:] + "="}
    found = run_program(SEARCH.format(**search, pids="set(os.listdir('/proc')) - {str(os.getpid())}"), "", LARGE)
    assert found.status == "ok", found
    assert secret not in found.stdout
    unconfined = subprocess.run(
        [sys.executable, "-c", SEARCH.format(**search, pids="[os.getppid()]")], capture_output=True, text=True, check=True
    )
    assert expected in unconfined.stdout, "the search itself must be able to find it"


@pytest.mark.skipif(not isolation().processes, reason="no process namespace here")
def test_a_program_sees_and_signals_no_process_but_its_own():
    code = f"""
        import os, signal
        try:
            os.kill({os.getpid()}, 0)
            print("there")
        except OSError:
            print("no such process")
        os.kill(-1, signal.SIGKILL)
        os.kill(1, signal.SIGKILL)
        os.kill(os.getppid(), signal.SIGINT)
    """
    execution_ = run(code + "        print('alive')")
    assert "there" not in execution_.stdout
    assert execution_.status in {"ok", "runtime_error"}


@pytest.mark.skipif(not isolation().files, reason="no mount namespace here")
def test_a_program_changes_no_file_outside_of_its_scratch_space(tmp_path):
    tmp_path.chmod(0o777)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "mine").chmod(0o666)
    code = f"""
        import os
        for attempt in (
            lambda: open("{tmp_path}/mine", "w"), lambda: os.remove("{tmp_path}/mine"), lambda: os.mkdir("{tmp_path}/new"),
            lambda: os.chmod("{tmp_path}/mine", 0), lambda: open("/tmp/x", "w"), lambda: os.mkdir("/var/tmp/x"),
        ):
            try:
                attempt()
                print("done")
            except OSError as error:
                print(error.errno)
        try:
            with open("fill", "wb") as file:
                for _ in range(4096):
                    file.write(bytes(1 << 16))
        except OSError as error:
            print("full")
    """
    execution_ = run(code)
    assert "done" not in execution_.stdout
    assert execution_.stdout.split()[-1] == "full", execution_
    assert (tmp_path / "mine").read_text() == "mine"


def may_change_users():
    """Root with the rights to change owner, group and user, and to leave the right to read everything behind."""
    permitted = int(Path("/proc/self/status").read_text().split("CapPrm:")[1].split()[0], 16)
    return os.geteuid() == 0 and all(permitted >> capability & 1 for capability in (0, 2, 6, 7))


def test_a_program_graded_by_root_is_not_root_and_none_has_rights_beyond_reading(level):
    code = "import os; print(os.getuid(), open('/proc/self/status').read().split('CapPrm:')[1].split()[0])"
    uid, permitted = run(code).stdout.split()
    assert int(uid) >= 60_000 or not may_change_users()
    assert int(permitted, 16) in {0, 1 << 2}


def test_the_network_is_unreachable_where_that_is_claimed():
    if not network_isolated():
        pytest.skip("no network namespace here")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"""
            import socket
            for address in (("127.0.0.1", {port}), ("169.254.169.254", 80), ("8.8.8.8", 53)):
                try:
                    socket.create_connection(address, timeout=1)
                    print("connected")
                except OSError as error:
                    print("refused", error)
            print([name for _, name in socket.if_nameindex()])
        """
        execution_ = run(code)
        server.settimeout(0.01)
        with pytest.raises(TimeoutError):
            server.accept()
    assert execution_.stdout.count("refused") == 3, execution_


# Time, memory, output


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "import signal, time\nfor n in {*range(1, 32)} - {9, 19}: signal.signal(n, signal.SIG_IGN)\ntime.sleep(60)",
        "import os, time; os.close(0); os.close(1); os.close(2); time.sleep(60)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "10 ** 10 ** 10",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_time_is_up_when_it_is_up(code, level):
    began = time.monotonic()
    execution_ = run(code, limits=SHORT)
    assert execution_.status in {"time_limit", "memory_limit"}, execution_
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("code", ["x = [0] * 10**9", "x = bytearray(10**9)", "x = []\nwhile True: x.append(bytes(10**6))"])
def test_a_program_that_takes_too_much_memory_is_stopped(code, level):
    assert run(code).status == "memory_limit"


def test_memory_is_not_blamed_for_what_it_did_not_do():
    assert run("import os; os.kill(os.getpid(), 9)").status == "runtime_error"
    assert run("import sys; print('MemoryError', file=sys.stderr); 1/0").status == "runtime_error"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_of_output_is_cut(stream, level):
    began = time.monotonic()
    execution_ = run(f"import sys\nwhile True: sys.{stream}.write('x' * 9999)")
    assert execution_.status == "output_limit"
    assert len(execution_.stdout) <= 64 << 10
    assert time.monotonic() - began < 10


def test_output_up_to_the_limit_arrives_whole_and_one_byte_more_is_too_much():
    size = 64 << 10
    assert run(f"print('x' * {size}, end='')").stdout == "x" * size
    assert run(f"print('x' * {size}, end='')").status == "ok"
    assert run(f"print('x' * {size + 1}, end='')").status == "output_limit"


def test_any_bytes_may_be_printed():
    execution_ = run(r"import sys; sys.stdout.buffer.write(b'\0\xff\xfe a\n')")
    assert (execution_.status, execution_.stdout) == ("ok", "\0\\xff\\xfe a\n")


def test_no_detail_can_move_the_readers_cursor():
    detail = run(r"raise ValueError('\x1b[2J\r\u202e' + 'x' * 1000)").detail
    assert detail.startswith("ValueError: ")
    assert detail.isprintable()
    assert len(detail) <= 300


def test_endless_recursion_ends_badly():
    assert run("def f(): f()\nf()").detail.startswith("RecursionError")
    code = "import sys; sys.setrecursionlimit(10**9)\nclass C:\n    def __getattr__(s, n): return getattr(s, n + 'x')\nC().x"
    assert run(code).status in {"runtime_error", "memory_limit", "time_limit"}


# What is left behind


def test_a_fork_bomb_is_over_when_the_test_is(process_name):
    code = NAME_PROCESS.format(name=process_name) + "import os, time\nfor _ in range(8):\n    os.fork()\ntime.sleep(60)"
    execution_ = run(code, limits=SHORT)
    assert execution_.status in {"time_limit", "runtime_error"}
    assert processes_named(process_name) == []


def test_a_daemon_does_not_outlive_its_test(level, process_name):
    code = f"""
        import os, time
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.chdir("/")
            {NAME_PROCESS.format(name=process_name).strip()}
            os.write(writer, b"up")
            time.sleep(60)
        print(os.read(reader, 2).decode())
    """
    began = time.monotonic()
    execution_ = run(code)
    assert (execution_.status, execution_.stdout) == ("ok", "up\n"), execution_
    assert time.monotonic() - began < 15
    assert processes_named(process_name) == []


def test_no_process_outlives_a_killed_grader(process_name, tmp_path):
    program = NAME_PROCESS.format(name=process_name) + "import time; time.sleep(60)"
    script = f"""
from ssd_ray.evaluation.execution import Limits, run_program
run_program({program!r}, "", Limits(time_s=60, memory_mib=256, output_kib=1))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    grader = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1], env=environment)
    try:
        until(lambda: processes_named(process_name))
    finally:
        grader.kill()
        grader.wait()
    until(lambda: not processes_named(process_name))


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What it says about itself


WRITE_EVERYWHERE = """
import os
for fd in range(3, 64):
    try:
        os.write(fd, {message!r})
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    "message",
    [
        b"\n",
        b"ready\n",
        b"failed on purpose\n",
        b"denied on purpose\n",
        b"exit 0 0 0\n",
        b"[" * 50_000 + b"\n",
        b'{"dict": [["value", {"pickle": "x"}]]}\n',
        b'{"dict": [["passed", true]]}\n',
        b'{"dict": [["error", 5]]}\n',
        b"\xff\xfe\x00\n",
        b"9" * 50_000 + b"\n",
    ],
)
def test_a_forged_message_is_an_error_of_the_program(message):
    assert call(WRITE_EVERYWHERE.format(message=message) + "os._exit(0)").status == "runtime_error"
    assert run(WRITE_EVERYWHERE.format(message=message) + "os._exit(1)").status == "runtime_error"


def test_a_program_cannot_pass_its_failure_off_as_the_machines(level):
    attempts = ["os.kill(os.getppid(), 9)", "os.killpg(0, 9)", "os.kill(os.getppid(), signal.SIGSTOP)"]
    if level == "best" and isolation().processes:
        attempts.append("os.kill(-1, 9)")
    for attempt in attempts:
        code = f"import os, signal, time\n{attempt}\ntime.sleep(5)"
        assert run(code, limits=SHORT).status in {"runtime_error", "time_limit"}, attempt


def test_no_exit_status_stands_for_anything_but_the_programs_failure():
    assert {run(f"import os; os._exit({status})").status for status in (1, 2, 77, 120, 250, 255)} == {"runtime_error"}
