"""The chaos table: commands disturbed at random moments, and everything counted afterwards.

    python benchmarks/chaos.py --out figures.json [--only CASE...] [--stages STAGE...] [--seed 0]

1. A head and nodes of Ray start on this machine: two of samplers, one of trainers, one of graders,
   each with one core. vLLM, DeepSpeed and the sandbox are real, the model has 200,000 parameters.
2. `ssd-ray run` makes the undisturbed run. With `--keep DIR` it is made once for many calls.
3. Each case disturbs each stage that it can hit, at a random moment. The moment and every other
   choice follow from the seed, the case and the stage.
4. The run is compared with the undisturbed one, and the cluster is searched for leftovers.

Rows of `--out` with the same seed are kept and not measured again. A case whose command fails or
does not end has no row: its sentence is on record instead, and a later call tries it again. The
exit status is 0 if and only if no case failed and every row reaches the bars of `misses`.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from chaos_cases import CASES, Case, Scene, volume, wait_for_moment
from chaos_nodes import LocalTarget, local_target
from chaos_record import CHECKPOINT_EVERY, Failure, Record, Row, markdown, verdict
from chaos_recovery import longest_pause_s, role_back_s, worker_seconds_lost
from chaos_target import Command, Target
from chaos_watch import STAGES, Stage, Watch, compare

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WAIT_S = 600
RETRIES = 3
SIZES = {"sampler": 2, "trainer": 1, "grader": 1}
SLOW_MS = 1000
RECIPE = f"""
name: chaos
description: a random model, to prove the machinery
model: {{source: MODEL, dtype: float32, max_model_len: 1024}}
prompts: {{source: builtin, split: train, limit: 24}}
sample: {{temperature: 1.2, top_k: 20, top_p: 0.95, samples_per_prompt: 6, max_tokens: 240,
  shard_rows: 4}}
prepare: {{policies: {{stub: keep}}, max_length: 1024}}
train: {{steps: 40, global_batch_size: 4, micro_batch_tokens: 256, learning_rate: 1.0e-3,
  min_learning_rate: 1.0e-4, warmup_steps: 2, dtype: float32,
  checkpoint_every: {CHECKPOINT_EVERY}, gradient_checkpointing: false}}
evaluate:
  benchmarks: [builtin, humaneval]
  limit: 24
  arms:
    base: {{model: base, temperature: 0.7}}
    ssd: {{model: ssd, temperature: 0.9, top_k: 20}}
  samples_per_problem: 2
  pass_at: [1, 2]
  max_tokens: 48
