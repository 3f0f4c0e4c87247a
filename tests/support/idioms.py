"""Honest programs: each reads `IDIOM_INPUT` and prints the sum of its numbers."""

# ruff: noqa: E501
from __future__ import annotations

IDIOM_INPUT = "3\n10\n20\n500\n"
IDIOM_OUTPUT = "530\n"

TOTAL = "sum(int(input()) for _ in range(int(input())))"
SUM = f"print({TOTAL})"
ADDED = "print(sum(int(word) for word in text.split()[1:]))"

READING = {
    "input": SUM,
    "sys.stdin.readline": f"import sys\ninput = sys.stdin.readline\n{SUM}",
    "sys.stdin.read": f"import sys\ntext = sys.stdin.read()\n{ADDED}",
    "sys.stdin.readlines": "import sys\nprint(sum(map(int, sys.stdin.readlines()[1:])))",
    "for line in sys.stdin": "import sys\nprint(sum(int(line) for line in sys.stdin) - 3)",
    "map over sys.stdin": "import sys\nprint(sum(map(int, sys.stdin)) - 3)",
    "from sys import stdin": f"from sys import stdin\ntext = ''.join(line for line in stdin)\n{ADDED}",
    "its lines without their ends": f"from sys import stdin\ninput = lambda: stdin.readline()[:-1]\n{SUM}",
    "stdin.buffer.read": f"import sys\ntext = sys.stdin.buffer.read()\n{ADDED}",
    "stdin.buffer.readline": f"import sys\ninput = sys.stdin.buffer.readline\n{SUM}",
    "stdin.buffer.readlines": "import sys\nprint(sum(map(int, sys.stdin.buffer.readlines()[1:])))",
    "input, then read": "import sys\ninput()\nprint(sum(map(int, sys.stdin.read().split())))",
    "input, then readlines": "import sys\ninput()\nprint(sum(map(int, sys.stdin.readlines())))",
    "open(0)": f"text = open(0).read()\n{ADDED}",
    "open(0), binary": f"text = open(0, 'rb').read()\n{ADDED}",
    "/dev/stdin": f"text = open('/dev/stdin').read()\n{ADDED}",
    "os.read": f"import os\ntext = os.read(0, 1000)\n{ADDED}",
    "os.read to the end": f"import io, os\ntext = io.BytesIO(os.read(0, os.fstat(0).st_size)).read()\n{ADDED}",
    "io.TextIOWrapper": f"import io, sys\ntext = io.TextIOWrapper(sys.stdin.buffer).read()\n{ADDED}",
    "fileinput": f"import fileinput\ntext = ' '.join(fileinput.input())\n{ADDED}",
    "mmap": f"import mmap\ntext = mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:]\n{ADDED}",
    "select": f"import select, sys\nif select.select([sys.stdin], [], [], 0)[0]:\n    {SUM}",
    "EOFError at the end": "total = 0\ntry:\n    input()\n    while True:\n        total += int(input())\nexcept EOFError:\n    print(total)",
    "iter(input, '')": "import sys\nprint(sum(map(int, iter(sys.stdin.readline, ''))) - 3)",
}
WRITING = {
    "stdout.write": f"import sys\nsys.stdout.write(str({TOTAL}) + '\\n')",
    "from sys import stdout": f"from sys import stdout\nstdout.write(f'{{{TOTAL}}}\\n')",
    "stdout.buffer": f"import sys\nsys.stdout.buffer.write(b'%d\\n' % {TOTAL})",
    "os.write": f"import os\nos.write(1, b'%d\\n' % {TOTAL})",
    "/dev/stdout": f"print({TOTAL}, file=open('/dev/stdout', 'w'))",
    "open(1)": f"with open(1, 'w', closefd=False) as out:\n    print({TOTAL}, file=out)",
    "flush": f"print({TOTAL}, flush=True)\nimport os; os._exit(0)",
    "fast output": "import io, os, sys\nout = io.StringIO()\nprint(sum(map(int, sys.stdin)) - 3, file=out)\nos.write(1, out.getvalue().encode())",
    "redirect_stdout": f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    {SUM}\nprint(out.getvalue(), end='')",
    "noise on standard error": f"import sys\nprint('?' * 9999, file=sys.stderr)\n{SUM}",
    "logging": f"import logging\nlogging.warning('x')\n{SUM}",
    "/dev/null": f"import os, sys\nsys.stderr = open(os.devnull, 'w')\nprint('x', file=sys.stderr)\n{SUM}",
    "atexit": f"import atexit\ntotal = {TOTAL}\natexit.register(lambda: print(total))",
    "reconfigure": f"import sys\nsys.stdout.reconfigure(line_buffering=True)\n{SUM}",
}
ENDING = {
    "exit()": f"{SUM}\nexit()\nprint(1)",
    "quit()": f"{SUM}\nquit()",
    "exit(0) in a function": f"def main():\n    {SUM}\n    exit(0)\nmain()",
    "sys.exit(0)": f"import sys\n{SUM}\nsys.exit(0)",
    "sys.exit()": f"import sys\n{SUM}\nsys.exit()",
    "raise SystemExit": f"{SUM}\nraise SystemExit",
    "os._exit(0)": f"import os, sys\n{SUM}\nsys.stdout.flush()\nos._exit(0)",
    "sys.exit in a thread": f"import sys, threading\nthreading.Thread(target=sys.exit, args=(3,)).start()\n{SUM}",
}
RUNNING = {
    "__main__": f"def main():\n    {SUM}\nif __name__ == '__main__':\n    main()",
    "__main__ not last": f"def main():\n    {SUM}\nif '__main__' == __name__:\n    main()\nx = 1",
    "global": f"total = 0\ndef add():\n    global total\n    total += {TOTAL}\nadd()\nprint(total)",
    "a builtin rebound": f"numbers = [{TOTAL}]\nsum = sum(numbers)\nprint(sum)",
    "class Solution": f"class Solution:\n    def run(self):\n        {SUM}\nSolution().run()",
    "from __future__": f"'''Docstring.'''\nfrom __future__ import annotations\ndef f(x: Later): ...\n{SUM}",
    "a thread with a big stack": f"import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\ndef main():\n"
    f"    {SUM}\nthread = threading.Thread(target=main)\nthread.start()\nthread.join()",
    "a thread that is joined at the end": f"import threading, time\ndef main():\n    time.sleep(0.05)\n    {SUM}\n"
    "threading.Thread(target=main).start()",
    "deep recursion": f"import sys\nsys.setrecursionlimit(10**6)\ndef down(n):\n    return 0 if n == 0 else 1 + down(n - 1)\n"
    f"assert down(40000) == 40000\n{SUM}",
    "recursion deeper by a thread": f"import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 28)\n"
    "def down(n):\n    return 0 if n == 0 else 1 + down(n - 1)\n"
    f"def main():\n    down(200000)\n    {SUM}\nthreading.Thread(target=main).start()",
    "a sort with a key in C": f"from functools import cmp_to_key\nsorted(range(9999), key=cmp_to_key(lambda a, b: b - a))\n{SUM}",
    "resource": "import resource, sys\nsoft, hard = resource.getrlimit(resource.RLIMIT_STACK)\n"
    f"resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))\n{SUM}",
    "asyncio": f"import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    {SUM}\nasyncio.run(main())",
    "asyncio with threads": f"import asyncio\nasync def main():\n    print(await asyncio.to_thread(lambda: {TOTAL}))\nasyncio.run(main())",
    "a pool of threads": "from concurrent.futures import ThreadPoolExecutor\nimport sys\nwith ThreadPoolExecutor(4) as pool:\n"
    "    print(sum(pool.map(int, sys.stdin)) - 3)",
    "queues": f"import queue, threading\nq = queue.Queue()\nthreading.Thread(target=lambda: q.put({TOTAL})).start()\nprint(q.get(timeout=5))",
    "numpy": "import numpy as np, sys\nprint(int(np.array(sys.stdin.read().split()[1:], dtype=np.int64).sum()))",
    "numpy's linear algebra": f"import numpy as np\nassert np.allclose(np.linalg.inv(np.eye(200)) @ np.eye(200), np.eye(200))\n{SUM}",
    "numpy.fromfile's cousin": "import numpy, sys\nprint(int(numpy.loadtxt(sys.stdin, dtype=int)[1:].sum()))",
    "sortedcontainers": "from sortedcontainers import SortedList\nimport sys\nprint(sum(SortedList(map(int, sys.stdin))) - 3)",
    "random": f"import random\nrandom.seed(1)\nassert random.randint(1, 10**9) == 144272510\n{SUM}",
    "an unseeded random": f"import random\nrandom.shuffle(list(range(99)))\n{SUM}",
    "time": f"import time\nstart = time.perf_counter()\ntime.sleep(0.01)\nassert time.time() > 1.7e9 and time.process_time() < 9\n{SUM}",
    "an alarm": f"import signal\nsignal.signal(signal.SIGALRM, lambda *_: print('late'))\nsignal.alarm(9)\n{SUM}\nsignal.alarm(0)",
    "warnings in the source": f"x = '\\d'\nassert (1 is 1) or True\n{SUM}",
    "utf-8": f"naïve = '✓ñ'\nassert naïve.encode() and len(naïve) == 2\n{SUM}",
    "a byte order mark": f"\ufeff{SUM}",
    "CRLF": f"import sys\r\nif True:\r\n    {SUM}\r\n",
    "integers of 4,000 digits": f"assert len(str(int('7' * 4000))) == 4000\n{SUM}",
    "integers of 6,000 digits": f"import sys\nsys.set_int_max_str_digits(0)\nassert len(str(int('7' * 6000))) == 6000\n{SUM}",
    "lru_cache": f"from functools import cache\n@cache\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\nfib(400)\n{SUM}",
    "dataclasses and typing": "from dataclasses import dataclass\nfrom typing import NamedTuple\n@dataclass(order=True)\nclass A:\n    x: int\n"
    f"class B(NamedTuple):\n    y: int\nassert A(1) < A(2) and B(1).y\n{SUM}",
    "pickle of a class": f"import copy, pickle\nclass C: pass\nassert pickle.loads(pickle.dumps(C())) and copy.deepcopy(C())\n{SUM}",
    "inspect and traceback": "import inspect, traceback\ntry: 1/0\nexcept ZeroDivisionError: traceback.print_exc()\n"
    f"inspect.signature(print)\n{SUM}",
    "the main module": f"import __main__, sys\nx = 5\nassert __main__.x == 5 and sys.argv == ['program.py'] and len(__file__)\n{SUM}",
    "exec and eval": f"exec('y = 3')\nassert eval('y') == 3\n{SUM}",
    "ctypes": f"import ctypes\nassert ctypes.sizeof(ctypes.c_int) == 4 and ctypes.CDLL(None).abs(-3) == 3\n{SUM}",
    "sqlite3 in memory": f"import sqlite3\nassert sqlite3.connect(':memory:').execute('select 1').fetchone()\n{SUM}",
    "zoneinfo and locale": f"import locale, zoneinfo\nzoneinfo.ZoneInfo('UTC'), zoneinfo.ZoneInfo('Asia/Tokyo')\nlocale.getpreferredencoding()\n{SUM}",
    "gc and memory views": f"import gc, array, weakref\ngc.disable()\nmemoryview(array.array('q', [1]))\n{SUM}",
    "imports without use": "import socket, ssl, subprocess, multiprocessing, tempfile, shutil, glob, pathlib, urllib.request, http.server\n"
    + SUM,
    "a platform asked": f"import getpass, os, platform\nplatform.platform(); os.cpu_count(); os.getpid(); os.getcwd()\n{SUM}",
    "a file that is not there": f"import os\nif os.path.exists('input.txt'):\n    open('input.txt')\n{SUM}",
    "a file tried": f"import sys\ntry:\n    sys.stdin = open('input.txt')\nexcept OSError:\n    pass\n{SUM}",
}
IDIOMS = {**READING, **WRITING, **ENDING, **RUNNING}

MODULES = (
    "abc argparse array ast asyncio atexit base64 binascii bisect builtins bz2 calendar cmath cmd codecs collections colorsys "
    "configparser contextlib contextvars copy copyreg csv ctypes dataclasses datetime decimal difflib dis doctest email enum errno "
    "fileinput fnmatch fractions functools gc getopt gettext glob graphlib gzip hashlib heapq hmac html http importlib.metadata "
    "inspect io ipaddress itertools json keyword linecache locale logging lzma marshal math mimetypes mmap multiprocessing numbers "
    "operator optparse os pathlib pdb pickle pickletools pkgutil platform plistlib pprint profile pstats queue quopri random re "
    "readline reprlib resource runpy sched secrets select selectors shelve shlex shutil signal socket sqlite3 ssl stat statistics "
    "string stringprep struct subprocess symtable sys sysconfig tarfile tempfile textwrap threading time timeit token tokenize trace "
    "traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.parse urllib.request uuid warnings wave weakref "
    "xml.etree.ElementTree zipfile zipimport zlib zoneinfo"
)
"""Modules of the standard library, importable at any moment."""
