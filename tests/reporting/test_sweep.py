"""A sweep of synthetic verdicts: a known peak, one outside, noise alone, and the luck in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ssd_ray.recipes.cells import Cell
from ssd_ray.recipes.sweeps import design
from ssd_ray.reporting.numbers.counts import Answer, ProblemResult
from ssd_ray.reporting.numbers.sweep_document import MetricSweep, SweepDocument
from ssd_ray.reporting.numbers.sweep_numbers import of_answers
from ssd_ray.reporting.sweep import sweep_page
from ssd_ray.reporting.sweep_findings import Finding, findings

DESIGN = design(
    "quickstart",
    [
        "sample.top_k=null",
        "sample.top_p=1",
        "evaluate.samples_per_problem=2",
        "evaluate.bootstrap_samples=300",
    ],
    ["sample.temperature=0.5,1,1.5,2", "evaluate.temperature=0.4,0.6,0.8,1,1.2,1.4"],
)
PROBLEMS = 120


def _document(chance: Callable[[Cell], float], seed: int) -> SweepDocument:
    """Return the sweep of problems of any difficulty around a chance for each cell."""
    generator = np.random.default_rng(seed)
    level = generator.uniform(-0.3, 0.3, PROBLEMS)
    results = {}
    for cell in DESIGN.cells:
        right = generator.random((PROBLEMS, 2)) < np.clip(chance(cell) + level, 0, 1)[:, None]
        results[cell.name] = {
            f"p{number}": ProblemResult(
                problem_id=f"p{number}",
                benchmark="synthetic",
                difficulty="easy",
                answers=tuple(
                    Answer(
                        sample_index=index,
                        tokens=9,
                        finish_reason="stop",
                        outcome="accepted" if each else "wrong_answer",
                    )
                    for index, each in enumerate(own)
                ),
            )
            for number, own in enumerate(right.tolist())
        }
    return of_answers(DESIGN, results)


def _measure(document: SweepDocument) -> MetricSweep:
    ((measure,),) = document.sets.values()
    return measure


def _peak(document: SweepDocument) -> Finding:
    (finding,) = [each for each in findings(document) if "peak over T_eff" in each.where]
    return finding


def test_a_known_peak_is_stated_with_its_error() -> None:
    document = _document(lambda cell: 0.62 - 0.1 * (cell.t_eff - 1.2) ** 2, 1)
    (group,) = _measure(document).fits
    assert len(group.cells) == 24
    assert group.fit is not None
    interval = group.fit.peak.interval
    assert interval is not None
    assert interval.low < 1.2 < interval.high
    assert interval.high - interval.low < 0.4
    finding = _peak(document)
    assert (
        finding.what
        == f"T_eff {interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})."
    )
    assert not finding.warns


def test_a_peak_outside_of_the_cells_is_a_warning() -> None:
    document = _document(lambda cell: 0.65 - 0.04 * (cell.t_eff - 3.6) ** 2, 2)
    finding = _peak(document)
    assert finding.warns
    assert finding.what.startswith("No peak ")


@pytest.mark.slow
def test_noise_alone_has_a_warning_no_peak_and_luck() -> None:
    documents = [_document(lambda _: 0.5, seed) for seed in range(20, 44)]
    stated = [_peak(each) for each in documents]
    # A fit bent downwards by chance: fewer than one in twenty.
    assert sum(not finding.warns for finding in stated) <= 1
    assert sum(not finding.what.startswith("No peak ") for finding in stated) <= 1
    for control in ("base", "naive"):
        gains = [
            luck for each in documents for luck in _measure(each).luck if luck.control == control
        ]
        chosen = [luck.chosen.estimate for luck in gains]
        # The best of many cells is above that of few, and chosen elsewhere it is not.
        assert np.mean(chosen) == pytest.approx(0, abs=3 * 0.035 / np.sqrt(len(gains)))
        assert np.mean([luck.best for luck in gains]) > 0.01 + np.mean(chosen)
        assert sum(not luck.chosen.low <= 0 <= luck.chosen.high for luck in gains) <= 3


def test_a_real_gain_stays_with_cells_chosen_elsewhere() -> None:
    def chance(cell: Cell) -> float:
        return 0.6 if cell.student is not None and not cell.student.is_naive else 0.4

    document = _document(chance, 9)
    for luck in _measure(document).luck:
        assert luck.chosen.reading == "higher"
        assert luck.chosen.estimate == pytest.approx(0.2, abs=0.06)
    page = sweep_page(document)
    assert "A gain: +" in page
    assert page.count(" told") > 15
