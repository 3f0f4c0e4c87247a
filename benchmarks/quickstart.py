"""The quick start from an empty run directory: wall time, peak memory, and a second run.

    python benchmarks/quickstart.py --out figures.json

Limits: 7 minutes and 7 GiB on two cores for the first run, 2 s for the second, which has no
work. Memory is the sum of proportional set sizes, sampled every two seconds, so that pages
shared between processes count once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from machine import machine


def proportional_bytes(process: psutil.Process) -> int:
    """Return the memory of a process, shared pages divided; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def measured(command: list[str]) -> tuple[float, int]:
    """Return the wall seconds of a command, and the peak bytes of it and all its descendants."""
    began, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, sum(map(proportional_bytes, [process, *process.children(recursive=True)])))
        time.sleep(2)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - began, peak


def main() -> None:
    """Run the quick start twice in a temporary directory and print both against their limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable,
            "-m",
            "ssd_ray",
            "run",
            "quickstart",
            "--quiet",
            "--out",
            f"{directory}/run",
        ]
        first_s, peak_bytes = measured(command)
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        second_s = time.perf_counter() - began
        stages = json.loads(Path(directory, "run/report/timings.json").read_text())
    figures = {
        "first_s": first_s,
        "peak_gib": peak_bytes / 2**30,
        "second_s": second_s,
        "stages": stages,
    }
    limits = {"first_s": 420, "peak_gib": 7, "second_s": 2}
    for name, limit in limits.items():
        print(
            f"{name:<10} {figures[name]:8.2f}   {figures[name] / limit:.2f} of the limit of {limit}"
        )
    out.write_text(json.dumps({**figures, "limits": limits, "machine": machine()}, indent=1))


if __name__ == "__main__":
    main()
