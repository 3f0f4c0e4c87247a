"""Response time of the command line: `--help`, `toy`, `plan`, and the bare interpreter.

python benchmarks/startup.py --out figures.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

from ssd_ray import recipes

COMMANDS = {
    "interpreter": ["-c", "pass"],
    "help": ["-m", "ssd_ray", "--help"],
    "toy": ["-m", "ssd_ray", "toy", "--out", f"{tempfile.gettempdir()}/ssd-ray-toy"],
    **{f"plan {name}": ["-m", "ssd_ray", "plan", name] for name in recipes.shipped()},
}


def main() -> None:
    """Time each command nine times, interleaved, and print medians and ratios.

    The limits are 0.5 s, 2 s and 3 s.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(9):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: value / medians["interpreter"] for name, value in medians.items()}
    for name, value in medians.items():
        print(f"{name:<28} {value:.3f} s   {ratios[name]:.1f} x the bare interpreter")
    record = {
        "median_s": medians,
        "ratio_to_interpreter": ratios,
        "limits_s": {"help": 0.5, "toy": 2.0, "plan": 3.0},
        "machine": machine(),
    }
    out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
