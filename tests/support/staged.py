"""A run of test doubles: steps derive bytes from their inputs, without Ray or models.

The graph is that of a recipe with the control `accepted` and one benchmark. The output of
a double follows from its choices, its inputs and a `World`. A `World` holds facts outside of
a recipe, such as hardware and failing graders.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import cluster, recipes
from ssd_ray.artifacts import files, lineage, manifests, shards
from ssd_ray.artifacts.facts import Facts, RowFacts, VerdictFacts
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.step import Step
from ssd_ray.progress import LineProgress

ORDER = (
    "benchmark",
    "eval-prompts",
    "prompts",
    "contamination",
    "training-problems",
    "samples",
    "sample-verdicts",
    "dataset-accepted",
    "checkpoint-accepted",
    "generations/base",
    "generations/accepted",
    "verdicts/base",
    "verdicts/accepted",
    "report",
)
GPU = ("samples", "checkpoint-accepted", "generations/base", "generations/accepted")


@dataclass(frozen=True, kw_only=True, eq=False)
class Double(Step):
    """A step with the given choices and action."""

    verb: str
    chosen: Mapping[str, Any]
    act: Callable[[Path], Facts]
    needs_ray: bool = False
    reads_facts: bool = False

    @property
    def begins_run(self) -> bool:
        return self.name == "prompts"

    def choices(self) -> Mapping[str, Any]:
        return self.chosen

    def make(self, out: Path, context: RunContext) -> Facts:
        return self.act(out)

    def preview(self, run: Path) -> str:
        return self.verb


class World:
    """Inputs of the steps.

    - `choices`: choices by step.
    - `nature`: by step, a fact outside of the recipe that changes the output, such as hardware.
    - `failing`: graders return infrastructure errors.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.choices: dict[str, Any] = {}
        self.nature: dict[str, str] = {}
        self.failing = self.dead = False
        self.arms = ("base", "accepted")
        self.made: list[str] = []

    def run(self) -> Run:
        """Return a run of these steps. Call `without_ray` first: the run must not start Ray."""
        run = Run(recipes.load("quickstart"), self.out, LineProgress())
        run._steps = self.steps()
        return run

    def steps(self) -> list[Step]:
        """Return the steps in the order of a run."""
        known: dict[str, Step] = {}
        recipe = recipes.load("quickstart")

        def add(name: str, verb: str, *inputs: str, **options: Any) -> None:
            known[name] = Double(
                recipe=recipe,
                name=name,
                verb=verb,
                chosen={"chosen": self.choices.get(name)},
                act=self._act(name, verb, inputs, options.get("follows")),
                inputs=tuple(known[each] for each in inputs),
                **{
                    key: known[value] if key == "follows" else value
                    for key, value in options.items()
                },
            )

        add("benchmark", "render")
        add("eval-prompts", "render", "benchmark")
        add("prompts", "render")
        add("contamination", "render", "benchmark", "prompts")
        add("training-problems", "render", "prompts")
        add(
            "samples",
            "sample",
            "prompts",
            needs_ray=True,
            follows="prompts",
            after=(known["contamination"],),
        )
        add(
            "sample-verdicts",
            "grade",
            "training-problems",
            "samples",
            needs_ray=True,
            follows="samples",
        )
        add("dataset-accepted", "prepare", "samples", "sample-verdicts")
        add("checkpoint-accepted", "train", "dataset-accepted", needs_ray=True)
        for arm in self.arms:
            trained = ("checkpoint-accepted",) if arm == "accepted" else ()
            add(f"generations/{arm}", "generate", "eval-prompts", *trained, needs_ray=True)
        for arm in self.arms:
            answers = f"generations/{arm}"
            add(
                f"verdicts/{arm}",
                "grade",
                "benchmark",
                "eval-prompts",
                answers,
                needs_ray=True,
                follows=answers,
            )
        graded = [f"verdicts/{arm}" for arm in self.arms]
        add(
            "report",
            "report",
            "contamination",
            "dataset-accepted",
            "checkpoint-accepted",
            *graded,
            reads_facts=True,
        )
        return list(known.values())

    def _act(
        self, name: str, verb: str, inputs: tuple[str, ...], followed: str | None
    ) -> Callable[[Path], Facts]:
        def act(out: Path) -> Facts:
            self.made.append(name)
            for part in ("part-0", "part-1"):
                path = out / f"{part}.parquet"
                # As in a resumed stage, existing shards stay.
                if not path.exists() or path.read_text().startswith("failed"):
                    self.before(name, part)
                    files.write_atomic(
                        path, self._content(verb, part, self._essence(name, part, inputs, followed))
                    )
            if verb == "report":
                files.write_atomic(out / "scores.json", "\n".join(self._read(name)))
            self._wait([self.out / each / "manifest.json" for each in inputs])
            failed = sum(path.read_text().startswith("failed") for path in shards.shard_paths(out))
            if verb == "grade":
                return VerdictFacts(rows=2, infrastructure_errors=failed)
            return RowFacts(rows=2)

        return act

    def before(self, name: str, part: str) -> None:
        """Hook before each part; tests put crashes here."""

    def _essence(self, name: str, part: str, inputs: tuple[str, ...], followed: str | None) -> str:
        """Return a digest of all inputs of a part: of a followed input, the same part alone."""
        self._wait(
            [
                self.out / each / (f"{part}.parquet" if each == followed else "manifest.json")
                for each in inputs
            ]
        )
        read = [self._read(each, part if each == followed else "*") for each in inputs]
        text = json.dumps([name, part, self.choices.get(name), self.nature.get(name), read])
        return hashlib.sha256(text.encode()).hexdigest()

    def _wait(self, paths: list[Path]) -> None:
        until = time.monotonic() + 20
        while not all(path.exists() for path in paths):
            assert not self.dead, "the run was stopped"
            assert time.monotonic() < until, f"waited for {paths}"
            time.sleep(0.002)

    def _content(self, verb: str, part: str, essence: str) -> str:
        """Return a shard; a random last line of verdicts plays the measured times."""
        if verb == "grade":
            result = "failed" if self.failing and part == "part-1" else f"right {essence}"
            return f"{result}\n{os.urandom(4).hex()}"
        return f"{part} {essence}"

    def _read(self, name: str, part: str = "*") -> list[str]:
        return [
            path.read_text().splitlines()[0]
            for path in sorted((self.out / name).glob(f"{part}.parquet"))
        ]

    def scores(self) -> str:
        """Return the text of the report's scores.json."""
        return (self.out / "report" / "scores.json").read_text()

    def contents(self) -> dict[str, str]:
        """Return contents of all existing artifacts, without measured times."""
        names = {
            path.parent.relative_to(self.out).as_posix() for path in self.out.rglob("*.parquet")
        }
        return {
            name: "\n".join(self._read(name))
            for name in sorted(names)
            if not name.startswith("set-aside")
        }

    def stamps(self, *names: str) -> dict[str, int]:
        """Return when the manifest of each artifact was written, in nanoseconds."""
        return {name: (self.out / name / "manifest.json").stat().st_mtime_ns for name in names}


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that Ray runs, and skip slow checks of versions and disks."""
    monkeypatch.setattr(cluster, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("ssd_ray.pipeline.cluster_room.check_cluster", lambda *_, **__: None)
    monkeypatch.setattr("ssd_ray.artifacts.versions.installed", dict)
    monkeypatch.setattr(manifests, "column_digests", _first_lines)
    monkeypatch.setattr(lineage, "column_digests", _first_lines)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def _first_lines(paths: Iterable[Path]) -> dict[str, str]:
    """Return columns of doubles, without measured times. Their shards are no Parquet."""
    return {"text": "".join(path.read_text() for path in paths)}


RECORDS = frozenset({".lock", "owner.json", "progress.log"})
"""Files that every command writes into its run directory."""


def snapshot(out: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a directory, except records of commands."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in RECORDS
    }


EVENTS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"})


def die_at(number: int) -> None:
    """Kill this process before its file operation `number` from here on."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event in EVENTS or writes:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed_at(act: Callable[[], object], number: int) -> bool:
    """Call `act` in a child killed before file operation `number`; False if it ended earlier."""
    child = os.fork()
    if child == 0:
        # A child must never return into the tests of its parent, whatever its act raises.
        with contextlib.suppress(BaseException), open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            die_at(number)
            act()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed before it was killed"
    return False
