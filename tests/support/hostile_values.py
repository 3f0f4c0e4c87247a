"""Hostile return values of foreign types: they lie, never end or grow (see hostile.py)."""

# ruff: noqa: E501
from __future__ import annotations

_NAMED = "class {name}:\n    __module__ = {module!r}\n    __qualname__ = {name!r}\n    __eq__ = lambda self, other: True\n    {body}\n"


def _named(module: str, name: str, body: str) -> str:
    """Return source for a class with the module and name of one that the sandbox unpacks."""
    return _NAMED.format(module=module, name=name, body=body) + f"Yes = {name}\n"


LIARS = {
    "a number to everybody": "class Yes:\n    __int__ = __index__ = __float__ = __round__ = __len__ = lambda self: 9\n"
    "    __eq__ = lambda self, other: True\n",
    "a number that is a number that lies": "class Liar(int):\n    __eq__ = lambda self, other: True\n    __hash__ = int.__hash__\n"
    "class Yes:\n    __int__ = lambda self: Liar(9)\n    __eq__ = lambda self, other: True\n",
    "an array by its word": "class Yes:\n    __array__ = lambda self, *_: [3, 9]\n    __eq__ = lambda self, other: True\n"
    "    __array_interface__ = dict(shape=(2,), typestr='<i8', version=3)\n",
    "items by its word": "class Yes:\n    __iter__ = lambda self: iter([3, 9])\n    __len__ = lambda self: 2\n"
    "    __getitem__ = lambda self, i: [3, 9][i]\n    __eq__ = lambda self, other: True\n",
    "a generator of the answer": "def Yes():\n    yield from [3, 9]\n",
    "a deque of the answer": "import collections\nYes = lambda: collections.deque([3, 9])\n",
    "an array of the answer": "import numpy\nYes = lambda: numpy.array([3, 9])\n",
    "a Fraction by name": _named(
        "fractions", "Fraction", "numerator = [3, 9]\n    denominator = 1"
    ),
    "a Decimal by name": _named("decimal", "Decimal", "__str__ = lambda self: '[3, 9]'"),
    "numpy by name": _named(
        "numpy",
        "ndarray",
        "size = 1\n    dtype = type('D', (), dict(kind='i', itemsize=8, name='int64'))\n    tolist = lambda self: self",
    ),
    "numpy of no dtype": _named(
        "numpy",
        "generic",
        "size = 1\n    shape = ()\n    dtype = type('D', (), dict(kind='V', "
        "itemsize=8, name='value'))\n    tolist = lambda self: [3, 9]",
    ),
    "numpy of a dtype that is code": _named(
        "numpy",
        "generic",
        "size = 1\n    shape = ()\n    dtype = type('D', (), dict(kind='i', "
        "itemsize=8, name='int64,(3,9)i8'))\n    tolist = lambda self: 1",
    ),
    "a range by name": _named("builtins", "range", "start = 'a'\n    stop = step = 1"),
    "a date by name": _named("datetime", "date", "year = '3'\n    month = day = 1"),
    "a view by name": _named("builtins", "dict_keys", "__iter__ = lambda self: iter([[3, 9]])"),
    "a fake numpy": "import sys, types\nfake = types.ModuleType('numpy')\nsys.modules['numpy'] = fake\n"
    "class generic:\n    __module__ = 'numpy'\n    size = 1\n    shape = ()\n    __eq__ = lambda self, other: True\n"
    "    dtype = type('D', (), dict(kind='O', itemsize=8, name='object'))\n    tolist = item = lambda self: self\n"
    "fake.array = lambda *_, **__: True\nYes = generic\n",
    "a list of fake numpy": "class generic:\n    __module__ = 'numpy'\n    dtype = type('D', (), dict(kind='i', itemsize=8, name='int64'))\n"
    "    item = lambda self: [3, 9]\nYes = lambda: [generic(), generic()]\n",
    "ancestors by its word": "class Meta(type):\n    __mro__ = property(lambda self: 1 / 0)\n    mro = lambda self: [self, object]\n"
    "class Yes(metaclass=Meta):\n    __eq__ = lambda self, other: True\n",
    "a module that is no text": "class Yes:\n    __module__ = []\n    __eq__ = lambda self, other: True\n",
    "a name that is an error": "class Meta(type):\n    __module__ = property(lambda self: 1 / 0)\nclass Yes(metaclass=Meta): pass\n",
    "a signaling NaN": "import decimal\nYes = lambda: decimal.Decimal('sNaN')\n",
    "a list of signaling NaNs": "import decimal\nYes = lambda: [decimal.Decimal('-sNaN12')] * 2\n",
    "traps reset": "import decimal\ndecimal.getcontext().clear_traps()\nYes = lambda: decimal.Decimal('sNaN') + 1\n",
    "numbers without end": "import decimal\nYes = lambda: decimal.Decimal('1E+999999999999999999')\n",
    "a fraction of nothing": "import fractions\nclass Yes(fractions.Fraction):\n    denominator = 0\n",
    "a sorted list that lies": "import sortedcontainers\nclass Yes(sortedcontainers.SortedList):\n    __eq__ = lambda self, other: True\n",
    "a UserList that lies": "import collections\nclass Yes(collections.UserList):\n    __eq__ = lambda self, other: True\n"
    "    __iter__ = lambda self: iter([[3, 9]])\n",
    "patched names": "import sys\nframe = sys._getframe()\nwhile frame:\n    for module in list(frame.f_globals.values()):\n"
    "        for name in ('parts', 'type_name', 'is_numpy', 'numpy_list'):\n            if hasattr(module, name):\n"
    "                setattr(module, name, lambda *_: ('', [9, 3]))\n    frame = frame.f_back\nYes = object\n",
}
"""Preambles of `def f(x): return Yes()`. None of them equals [3, 9]."""

