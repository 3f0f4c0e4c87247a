"""Measure how well a forecast ranks the cells of a sweep, on the toy with its known answers.

    python benchmarks/forecast.py --out figures.json

- The cells are all T_train, top-p and T_eval of a grid. Their true success is exact (appendix C.4
  of 2604.01193). This is a planted case: the toy's student is the ideal one.
- Each draw takes answers of the base at T 1, as `ssd-ray forecast` does, and predicts the success
  of each cell from them. Cells with too few effective answers are not ranked.
- The figure is Spearman's rank correlation of predicted and true success, with the 2.5th and
  97.5th percentile over draws. A real sweep of a small model cannot give it: its scores differ by
  less than their intervals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from machine import machine
from scipy.stats import spearmanr

from ssd_ray.analysis.forecast import Grid, Tally, grid
from ssd_ray.analysis.operator import Setting
from ssd_ray.analysis.outlook import outlook
from ssd_ray.analysis.outlook_figures import Prediction
from ssd_ray.analysis.toy import Automaton, ToySettings

T_TRAIN = (0.7, 0.9, 1.1, 1.3, 1.6, 2.0)
TRAIN_TOP_P = (0.7, 0.85, 0.95, 1.0)
T_EVAL = (0.4, 0.7, 1.0, 1.3, 1.6, 2.0)
EVALUATE = Setting(1.0, None, 0.8)
DRAWS = 50


def answers(base: Automaton, number: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Draw answers: logits and tokens of each position, and their success, [answers, ...].

    An answer that leaves the path still has all positions; its later tokens are those of the
    states on the path. They are drawn for the base and the student alike, so success is the same.
    """
    states = [base.root, base.fork, *[base.lock] * base.locks]
    p = torch.tensor(np.stack([state.probabilities for state in states]))
    tokens = torch.multinomial(p, number, replacement=True, generator=generator).T
    passed = (tokens[:, 0] < 2) & (tokens[:, 1:] == 0).all(1)
    return p.log(), tokens, passed


def predictions(
    base: Automaton, chosen: Grid, number: int, generator: torch.Generator
) -> list[Prediction | None]:
    """Return the predicted success of every cell from one draw of answers."""
    logits, tokens, passed = answers(base, number, generator)
    tally = Tally(chosen, number)
    rows = torch.arange(number).repeat_interleave(tokens.shape[1])
    tally.add(rows, tokens.reshape(-1), logits.repeat(number, 1))
    seen = outlook(tally, [str(row) for row in range(number)], passed.tolist())
    return [each.prediction for cell in seen.training for each in cell.student]


def exact(base: Automaton, chosen: Grid) -> list[float]:
    """Return the true success of every cell."""
    students = (base.decoded(setting) for setting in chosen.training)
    return [
        student.success_at(evaluation) for student in students for evaluation in chosen.evaluations
    ]


def ranked(base: Automaton, chosen: Grid, number: int, draws: int) -> dict[str, object]:
    """Return the rank correlation over draws of `number` answers."""
    truth = np.array(exact(base, chosen))
    generator = torch.Generator().manual_seed(number)
    correlations, shares, regrets, effective = [], [], [], []
    without = 0
    for _ in range(draws):
        each = predictions(base, chosen, number, generator)
        if max(cell.success.value for cell in each if cell is not None) == 0:
            without += 1
            continue
        known = [place for place, cell in enumerate(each) if cell is not None and cell.is_ranked]
        values = [cell.success.value for cell in each if cell is not None and cell.is_ranked]
        correlations.append(float(spearmanr(values, truth[known]).statistic))
        regrets.append(float(truth.max() - truth[known[int(np.argmax(values))]]))
        shares.append(len(known) / len(truth))
        effective += [cell.effective_answers for cell in each if cell is not None]
    return {
        "answers": number,
        "draws": draws,
        "draws_without_a_success": without,
        "spearman": {
            "mean": float(np.mean(correlations)),
            "low": float(np.percentile(correlations, 2.5)),
            "high": float(np.percentile(correlations, 97.5)),
        },
        "cells_ranked": float(np.mean(shares)),
        "median_effective_answers": float(np.median(effective)),
        "points_lost_by_its_choice": float(100 * np.mean(regrets)),
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = ToySettings().base()
    training = [Setting(t, None, top_p) for top_p in TRAIN_TOP_P for t in T_TRAIN]
    chosen = grid(training, EVALUATE, T_EVAL)
    truth = exact(base, chosen)
    figures = {
        "machine": machine(),
        "cells": len(truth),
        "success_of_cells": {"lowest": min(truth), "highest": max(truth)},
        "forecasts": [ranked(base, chosen, number, arguments.draws) for number in (96, 384, 1536)],
    }
    text = json.dumps(figures, indent=1)
    print(text)
    arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
