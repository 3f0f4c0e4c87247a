"""Runs below the directories on the command line: names, states, sources of answers.

A page names a run, never a path. So no request can lead out of the directories on the command line,
and a link to elsewhere is left out. Reads names and owner.json. Writes nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ssd_ray.artifacts.files import Json, names
from ssd_ray.errors import UserError

_MAX_DEPTH = 6
"""Directories between one on the command line and a run in it."""
_SILENT_S = 90.0
"""Age of the last sign of life after which a run counts as stopped."""
_CONTAINERS = {"generations", "verdicts", "verdicts-lcb", "logs", "ledger", "set-aside", "tests"}
State = Literal["complete", "running", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A directory of answers, and the directories of their verdicts and prompts."""

    name: str
    stage: str
    """`samples`, `generations` or `completions`."""
    arm: str
    answers: Path
    verdicts: Path | None
    other_verdicts: Path | None
    """Verdicts of the second profile."""
    prompts: Path | None


@dataclass(frozen=True)
class Run:
    """A run directory under its name on the pages."""

    name: str
    path: Path
    root: Path

    def inside(self, *parts: str) -> Path | None:
        """Return a path of the run, or None where a link leads out of the directories."""
        path = self.path.joinpath(*parts)
        return path if contained(path, self.root) else None

    @property
    def exists(self) -> bool:
        """True while the directory is there."""
        return self.path.is_dir()

    def sources(self) -> list[Source]:
        """Return directories with answers, evaluation first."""
        every = [*self._arms(), *self._samples(), *self._completions()]
        return [source for source in every if contained(source.answers, self.root)]

    def _arms(self) -> Iterator[Source]:
        for arm in sorted(names(self.path / "generations"), key=_arm_order):
            answers = self.path / "generations" / arm
            if not arm.startswith(".") and answers.is_dir():
                yield Source(
                    name=f"generations/{arm}",
                    stage="generations",
                    arm=arm,
                    answers=answers,
                    verdicts=self._directory("verdicts", arm),
                    other_verdicts=self._directory("verdicts-lcb", arm),
                    prompts=self._directory("eval-prompts"),
                )

    def _samples(self) -> Iterator[Source]:
        for name in sorted(names(self.path)):
            if name != "samples" and not name.startswith("samples-"):
                continue
            if (self.path / name / "fingerprint.json").exists():
                yield self._samples_in(name, name, name.replace("samples", "sample-verdicts", 1))
                continue
            # A forecast has samples of several temperatures, and verdicts on those of its base.
            for arm in sorted(names(self.path / name), key=_arm_order):
                if (self.path / name / arm / "fingerprint.json").exists():
                    verdicts = "sample-verdicts" if arm == "base" else ""
                    yield self._samples_in(f"{name}/{arm}", arm, verdicts)

    def _samples_in(self, name: str, arm: str, verdicts: str) -> Source:
        return Source(
            name=name,
            stage="samples",
            arm=arm,
            answers=self.path / name,
            verdicts=self._directory(verdicts) if verdicts else None,
            other_verdicts=None,
            prompts=self._directory("prompts"),
        )

    def _completions(self) -> Iterator[Source]:
        if (self.path / "completions").is_dir():
            yield Source(
                name="completions",
                stage="completions",
                arm="completions",
                answers=self.path / "completions",
                verdicts=self._directory("verdicts"),
                other_verdicts=None,
                prompts=None,
            )

    def _directory(self, *parts: str) -> Path | None:
        path = self.inside(*parts)
        return path if path is not None and path.is_dir() else None

    def state(self) -> State:
        """Return `complete`, `running` or `stopped`, from files alone: no lock is tried."""
        ends = ("report/manifest.json", "verdicts/manifest.json")
        if any((self.path / end).exists() for end in ends):
            return "complete"
        signs = [self.path / "owner.json", self.path / "logs" / "progress.log"]
        ages = [time.time() - path.stat().st_mtime for path in signs if path.exists()]
        owner = read_document(self.path / "owner.json")
        is_open = owner.get("outcome", "unknown") is None
        return "running" if is_open and ages and min(ages) < _SILENT_S else "stopped"

    def arms(self) -> tuple[str, ...]:
        """Return the arms with answers."""
        return tuple(source.arm for source in self.sources() if source.stage == "generations")


