"""LiveCodeBench rows (Jain et al. 2024, arXiv 2403.07974), releases and contest windows.

- Tests are those of the official grader: public ones first, then private ones.
- Private tests are JSON, or base64 of zlib of a pickle of JSON text.
- A pickle is never run. Its one text is read from its opcodes.
- Published numbers of problems are listed and checked here.

Reads files, or downloads them from the hub.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import pickle
import pickletools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_ray import wire
from ssd_ray.errors import OutsideError, UserError
from ssd_ray.problems.benchmarks.files import (
    Row,
    RowError,
    identifier,
    json_field,
    optional_text,
    parse_json,
    shown,
    text,
)
from ssd_ray.schema import Problem, Test

HUB = "livecodebench/code_generation_lite"
FILES = ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl", "test6.jsonl")
FILE_ROWS = (400, 111, 101, 101, 167, 175)
"""Rows of each file. The running totals are release_v1 (400) to release_v6 (1055)."""
MAX_DECODED_BYTES = 1 << 29
"""Maximum size of the unpacked private tests of one problem. Real ones are far smaller: one of 6.3
MB unpacks to 9.9 MB.
"""
_TEXT_OPCODES = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_FRAMING_OPCODES = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}


@dataclass(frozen=True, kw_only=True)
class Window:
    """Contest dates from `start` to `end`, both inclusive, as prefixes of ISO dates.

    A month includes all of its days.
    """

    start: str = ""
    end: str = "9999"
    rows: int | None = None
    """Number of problems of a named window, in `release`."""
    release: str = ""
    """Release that a named window was published for."""

    def holds(self, row: Row) -> bool:
        """Return True if a row's contest is in the window.

        Raises:
            RowError: `contest_date` holds no ISO date.
        """
        date = contest_date(row)
        return self.start <= date[: len(self.start)] and date[: len(self.end)] <= self.end


WINDOWS = {
    "paper-v6": Window(start="2025-02", end="2025-05", rows=131, release="release_v6"),
    "paper-v5": Window(start="2024-08", end="2025-02", rows=374, release="release_v6"),
    "nemo-v6": Window(start="2024-08", end="2025-05", rows=454, release="release_v6"),
    "nemo-v5": Window(start="2024-08", end="2025-01", rows=279, release="release_v5"),
}
"""Windows with known numbers of problems.

