"""The toy as a real model, end to end, against its known answer: `make toy-model`.

    python benchmarks/toy_model.py --out figures.json

A transformer of two layers learns the automaton's table. The ordinary pipeline distils it: vLLM
samples at T 0.9, top-p 0.85, and DeepSpeed trains on the samples. Success is computed from the
probabilities of both models. It fails where the figures miss the known answer.
With `--keep DIR` the run stays there, and the same command resumes it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SAMPLES, STEPS = 2048, 250
REASON = (
    "a model with finite logits keeps some mass outside of S (Eq. 13), and T 2.09 raises it: "
    "the nucleus of a lock then holds a second token"
)


def main() -> None:
    """Train, distil and compare."""
    from tests.support.toy_run import distil, make_base

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    out = arguments.out
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        directory = arguments.keep or Path(folder)
        directory.mkdir(parents=True, exist_ok=True)
        base = make_base(directory)
        trained_s = time.perf_counter() - began
        run = distil(base, directory, samples=SAMPLES, steps=STEPS)
    seconds = time.perf_counter() - began
    ideal_base = run.settings.base()
    ideal_student = ideal_base.decoded(run.settings.samples)
    rows = []
    for temperature in (0.5, 1.0, 2.09):
        decoding = run.settings.samples.model_copy(
            update={"temperature": temperature, "top_p": run.settings.grid.top_p}
        )
        of_base, of_student = run.at(temperature)
        rows.append(
            {
                "temperature": temperature,
                "base": of_base,
                "ideal_base": ideal_base.success_at(decoding),
                "student": of_student,
                "ideal_student": ideal_student.success_at(decoding),
            }
        )
        print(
            f"T {temperature:<5g} base {100 * of_base:6.2f} % "
            f"(exact {100 * rows[-1]['ideal_base']:.2f}), student {100 * of_student:6.2f} % "
            f"(ideal {100 * rows[-1]['ideal_student']:.2f})"
        )
    kept = run.kept_mass_at_locks()
    error = run.base.largest_error()
    print(f"largest error of the base's table {error:.4f}")
    print(f"KeptMass at locks at least {kept:.4f}")
    print(f"at T 2.09 the student is below the ideal: {REASON}")
    print(f"{seconds:.0f} s, of them {trained_s:.0f} s for the frozen model")
    record = {
        "success": rows,
        "largest_error_of_the_base": error,
        "kept_mass_at_locks": kept,
        "reason_at_2.09": REASON,
        "seconds": seconds,
        "limits": {"base": 0.003, "student": 0.007, "kept_mass_at_locks": 0.99, "seconds": 600},
        "machine": machine(),
    }
    out.write_text(json.dumps(record, indent=1))
    at_one = rows[1]
    base_error = abs(at_one["base"] - at_one["ideal_base"])
    student_error = abs(at_one["student"] - at_one["ideal_student"])
    complaints = [
        text
        for holds, text in (
            (error <= 0.002, "a state of the base is off its table by more than 0.002"),
            (base_error <= 0.003, "the base at T 1 is off"),
            (
                student_error <= 0.007,
                "the student at T 1 is off",
            ),
            (kept >= 0.99, "the student has kept too much outside of S"),
        )
        if not holds
    ]
    if complaints:
        sys.exit("; ".join(complaints))


if __name__ == "__main__":
    main()
