"""Play a training without Ray: a driver, and a worker process that it starts again.

python tests/support/played_training.py RUN

The worker writes a step's line every `STEP_S` and a state every `EVERY` steps. It resumes from the
latest state. SIGINT to the driver lets the worker write a state first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ssd_ray.training.state.logs import append_log, cut_log

STEPS, EVERY, STEP_S = 40, 5, 0.05


def work(out: Path) -> None:
    """Train from the latest state to the last step."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    state = out.parent / "state"
    partial = out.parent / "state.partial"
    driver = os.getppid()
    begin = int(state.read_text()) if state.exists() else 0
    cut_log(out, begin)
    for step in range(begin + 1, STEPS + 1):
        time.sleep(STEP_S)
        if os.getppid() != driver:
            sys.exit(1)
        append_log(out, {"step": step, "loss": 1 / step, "seconds": time.monotonic()})
        if step % EVERY == 0 or stopping:
            partial.write_text(str(step))
            partial.replace(state)
        if stopping:
            sys.exit(1)
    (out / "model.safetensors").write_bytes(b"weights")
    state.unlink()
    partial.unlink(missing_ok=True)


def main(run: Path) -> None:
    """Start workers until one ends well."""
    out = run / "checkpoint"
    out.mkdir(exist_ok=True)
    while True:
        worker = subprocess.Popen([sys.executable, __file__, str(run), "worker"])
        try:
            if worker.wait() == 0:
                return
        except KeyboardInterrupt:
            worker.terminate()
            worker.wait()
            sys.exit(130)


if __name__ == "__main__":
    if sys.argv[2:]:
        work(Path(sys.argv[1]) / "checkpoint")
    else:
        main(Path(sys.argv[1]))
