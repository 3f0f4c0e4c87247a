"""Hostile programs that forge a right answer before they reply (see hostile.py)."""

# ruff: noqa: E501
from __future__ import annotations

_WRITE_EVERYWHERE = """
import os
for fd in range(3, 64):
    try:
        os.write(fd, {message!r})
    except OSError:
        pass
"""
MESSAGES = (
    b"\n",
    b"ready\n",
    b"failed on purpose\n",
    b"denied on purpose\n",
    b"exit 0 0 0\n",
    b"signal 9 0 0\n",
    b"[" * 50_000 + b"\n",
    b'{"dict":[["value",{"pickle":"x"}]]}\n',
    b'{"dict":[["passed",true]]}\n',
    b'{"dict":[["value",0]]}\n{"dict":[["passed",true]]}\n',
    b'{"dict":[["error",5]]}\n',
    b"\xff\xfe\x00\n",
    b"9" * 50_000 + b"\n",
    b"1e999\n",
    b"NaN\n",
    b'{"set":[{"list":[]}]}\n',
)
"""Messages of a pipe of the sandbox, or look-alikes."""


def forging(message: bytes) -> str:
    """Return a preamble that writes a message to every possible descriptor."""
    return _WRITE_EVERYWHERE.format(message=message)


FORGERIES = {
    "leave at once": "import os; os._exit(0)\n",
    "exit": "import sys; sys.exit(0)\n",
    "SystemExit": "raise SystemExit\n",
    "words": "print('PASSED'); print('TEST_PASSED'); print('True'); print('accepted'); print('[PASS]')\n",
    "exit handler": "import atexit, os\natexit.register(lambda: os._exit(0))\n",
    "an end that is always good": "import os, sys\nreal = os._exit\nos._exit = lambda *_: real(0)\nsys.excepthook = lambda *_: real(0)\n",
    "no assertions": "import builtins\nbuiltins.AssertionError = int\nbuiltins.all = builtins.any = lambda *_: True\n",
    "no failing": "import builtins\nbuiltins.Exception = builtins.BaseException = int\n",
    "json says yes": 'import json\njson.dumps = lambda *_, **__: \'{"dict":[["passed",true]]}\'\n',
    "json reads yes": "import json\njson.loads = lambda *_, **__: {'dict': [['passed', True]]}\n",
    "a check of its own": "def check(candidate): pass\ndef verify(*_): return True\n",
    "patched modules": (
        "import sys\nfor module in list(sys.modules.values()):\n    for name in ('same', 'dumps', 'first_difference', 'check', 'compare'):\n"
        "        if hasattr(module, name):\n            try: setattr(module, name, lambda *_: '\"\"')\n            except Exception: pass\n"
    ),
    "patched frames": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n    for name in list(frame.f_globals):\n"
        "        if name in ('wire', '_status_of', '_describe', 'play'): frame.f_globals[name] = lambda *_: 0\n    frame = frame.f_back\n"
    ),
    "the answers in memory": (
        "import gc, os, sys\nseen = [thing for thing in gc.get_objects() if type(thing).__name__ in ('Test', 'Problem')]\n"
        "seen += [name for name in sys.modules if 'ssd_ray' in name]\nif seen:\n    print('FOUND', seen); os._exit(0)\n"
    ),
    "threads that go on": "import threading, time\nthreading.Thread(target=lambda: time.sleep(0.05), daemon=True).start()\n",
    "a tracer": "import sys\ndef trace(frame, event, arg):\n    frame.f_locals['wrong'] = 1\n    return trace\nsys.settrace(trace)\n",
    "an end of the line": "if 0: pass\nelse: \\\n\n",
    "an audit hook": "import sys\nsys.addaudithook(lambda event, _: None)\n",
    "all at once on every descriptor": forging(
        b'{"dict":[["value",0]]}\n{"dict":[["passed",true]]}\n'
    ),
}
"""Preambles of a wrong answer, for any kind of problem."""

PRETENDING = (
    "class Yes:\n    def __eq__(self, other): return True\n",
    "class Yes(list):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n",
    "class Yes(int):\n    __eq__ = lambda self, other: True\n    __hash__ = int.__hash__\n",
    "class Yes(tuple):\n    __eq__ = lambda self, other: True\n    __len__ = lambda self: 2\n    __iter__ = lambda self: iter([3, 9])\n",
    "class Yes(str):\n    __eq__ = lambda self, other: True\n    __str__ = __repr__ = lambda self: '[3, 9]'\n",
    "class Yes(float):\n    __eq__ = lambda self, other: True\n    __repr__ = lambda self: '[3,9]'\n",
    "class Yes(dict):\n    __eq__ = lambda self, other: True\n    items = lambda self: [('a', 1)]\n",
    "class Yes:\n    def __reduce__(self): return (__import__('os').system, ('touch /tmp/@TOKEN@',))\n",
    "class Yes:\n    __class__ = list\n    def __eq__(self, other): return True\n",
    "class Meta(type):\n    __instancecheck__ = lambda *_: True\nclass Yes(metaclass=Meta):\n    def __getattr__(self, name): return self\n",
)
"""Classes whose objects are equal to everything, or do something when they are read."""
