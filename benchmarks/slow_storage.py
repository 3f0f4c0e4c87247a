"""Tokens/s of sampling on slow storage, against the same on fast storage.

    python benchmarks/slow_storage.py --out figures.json [--delay-ms 20] [--rounds 1] [--cases 24]

- vLLM draws from a model of 200,000 random parameters, through Ray Data and shards. A step takes
  at least 25 or 50 ms, as on a device that works while the processor waits. So other load on the
  machine changes little.
- The two cases draw about 16 and 24 answers a second. In the second one answers are shorter and the
  batch is smaller, so storage has less time for each.
- On slow storage, a library around the C library delays each file operation of all processes in
  the run directory (`slow_storage.c`, compiled with `cc`). Reads are not delayed.
- Both draw the same answers, and the rows are compared.
- Seconds are from the first request to the last record. `batch` is the mean share of the batch with
  a request, over all steps.
- `operations` counts the delayed operations of the engine's process and of all others, an answer.

The exit status is 0 if and only if all rows are equal and the ratio is at least 0.97 in each case.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine

sys.path.insert(0, str(Path(__file__).parent.parent))
LIMIT = 0.97
SHARD_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Case:
    """Number of prompts, size of the batch, least time of a step, tokens that end an answer."""

    prompts: int
    sequences: int
    step_s: float
    end_tokens: tuple[int, ...]


CASES = {
    "16": Case(prompts=800, sequences=64, step_s=0.05, end_tokens=(2, 100, 170)),
    "24": Case(prompts=1600, sequences=32, step_s=0.025, end_tokens=(2, 100, 130, 170)),
}
"""By their answers a second."""


def on_a_device(make_engine: Callable[[], Any], case: Case, filled: Path) -> Any:
    """Start an engine with steps of some length; run by Ray in the engine's process.

    The share of the batch with a request is written to `filled` every 20 steps.
    """
    from vllm.v1.engine.llm_engine import LLMEngine

    step = LLMEngine.step
    shares: list[float] = []

    def timed_step(engine: Any) -> Any:
        until = time.monotonic() + case.step_s
        requests = len(engine.output_processor.request_states)
        shares.append(min(1.0, requests / case.sequences))
        outputs = step(engine)
        if len(shares) % 20 == 0:
            filled.write_text(str(statistics.mean(shares)))
        time.sleep(max(0.0, until - time.monotonic()))
        return outputs

    LLMEngine.step = timed_step
    return make_engine()


def write_prompts(directory: Path, count: int) -> None:
    """Write prompts as one complete shard."""
    from ssd_ray.artifacts import shards
    from ssd_ray.schema import Prompt

    rows = [
        Prompt(
            prompt_id=f"p{number}",
            source="s",
            difficulty="d",
            text="t",
            token_ids=tuple(3 + (number * 7 + place) % 250 for place in range(20)),
        )
        for number in range(count)
    ]
    shards.write_shard(directory, "prompts-00000000", rows, Prompt)
    (directory / "manifest.json").touch()


def draw(model_directory: Path, run: Path, case: Case) -> None:
    """Sample the prompts of a run directory on a Ray of this process's own."""
    from ssd_ray import cluster
    from ssd_ray.config import Decoding, EngineConfig, ModelConfig
    from ssd_ray.inference.engine_pool import EnginePool
    from ssd_ray.inference.engines import EngineSettings
    from ssd_ray.inference.generation import SamplingRun
    from ssd_ray.inference.pool import Pool, concurrent_units
    from ssd_ray.inference.vllm.arguments import engine_environment
    from ssd_ray.inference.vllm.placement import engine_resources
    from ssd_ray.inference.work.jobs import JobSpec
    from ssd_ray.inference.worker import EngineSpec
    from ssd_ray.progress import LineProgress

    engine = EngineConfig(
        enforce_eager=True, kv_cache_gib=0.25, max_num_seqs=case.sequences, cpus=1, sampler="vllm"
    )
    model = ModelConfig(
        source=str(model_directory), dtype="float32", max_model_len=1024, end_tokens=case.end_tokens
    )
    settings = EngineSettings(directory=model_directory, model=model, engine=engine, device="cpu")
    spec = EngineSpec(
        make_engine=functools.partial(on_a_device, settings.make(), case, filled(run)),
        control=run / ".engines" / "base",
        logs=run.with_name(f"{run.name}-logs"),
    )
    delays = {name: os.environ[name] for name in DELAYS if name in os.environ}
    size = Pool(
        min_engines=1,
        max_engines=1,
        concurrent_units=concurrent_units(case.sequences, SHARD_ROWS),
        resources=engine_resources(engine, "cpu"),
        environment=engine_environment(engine, "cpu") | delays,
    )
    job = JobSpec(
        stage="samples",
        key="samples",
        prompts=run / "prompts",
        out=run / "samples",
        samples=1,
        seed=0,
        decoding=Decoding(),
        max_tokens=1000,
        shard_rows=SHARD_ROWS,
    )
    progress = LineProgress()
    with (
        cluster.connected(),
        EnginePool(spec, size, max_failures=0, progress=progress) as pool,
    ):
        SamplingRun(job=job, engines=pool, ended=lambda: True, progress=progress).draw()