HEAVY = {
    "a generator without end": "def f(x):\n    while True:\n        yield x\n",
    "a generator that gives nothing": "def f(x):\n    while True:\n        pass\n    yield x\n",
    "a count": "import itertools\ndef f(x): return itertools.count()\n",
    "generators in a list": "import itertools\ndef f(x): return [itertools.repeat(x) for _ in range(9)]\n",
    "an iterator of itself": "class I:\n    __iter__ = lambda self: self\n    __next__ = lambda self: self\ndef f(x): return I()\n",
    "an iterator of growing texts": "def f(x):\n    text = 'x'\n    while True:\n        text += text\n        yield text\n",
    "an iterable without end": "class I:\n    def __iter__(self):\n        while True:\n            yield 0\ndef f(x): return I()\n",
    "a generator that forks": "import os\ndef f(x):\n    while True:\n        yield os.fork()\n",
    "a generator that runs a program": "import subprocess\ndef f(x):\n    yield subprocess.check_output('id')\n",
    "a generator that leaves": "import os\ndef f(x):\n    yield 3\n    os._exit(0)\n",
    "a generator that raises": "def f(x):\n    yield 3\n    raise SystemExit\n",
    "a range without end": "def f(x): return range(10**18)\n",
    "a range beyond machine words": "def f(x): return range(-10**4000, 10**4000, 3)\n",
    "ranges in a set": "def f(x): return {range(10**18 + i) for i in range(1000)}\n",
    "a giant fraction": "from fractions import Fraction\ndef f(x): return Fraction((1 << 30_000_000) + 1, 3)\n",
    "giant fractions": "from fractions import Fraction\nimport math\na, b = (1 << 16380) + 1, (1 << 16381) + 3\n"
    "def f(x): return [Fraction(a + 2 * i, b) for i in range(500)]\n",
    "a giant decimal": "from decimal import *\ngetcontext().prec = MAX_PREC\ndef f(x): return Decimal('9' * 10_000_000)\n",
    "an array larger than memory": "import numpy\ndef f(x): return numpy.broadcast_to(1, (10**12,))\n",
    "arrays larger than memory": "import numpy\ndef f(x): return [numpy.zeros(10**6)] * 10**6\n",
    "texts of one width": "import numpy\ndef f(x): return numpy.array(['x' * 10**5] + [''] * 10**3)\n",
    "an array of itself": "import numpy\na = numpy.empty(1, dtype=object)\na[0] = a\ndef f(x): return a\n",
    "a deque of itself": "import collections\nd = collections.deque()\nd.append(d)\ndef f(x): return d\n",
    "views of itself": "d = {}\nd[1] = d.values()\ndef f(x): return d.values()\n",
    "a UserList of itself": "import collections\nd = collections.UserList()\nd.append(d)\ndef f(x): return d\n",
    "a number that takes for ever": "class N:\n    def __int__(self):\n        while True: pass\ndef f(x): return N()\n",
    "a number of millions of digits": "class N:\n    __int__ = lambda self: 1 << 40_000_000\n    __eq__ = lambda *_: True\ndef f(x): return N()\n",
    "an equality that takes for ever": "class N:\n    __int__ = lambda self: 1\n    def __eq__(self, other):\n        while True: pass\n"
    "def f(x): return N()\n",
    "fractions of one hash": "from fractions import Fraction\nP = 2**61 - 1\ndef f(x): return {Fraction(1 + i * P) for i in range(5000)}\n",
    "fractions of an endless hash": "from fractions import Fraction\nP = 2**61 - 1\ndef f(x): return {Fraction(i, P) for i in range(1, 5000)}\n",
    "decimals of one hash": "from decimal import Decimal\nP = 2**61 - 1\ndef f(x): return {Decimal(1 + i * P) for i in range(5000)}.__iter__()\n",
    "keys of one hash": "P = 2**61 - 1\ndef f(x): return {1 + i * P: 0 for i in range(5000)}.keys()\n",
}
"""Functions whose value cannot be right, and would cost whoever reads it without a bound."""

FORGED_LINES = tuple(
    f'["value",{value}]\n'.encode()
    for value in (
        '{"numpy":["int64",' * 60 + "1" + "]}" * 60,
        '{"numpy":["object",{"numpy":["int64",[3,9]]}]}',
        '{"numpys":["str",["' + "x" * 9000 + '"' + ',""' * 9000 + "]]}",
        '{"range":[0,{"big":"0x' + "f" * 50_000 + '"},1]}',
        '{"fraction":[{"big":"0x' + "f" * 20_000 + '"},{"big":"0x' + "e" * 20_000 + '"}]}',
        '{"decimal":"' + "9" * 50_000 + '"}',
        '{"decimal":"sNaN"}',
        '{"iterator":["\\u001b[2J",[' + "0," * 20_000 + "0]]}",
        '{"array":["u",["x"]]}',
        '{"date":["timedelta",{"big":"0x' + "f" * 500 + '"},0,0]}',
        '{"keys":['
        + ",".join(f'{{"big":"{hex(1 + i * (2**61 - 1))}"}}' for i in range(2000))
        + "]}",
        '{"sorted":[[3,9]]}',
        '{"user-list":{"dict":[]}}',
    )
)
"""Lines that a program may write on its reply pipe in place of a value."""
