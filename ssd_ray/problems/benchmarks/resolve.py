"""A recipe's benchmark with files of its own: which of them, which rows, and how many there must be.

A release or a named window stands for a count that others quote, so that count is asserted; dates without a name are not.
Reads the files, or downloads LiveCodeBench's where none is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ssd_ray.artifacts.files import digest
from ssd_ray.config import Benchmark
from ssd_ray.errors import UserError
from ssd_ray.problems.benchmarks import Loaded, livecodebench, mbpp, open_problems
from ssd_ray.problems.benchmarks.files import list_files
from ssd_ray.problems.benchmarks.livecodebench import Window
from ssd_ray.schema import Problem


def identify(choice: Benchmark) -> str:
    """Which problems a choice stands for, as a text that changes when they do; downloads nothing.

    Raises:
        UserError: a file that is missing, or a release or window that does not exist.
    """
    _window(choice)
    if choice.file is None:
        names = [
            livecodebench.FILES[index]
            for index in livecodebench.release_files(_hub_release(choice))
        ]
        held = f"hub {livecodebench.HUB} {' '.join(names)}"
    else:
        held = f"files {digest(_chosen_files(choice))}"
    rows = [
        f"{key}={value}"
        for key in ("release", "window", "start", "end")
        if (value := getattr(choice, key)) is not None
    ]
    return " ".join([held, *rows, *(["without bad rows"] if choice.skip_bad_rows else [])])


def load(choice: Benchmark) -> Loaded:
    """The rows of a choice, to iterate over with `counted`.

    Raises:
        UserError: no such file, release or window, or one that the format does not have.
    """
    files = (
        livecodebench.download(_hub_release(choice))
        if choice.file is None
        else _chosen_files(choice)
    )
    loaded = open_problems(files, skip_bad_rows=choice.skip_bad_rows, source=choice.name)
    window = _window(choice)
    if loaded.format == "livecodebench":
        loaded.chosen = window.holds if window else None
    elif window is not None:
        raise UserError(
            f"benchmark {choice.name}: only LiveCodeBench has contest dates, and its format is {loaded.format}"
        )
    elif choice.release is not None and loaded.format == "mbpp":
        split = choice.release
        mbpp.require_split(split)
        loaded.chosen = lambda row: mbpp.in_split(row, split)
    elif choice.release is not None:
        raise UserError(
            f"benchmark {choice.name}: format {loaded.format} has no releases; leave release {choice.release!r} out"
        )
    return loaded


def counted(choice: Benchmark, loaded: Loaded) -> Iterator[Problem]:
    """The problems of `load`; once all are read, their number is held against the published one.

    Raises:
        UserError: a release or a named window with another number of rows, no row at all, or a bad row.
    """
    yield from loaded
    wanted: list[tuple[str, int, int]] = []
    if choice.release is not None and loaded.format == "mbpp":
        wanted.append(
            (f"split {choice.release}", len(mbpp.SPLITS[choice.release]), loaded.num_chosen)
        )
    elif choice.release is not None:
        wanted.append(
            (
                f"release {choice.release}",
                livecodebench.release_rows(choice.release),
                loaded.num_read,
            )
        )
    window = _window(choice)
    if window is not None and window.rows is not None:
        wanted.append(
            (f"window {choice.window} of {window.release}", window.rows, loaded.num_chosen)
        )
    for named, expected, found in wanted:
        if expected != found:
            raise UserError(
                f"benchmark {choice.name}: {named} has {expected} problems and {found} were found; give the whole release, "
                "or choose a part of it by dates (2025-02..2025-05) or by a file alone, which state no count"
            )
    if not loaded.num_chosen:
        raise UserError(
            f"benchmark {choice.name}: none of its {loaded.num_read} rows is in the window: choose other dates"
        )


def _window(choice: Benchmark) -> Window | None:
    if choice.window is not None:
        return livecodebench.find_window(choice.window)
    if choice.start is None and choice.end is None:
        return None
    return Window(start=choice.start or "", end=choice.end or "9999")


def _hub_release(choice: Benchmark) -> str:
    window = _window(choice)
    return choice.release or (window.release if window else "") or "release_latest"


def _chosen_files(choice: Benchmark) -> list[Path]:
    assert choice.file is not None
    files = list_files(choice.file, f"benchmark {choice.name}: file")
    if choice.release is None or choice.release in mbpp.SPLITS:
        return files
    livecodebench.release_files(choice.release)
    return livecodebench.choose_files(files, choice.release)
