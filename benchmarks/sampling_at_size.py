"""A million prompts through `sample` with instant engines: rows/s, driver memory, resuming.

    python benchmarks/sampling_at_size.py --prompts 1000000 --out figures.json

Only the engine is a double. Source, Ray Data, workers, journals, shards, ledger, audit and
digests are real. Prompts are rendered in advance, in shards of 1,024 rows.

1. A run of a tenth of the size gives the driver's memory for comparison.
2. A full run is killed at half of its rows (SIGKILL to the driver) and resumed to the end.
3. A full, undisturbed run gives the rows per second.

The peer is a bare loop that writes the same shards in one process.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

import psutil
from machine import machine

ROWS_PER_SECOND, DRIVER_GIB, RESUME_S = 4_000, 1.5, 60
PROMPT_SHARD_ROWS = 1024
PROMPT_TOKENS, ANSWER_TOKENS = 64, 64


class Echo:
    """An engine double: answers at once with as many tokens as a short program has."""

    tokens_drawn = types.MappingProxyType({})

    def submit(self, request):
        """Return a finished future."""
        from concurrent.futures import Future

        from ssd_ray.inference.vllm.engine import Answer

        future = Future()
        start = request.seed % 1000
        ids = tuple(range(start, start + ANSWER_TOKENS))
        future.set_result(
            Answer(output_token_ids=ids, text=f"print({request.seed})\n" * 8, finish_reason="stop")
        )
        return future


def render(out: Path, count: int) -> None:
    """Write prompt shards and a manifest, as `render` does."""
    import pyarrow as pa

    from ssd_ray.artifacts.shards import write_table
    from ssd_ray.schema import Prompt, arrow_schema

    for start in range(0, count, PROMPT_SHARD_ROWS):
        numbers = range(start, min(start + PROMPT_SHARD_ROWS, count))
        columns = {
            "prompt_id": [f"prompt-{number}" for number in numbers],
            "source": ["benchmark"] * len(numbers),
            "difficulty": ["unknown"] * len(numbers),
            "text": [f"Write program {number}. " * 8 for number in numbers],
            "statement": [f"Write program {number}." for number in numbers],
            "token_ids": [
                list(range(number % 100, number % 100 + PROMPT_TOKENS)) for number in numbers
            ],
        }
        write_table(out, f"prompts-{start:08}", pa.table(columns, schema=arrow_schema(Prompt)))
    (out / "manifest.json").touch()


def drive(prompts: Path, out: Path, shard_rows: int, engines: int) -> None:
    """Draw one answer to each prompt; this is the driver whose memory is measured."""
    from ssd_ray import cluster
    from ssd_ray.config import Decoding
    from ssd_ray.inference.engine_pool import EnginePool
    from ssd_ray.inference.generation import SamplingRun
    from ssd_ray.inference.pool import Pool
    from ssd_ray.inference.vllm.placement import Resources
    from ssd_ray.inference.work.jobs import JobSpec
    from ssd_ray.inference.worker import EngineSpec
    from ssd_ray.progress import LineProgress

    out.mkdir(exist_ok=True)
    job = JobSpec(
        stage="samples",
        key="samples",
        prompts=prompts,
        out=out,
        samples=1,
        seed=0,
        decoding=Decoding(),
        max_tokens=ANSWER_TOKENS,
        shard_rows=shard_rows,
    )
    spec = EngineSpec(
        make_engine=Echo, control=out.with_name(f".{out.name}"), logs=out.parent / "logs"
    )
    size = Pool(
        min_engines=engines,
        max_engines=engines,
        concurrent_units=2,
        resources=Resources(1, 0, {"num_cpus": 1}),
    )
    progress = LineProgress(10)
    with (
        cluster.connected(),
        EnginePool(spec, size, max_failures=3, progress=progress) as pool,
    ):
        facts = SamplingRun(job=job, engines=pool, ended=lambda: True, progress=progress).draw()
    (out / "facts.json").write_text(json.dumps(facts.document()))


def watched(
    prompts: Path, out: Path, options: argparse.Namespace, kill_at: int = 0
) -> dict[str, float]:
    """Run a driver process; return seconds to the first shard and the end, and peak memory."""
    command = [sys.executable, __file__, "--drive", str(prompts), str(out)]
    command += ["--shard-rows", str(options.shard_rows), "--engines", str(options.engines)]
    there = set(out.glob("*.parquet")) if out.exists() else set()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        )
    }
    began, peak, first, next_look = time.perf_counter(), 0, 0.0, 0.0
    driver = psutil.Popen(command, env=environment)
    while driver.poll() is None:
        try:
            peak = max(peak, driver.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        now = time.perf_counter()
        if not first or (kill_at and now > next_look):
            next_look = now + 1.0
            shards = (
                [name for name in os.listdir(out) if name.endswith(".parquet")]
                if out.exists()
                else []
            )
            first = first or (now - began if len(shards) > len(there) else 0.0)
            if kill_at and len(shards) * options.shard_rows >= kill_at:
                driver.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    driver.wait()
    if driver.returncode and not kill_at:
        sys.exit("the driver failed")
    return {
        "seconds": time.perf_counter() - began,
        "first_shard_s": first,
        "driver_peak_gib": peak / 2**30,
    }


def bare(out: Path, count: int, shard_rows: int) -> float:
    """Return rows/s of one process that asks the double and writes shards in a loop."""
    from ssd_ray.artifacts import files
    from ssd_ray.artifacts.ledger import Ledger, Span
    from ssd_ray.config import Decoding
    from ssd_ray.inference.vllm.engine import Request
    from ssd_ray.inference.work.shards import Drawn, write_completions
    from ssd_ray.schema import Prompt

    out.mkdir()
    ledger = Ledger(out, "bare")
    engine, began = Echo(), time.perf_counter()
    prompts = [
        Prompt(
            prompt_id=f"p{n}", source="s", difficulty="d", text="t", token_ids=(1,) * PROMPT_TOKENS
        )
        for n in range(1024)
    ]
    for start in range(0, count, shard_rows):
        drawn = []
        for number in range(start, start + shard_rows):
            prompt = prompts[number % len(prompts)]
            request = Request(
                prompt_token_ids=prompt.token_ids,
                seed=number,
                decoding=Decoding(),
                max_tokens=ANSWER_TOKENS,
            )
            answer = engine.submit(request).result()
            drawn.append(Drawn(prompt=prompt, sample_index=0, seed=number, answer=answer))
        write_completions(ledger, Span("prompts", start, start + shard_rows), drawn, ())
    files.make_directory(out)
    return count / (time.perf_counter() - began)


def check(out: Path, count: int) -> None:
    """Exit unless every key occurs exactly once."""
    from ssd_ray.artifacts.shards import read_columns

    seen = bytearray(count)
    for (prompt_id,) in read_columns(out, "prompt_id"):
        number = int(prompt_id.removeprefix("prompt-"))
        if seen[number]:
            sys.exit(f"{prompt_id} was drawn twice")
        seen[number] = 1
    if not all(seen):
        sys.exit(f"{seen.count(0)} rows are missing")


def measure(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the figures."""
    count, small = options.prompts, max(options.shard_rows, options.prompts // 10)
    render(directory / "few", small)
    render(directory / "many", count)
    few = watched(directory / "few", directory / "few-out", options)
    killed = watched(directory / "many", directory / "out", options, kill_at=count // 2)
    kept = {path: path.stat().st_mtime_ns for path in (directory / "out").glob("*.parquet")}
    resumed = watched(directory / "many", directory / "out", options)
    check(directory / "out", count)
    if any(path.stat().st_mtime_ns != stamp for path, stamp in kept.items()):
        sys.exit("resuming changed a complete shard")
    whole = watched(directory / "many", directory / "whole", options)
    check(directory / "whole", count)
    alone = bare(directory / "bare", min(count, 50 * options.shard_rows), options.shard_rows)
    pace = json.loads((directory / "whole" / "pace.json").read_text())
    rate = pace["rows"] / pace["seconds"]
    return {
        "prompts": count,
        "shard_rows": options.shard_rows,
        "engines": options.engines,
        "rows_per_s": rate,
        "rows_per_s_start_to_end": count / whole["seconds"],
        "bare_loop_rows_per_s": alone,
        "ratio": rate / alone,
        "driver_peak_gib": whole["driver_peak_gib"],
        "driver_peak_gib_at_a_tenth": few["driver_peak_gib"],
        "killed_with_rows": len(kept) * options.shard_rows,
        "killed_after_s": killed["seconds"],
        "first_row_after_resuming_s": resumed["first_shard_s"],
    }


def main() -> None:
    """Measure; print and write the figures. Exit status 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--shard-rows", type=int, default=1_024)
    parser.add_argument("--engines", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--drive", nargs=2, metavar=("PROMPTS", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(Path(options.drive[0]), Path(options.drive[1]), options.shard_rows, options.engines)
        return
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), options)
    for key, value in figures.items():
        print(f"{key:>28}: {value:,.3g}" if isinstance(value, float) else f"{key:>28}: {value:,}")
    if options.out:
        options.out.write_text(json.dumps({**figures, "machine": machine()}, indent=1) + "\n")
    missed = [
        figures["rows_per_s"] < ROWS_PER_SECOND,
        figures["driver_peak_gib"] > DRIVER_GIB,
        figures["driver_peak_gib"] > 1.2 * figures["driver_peak_gib_at_a_tenth"],
        figures["first_row_after_resuming_s"] > RESUME_S,
    ]
    sys.exit(any(missed))


if __name__ == "__main__":
    from sampling_at_size import (
        main as _main,  # so that workers find the double by a name that they can import
    )

    _main()