def contained(path: Path, root: Path) -> bool:
    """Return True if a path, its links followed, is in `root`."""
    real = os.path.realpath(path)
    return real == str(root) or real.startswith(f"{root}{os.sep}")


def _arm_order(name: str) -> tuple[bool, str]:
    # The baseline is called base in nearly every recipe, and is read first.
    return not name.startswith("base"), name


@dataclass
class Runs:
    """The runs below some directories, by name."""

    roots: tuple[Path, ...]
    _known: dict[str, Run] = field(default_factory=dict)
    _known_probes: dict[str, Path] = field(default_factory=dict)
    _scanned_at: float = -1e9

    @classmethod
    def below(cls, directories: Sequence[Path]) -> Runs:
        """Return the runs below directories.

        Raises:
            UserError: a directory is missing.
        """
        for directory in directories:
            if not directory.is_dir():
                raise UserError(f"{directory} is no directory: give a run directory or one above")
        return cls(tuple(Path(os.path.realpath(each)) for each in directories))

    def all(self) -> dict[str, Run]:
        """Return runs by name; directories are walked again after two seconds."""
        if time.monotonic() - self._scanned_at > 2:
            known: dict[str, Run] = {}
            for root in self.roots:
                for path in _walk(root, 0):
                    run = Run(self._name(path, root, known), path, root)
                    known[run.name] = run
            self._known = known
            self._known_probes = {
                str(page.parent.relative_to(root)) if page.parent != root else root.name: page
                for root in self.roots
                for page in _probes(root, 0)
            }
            self._scanned_at = time.monotonic()
        return self._known

    def probes(self) -> dict[str, Path]:
        """Return the pages of probes by name; they are looked for together with the runs."""
        self.all()
        return self._known_probes

    def _name(self, path: Path, root: Path, known: dict[str, Run]) -> str:
        inner = "" if path == root else str(path.relative_to(root))
        several = len(self.roots) > 1
        name = f"{root.name}/{inner}" if inner and several else inner or root.name
        return name if name not in known else str(path)

    def get(self, name: str) -> Run:
        """Return a run by name.

        Raises:
            UserError: there is none, or its directory was deleted.
        """
        run = self.all().get(name)
        if run is None or not run.exists:
            raise UserError(
                f"there is no run {name!r} below the directories of this command: it was deleted "
                "or renamed, or the link is from other directories"
            )
        return run


def _probes(path: Path, depth: int) -> Iterator[Path]:
    """Yield the pages of probes at and below a path; links are not followed."""
    inner = set(names(path))
    if {"probe.html", "heads.parquet"} <= inner and not (path / "probe.html").is_symlink():
        yield path / "probe.html"
    # Artifacts hold no probes, and their shards may be many.
    if depth == _MAX_DEPTH or "fingerprint.json" in inner:
        return
    for name in sorted(inner - _CONTAINERS):
        child = path / name
        if not name.startswith(".") and child.is_dir() and not child.is_symlink():
            yield from _probes(child, depth + 1)


def _walk(path: Path, depth: int) -> Iterator[Path]:
    """Yield run directories at and below a path; links are not followed."""
    inner = set(names(path))
    if "fingerprint.json" in inner:
        return
    if _is_run(path, inner):
        yield path
    if depth == _MAX_DEPTH:
        return
    for name in sorted(inner - _CONTAINERS):
        child = path / name
        if not name.startswith(".") and child.is_dir() and not child.is_symlink():
            yield from _walk(child, depth + 1)


def _is_run(path: Path, inner: set[str]) -> bool:
    if "recipe.yaml" in inner or "generations" in inner:
        return True
    artifacts = ("samples", "completions")
    return any((path / name / "fingerprint.json").exists() for name in artifacts)


def read_document(path: Path) -> Json:
    """Return a JSON object; {} if the file is missing, half-written or no object."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
