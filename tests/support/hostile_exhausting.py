"""Hostile programs that exhaust time, memory, output and threads (see hostile.py)."""

# ruff: noqa: E501
from __future__ import annotations

from tests.support.hostile import ENDS_SOMEHOW, Hostile

SHORT_S = 0.25
_OUT_OF_MEMORY = frozenset({"memory_limit", "runtime_error"})
_NEVER_ENDING = frozenset({"time_limit"})
_TOO_LOUD = frozenset({"output_limit"})
_BADLY = frozenset({"runtime_error"})

_MEMORY = {
    "a list": "x = [0] * 10**9",
    "bytes": "x = bytearray(10**10)",
    "many small things": "x = []\nwhile True: x.append(bytes(10**6))",
    "an integer": "x = 1 << 10**10",
    "a text": "x = 'x'\nwhile True: x += x",
    "a dictionary": "x = {}\nwhile True: x[len(x)] = str(len(x)) * 1000",
    "shared mappings": "import mmap\nx = []\nwhile True:\n    x.append(mmap.mmap(-1, 1 << 24))\n    x[-1].write(b'x' * (1 << 24))",
    "an array of numpy": "import numpy\nx = []\nwhile True: x.append(numpy.ones(1 << 20))",
    "its stack": "import sys\nsys.setrecursionlimit(10**9)\nclass C:\n    def __getattr__(s, n): return getattr(s, n + 'x')\nC().x",
    "nested lists": "x = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
    "an exception's text": "raise ValueError('x' * (1 << 30))",
    "a bomb of zeros": "import zlib\nx = zlib.compress(bytes(10**7))\ny = [zlib.decompress(x) for _ in range(99)]",
    "a mapping unseen by Python": "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.malloc.restype = ctypes.c_void_p\n"
    "while (at := libc.malloc(1 << 24)): ctypes.memset(at, 1, 1 << 24)\nraise MemoryError",
}
_TIME = {
    "sleep": "import time; time.sleep(60)",
    "a loop": "while True: pass",
    "every signal ignored": "import signal, time\nfor n in {*range(1, 65)} - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\ntime.sleep(60)",
    "every exception caught": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "CPU signal caught": "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass",
    "alarm cancelled": "import signal, time\nsignal.alarm(0)\nsignal.setitimer(signal.ITIMER_REAL, 0)\ntime.sleep(60)",
    "a storm of alarms": "import signal\nsignal.signal(signal.SIGALRM, lambda *_: 0)\nsignal.setitimer(0, 1e-6, 1e-6)\nwhile True: pass",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "no streams": "import os, time\nos.closerange(0, 64)\ntime.sleep(60)",
    "a regular expression": "import re; re.match('(a*)*b', 'a' * 40)",
    "a power": "pow(3, 10**8) % 7",
    "an exit handler": "import atexit\n@atexit.register\ndef _():\n    while True: pass",
    "a thread that stays": "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
    "an endless deletion": "class C:\n    def __del__(self):\n        while True: pass\nC()",
    "an error without an end": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    "busy threads": "import threading\ndef f():\n    while True: pass\nfor _ in range(50): threading.Thread(target=f).start()",
    "a dead lock": "import threading\nlock = threading.Lock(); lock.acquire(); lock.acquire()",
    "reading from itself": "import os\nr, w = os.pipe()\nos.read(r, 1)",
    "wait for a signal": "import signal; signal.pause()",
    "many busy threads unlocked": "import hashlib, threading\ndef f():\n    while True: hashlib.sha256(bytes(10**6))\n"
    "for _ in range(8): threading.Thread(target=f).start()",
}
_OUTPUT = {
    "standard output": "import sys\nwhile True: sys.stdout.write('x' * 9999)",
    "standard error": "import sys\nwhile True: sys.stderr.write('x' * 9999)",
    "one line": "import sys\nfor _ in range(10**9): sys.stdout.write('x' * (1 << 16))",
    "zeros": "import os\nwhile True: os.write(1, bytes(1 << 16))",
    "other descriptors": "import os\nfd = os.dup(1)\nos.close(1)\nwhile True: os.write(fd, b'\\xff' * 4096)",
    "another opening": "import os\nfd = os.open('/proc/self/fd/1', os.O_WRONLY)\nwhile True: os.write(fd, b'x' * 4096)",
    "warnings": "import warnings\nfor n in range(10**9): warnings.warn(str(n))",
}
_CRASHES = {
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "killed by itself": "import os; os.kill(os.getpid(), 9)",
    "a stack without end": "import ctypes\nf = ctypes.CFUNCTYPE(None)(lambda: f())\nimport sys\nsys.setrecursionlimit(10**9)\nf()",
    "status 250": "import os; os._exit(250)",
    "status 255": "import os; os._exit(255)",
    "lone surrogates": "print('\\ud800')",
    "a compiler's limit": "try: eval('(' * 10**5 + ')' * 10**5)\nexcept BaseException as error: raise SystemExit(type(error).__name__)",
    "zeros in the source": "x = 1\0",
    "a source that is no UTF-8": "# coding: no-such-encoding\nx = '\udcff'",
    "no main module": "import sys\nsys.modules.clear()\n1/0",
    "no builtins": "import builtins\nvars(builtins).clear()\n1/0",
}

