"""Speed and memory of `ssd-ray view` over a synthetic run of a million answers.

python benchmarks/view.py --out figures.json [--answers 1000000] [--shard-rows 20000] [--keep RUN]

It asks over HTTP, as a browser does, and prints each median next to its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine

from ssd_ray.schema import Completion, Verdict, arrow_schema

TOKEN = "a-token-of-the-benchmark"
SHARD_ROWS = 20_000
REPEATS = 5
BARS = {
    "start_up": 1.0,
    "first_page": 0.3,
    "first_table": 0.3,
    "filter": 0.5,
    "search": 3.0,
    "answer": 0.15,
    "memory_mib": 600,
    "idle_core_percent": 1.0,
}
OUTCOMES = ("accepted", "wrong_answer", "runtime_error", "time_limit", "no_code")
FILTERS = (
    {},
    {"outcome": "wrong_answer"},
    {"arm": "ssd", "difficulty": "hard", "outcome": "accepted"},
    {"finish": "length", "sort": "tokens", "descending": "1"},
    {"least": "300", "most": "320", "sort": "time_s"},
    {"problem": "lcb/000007"},
)


def write_run(run: Path, answers: int, shard_rows: int) -> None:
    """Write two arms with verdicts; texts repeat after `SHARD_ROWS` answers, ids do not."""
    rng = np.random.default_rng(0)
    words = np.array([rng.bytes(4).hex()[: rng.integers(2, 9)] for _ in range(5000)])
    lengths = rng.integers(20, 200, SHARD_ROWS)
    texts = [
        " ".join(words[rng.integers(0, 5000, size)]) + "\n```python\nprint(2 * int(input()))\n```"
        for size in lengths
    ]
    tokens = [rng.integers(0, 150_000, size).astype(np.int32) for size in 2 * lengths]
    for arm in ("base", "ssd"):
        (run / "generations" / arm).mkdir(parents=True)
        (run / "verdicts" / arm).mkdir(parents=True)
        for shard in range(answers // 2 // shard_rows):
            at = shard * shard_rows % SHARD_ROWS
            rows = slice(at, at + shard_rows)
            _write_shard(run, arm, shard, texts[rows], tokens[rows])
    (run / "recipe.yaml").write_text("model: {source: synthetic}\n")


def _write_shard(
    run: Path, arm: str, shard: int, texts: list[str], tokens: list[np.ndarray]
) -> None:
    rng = np.random.default_rng((arm == "ssd", shard))
    size = len(texts)
    rows = np.arange(size) + shard * size
    problems = rows // 100
    keys = {
        "prompt_id": [f"lcb/{problem:06}" for problem in problems],
        "sample_index": rows % 100,
        "source": ["livecodebench"] * size,
        "difficulty": np.array(("easy", "medium", "hard"))[problems % 3],
    }
    drawn = {
        "seed": rng.integers(0, 2**60, size),
        "prompt_token_ids": [tokens[0]] * size,
        "output_token_ids": tokens,
        "text": texts,
        "finish_reason": np.where(rng.random(size) < 0.1, "length", "stop"),
    }
    outcomes = rng.choice(OUTCOMES, size)
    judged = {
        "outcome": outcomes,
        "num_tests": [10] * size,
        "num_passed": np.where(outcomes == "accepted", 10, 3),
        "time_s": rng.random(size),
        "code": ["print(2 * int(input()))"] * size,
        "detail": ["test 4: line 1 is '5' and should be '4'"] * size,
        "failed_test": np.where(outcomes == "accepted", -1, 3),
        "peak_bytes": rng.integers(10**7, 10**8, size),
        "sandbox_level": ["L3"] * size,
        "outcome_base": [""] * size,
        "reasoning": ["none"] * size,
    }
    for folder, columns, kind in (
        ("generations", drawn, Completion),
        ("verdicts", judged, Verdict),
    ):
        table = pa.table(keys | columns, schema=arrow_schema(kind))
        path = run / folder / arm / f"part-{shard:05}.parquet"
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)


class Server:
    """A started view, and a client with its cookie."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-m", "ssd_ray", "view", str(run), "--no-browser"]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--token", TOKEN], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        address = self.process.stdout.readline().split()[-1]
        self.base = address.partition("?")[0].rstrip("/")
        opener = urllib.request.HTTPCookieProcessor(CookieJar())
        self._opener = urllib.request.build_opener(opener)
        self._opener.open(address).read()
        self.start_up = time.perf_counter() - began

    def seconds(self, path: str, **parameters: str) -> float:
        """Ask for a page and return the time until its last byte."""
        began = time.perf_counter()
        with self._opener.open(f"{self.base}{path}?{urlencode(parameters)}") as reply:
            assert b"<main" in reply.read()
        return time.perf_counter() - began

    def is_reading(self, run: str) -> bool:
        """Return True while the columns of a run are being read."""
        with self._opener.open(f"{self.base}/answers?{urlencode({'run': run})}") as reply:
            return bool(reply.status == 202)

    def status(self, name: str) -> int:
        """Return a number of /proc/PID/status in KiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition(f"{name}:")[2].split()[0])

    def cpu_seconds(self) -> float:
        """Return the processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(run: Path) -> dict[str, float]:
    """Return medians in seconds, the peak in MiB and the idle load."""
    server = Server(run)
    name = run.name
    figures: dict[str, float] = {"start_up": server.start_up}
    try:
        figures["first_page"] = server.seconds("/")
        figures["first_table"] = server.seconds("/answers", run=name)
        began = time.perf_counter()
        while server.is_reading(name):
            time.sleep(0.05)
        figures["index"] = figures["first_table"] + time.perf_counter() - began
        slowest = [
            statistics.median(
                server.seconds("/answers", run=name, **filters) for _ in range(REPEATS)
            )
            for filters in FILTERS
        ]
        figures["filter"] = max(slowest)
        # Another text each time: the view keeps the results of a search.
        figures["search"] = statistics.median(
            server.seconds("/answers", run=name, q=f"{number}f{number}a")
            for number in range(REPEATS)
        )
        figures["answer"] = statistics.median(
            server.seconds(
                "/answer", run=name, **{"in": "generations/ssd", "id": f"lcb/{row:06}", "n": "7"}
            )
            for row in (3, 700, 1900, 2500, 4000)
        )
        figures["memory_mib"] = server.status("VmHWM") / 1024
        before = server.cpu_seconds()
        time.sleep(10)
        figures["idle_core_percent"] = 10 * (server.cpu_seconds() - before)
    finally:
        server.process.terminate()
        server.process.wait()
    return figures


def main() -> None:
    """Write or reuse the run, measure, and print each figure with its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--shard-rows", type=int, default=SHARD_ROWS, help="rows of a shard")
    parser.add_argument("--keep", type=Path, help="directory of the run, made where it is missing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.keep or Path(folder) / "synthetic"
        if not run.exists():
            write_run(run, options.answers, options.shard_rows)
        size = sum(path.stat().st_size for path in run.rglob("*.parquet"))
        # Once without a record: reading the files for the first time measures the disk.
        measure(run)
        figures = measure(run)
    print(f"{options.answers:,} answers, {size / 1e9:.2f} GB of Parquet")
    for name, value in figures.items():
        bar = BARS.get(name)
        against = f"bar {bar:g}, ratio {value / bar:.2f}" if bar else "no bar"
        print(f"{name:<20} {value:8.3f}   {against}")
    record = {
        "answers": options.answers,
        "parquet_bytes": size,
        "figures": figures,
        "bars": BARS,
        "machine": machine(),
    }
    options.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
