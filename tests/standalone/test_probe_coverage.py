"""Students whose change is zero on average: intervals of complete probes cover zero.

Each student changes every problem by a fixed amount, up or down at random. So its true change over
problems is zero, and 95 % intervals should cover it in 95 of 100 cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from ssd_ray.analysis import operator, probe_tables
from ssd_ray.analysis.forward import Context, ScoredModel
from ssd_ray.analysis.measures import Settings
from ssd_ray.analysis.nearest_decoding import Heads, Nearest
from ssd_ray.analysis.operator import Setting
from ssd_ray.progress import LineProgress
from ssd_ray.reporting.numbers import probe_numbers
from ssd_ray.reporting.numbers.probe_numbers import Signals, numbers
from tests.support.planted import PlantedModel, Rule, answers
from tests.support.tiny import tiny_model

CUT = Setting(temperature=1.6, top_k=20, top_p=0.8)
SETTINGS = Settings(training=CUT, evaluation=Setting(top_k=20), temperatures=(1.0,))
PROBLEMS, STUDENTS, ROUNDS = 60, 100, 10
TRUTH = {
    "gap_closed": 0.0,
    "temperature_reached": 1.0,
    "tail_removed": 0.0,
    "lock_sharpening": 0.0,
    "fork_spreading": 0.0,
}


def _contrast(logits: Tensor) -> Tensor:
    # Random logits have few locks. Sharper ones where the likeliest id is even give both.
    return logits * torch.where(logits.argmax(1, keepdim=True) % 2 == 0, 8.0, 1.0)


def _shifted(sign: float) -> Rule:
    """Return a rule: p(S) and the power within S change by amounts with this sign."""

    def rule(logits: Tensor) -> Tensor:
        base = _contrast(logits).double()
        kept = operator.support(base, CUT).dense(base.shape[1]) > -torch.inf
        log_p = base.log_softmax(1)
        inside = log_p.masked_fill(~kept, -torch.inf).logsumexp(1, keepdim=True)
        outside = log_p.masked_fill(kept, -torch.inf).logsumexp(1, keepdim=True)
        moved = sign * 0.03 * torch.minimum(inside.exp(), outside.exp())
        within = ((1 - 0.02 * sign) * log_p.masked_fill(~kept, -torch.inf)).log_softmax(1)
        head = within + (inside.exp() + moved).log()
        tail = log_p - outside + (outside.exp() - moved).log()
        return torch.where(kept, head, tail).float()

    return rule


def _contexts() -> list[Context]:
    # Problems differ in the number of their positions.
    return [
        Context(
            problem_id=each.problem_id,
            prompt_token_ids=each.prompt_token_ids,
            output_token_ids=each.output_token_ids[: 8 + place % 9],
        )
        for place, each in enumerate(answers(PROBLEMS))
    ]


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of the base and of two students, one moved up everywhere and one down."""
    out = tmp_path_factory.mktemp("probe")
    model = ScoredModel.load(tiny_model(out / "model", "qwen3"), device="cpu", name="base")
    rules = {"base": _contrast, "up": _shifted(1.0), "down": _shifted(-1.0)}
    contexts = _contexts()
    job = probe_tables.Job(
        models=tuple(PlantedModel(model, name, rule) for name, rule in rules.items()),
        contexts=tuple(contexts),
        domains=("all of them",) * len(contexts),
        shown=frozenset(),
        kinds=lambda context: ["name"] * len(context.output_token_ids),
        settings=SETTINGS,
    )
    probe_tables.write(job, out, LineProgress())
    return out


def _mixed(path: Path, out: Path, signs: dict[str, np.ndarray]) -> None:
    """Write a table with students that are `up` at some problems and `down` at the others."""
    table = pq.read_table(path)
    rows = {
        model: np.flatnonzero(np.array(table["model"].to_pylist()) == model)
        for model in ("base", "up", "down")
    }
    names = np.array(table["problem_id"].to_pylist())[rows["base"]]
    problems = np.array([int(name.removeprefix("p")) for name in names])
    parts = [table.take(rows["base"])]
    for student, up in signs.items():
        chosen = table.take(np.where(up[problems], rows["up"], rows["down"]))
        place = chosen.column_names.index("model")
        parts.append(chosen.set_column(place, "model", pa.array([student] * len(chosen))))
    pq.write_table(pa.concat_tables(parts), out / path.name)


def _summaries(both_ways: Path, out: Path) -> Iterator[Signals]:
    generator = np.random.default_rng(0)
    for _ in range(ROUNDS):
        signs = {f"s{number}": generator.random(PROBLEMS) < 0.5 for number in range(STUDENTS)}
        for name in probe_tables.TABLES:
            _mixed(both_ways / f"{name}.parquet", out, signs)
        models = ["base", *signs]
        result = numbers(out, models, [None] * len(models), SETTINGS)
        yield from (student.signals[0] for student in result.students)


@pytest.mark.slow
def test_intervals_cover_a_change_of_random_sign(
    both_ways: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsearched(base: Heads, student: Heads, evaluation: Setting) -> Nearest:
        zeros = np.zeros(len(base.log_probabilities))
        return Nearest(
            setting=evaluation,
            distances=zeros,
            changes=zeros,
            variations=zeros,
            variations_of_change=zeros,
        )

    # The nearest decoding is no part of this test, and its search takes most of the time.
    monkeypatch.setattr(probe_numbers.nearest_decoding, "nearest", unsearched)
    covered = dict.fromkeys(TRUTH, 0)
    for signals in _summaries(both_ways, tmp_path):
        for name, truth in TRUTH.items():
            interval = getattr(signals, name)
            covered[name] += interval.low <= truth <= interval.high
    shares = {name: number / (STUDENTS * ROUNDS) for name, number in covered.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares
