"""What the sandbox does for honest programs, and what it does about the others."""

import concurrent.futures
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ssd_ray.evaluation import execution
from ssd_ray.evaluation.execution import FunctionCaller, Isolation, Limits, Unsupported, isolation, network_isolated, run_program

LIMITS = Limits(time_s=20, memory_mib=256, output_kib=64)
SHORT = Limits(time_s=0.5, memory_mib=256, output_kib=64)
BARE = Isolation(network=False, processes=False, files=False)

NAME_PROCESS = "import ctypes; ctypes.CDLL(None).prctl(15, {name!r}.encode(), 0, 0, 0)\n"


@pytest.fixture(params=["best", "bare"])
def level(request, monkeypatch):
    """Each promise is kept with namespaces, where there are any, and without."""
    if request.param == "bare":
        monkeypatch.setattr(execution, "isolation", lambda: BARE)
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


def test_the_expected_answer_is_nowhere_that_a_program_can_look():
    prefix, secret = "needle-" + secrets.token_hex(4), secrets.token_hex(8)
    expected = f"{prefix}={secret}"
    code = f"""
        import gc, glob, os, sys
        needle = "{prefix[:9]}" + "{prefix[9:]}="
        frame, texts = sys._getframe(), []
        while frame:
            texts.append(repr(frame.f_locals) + repr(frame.f_globals))
            frame = frame.f_back
        texts += [thing for thing in gc.get_objects() if isinstance(thing, str)]
        for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/fd/*"):
            try:
                texts.append(open(path, errors="replace").read(1 << 20) if "/0" not in path else "")
            except OSError:
                pass
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                if int(pid) != os.getpid():
                    for line in open(f"/proc/{{pid}}/maps"):
                        start, end = (int(end, 16) for end in line.split()[0].split("-"))
                        with open(f"/proc/{{pid}}/mem", "rb") as memory:
                            memory.seek(start)
                            texts.append(memory.read(min(end - start, 1 << 24)).decode("latin1"))
            except (OSError, OverflowError):
                pass
        print(len(texts), [text[text.index(needle):][:60] for text in texts if needle in text])
    """
    if not isolation().processes:
        pytest.skip("without process namespaces a program may read the memory of its own user's processes")
    execution_ = run(code, limits=Limits(time_s=30, memory_mib=1024, output_kib=64))
    assert execution_.status == "ok", execution_
    assert int(execution_.stdout.split()[0]) > 10
    assert secret not in execution_.stdout
    assert expected.startswith(prefix)


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user to become")
def test_a_program_graded_by_root_is_not_root(level):
    uid, permitted = run(
        "import os; print(os.getuid(), open('/proc/self/status').read().split('CapPrm:')[1].split()[0])"
    ).stdout.split()
    assert int(uid) >= 60_000
    assert int(permitted, 16) in {0, 4}


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
        "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\ntime.sleep(60)",
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
    detail = run(r"raise ValueError('\x1b[2J\r\u202e' + 'x' * 10000)").detail
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


def test_nothing_outlives_a_killed_grader(process_name):
    program = NAME_PROCESS.format(name=process_name) + "import time; time.sleep(60)"
    script = f"""
from ssd_ray.evaluation.execution import Limits, run_program
run_program({program!r}, "", Limits(time_s=60, memory_mib=256, output_kib=1))
"""
    grader = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
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
    for code in ("import os; os.kill(os.getppid(), 9)", "import os; os.killpg(0, 9)", "import os, signal; os.kill(-1, 15)"):
        assert run(code + "\nimport time; time.sleep(5)", limits=SHORT).status in {"runtime_error", "time_limit"}
    assert {run(f"import os; os._exit({status})").status for status in (1, 2, 77, 120, 255)} == {"runtime_error"}
