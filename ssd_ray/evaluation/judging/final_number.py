r"""The final number of an answer in words.

The first place with a number counts, in this order:

- the last `\boxed{...}`;
- right after the last `####` (GSM8K's mark), unless it numbers a heading;
- right after the last "answer is" or "answer:";
- the end of the text.

Within a place the last number counts. A number is a decimal, a fraction (`\frac{3}{4}`, `3/4`,
`2 1/2`), a power (`2^{10}`) or in scientific notation.

- Exponents and digits of units, subscripts, and words in `\text{}` are not numbers.
- Currency, percent and thousands separators do not matter.
- A minus sign counts unless it is between two operands.

Does no I/O. Time is proportional to the text.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

Number = Decimal | Fraction

_MOST_TEXT = 100_000
"""Characters read from the end. An answer cut off by its limit can be megabytes of digits."""
_MOST_EXPONENT = 400
_BOXED = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{")
_ANSWER_IS = re.compile(r"(?i:\banswer\s{0,3}(?:\bis\b(?:\s{0,3}:)?|:|=))")
_HEADING = re.compile(r"\s{0,3}[.):]\s[^\n]*\S")
"""The rest of a heading's line after its number, as in `#### 3. Add them up`."""

_WORKED = re.compile(r"\s{0,3}%?\s{0,3}(?:[-+*/\u00d7\u00f7]|of\b)[^.,;\n=]{1,100}=\s{0,3}[-$0-9]")
"""The rest of a calculation after its first number, as in `#### 2 + 16 = 18`."""

_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-"
)
# All repeats are bounded: the text is a model's, and nested open repeats could take hours.
_GROUP = r"\{((?:[^{}]|\{[^{}]{0,100}\}){0,200})\}"
_EXPONENT = r"\^\s{0,3}(?:\{[^{}]{0,50}\}|[-+]?\w)"
_WORDS = re.compile(
    r"\\(?:text\w{0,6}|math\w{1,6}|mbox|rm|operatorname|unit)\s{0,3}"
    rf"{_GROUP}(\s{{0,3}}{_EXPONENT})?"
)
_REPLACEMENTS = (
    (
        re.compile(r"[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]{1,9}"),
        lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}",
    ),
    (
        re.compile(
            r"\^\s{0,3}(?:\{\s{0,3}\\circ\s{0,3}\}|\\circ(?![A-Za-z]))"
            r"|\\!|\\(?:left|right)(?![A-Za-z])|\$|\\\$"
        ),
        "",
    ),
    (re.compile(r"\u2212"), "-"),
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\,|[\u00a0\u2009\u202f_])(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"(?<=[0-9]) (?=(?:[0-9]{3} ){0,4}000(?![0-9.]))"), ""),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "\u00d7"),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?!frac)(?:[A-Za-z]{1,30}|[^A-Za-z0-9])|~"), " "),
    (re.compile(rf"(?<![0-9}}]){_EXPONENT}"), " "),
    (re.compile(r"_\s{0,3}(?:\{[^{}]{0,50}\}|\w)"), " "),
)
r"""From TeX and typography to plain text.

Digits lose their separators; `^`, `\frac` and a multiplication sign stay.
"""

_DIGITS = r"[0-9]{1,50}(?:\.[0-9]{1,50})?"
_BRACED = r"\s{0,3}(?:\{\s{0,3}(-?[0-9]{1,50}(?:\.[0-9]{1,50})?)\s{0,3}\}|([0-9]))"
_TOKEN = re.compile(
    rf"""
      (?<![A-Za-z_])[A-Za-z_]+[0-9]+(?:\.[0-9]+)?      # the digits of a name or a unit: m2, x1
    | (?P<sign>(?<![\w)\]}}])-|^\s{{0,3}}-\s{{1,3}})?
      (?:
        (?:(?P<integer>[0-9]{{1,50}})\s{{0,3}})?\\frac{_BRACED}{_BRACED}
      | (?:(?P<units>[0-9]{{1,50}})\s{{1,3}})?(?<![0-9/.])
        (?P<over>{_DIGITS})/(?P<under>{_DIGITS})(?![0-9/])
      | (?P<factor>{_DIGITS})\s{{0,3}}[\u00d7*x]\s{{0,3}}10\s{{0,3}}
        \^\s{{0,3}}\{{?\s{{0,3}}(?P<scale>[-+]?[0-9]{{1,3}})(?![0-9])\s{{0,3}}\}}?
      | (?P<base>{_DIGITS})\^\{{?\s{{0,3}}(?P<power>[-+]?[0-9]{{1,3}})(?![0-9])\s{{0,3}}\}}?
      | (?P<plain>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}}(?![0-9]))?)
      )
    """,
    re.VERBOSE,
)
_ROOT = re.compile(
    r"(?P<factor>[0-9]{0,9})\s{0,3}\\sqrt\s{0,3}"
    r"(?:\{\s{0,3}(?P<square>[0-9]{1,18})\s{0,3}\}|(?P<digit>[0-9]))"
)
_IRRATIONAL = re.compile(r"\\(?:sqrt|pi)(?![A-Za-z])|[\u221a\u03c0]")
_WORKED_OUT = re.compile(r"=|\u2248|\\approx(?![A-Za-z])")
_ATTACHED = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def final_number(text: str) -> Number | None:
    """Return the number at the end of an answer.

    None if there is no number, or if the last box holds an irrational one.
    """
    boxed = _last_boxed(text)
    if boxed is not None:
        # `2\sqrt{9}` is a number. A box with another root has none, unless it goes on with its
        # value, as in `\sqrt{2} \approx 1.41`.
        boxed = _ROOT.sub(_root, boxed)
        if _IRRATIONAL.search(boxed) and not _WORKED_OUT.search(boxed):
            return None
    value = None if boxed is None else _last_number(boxed)
    for find in (_after_mark, _after_phrase, _last_number):
        if value is None:
            value = find(text)
    return value


