"""Resolution of a recipe's benchmark to files, rows and an expected number of problems.

- A release or a named window has a published number of problems, which is checked.
- Plain dates have none.

Reads the files, or downloads LiveCodeBench's if the recipe has no file.
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
    """Return an identifier of the problems of a choice, for fingerprints.

    Downloads nothing.

    Raises:
        UserError: A file is missing, or a release or window does not exist.
    """
    _window(choice)
    if choice.file is None:
        names = [
            livecodebench.FILES[index]
            for index in livecodebench.release_files(_hub_release(choice))
        ]
        origin = f"hub {livecodebench.HUB} {' '.join(names)}"
    else:
        origin = f"files {digest(_chosen_files(choice))}"
    rows = [
        f"{key}={value}"
        for key in ("release", "window", "start", "end")
        if (value := getattr(choice, key)) is not None
    ]
    return " ".join([origin, *rows, *(["without bad rows"] if choice.skip_bad_rows else [])])


def load(choice: Benchmark) -> Loaded:
    """Return the problems of a choice, to iterate over with `counted`.

    Raises:
        UserError: A file, release or window does not exist, or the format does not have it.
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
            f"benchmark {choice.name}: only LiveCodeBench has contest dates, and its format is "
            f"{loaded.format}"
        )
    elif choice.release is not None and loaded.format == "mbpp":
        split = choice.release
        mbpp.require_split(split)
        loaded.chosen = lambda row: mbpp.in_split(row, split)
    elif choice.release is not None:
        raise UserError(
            f"benchmark {choice.name}: format {loaded.format} has no releases; "
            f"leave release {choice.release!r} out"
        )
    return loaded


def counted(choice: Benchmark, loaded: Loaded) -> Iterator[Problem]:
    """Yield the problems of `load`, and check their number against the published one at the end.

    Raises:
        UserError: A release or named window has another number of rows, there is no row, or a row
            is bad.
    """
    yield from loaded
    for name, expected, actual in _published_counts(choice, loaded):
        if expected != actual:
            raise UserError(
                f"benchmark {choice.name}: {name} has {expected} problems and {actual} were "
                "found; give the complete release, or choose a part of it by dates "
                "(2025-02..2025-05) or by a file alone, without a check of the number"
            )
    if not loaded.num_chosen:
        raise UserError(
            f"benchmark {choice.name}: none of its {loaded.num_read} rows is in the window: "
            "choose other dates"
        )


def _published_counts(choice: Benchmark, loaded: Loaded) -> Iterator[tuple[str, int, int]]:
    """Yield name, published number and actual number of a choice's split, release and window."""
    if choice.release is not None and loaded.format == "mbpp":
        size = len(mbpp.SPLITS[choice.release])
        yield f"split {choice.release}", size, loaded.num_chosen
    elif choice.release is not None:
        # Releases are counted before the window is applied.
        size = livecodebench.release_rows(choice.release)
        yield f"release {choice.release}", size, loaded.num_read
    window = _window(choice)
    if window is not None and window.rows is not None:
        yield f"window {choice.window} of {window.release}", window.rows, loaded.num_chosen


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
    # First, so that an unknown release is refused by its name.
    livecodebench.release_files(choice.release)
    return livecodebench.choose_files(files, choice.release)