engine: {{enforce_eager: true, kv_cache_gib: 0.25, max_num_seqs: 4, cpus: 1}}
cluster: {{device: cpu, roles: required, min_engines: 2, max_engines: 2}}
"""


class FailedCaseError(Exception):
    """A case without a row; the message is the sentence for the record."""


class Bench:
    """A target, a recipe, the undisturbed run, and the cases measured on them."""

    def __init__(self, directory: Path, target: Target, options: argparse.Namespace) -> None:
        self._directory = directory
        self._target = target
        self._options = options
        self._recipe = directory / "chaos.yaml"
        self._reference = directory / "reference"

    def prepare(self, stages: set[str]) -> None:
        """Make model, recipe, and as much of the undisturbed run as the stages need."""
        from tests.support.tiny import tiny_model

        if not self._recipe.exists():
            model = tiny_model(self._directory / "model", "qwen3")
            self._recipe.write_text(RECIPE.replace("MODEL", str(model)))
        verb = last_of(stages)
        if is_made(self._reference, verb):
            return
        log = self._directory / "reference.log"
        command = self._target.start(verb, self._recipe, self._reference, log)
        status = self._wait(command)
        if status:
            sys.exit(f"the undisturbed run failed: {log.read_text()[-3000:]}")
        left = self._target.leftovers()
        if any(asdict(left).values()):
            sys.exit(f"the undisturbed run left behind: {left}")

    def measure(self, case: Case, name: str) -> Row:
        """Disturb one stage and count."""
        place = self._directory / ("slow" if case.slow else "runs") / f"{case.name}-{name}"
        shutil.rmtree(place, ignore_errors=True)
        self._target.restore()
        with volume(place) if case.volume else nullcontext():
            place.mkdir(parents=True, exist_ok=True)
            return self._measure(case, name, place / "run")

    def _measure(self, case: Case, name: str, run: Path) -> Row:
        stage = STAGES[name]
        run.mkdir()
        for part in stage.inputs:
            shutil.copytree(self._reference / part, run / part)
        log = self._directory / f"{case.name}-{name}.log"
        log.unlink(missing_ok=True)
        begin = self._target.submit if case.as_job else self._target.start

        def start() -> Command:
            return begin(stage.verb, self._recipe, run, log)

        chance = random.Random(f"{self._options.seed} {case.name} {name}")
        moment = chance.uniform(0.1, 0.7)
        total = self._total(stage)
        scene = Scene(
            target=self._target,
            stage=stage,
            run=run,
            watch=Watch(self._target, stage, run),
            command=start(),
            again=start,
            chance=chance,
            minute=self._options.minute,
        )
        try:
            wait_for_moment(scene, max(1, round(total * moment)), WAIT_S)
            last = scene.watch.look()
            done, before = last.done, last.workers
            if done >= total:
                raise FailedCaseError("the stage was over before the strike")
            struck = time.monotonic()
            case.act(scene)
            commands = self._finish(scene, case)
            seconds = time.monotonic() - struck
        except (RuntimeError, TimeoutError) as error:
            raise FailedCaseError(str(error)) from error
        finally:
            scene.watch.close()
            for command in (scene.command, *scene.others):
                if command.poll() is None:
                    command.kill()
        return self._row(case, name, scene, (moment, done, before, struck, seconds, commands))

    def _row(self, case: Case, name: str, scene: Scene, strike: tuple[Any, ...]) -> Row:
        moment, done, before, struck, seconds, commands = strike
        left = self._target.leftovers()
        _, alive = psutil.wait_procs(scene.family, timeout=10)
        compared = compare(scene.stage, scene.run, self._reference)
        watch = scene.watch
        return Row(
            case=case.name,
            stage=name,
            seed=self._options.seed,
            moment=moment,
            at=done,
            role_back_s=role_back_s(watch.samples, struck, before),
            pause_s=longest_pause_s(watch.samples, struck, done),
            worker_seconds_lost=worker_seconds_lost(watch.samples, struck, before),
            seconds=seconds,
            commands=commands,
            answers_again=scene.answers_in_flight + watch.answers_lost,
            answers_lost_from_disk=watch.answers_lost,
            steps_again=watch.steps_again,
            verdicts_again=scene.verdicts_at_work + watch.verdicts_again,
            verdicts_rewritten=watch.verdicts_again,
            lost=compared.lost,
            doubled=compared.doubled,
            different=compared.different,
            equal=compared.digests_equal,
            left=(
                *(f"process {each}" for each in left.processes),
                *(f"process {each.pid} of a victim" for each in alive),
                *(f"actor {each}" for each in left.actors),
                *(f"placement group {each}" for each in left.placement_groups),
                *(f"file {each}" for each in compared.files_left),
            ),
            notes=tuple(scene.notes),
            minute=self._options.minute,
            date=datetime.date.today().isoformat(),
        )

    def _total(self, stage: Stage) -> int:
        """Return the units of a finished stage."""
        from ssd_ray.artifacts import shards
        from ssd_ray.training.state.logs import read_log

        paths = [self._reference / artifact for artifact in stage.artifacts]
        if stage.verb == "train":
            return len(read_log(paths[0]))
        return sum(len(list(shards.read_columns(path, "prompt_id"))) for path in paths)

    def _finish(self, scene: Scene, case: Case) -> int:
        """Wait for success, start the command again where the case may end it; count the starts."""
        commands, command = 1, scene.command
        while status := self._wait(command):
            sentence = f"status {status}: {command.tail()}"
            if commands > RETRIES or not case.may_end:
                raise FailedCaseError(sentence)
            scene.notes.append(sentence)
            commands += 1
            command = scene.command = scene.again()
        for other in scene.others:
            if status := self._wait(other):
                raise FailedCaseError(f"the second command: status {status}: {other.tail()}")
        return commands

    @staticmethod
    def _wait(command: Command) -> int:
        """Wait for the end of a command and return its exit status."""
        until = time.monotonic() + WAIT_S
        while (status := command.poll()) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"no end within {WAIT_S} s: {command.tail()}")
            time.sleep(0.1)
        return status


def last_of(stages: set[str]) -> str:
    """Return the last of some stages in the order of a run."""
    return next(verb for verb in reversed(STAGES) if verb in stages)


def is_made(run: Path, verb: str) -> bool:
    """Return True if a run directory has the complete artifacts of a verb."""
    return all((run / each / "manifest.json").exists() for each in STAGES[verb].artifacts)


@contextmanager
def started(directory: Path, stages: set[str], *, slow: bool) -> Iterator[LocalTarget]:
    """Start the cluster with the roles of stages, and of those that the reference lacks.

    Its storage below `slow/` may be slow.
    """
    environment = {}
    if slow:
        source = Path(__file__).with_name("slow_storage.c")
        library = directory / "slow_storage.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True
        )
        environment = {
            "LD_PRELOAD": str(library),
            "RAY_LD_PRELOAD_ON_WORKERS": "1",
            "SLOW_DIRECTORY": f"{directory / 'slow'}/",
            "SLOW_MS": str(SLOW_MS),
            "SLOW_OPERATIONS": "rename",
        }
    verbs = list(STAGES)
    before = verbs[: verbs.index(last_of(stages)) + 1]
    needed = {*stages, *(verb for verb in before if not is_made(directory / "reference", verb))}
    if "grade" in needed and not is_made(directory / "reference", "grade"):
        # Its answers.
        needed.add("sample")
    sizes = {STAGES[verb].role: SIZES[STAGES[verb].role] for verb in verbs if verb in needed}
    with local_target(directory, sizes, environment) as target:
        yield target


def wanted(options: argparse.Namespace, known: list[Row]) -> list[tuple[Case, str]]:
    """Return the cases and stages to measure, the slow storage last; some need root."""
    done = {(row.case, row.stage) for row in known if row.seed == options.seed}
    pairs = [
        (case, stage)
        for case in CASES.values()
        for stage in case.stages
        if case.name in options.only and stage in options.stages
        if (case.name, stage) not in done
    ]
    for case in {case.name: case for case, _ in pairs if case.volume and os.getuid()}.values():
        print(f"{case.name} mounts a volume, which needs root: left out", file=sys.stderr)
    pairs = [(case, stage) for case, stage in pairs if not (case.volume and os.getuid())]
    return sorted(pairs, key=lambda pair: pair[0].slow)


def measure_all(directory: Path, options: argparse.Namespace, record: Record) -> None:
    """Measure the wanted cases, with a bar of progress, and record each at once."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    until = time.monotonic() + options.within
    if options.played and not is_made(directory / "reference", "grade"):
        play(directory)
    pairs = wanted(options, record.rows)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as bars:
        bar = bars.add_task("undisturbed run", total=len(pairs))
        for slow in (False, True):
            part = [(case, stage) for case, stage in pairs if case.slow == slow]
            if not part:
                continue
            stages = {stage for _, stage in part}
            with started(directory, stages, slow=slow) as target:
                bench = Bench(directory, target, options)
                bench.prepare(stages)
                for case, stage in part:
                    if time.monotonic() > until:
                        return
                    bars.update(bar, description=f"{case.name}, {stage}, seed {options.seed}")
                    result = attempt(bench, case, stage, options.seed)
                    record.add(result)
                    bars.advance(bar)
                    bars.console.print(f"{case.name}, {stage}: {verdict(result)}")


