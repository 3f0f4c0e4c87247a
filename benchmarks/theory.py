"""Compare the theory with a sort, and held-out measures with their former version.

    python benchmarks/theory.py [--positions 4096] --out figures.json

- Theory: the operator, the terms of the loss, entropies, gradient, gains and signals, in chunks.
  Its time is divided by that of one sort of the same logits.
- Held-out measures: with the terms and the signals, divided by the time of the measures of revision
  50fc66c, which had neither and sorted the vocabulary for top-p. Both take turns, chunk by chunk.
- The logits are those of words: a power of the rank, from peaked to flat, with noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from loss_memory import LiveBytes
from machine import machine
from torch import Tensor

from ssd_ray.analysis.operator import Ranking, Setting, chunks
from ssd_ray.analysis.signals import progress_sums
from ssd_ray.analysis.theory import (
    LogProbabilities,
    composition,
    entropy_split,
    logit_gradient,
    renyi_entropy,
    temperature_response,
    terms,
)
from ssd_ray.config import Decoding
from ssd_ray.training.observe.distributions import measure

FORMER = "50fc66c:ssd_ray/training/observe/distributions.py"
VOCABULARY = 151_936
BLOCK = 512
"""Positions held at once; the theory goes over them repeatedly."""
HELD_OUT = 128
"""Positions of a chunk of held-out measures, by default in training."""
THEORY = {
    "T 1.6, top-k 20, top-p 0.8": Setting(1.6, 20, 0.8),
    "T 0.9, top-p 0.95": Setting(0.9, None, 0.95),
    "T 1.5": Setting(1.5),
}
MEASURED = {
    "T 1.6, top-k 20, top-p 0.8": Decoding(temperature=1.6, top_k=20, top_p=0.8),
    "T 1, top-k 20": Decoding(top_k=20),
    "T 1.2, top-p 0.95": Decoding(temperature=1.2, top_p=0.95),
    "T 1.5": Decoding(temperature=1.5),
    "T 1": Decoding(),
}


def logits_of(positions: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return logits of a base and of a model near to it, float32 [positions, vocabulary]."""
    generator = torch.Generator().manual_seed(0)
    powers = torch.linspace(1.5, 4, positions)[:, None]
    ranked = -powers * torch.arange(1, vocabulary + 1).log()
    order = torch.randperm(vocabulary, generator=generator)
    base = ranked[:, order] + 0.5 * torch.randn(positions, vocabulary, generator=generator)
    return base, base + 0.2 * torch.randn(positions, vocabulary, generator=generator)


def keep_freed_memory() -> None:
    """Let malloc keep freed memory, as in a process that has loaded a model."""
    # Until a block of this size was freed, every small one is returned to the system at once.
    block = torch.ones(7_500_000)
    del block


def all_of_the_theory(base: Tensor, model: Tensor, setting: Setting) -> None:
    """Compute everything of a chunk of positions."""
    ranking = Ranking(base)
    kept, p0, p = ranking.support(setting), LogProbabilities(base), LogProbabilities(model)
    terms(kept, p0, p, setting.temperature)
    entropy_split(kept, p)
    p.divergence_from(p0)
    progress_sums(kept, p0, p)
    logit_gradient(kept, p)
    head = p.on(kept) - p.log_kept_mass(kept)[:, None]
    renyi_entropy(head, 1 / setting.temperature)
    temperature_response(head, 0.9)
    best = base.argmax(1, keepdim=True)
    event = torch.zeros_like(base, dtype=torch.bool).scatter_(1, best, True)
    composition(base, setting, 0.9, event)


def over(base: Tensor, times: int, step: Callable[[slice], object]) -> float:
    """Return the seconds of a step over all chunks of the positions, repeated."""
    begin = time.perf_counter()
    for _ in range(times):
        for chunk in chunks(*base.shape):
            step(chunk)
    return time.perf_counter() - begin


def theory(positions: int) -> dict[str, object]:
    """Time the theory and a sort of the same logits; count the memory."""
    base, model = logits_of(min(BLOCK, positions), VOCABULARY)
    keep_freed_memory()
    times = -(-positions // len(base))
    seconds = {
        name: over(
            base,
            times,
            lambda chunk, setting=setting: all_of_the_theory(base[chunk], model[chunk], setting),
        )
        for name, setting in THEORY.items()
    }
    peak = max(_peak_mib(base, model, setting) for setting in THEORY.values())
    sorting = over(base, times, lambda chunk: base[chunk].sort(dim=1))
    for name, spent in seconds.items():
        print(f"theory, {name}: {spent:.1f} s, {spent / sorting:.2f} of a sort ({sorting:.1f} s)")
    print(f"most bytes alive beyond the logits: {peak:.0f} MiB")
    return {
        "positions": times * len(base),
        "vocabulary": VOCABULARY,
        "sort_s": round(sorting, 2),
        "theory_s": {name: round(spent, 2) for name, spent in seconds.items()},
        "of_a_sort": {name: round(spent / sorting, 3) for name, spent in seconds.items()},
        "peak_mib": round(peak, 1),
    }


def _peak_mib(base: Tensor, model: Tensor, setting: Setting) -> float:
    """Return the most bytes alive at once in a chunk, without the logits."""
    first = next(iter(chunks(*base.shape)))
    with LiveBytes() as live:
        all_of_the_theory(base[first], model[first], setting)
    # Slices of the logits share their storage.
    return (live.peak - base.nbytes - model.nbytes) / 2**20


def former_measure() -> Callable[[Tensor, Tensor, Tensor, Decoding], Tensor]:
    """Return `measure` of the former revision, from the history of this repository."""
    source = subprocess.run(
        ["git", "show", FORMER],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    ).stdout
    module = types.ModuleType("former")
    exec(compile(source, FORMER, "exec"), module.__dict__)  # a revision of this file
    former: Callable[[Tensor, Tensor, Tensor, Decoding], Tensor] = module.measure
    return former


def held_out(rounds: int) -> dict[str, object]:
    """Time the measures and their former version in turns."""
    former, figures = former_measure(), {}
    for vocabulary in (49_152, VOCABULARY):
        base, model = logits_of(HELD_OUT, vocabulary)
        keep_freed_memory()
        drawn = base.argmax(1)
        for name, decoding in MEASURED.items():
            seconds: dict[str, list[float]] = {"now": [], "former": []}
            for _ in range(rounds + 1):
                for version, run in (("now", measure), ("former", former)):
                    begin = time.perf_counter()
                    run(model, base, drawn, decoding)
                    seconds[version].append(time.perf_counter() - begin)
            now, then = (statistics.median(seconds[key][1:]) for key in ("now", "former"))
            print(f"held out, {vocabulary}, {name}: {now:.3f} s, {now / then:.2f} of {then:.3f} s")
            figures[f"{vocabulary}, {name}"] = {
                "now_s": round(now, 4),
                "former_s": round(then, 4),
                "ratio": round(now / then, 3),
            }
    return figures


def main() -> None:
    """Measure both; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--positions", type=int, default=4096, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    options = parser.parse_args()
    record = {
        "machine": machine(),
        "held_out": held_out(options.rounds),
        "theory": theory(options.positions),
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
