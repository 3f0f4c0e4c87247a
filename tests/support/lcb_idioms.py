"""Programs with the verdicts of LiveCodeBench's own grader (commit 28fef95, Python 3.11).

Stdin programs add numbers and functions double one, unless they have their own tests.
"""

from __future__ import annotations

SUMS = [("2\n10\n20", "30\n"), ("3\n1\n2\n500", "503")]
"""A number of lines, then as many numbers: print their sum."""
TWICE = [([1], 2), ([20], 40)]
"""Return twice the argument."""

ADDED = "print(sum(int(word) for word in text.split()[1:]))"
TOTAL = "sum(int(input()) for _ in range(int(input())))"
SUM = f"print({TOTAL})"

ACCEPTED = {
    "input": SUM,
    "sys.stdin.readline": f"import sys\n{SUM.replace('input', 'sys.stdin.readline')}",
    "sys.stdin.read": f"import sys\ntext = sys.stdin.read()\n{ADDED}",
    "sys.stdin.readlines": "import sys\nprint(sum(map(int, sys.stdin.readlines()[1:])))",
    "input is readline": f"import sys\ninput = sys.stdin.readline\n{SUM}",
    (
        "input is readline of an imported stdin"
    ): f"from sys import stdin\ninput = stdin.readline\n{SUM}",
    "sys.stdin.buffer.read": f"import sys\ntext = sys.stdin.buffer.read()\n{ADDED}",
    "fileinput": f"import fileinput\ntext = '\\n'.join(fileinput.input())\n{ADDED}",
    "read twice": f"import sys\nsys.stdin.read()\ntext = sys.stdin.read()\n{ADDED}",
    "iter of readline": f"import sys\ntext = ''.join(iter(sys.stdin.readline, ''))\n{ADDED}",
    "the builtins module's open": f"import builtins\ntext = builtins.open(0).read()\n{ADDED}",
    "the main guard": f"def main():\n    {SUM}\nif __name__ == '__main__':\n    main()",
    (
        "the main guard in double quotes"
    ): f'import sys\nif (__name__ == "__main__"):\n    text = sys.stdin.read()\n    {ADDED}',
    "names of the header": (
        "data = sys.stdin.read().split()\n"
        "print(reduce(operator.add, map(int, islice(data, 1, None))))"
    ),
    "sys.stdout.write": f"import sys\nsys.stdout.write(str({TOTAL}))",
    "exit": f"{SUM}\nexit()\nprint(1)",
    "exit before the end": f"import sys\ntext = sys.stdin.read()\n{ADDED}\nexit(0)",
    "sys.exit(1)": f"import sys\n{SUM}\nsys.exit(1)",
    "a thread with a big stack": (
        "import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\n"
        f"def main():\n    {SUM}\n"
        "thread = threading.Thread(target=main)\nthread.start()\nthread.join()"
    ),
    "recursion 40,000 deep": (
        f"def down(n):\n    return 0 if n == 0 else down(n - 1)\ndown(40000)\n{SUM}"
    ),
    "asyncio": f"import asyncio\nasync def main():\n    {SUM}\nasyncio.run(main())",
    "integers of 6,000 digits": f"assert len(str(int('7' * 6000) + 1)) == 6000\n{SUM}",
    "trailing blanks": f"print(' ', {TOTAL}, '  ')\nprint()",
    "a number spelt differently": f"print('%.3f' % {TOTAL})",
    "class Solution in a comment": f"# class Solution\n{SUM}",
    "a class of another name": f"class Solver:\n    def run(self):\n        {SUM}\nSolver().run()",
    "return at the top level": f"{SUM}\nreturn",
    "noise on standard error": f"import sys\nprint('?', file=sys.stderr)\n{SUM}",
    (
        "an import in a function sees the mock"
    ): f"def f():\n    from sys import stdin\n    return stdin.read()\ntext = f()\n{ADDED}",
    "alarm(0), then slow": f"import signal, time\nsignal.alarm(0)\ntime.sleep(1.3)\n{SUM}",
    (
        "a function defined after its use in another"
    ): f"def main():\n    total()\ndef total():\n    {SUM}\nmain()",
    "nonlocal state": (
        f"total = 0\ndef add():\n    nonlocal total\n    total += {TOTAL}\nadd()\nprint(total)"
    ),
}
REJECTED = {
    "iterating sys.stdin": (
        "import sys\nnumbers = [int(line) for line in sys.stdin]\nprint(sum(numbers[1:]))"
    ),
    "map over sys.stdin": "import sys\nprint(sum(list(map(int, sys.stdin))[1:]))",
    "iterating an imported stdin": (
        "from sys import stdin\nnumbers = [int(line) for line in stdin]\nprint(sum(numbers[1:]))"
    ),
    "an imported stdin's buffer": (
        f"from sys import stdin\ntext = stdin.buffer.read().decode()\n{ADDED}"
    ),
    (
        "an imported stdin's line without its end"
    ): f"from sys import stdin\n{SUM.replace('input()', 'stdin.readline()[:-1]')}",
    "input, then read": (
        "import sys\nn = int(input())\nprint(sum(map(int, sys.stdin.read().split())))"
    ),
    "readline, then readlines": (
        "import sys\nn = int(sys.stdin.readline())\nprint(sum(map(int, sys.stdin.readlines())))"
    ),
    "buffer.readline": f"import sys\n{SUM.replace('input', 'sys.stdin.buffer.readline')}",
    "input is buffer.readline": f"import sys\ninput = sys.stdin.buffer.readline\n{SUM}",
    "buffer.readlines": "import sys\nprint(sum(map(int, sys.stdin.buffer.readlines()[1:])))",
    "open(0)": f"text = open(0).read()\n{ADDED}",
    "open('/dev/stdin')": f"text = open('/dev/stdin').read()\n{ADDED}",
    "os.read": f"import os\ntext = os.read(0, 1000).decode()\n{ADDED}",
    "the descriptor of sys.stdin": (
        f"import os, sys\ntext = os.read(sys.stdin.fileno(), 1000).decode()\n{ADDED}"
    ),
    "an imported stdout": f"from sys import stdout\nstdout.write(str({TOTAL}))",
    "sys.stdout.buffer": f"import sys\nsys.stdout.buffer.write(b'%d' % {TOTAL})",
    "os.write": f"import os\nos.write(1, b'%d' % {TOTAL})",
    "closing sys.stdout": f"import sys\n{SUM}\nsys.stdout.close()",
    "global": f"total = 0\ndef add():\n    global total\n    total += {TOTAL}\nadd()\nprint(total)",
    "rebinding a builtin": f"sum = {TOTAL}\nprint(sum)",
    "the main guard not last": (
        f"def main():\n    {SUM}\nif __name__ == '__main__':\n    main()\npass"
    ),
    "the main guard the other way round": f"if '__main__' == __name__:\n    {SUM}",
    "class Solution": f"class Solution:\n    pass\n{SUM}",
    "class Solution in a string": f"note = 'class Solution'\n{SUM}",
    "from __future__": f"from __future__ import annotations\n{SUM}",
    "quit": f"{SUM}\nquit()",
    "subprocess": f"import subprocess\nsubprocess.run(['true'])\n{SUM}",
    "multiprocessing": (
        f"import multiprocessing\nmultiprocessing.Process(target=print).start()\n{SUM}"
    ),
    "import resource": f"import resource\n{SUM}",
    "os.getcwd": f"import os\nos.getcwd()\n{SUM}",
    (
        "a star import that is not at the top level"
    ): f"try:\n    from math import *\nexcept ImportError:\n    pass\n{SUM}",
    "a name made by exec": f"exec('total = {TOTAL}')\nprint(total)",
    "raising after the answer": f"{SUM}\nraise ValueError",
    "reading past the end": f"{SUM}\ninput()",
    "an error of syntax": f"{SUM}\nprint(",
    "no statement": "import sys",
    "nothing": "",
    "NUL": f"{SUM}\n\0",
    "a lone surrogate": f"{SUM}\nprint('\ud800', end='')",
    "a wrong answer": "print(30)",
    "the right answer and more": f"{SUM}\nprint('done')",
    "an empty line between": "print(1)\nprint()",
    "a generator": f"{SUM}\nyield",
    "os._exit(0)": f"import os\n{SUM}\nos._exit(0)",
    "KeyboardInterrupt": f"{SUM}\nraise KeyboardInterrupt",
    "a slow program": f"import time\n{SUM}\ntime.sleep(1.3)",
    (
        "a slow program that swallows the alarm"
    ): f"import time\n{SUM}\ntry:\n    time.sleep(1.3)\nexcept Exception:\n    pass",
    "standard error replaced": f"import sys, io\nsys.stderr = io.StringIO()\n{SUM}",
}
FUNCTIONS_ACCEPTED = {
    "a function": ("def f(x):\n    return 2 * x", TWICE),
    "a method": (
        "class Solution:\n    def f(self, x: int) -> List[int]:\n        return 2 * x",
        TWICE,
    ),
    "the outermost tuple": ("def f(x):\n    return x, [x]", [([1], [1, [1]])]),
    "a float that is the number": ("def f(x):\n    return 2.0 * x", TWICE),
    "True for 1": ("def f(x):\n    return True", [([1], 1)]),
    "1 for True": ("def f(x):\n    return 1", [([1], True)]),
    "noise on standard output": ("def f(x):\n    print('?' * 10)\n    return 2 * x", TWICE),
    "a named tuple": ("P = namedtuple('P', 'a b')\ndef f(x):\n    return P(x, x)", [([1], [1, 1])]),
    "a Counter": ("def f(x):\n    return collections.Counter(x)", [(["aab"], {"a": 2, "b": 1})]),
    "one of numpy's numbers": ("import numpy\ndef f(x):\n    return numpy.int64(2 * x)", TWICE),
    "one of numpy's truths": (
        "import numpy\ndef f(x):\n    return numpy.bool_(x > 0)",
        [([1], True)],
    ),
    "numpy's numbers in a list": (
        "import numpy\ndef f(x):\n    return [numpy.float64(x), numpy.int32(x)]",
        [([1], [1, 1])],
    ),
    "a Fraction": (
        "from fractions import Fraction\ndef f(x):\n    return Fraction(x, 2)",
        [([1], 0.5), ([4], 2)],
    ),
    "a Decimal": ("from decimal import Decimal\ndef f(x):\n    return [Decimal(x)]", [([3], [3])]),
    "a complex number": ("def f(x):\n    return complex(x)", [([3], 3)]),
    "an honest class of numbers": (
        "class Mod:\n    def __init__(self, n): self.n = n\n    def __int__(self): return self.n\n"
        "    def __eq__(self, other): return self.n == other\ndef f(x):\n    return Mod(2 * x)",
        TWICE,
    ),
    "globals kept from test to test": (
        "n = 0\ndef f(x):\n    global n\n    n += 1\n    return n",
        [([0], 1), ([0], 2)],
    ),
    "one Solution for all tests": (
        (
            "class Solution:\n    n = 0\n    def f(self, x):\n        self.n += 1\n"
            "        return self.n"
        ),
        [([0], 1), ([0], 2)],
    ),
    "the module's name": ("def f(x):\n    return __name__", [([0], "tmp_sol")]),
    "several arguments": (
        "def f(a, b):\n    return a + b",
        [([[1], [2]], [1, 2]), (["a", "{"], "a{")],
    ),
    "an integer beyond 53 bits": ("def f(x):\n    return x + 1", [([10**30], 10**30 + 1)]),
    "None": ("def f(x):\n    pass", [([1], None)]),
    "slow, the alarm swallowed": (
        (
            "import time\ndef f(x):\n    try:\n        time.sleep(1.3)\n    except Exception:\n"
            "        return 2 * x"
        ),
        TWICE[:1],
    ),
    "a global of any kind by that name": ("f = lambda x: 2 * x", TWICE),
}
FUNCTIONS_REJECTED = {
    "a wrong value": ("def f(x):\n    return 2", TWICE),
    "an inner tuple": ("def f(x):\n    return [(x, x)]", [([1], [[1, 1]])]),
    "nearly the number": ("def f(x):\n    return 2 * x + 1e-9", TWICE),
    "a string of the number": ("def f(x):\n    return str(2 * x)", TWICE),
    "a set": ("def f(x):\n    return {x}", [([1], [1])]),
    "a deque": ("def f(x):\n    return collections.deque([x])", [([1], [1])]),
    "a generator": ("def f(x):\n    yield x", [([1], [1])]),
    "a range": ("def f(x):\n    return range(x)", [([2], [0, 1])]),
    "keys": ("def f(x):\n    return {x: 0}.keys()", [([1], [1])]),
    "one of numpy's arrays": (
        "import numpy\ndef f(x):\n    return numpy.array([x, x])",
        [([1], [1, 1])],
    ),
    "numbers as keys": ("def f(x):\n    return {x: x}", [([1], {"1": 1})]),
    "NaN": ("def f(x):\n    return float('nan')", [([1], float("nan"))]),
    "the name is missing": ("def g(x):\n    return 2 * x", TWICE),
    "class Solution in a comment": ("# class Solution\ndef f(x):\n    return 2 * x", TWICE),
    "a Solution that wants arguments": (
        (
            "class Solution:\n    def __init__(self, n): pass\n    def f(self, x):\n"
            "        return 2 * x"
        ),
        TWICE,
    ),
    "from __future__": ("from __future__ import annotations\ndef f(x):\n    return 2 * x", TWICE),
    "raises": ("def f(x):\n    raise ValueError('\\n' * 100)", TWICE),
    "raises as it loads": ("def f(x):\n    return 2 * x\n1 / 0", TWICE),
    "exits": ("def f(x):\n    sys.exit(0)", TWICE),
    "exits as it loads": ("def f(x):\n    return 2 * x\nexit()", TWICE),
    "too many arguments": ("def f(x):\n    return x", [([1, 1], 1)]),
    "slow": ("def f(x):\n    while True: pass", TWICE),
    "slow to load": ("def f(x):\n    return 2 * x\nwhile True: pass", TWICE),
}
BELIEVED_OFFICIALLY = {
    (
        "an object equal to everything"
    ): "class Any:\n    def __eq__(self, other): return True\ndef f(x):\n    return Any()",
    (
        "an integer equal to everything"
    ): "class Any(int):\n    def __eq__(self, other): return True\ndef f(x):\n    return Any(7)",
    "a list equal to everything": (
        "class Any(list):\n    def __eq__(self, other): return True\ndef f(x):\n    return Any()"
    ),
    "an object with a number": (
        "class Any:\n    __eq__ = lambda self, other: True\n    __int__ = lambda self: 7\n"
        "def f(x):\n    return Any()"
    ),
}
