"""Cases of the chaos table: small functions that disturb a command at work.

`CASES` holds them by name. Each gets a `Scene`, a moment after the strike's time has come, and
returns once its own part is over. The benchmark then waits for the command.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from chaos_target import Command, Target, family, is_at_work, send
from chaos_watch import SLICE_ROWS, Stage, Watch, in_flight, pids_of, wait_until

MAX_NUM_SEQS = 4
"""Answers that an engine of the recipe draws at a time."""
VOLUME_BYTES = 256 << 20
LIMIT_S = 60.0
"""Longest time until a worker exceeds its limit of memory."""


@dataclass
class Scene:
    """A command at work, the cluster below it, and the means to disturb both."""

    target: Target
    stage: Stage
    run: Path
    watch: Watch
    command: Command
    again: Callable[[], Command]
    """Start or submit the same command once more."""
    chance: random.Random
    minute: float
    """Seconds of a minute in the cases; a short test has a shorter one."""
    answers_in_flight: int = 0
    verdicts_at_work: int = 0
    family: list[psutil.Process] = field(default_factory=list)
    """Processes of the victims, which may not outlive the command."""
    notes: list[str] = field(default_factory=list)
    others: list[Command] = field(default_factory=list)
    """Further commands, which have to end with success too."""

    def worker(self) -> psutil.Process:
        """Choose a worker of the stage's role."""
        return self.chance.choice(self.target.workers(self.stage.role))

    def place(self) -> str:
        """Choose a place with a worker of the stage's role."""
        places = self.target.places(self.stage.role)
        return self.chance.choice([each for each in places if self.target.workers_at(each)])

    def lose(self, workers: Iterable[psutil.Process]) -> None:
        """Count the work in progress of workers about to be lost."""
        workers = list(workers)
        self.family += family(workers)
        if self.stage.verb == "sample":
            self.answers_in_flight += in_flight(self.run, pids_of(workers), MAX_NUM_SEQS)
        if self.stage.verb == "grade":
            self.verdicts_at_work += SLICE_ROWS * len(workers)

    def lose_all(self) -> None:
        """Count the work in progress of all workers."""
        self.lose(self.target.workers(self.stage.role))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case of the table."""

    name: str
    how: str
    act: Callable[[Scene], None]
    stages: tuple[str, ...]
    may_end: bool = False
    """True if the command may fail; the same command then resumes."""
    as_job: bool = False
    """True if the command is submitted as a job."""
    notice: bool = False
    """True if no step of training may be done again."""
    volume: bool = False
    """True if the run directory is on a volume of its own (needs root)."""
    slow: bool = False
    """True if each rename in the run directory takes a second."""


CASES: dict[str, Case] = {}
ALL = ("sample", "train", "grade")


def _case(name: str, how: str, *stages: str, **choices: bool) -> Callable[..., Callable]:
    def register(act: Callable[[Scene], None]) -> Callable[[Scene], None]:
        CASES[name] = Case(name=name, how=how, act=act, stages=stages or ALL, **choices)
        return act

    return register


@_case("worker-kill", "SIGKILL to an engine, a training process, a grader")
def kill_worker(scene: Scene) -> None:
    """Kill one worker."""
    victim = scene.worker()
    scene.lose([victim])
    victim.kill()


@_case("worker-stop", "SIGSTOP for a minute to an engine, a training process, a grader")
def stop_worker(scene: Scene) -> None:
    """Stop one worker, and continue it a minute later."""
    members = family([scene.worker()])
    send(members, signal.SIGSTOP)
    time.sleep(scene.minute)
    send(members, signal.SIGCONT)


@_case("worker-memory", "a limit of memory is exceeded by an engine, a grader", "sample", "grade")
def limit_memory(scene: Scene) -> None:
    """Let one worker exceed a limit."""
    victim = scene.worker()
    scene.lose([victim])
    scene.notes.append(scene.target.limit_memory(victim))
    wait_until(lambda: not is_at_work(victim), LIMIT_S, "a worker to exceed its limit of memory")


@_case("driver-kill", "SIGKILL to the driver, and the same command again", may_end=True)
def kill_driver(scene: Scene) -> None:
    """Kill the driver."""
    scene.lose_all()
    scene.family += scene.command.kill()


@_case("job-stop", "`ray job stop`, and the same job again", may_end=True, as_job=True, notice=True)
def stop_job(scene: Scene) -> None:
    """Stop the submitted job."""
    scene.lose_all()
    scene.command.stop()


@_case("twice", "the same command a second time while the first is at work")
def start_twice(scene: Scene) -> None:
    """Start the command once more."""
    scene.others.append(scene.again())


@_case("node-kill", "SIGKILL to a node; another comes at once")
def kill_node(scene: Scene) -> None:
    """Kill a node with a worker, and start another."""
    victim = scene.place()
    scene.lose(scene.target.workers_at(victim))
    scene.target.kill(victim)
    scene.target.add(scene.stage.role)


@_case("node-lost", "SIGKILL to a node, and no other comes", "sample")
def lose_node(scene: Scene) -> None:
    """Kill a node with a worker."""
    victim = scene.place()
    scene.lose(scene.target.workers_at(victim))
    scene.target.kill(victim)


@_case("node-notice", "half a minute of notice, then SIGKILL to a node", notice=True)
def take_node(scene: Scene) -> None:
    """Announce the end of a node, kill it, and start another."""
    victim = scene.place()
    _take(scene, [victim])
    scene.target.add(scene.stage.role)


@_case("samplers-kill", "SIGKILL to all nodes of samplers, back after a minute", "sample")
def kill_samplers(scene: Scene) -> None:
    """Kill all places of samplers."""
    victims = scene.target.places("sampler")
    scene.lose_all()
    for victim in victims:
        scene.target.kill(victim)
    time.sleep(scene.minute)
    for _ in victims:
        scene.target.add("sampler")


@_case("samplers-notice", "the same, with half a minute of notice", "sample", notice=True)
def take_samplers(scene: Scene) -> None:
    """Announce the end of all places of samplers, and kill them."""
    victims = scene.target.places("sampler")
    _take(scene, victims)
    time.sleep(scene.minute)
    for _ in victims:
        scene.target.add("sampler")


def _take(scene: Scene, places: list[str]) -> None:
    """Announce the end of places, wait for their workers to end or the deadline, and kill them."""
    notice_s = scene.minute / 2
    for place in places:
        scene.target.notice(place, notice_s)
    until = time.monotonic() + notice_s
    while time.monotonic() < until and any(map(scene.target.workers_at, places)):
        time.sleep(0.2)
    for place in places:
        scene.lose(scene.target.workers_at(place))
        scene.target.kill(place)


@_case("cut-off", "SIGSTOP to all processes of a node for 90 s, then back")
def cut_off(scene: Scene) -> None:
    """Cut a place off, and let it come back."""
    victim = scene.place()
    scene.lose(scene.target.workers_at(victim))
    scene.target.cut_off(victim)
    time.sleep(1.5 * scene.minute)
    scene.target.rejoin(victim)


@_case("volume-full", "no space left for a third of a minute", may_end=True, volume=True)
def fill_volume(scene: Scene) -> None:
    """Fill the volume of the run directory, and make room again."""
    scene.lose_all()
    filler = scene.run.parent / "filler"
    with filler.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(1 << 16))
        except OSError:
            pass
    time.sleep(scene.minute / 3)
    filler.unlink()


@_case("volume-read-only", "read-only for a third of a minute", may_end=True, volume=True)
def read_only(scene: Scene) -> None:
    """Mount the volume once more on itself, read-only: open files can still be written."""
    scene.lose_all()
    volume = str(scene.run.parent)
    subprocess.run(["mount", "--bind", volume, volume], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", volume], check=True)
        time.sleep(scene.minute / 3)
    finally:
        # Lazily: a process may have a file of this mount open.
        subprocess.run(["umount", "-l", volume], check=True)


@_case("volume-slow", "each rename takes a second, from begin to end", slow=True)
def be_slow(scene: Scene) -> None:
    """Do nothing more: the storage is slow from the beginning."""


@contextmanager
def volume(directory: Path) -> Iterator[Path]:
    """Mount a volume in memory for the length of a block."""
    directory.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={VOLUME_BYTES}", "tmpfs", str(directory)]
    subprocess.run(["mount", *options], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        shutil.rmtree(directory)


def wait_for_moment(scene: Scene, goal: int, timeout_s: float) -> None:
    """Wait until a run has `goal` units on disk, and a worker.

    Raises:
        RuntimeError: the command ended first.
    """

    def has_come() -> bool:
        # On a busy machine, one engine may be done before another has loaded its model.
        if scene.watch.done >= goal and scene.watch.workers:
            return True
        if scene.command.poll() is not None:
            raise RuntimeError(f"the command ended before the moment: {scene.command.tail()}")
        return False

    wait_until(has_come, timeout_s, f"{goal} units on disk")