_RAW_THREADS = """
import mmap
loop = mmap.mmap(-1, 4096, prot=7)
loop.write(bytes.fromhex("b8220000000f05ebf7"))  # pause() for ever
libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
at = ctypes.addressof(ctypes.c_char.from_buffer(loop))
stacks = mmap.mmap(-1, 256 * 20001)
top, count = ctypes.addressof(ctypes.c_char.from_buffer(stacks)), 0
while count < 20000 and libc.clone(at, top + 256 * (count + 1), 0x50F00, None) > 0:
    count += 1
attempt("thousands of threads", lambda: count >= 15000)
os._exit(3)
"""
_COUNTED = {
    "threads": """
import threading
threading.stack_size(32768)
done, count = threading.Event(), 0
try:
    while count < 20000:
        threading.Thread(target=done.wait, daemon=True).start()
        count += 1
finally:
    attempt("thousands of threads", lambda: count >= 2000)
    os._exit(3)
""",
    "descriptors": """
fds = []
try:
    while len(fds) < 5000: fds.append(os.dup(0))
finally:
    attempt("many descriptors", lambda: len(fds) > 64)
""",
    "pipes": """
held = 0
try:
    while True:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            while True: held += os.write(writer, bytes(4096))
        except BlockingIOError: pass
finally:
    attempt("kernel memory", lambda: held > 8 << 20)
""",
    "mappings": """
import mmap
held = []
try:
    while len(held) < 10**6: held.append(mmap.mmap(-1, 4096, prot=1 + len(held) % 2 * 2))
finally:
    attempt("a million mappings", lambda: len(held) > 70000)
""",
    "timers and polls": """
import select
count = 0
try:
    while count < 5000:
        select.epoll(); held = globals().setdefault("all", []); held.append(select.epoll()); count += 1
finally:
    attempt("many polls", lambda: count > 64)
""",
}


def _each(
    category: str, programs: dict[str, str], ends: frozenset[str], time_s: float
) -> tuple[Hostile, ...]:
    return tuple(
        Hostile(name=name, category=category, code=code, ends=ends, time_s=time_s, prelude=False)
        for name, code in programs.items()
    )


EXHAUSTING = (
    *_each("memory", _MEMORY, _OUT_OF_MEMORY, 5.0),
    *_each("time", _TIME, _NEVER_ENDING, SHORT_S),
    *_each("output", _OUTPUT, _TOO_LOUD, 5.0),
    *_each("crashes", _CRASHES, _BADLY, 5.0),
    *(
        Hostile(
            name=name,
            category="counted",
            code=code,
            ends=ENDS_SOMEHOW | _NEVER_ENDING | _OUT_OF_MEMORY,
            time_s=2.0,
        )
        for name, code in _COUNTED.items()
    ),
    Hostile(
        name="threads by hand", category="counted", code=_RAW_THREADS, ends=_BADLY, machine="x86_64"
    ),
)