def play(directory: Path) -> None:
    """Make an undisturbed run with played answers, in this process."""
    from tests.support import played_answers
    from tests.support.tiny import tiny_model

    model = tiny_model(directory / "model", "qwen3")
    played_answers.make(directory, model, "evaluate.benchmarks=[builtin,humaneval]")


def attempt(bench: Bench, case: Case, stage: str, seed: int) -> Row | Failure:
    """Measure a case, or return the sentence of its failure."""
    try:
        return bench.measure(case, stage)
    except FailedCaseError as error:
        date = datetime.date.today().isoformat()
        sentence = str(error).splitlines()[0]
        return Failure(case=case.name, stage=stage, seed=seed, sentence=sentence, date=date)


def main() -> None:
    """Measure, print the table, and end with 1 if a row misses a bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minute", type=float, default=60.0, help="seconds of a minute")
    parser.add_argument("--keep", type=Path, help="directory for runs, to be used again")
    parser.add_argument(
        "--played", action="store_true", help="only grade, and answers of no engine"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--within", type=float, default=math.inf, help="seconds after which no case begins"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    options = parser.parse_args()
    if options.played:
        options.stages = ["grade"]
    if options.list:
        for case in CASES.values():
            print(f"{case.name:<18} {', '.join(case.stages):<22} {case.how}")
        return
    # The cluster's processes have sessions of their own: only `close` ends them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as name:
        directory = (options.keep or Path(name)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        record = Record.read(options.out)
        measure_all(directory, options, record)
    print(markdown(record.rows))
    missed = [row for row in record.rows if row.misses()]
    for result in (*missed, *record.failures):
        print(f"{result.case}, {result.stage}: {verdict(result)}")
    sys.exit(bool(missed or record.failures))


if __name__ == "__main__":
    main()