def _last_boxed(text: str) -> str | None:
    r"""Return the text between the braces of the last `\boxed{...}`, None if it is not closed."""
    starts = [match.end() for match in _BOXED.finditer(text)]
    if not starts:
        return None
    depth = 1
    for index in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if not depth:
            return text[starts[-1] : index]
    return None


def _root(match: re.Match[str]) -> str:
    """Return a multiple of a square root as digits, unchanged if it is irrational."""
    square = int(match["square"] or match["digit"])
    root = math.isqrt(square)
    return str(int(match["factor"] or 1) * root) if root * root == square else match[0]


def _after_mark(text: str) -> Number | None:
    """Return the number right after the last `####`, unless it numbers a heading above text."""
    _, mark, rest = text.rpartition("####")
    line, _, below = rest.partition("\n")
    match = re.match(r"[\s*$\\(\[]{0,9}(-?[$\\\s]{0,3}[0-9.][^\n]*)", line)
    if not mark or match is None:
        return None
    value, remainder = _first_number(match[1])
    if _WORKED.match(remainder):
        return _last_number(re.split(r"\.(?:\s|$)", match[1])[0])
    return None if below.strip() and _HEADING.match(remainder) else value


def _after_phrase(text: str) -> Number | None:
    """Return the number right after the last "answer is".

    In a calculation, it is the last number of the sentence.
    """
    ends = [match.end() for match in _ANSWER_IS.finditer(text[-_MOST_TEXT:])]
    if not ends:
        return None
    line = text[-_MOST_TEXT:][ends[-1] :].lstrip(" *:\n").partition("\n")[0]
    match = re.match(
        r"(?:[a-zA-Z]{0,20}\s{0,3}[=\u2248]|approximately|about|equal to|[\s*$\\(\[]){0,9}"
        r"(-?[$\\\s]{0,3}[0-9.].*)",
        line,
    )
    if match is None:
        return None
    value, remainder = _first_number(match[1])
    if re.match(r"[^.\n]{0,200}=", remainder) or re.match(
        r"\s{0,3}[-+*/\u00d7\u00f7]\s{0,3}[0-9($]", remainder
    ):
        return _last_number(re.split(r"\.(?:\s|$)", match[1])[0])
    return value


def _first_number(text: str) -> tuple[Number | None, str]:
    """Return the first number of a line beginning with one, and the plain text after it."""
    plain = _plain(text[:1000])
    for match in _TOKEN.finditer(plain):
        value = _value(match)
        if value is not None:
            return value, plain[match.end() :]
    return None, ""


def _last_number(text: str) -> Number | None:
    """Return the last number; a number within words or names counts only if there is no other."""
    text = text[-_MOST_TEXT:]
    # First without the words of `\text{}`, then with them, then the digits of names.
    for plain in (_plain(text), _plain(_WORDS.sub(r" \1 ", text))):
        values = [value for match in _TOKEN.finditer(plain) if (value := _value(match)) is not None]
        if values:
            return values[-1]
    attached = _ATTACHED.findall(plain)
    return Decimal(attached[-1]) if attached else None


def _plain(text: str) -> str:
    """Return the text without TeX, and without words and their exponents."""
    text = _WORDS.sub(lambda match: " " if re.search("[A-Za-z]", match[1]) else match[1], text)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text


def _value(match: re.Match[str]) -> Number | None:
    """Return the number of a token.

    None for digits of a name, a division by zero and a power of more than `_MOST_EXPONENT`.
    """
    parts = match.groupdict()
    # Groups 3 to 6 are the braces of `\frac`, each with a form without braces.
    numerator = match[3] or match[4] or parts["over"]
    denominator = match[5] or match[6] or parts["under"]
    value: Number | None = None
    if parts["plain"] is not None:
        value = Decimal(parts["plain"])
    elif numerator is not None and Fraction(denominator):
        value = int(parts["integer"] or parts["units"] or 0) + Fraction(numerator) / Fraction(
            denominator
        )
    elif parts["factor"] is not None:
        value = Decimal(parts["factor"]).scaleb(int(parts["scale"]))
    elif (
        parts["base"] is not None
        and abs(int(parts["power"])) <= _MOST_EXPONENT
        and Fraction(parts["base"])
    ):
        value = Fraction(parts["base"]) ** int(parts["power"])
    return -value if value is not None and parts["sign"] else value