DELAYS = ("LD_PRELOAD", "RAY_LD_PRELOAD_ON_WORKERS", "SLOW_DIRECTORY", "SLOW_MS", "SLOW_LOG")


def filled(run: Path) -> Path:
    """Return the file with the share of the batch in use."""
    return run.with_name(f"{run.name}.filled")


def operations(log: Path, answers: int) -> dict[str, float]:
    """Count the delayed operations an answer: of the process with the journals, and of others."""
    lines = [line.split(maxsplit=4) for line in log.read_text().splitlines()]
    engines = {process for _, process, _, _, path in lines if "/.journal/" in path}
    of_engines = sum(process in engines for _, process, *_ in lines)
    return {"engine": of_engines / answers, "others": (len(lines) - of_engines) / answers}


def timed(directory: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Draw in a new process, on slow storage if the name begins so; return speed and rows."""
    from ssd_ray.artifacts import shards
    from ssd_ray.schema import Completion

    run = directory / name
    (run / "samples").mkdir(parents=True)
    case = name.rpartition("-")[2]
    write_prompts(run / "prompts", options.prompts or CASES[case].prompts)
    environment = dict(os.environ)
    log = directory / f"{name}.operations"
    if name.startswith("slow"):
        # The slash keeps the neighbors of the run directory fast.
        values = (str(directory / "slow_storage.so"), "1", f"{run}/", str(options.delay_ms))
        environment |= dict(zip(DELAYS, (*values, str(log)), strict=True))
    command = [sys.executable, __file__, "--draw", str(directory / "model"), str(run)]
    command += ["--cases", case]
    subprocess.run(command, env=environment, check=True)
    pace = json.loads((run / "samples" / "pace.json").read_text())
    rows = {
        row.prompt_id: row.output_token_ids for row in shards.read_rows(run / "samples", Completion)
    }
    return {
        **pace,
        "drawn": rows,
        "tokens_per_s": pace["tokens"] / pace["seconds"],
        "batch": float(filled(run).read_text()),
        "operations": operations(log, len(rows)) if log.exists() else {},
    }


def check_delay(directory: Path, delay_ms: float) -> None:
    """End the program if the library delays nothing here, as with a static interpreter."""
    library, log = directory / "slow_storage.so", directory / "probe.operations"
    values = (str(library), "1", f"{directory}/", str(delay_ms), str(log))
    program = (
        "import os, sys, time; began = time.monotonic(); handle = os.open(sys.argv[1], 65);"
        "os.write(handle, b'x'); os.close(handle); print(time.monotonic() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory / "probe")],
        env=os.environ | dict(zip(DELAYS, values, strict=True)),
        capture_output=True,
        text=True,
        check=True,
    )
    if float(done.stdout) < 3 * delay_ms / 1000:
        sys.exit(f"three operations took {float(done.stdout):.4f} s: no delay")


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of each case."""
    from tests.support.tiny import tiny_model

    tiny_model(directory / "model", "qwen3")
    source = Path(__file__).with_suffix(".c")
    library = directory / "slow_storage.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    check_delay(directory, options.delay_ms)
    return {name: compare(directory, name, options) for name in options.cases}


def compare(directory: Path, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return medians over the rounds of a case, fast and slow in turn."""
    runs: dict[str, list[dict[str, Any]]] = {"fast": [], "slow": []}
    for number in range(options.rounds):
        for kind, timings in runs.items():
            timings.append(timed(directory, f"{kind}-{number}-{case}", options))
            rate = timings[-1]["tokens_per_s"]
            print(f"{kind} storage, case {case}: {rate:,.0f} tok/s", flush=True)
    fast, slow = (
        statistics.median(each["tokens_per_s"] for each in timings) for timings in runs.values()
    )
    first, last = runs["fast"][0], runs["slow"][-1]
    return {
        "answers": first["rows"],
        "answers_per_s": first["rows"] / first["seconds"],
        "delay_ms": options.delay_ms,
        "fast_tokens_per_s": fast,
        "slow_tokens_per_s": slow,
        "fast_batch": first["batch"],
        "slow_batch": last["batch"],
        "operations": last["operations"],
        "ratio": slow / fast,
        "limit": LIMIT,
        "rows_equal": all(each["drawn"] == first["drawn"] for each in runs["fast"] + runs["slow"]),
    }


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--prompts", type=int, help="in place of each case's own")
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("MODEL", "RUN"))
    options = parser.parse_args()
    if options.draw:
        model, run = options.draw
        draw(model, run, CASES[options.cases[0]])
        return
    with tempfile.TemporaryDirectory() as name:
        cases = measure(Path(name), options)
    for case, figures in cases.items():
        for key, value in figures.items():
            print(f"{case:>4} {key:>20}: {value}")
    if options.out:
        options.out.write_text(json.dumps({"cases": cases, "machine": machine()}, indent=1) + "\n")
    sys.exit(any(not each["rows_equal"] or each["ratio"] < LIMIT for each in cases.values()))


if __name__ == "__main__":
    main()