The two of the simple self-distillation paper (2604.01193) share February 2025. The others are
NVIDIA NeMo's `v6_2408_2505` and `v5_2408_2502`, published with exclusive ends.
"""


def problem(row: Row, number: int) -> Problem:
    """Return the problem of a row, of kind `function` if its metadata name one, else `stdin`.

    Problems of both kinds have the comparison `lcb`.

    Raises:
        RowError: A field is missing or cannot be decoded, or there are no tests.
    """
    metadata = json_field(row, "metadata", dict)
    function = optional_text(metadata, "func_name")
    public = [
        _case(case, "public_test_cases") for case in json_field(row, "public_test_cases", list)
    ]
    cases = public + [_case(case, "private_test_cases") for case in _private(row)]
    if not cases:
        raise RowError(
            "field 'public_test_cases': neither public nor private tests, "
            "so nothing could be graded"
        )
    return Problem(
        problem_id=identifier(row, "question_id"),
        source="livecodebench",
        statement=text(row, "question_content"),
        kind="function" if function else "stdin",
        difficulty=optional_text(row, "difficulty") or "unknown",
        starter_code=optional_text(row, "starter_code"),
        entry_point=function,
        tests=tuple(_call(case, index) for index, case in enumerate(cases, start=1))
        if function
        else tuple(cases),
        comparison="lcb",
    )


def has_private_tests(row: Row) -> bool:
    """Return True if a row has private tests; rebuilt files often have none."""
    raw = row.get("private_test_cases")
    return raw is not None and (
        raw.strip() not in {"", "[]"} if isinstance(raw, str) else bool(raw)
    )


def contest_date(row: Row) -> str:
    """Return the day of a row's contest, such as 2025-02-15.

    Raises:
        RowError: `contest_date` holds no ISO date.
    """
    value = row.get("contest_date")
    try:
        moment = (
            value
            if isinstance(value, datetime.date)
            else datetime.datetime.fromisoformat(value if value else "")
        )
    except (TypeError, ValueError):
        raise RowError(f"field 'contest_date' must hold an ISO date, not {shown(value)}") from None
    return moment.isoformat()[:10]


def _case(case: Any, field: str) -> Test:
    if not isinstance(case, dict) or not all(
        isinstance(case.get(key), str) for key in ("input", "output")
    ):
        raise RowError(
            f"field {field!r}: a test must be an object with text 'input' and 'output', not "
            f"{shown(case)}"
        )
    if case.get("testtype") not in {"stdin", "functional"}:
        raise RowError(
            f"field {field!r}: testtype must be stdin or functional, not "
            f"{shown(case.get('testtype'))}"
        )
    return Test(input=case["input"], output=case["output"])


def _call(case: Test, index: int) -> Test:
    """Return a functional test with arguments and result in wire format.

    Its input has one argument a line, as JSON.
    """
    try:
        arguments = [parse_json(line) for line in case.input.split("\n")]
        return Test(input=wire.dumps(arguments), output=wire.dumps(parse_json(case.output)))
    except (ValueError, RecursionError, wire.UnsupportedValueError) as error:
        raise RowError(
            f"test {index}: its input lines and its output must each be JSON ({error})"
        ) from error


def _private(row: Row) -> list[Any]:
    """Return the private tests, decoded; none if the field is empty."""
    if not has_private_tests(row):
        return []
    raw = row["private_test_cases"]
    if isinstance(raw, str) and not raw.lstrip().startswith("["):
        raw = _unpack(raw)
    return list(json_field({"private_test_cases": raw}, "private_test_cases", list))


def _unpack(blob: str) -> str:
    """Return the JSON text in base64 of zlib of a pickle."""
    try:
        # Bounded, since a few kilobytes can inflate to all of the memory.
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(blob), MAX_DECODED_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise RowError(
            f"field 'private_test_cases' is neither JSON nor base64 of zlib ({error})"
        ) from error
    if inflate.unconsumed_tail:
        raise RowError(
            f"field 'private_test_cases' unpacks to more than {MAX_DECODED_BYTES >> 20} MiB"
        )
    if not inflate.eof:
        raise RowError("field 'private_test_cases' is cut off: its zlib data have no end")
    if inflate.unused_data:
        raise RowError("field 'private_test_cases' goes on after the end of its zlib data")
    return pickled_text(data)


def pickled_text(data: bytes) -> str:
    """Return the text in a pickle of one text, of any protocol, without running the pickle.

    Raises:
        RowError: The pickle holds anything else, such as a global, or is broken.
    """
    texts: list[str] = []
    # An allow list: any other opcode can name or call something.
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _TEXT_OPCODES and isinstance(argument, str):
                texts.append(argument)
            elif opcode.name not in _FRAMING_OPCODES:
                named = f" {argument}" if opcode.name in {"GLOBAL", "INST"} else ""
                raise RowError(
                    f"field 'private_test_cases': its pickle holds {opcode.name}{named}, "
                    "and only one text is allowed"
                )
    except (ValueError, pickle.UnpicklingError, IndexError, UnicodeError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"field 'private_test_cases': its pickle is broken ({error})") from error
    if len(texts) != 1:
        raise RowError(f"field 'private_test_cases': its pickle holds {len(texts)} texts, not one")
    return texts[0]


def release_files(release: str) -> range:
    """Return the indices (from 0) of the files of a release tag.

    - release_vN: files 1 to N.
    - vN: the N-th file alone.
    - vA_vB: files A to B.

    Raises:
        UserError: There is no such tag.
    """
    last = len(FILES)
    numbers = [
        int(part)
        for part in release.replace("release_", "").replace("v", "").split("_")
        if part.isdigit()
    ]
    tags = {f"release_v{numbers[-1]}": 1, f"v{numbers[-1]}": numbers[-1]} if numbers else {}
    if len(numbers) == 2 and release == f"v{numbers[0]}_v{numbers[1]}":
        tags[release] = numbers[0]
    if release == "release_latest":
        return range(last)
    if release not in tags or not 1 <= tags[release] <= numbers[-1] <= last:
        raise UserError(
            f"there is no LiveCodeBench release {release!r}: use release_v1 to release_v{last}, "
            f"v1 to v{last}, or vA_vB"
        )
    return range(tags[release] - 1, numbers[-1])


def release_rows(release: str) -> int:
    """Return the number of rows of a release tag."""
    return sum(FILE_ROWS[index] for index in release_files(release))


def choose_files(files: Sequence[Path], release: str) -> list[Path]:
    """Return the files of a release among those of a directory.

    Files of other names are taken to be the release itself.

    Raises:
        UserError: There are official files, but not all files of the release.
    """
    named = {path.name.removesuffix(".gz").rpartition(".")[0]: path for path in files}
    official = [name.removesuffix(".jsonl") for name in FILES]
    if not set(official) & set(named):
        return list(files)
    wanted = [official[index] for index in release_files(release)]
    missing = [name for name in wanted if name not in named]
    if missing:
        raise UserError(
            f"release {release!r} needs {', '.join(wanted)} of LiveCodeBench; "
            f"{', '.join(missing)} not found"
        )
    return [named[name] for name in wanted]


def download(release: str) -> list[Path]:
    """Return the files of a release from the Hugging Face hub, or from its local cache.

    Raises:
        OutsideError: The hub cannot be reached or refuses.
    """
    from huggingface_hub import hf_hub_download

    try:
        return [
            Path(hf_hub_download(HUB, FILES[index], repo_type="dataset"))
            for index in release_files(release)
        ]
    except (OSError, ValueError) as error:
        raise OutsideError(
            f"benchmark livecodebench: {HUB} cannot be downloaded from the hub ({error}): "
            "give its files with `file`"
        ) from error


def find_window(name: str) -> Window:
    """Return a window by name, or by months or days as `2025-02..2025-05`.

    Only named windows have a known number of problems.

    Raises:
        UserError: The name is neither.
    """
    if name in WINDOWS:
        return WINDOWS[name]
    start, dots, end = name.partition("..")
    if not dots:
        raise UserError(
            f"there is no window {name!r}: use {', '.join(WINDOWS)}, or dates such as "
            "2025-02..2025-05"
        )
    return Window(start=start, end=end)
