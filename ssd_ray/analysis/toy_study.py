"""The figures of the toy: the paper's own, and the frontier of decoding alone.

Everything follows from `ToySettings`; `study` computes all of it. Pure functions without I/O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ssd_ray.analysis.toy import (
    STATES,
    Automaton,
    Ranked,
    SampleDecoding,
    ToySettings,
    Vector,
    grid,
    interval,
)
from ssd_ray.analysis.toy_figures import (
    At,
    Best,
    Bound,
    Curves,
    Frontier,
    OtherStudent,
    Pair,
    Round,
    Row,
    StateFigures,
    Surface,
    TopPInterval,
    ToyFigures,
)

TOP_PS = grid(0.05, 1.0, 0.01)
"""Top-p of the frontier."""
ROBUSTNESS = (0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Evaluation top-p of the robustness row."""
TRAINED = tuple(
    (temperature, top_p)
    for top_p in (0.8, 0.85)
    for temperature in (0.7, 0.8, 0.9, 1.0, 1.2, 1.6, 2.0)
)
"""T_train and top-p of other students."""
LOCKS = (0, 1, 2, 3, 5, 8)
SHOWN = (0.5, 1.0, 2.09)
"""Temperatures of the published bars: low, medium, high."""
INTERVALS = (0.639, 1.0, 1.5, 2.09)
"""Temperatures of the intervals of decode-only policies."""
_FORK_RANK, _LOCK_RANK = 2, 1
_MOST_TOP_K = 16
_MOST_COLUMNS = 40
"""Temperatures of the map."""


def study(settings: ToySettings) -> ToyFigures:
    """Compute all figures of the toy."""
    base = settings.base()
    student = base.decoded(settings.samples)
    coarse, fine = settings.grid.temperatures(), settings.grid.temperatures(fine=True)
    fixed = np.array([settings.grid.top_p])
    models = (base, student)
    surfaces = [model.success(coarse, TOP_PS) for model in models]
    frontier = Frontier(
        fixed_top_p=_pair(models, fine, fixed),
        tuned_top_p=_pair(models, coarse, TOP_PS),
        tuned_top_p_up_to_one=_pair(models, coarse[coarse <= max(1.0, coarse[0])], TOP_PS),
        tuned_top_k_too=Pair(
            base=best_with_top_k(base, coarse, TOP_PS),
            student=best_with_top_k(student, coarse, TOP_PS),
        ),
    )
    at_fixed = [model.success(coarse, fixed)[:, 0] for model in models]
    shown = np.array(SHOWN)
    bars = [model.success(shown, fixed)[:, 0] for model in models]
    return ToyFigures(
        settings=settings,
        states=_states(settings, base, student, frontier.fixed_top_p),
        shown=[
            At(temperature=each, base=float(bars[0][place]), student=float(bars[1][place]))
            for place, each in enumerate(SHOWN)
        ],
        curves=Curves(
            temperatures=coarse.tolist(),
            base=at_fixed[0].tolist(),
            student=at_fixed[1].tolist(),
            base_tuned=surfaces[0].max(axis=1).tolist(),
            student_tuned=surfaces[1].max(axis=1).tolist(),
        ),
        surface=_surface(coarse, surfaces),
        frontier=frontier,
        bound=normal_form_bound(base, np.append(1 / grid(0.1, 10.0, 0.01), 0.0)),
        intervals=[_interval(base, student, temperature) for temperature in INTERVALS],
        robustness=[
            Row(value=top_p, at_fixed_top_p=_pair(models, fine, np.array([top_p])))
            for top_p in ROBUSTNESS
        ],
        other_students=[_other_student(settings, base, each) for each in TRAINED],
        rounds=rounds(base, settings),
        locks=[_with_locks(settings, models, count) for count in LOCKS],
    )


def best(model: Automaton, temperatures: Vector, top_ps: Vector, top_k: int | None = None) -> Best:
    """Return the best decoding over temperature and top-p; of equal ones, the first."""
    values = model.success(temperatures, top_ps, top_k)
    row, column = np.unravel_index(values.argmax(), values.shape)
    return Best(
        success=float(values[row, column]),
        temperature=float(temperatures[row]),
        top_p=float(top_ps[column]),
        top_k=top_k,
    )


def best_with_top_k(model: Automaton, temperatures: Vector, top_ps: Vector) -> Best:
    """Return the best decoding over temperature, top-p and top-k; of equal ones, without top-k."""
    # A top-k as wide as every support keeps all tokens, as without one.
    widest = max(state.support for state in model.states.values())
    limits = [None, *range(1, min(_MOST_TOP_K + 1, widest))]
    results = [best(model, temperatures, top_ps, limit) for limit in limits]
    return max(results, key=lambda each: each.success)


def normal_form_bound(model: Automaton, powers: Vector) -> Bound:
    """Return the best success over powers, with the best prefix at each state (Eq. 35).

    No order of temperature, top-k and top-p passes it, not even one chosen for each state.
    """
    root, fork, lock = model.prefix_shares(powers)
    # Success is a product of independent choices, so each state takes its own best prefix.
    values = root.max(axis=1) * fork.max(axis=1) * lock.max(axis=1) ** model.locks
    place = int(values.argmax())
    return Bound(
        success=float(values[place]),
        power=float(powers[place]),
        prefixes=[int(each[place].argmax()) + 1 for each in (root, fork, lock)],
    )


def rounds(base: Automaton, settings: ToySettings) -> list[Round]:
    """Distil again and again, by exact fit."""
    temperatures, fixed = settings.grid.temperatures(), np.array([settings.grid.top_p])
    results, model = [], base
    for number in range(1, settings.rounds + 1):
        model = model.decoded(settings.samples)
        results.append(
            Round(
                round=number,
                supports=_supports(model),
                entropies=[state.entropy for state in model.states.values()],
                best=best(model, temperatures, fixed),
                at_one=float(model.success(np.ones(1), fixed)[0, 0]),
            )
        )
    return results


def _pair(models: Sequence[Automaton], temperatures: Vector, top_ps: Vector) -> Pair:
    base, student = (best(model, temperatures, top_ps) for model in models)
    return Pair(base=base, student=student)


def _states(
    settings: ToySettings, base: Automaton, student: Automaton, tuned: Pair
) -> dict[str, StateFigures]:
    figures = {}
    for name in STATES:
        state, fitted = base.states[name], student.states[name]
        bits = state.entropy / float(np.log(2))
        figures[name] = StateFigures(
            probabilities=state.probabilities.tolist(),
            entropy=state.entropy,
            entropy_bits=bits,
            student=fitted.probabilities.tolist(),
            kept_mass=float(state.probabilities[fitted.probabilities > 0].sum()),
            support=fitted.support,
            base_nucleus=_nucleus(state, tuned.base),
            student_nucleus=_nucleus(fitted, tuned.student),
        )
    return figures


def _nucleus(state: Ranked, decoding: Best) -> list[float]:
    decoded = state.decoded(decoding)
    nucleus: list[float] = decoded.ranked[: decoded.support].tolist()
    return nucleus


def _supports(model: Automaton) -> list[int]:
    return [state.support for state in model.states.values()]


def _surface(temperatures: Vector, surfaces: Sequence[Vector]) -> Surface:
    # Some temperatures and every fifth top-p: a file for people.
    rows = slice(None, None, math.ceil(len(temperatures) / _MOST_COLUMNS))
    columns = slice(None, None, 5)
    base, student = (each[rows, columns].tolist() for each in surfaces)
    return Surface(
        temperatures=temperatures[rows].tolist(),
        top_ps=TOP_PS[columns].tolist(),
        base=base,
        student=student,
    )


def _interval(base: Automaton, student: Automaton, temperature: float) -> TopPInterval:
    ranks = (_FORK_RANK, _LOCK_RANK)
    base_low, base_high = interval(base, temperature, ranks)
    student_low, student_high = interval(student, temperature, ranks)
    return TopPInterval(
        temperature=temperature,
        base_low=base_low,
        base_high=base_high,
        student_low=student_low,
        student_high=student_high,
    )


def _other_student(
    settings: ToySettings, base: Automaton, trained: tuple[float, float]
) -> OtherStudent:
    temperature, top_p = trained
    decoding = SampleDecoding(temperature=temperature, top_k=settings.samples.top_k, top_p=top_p)
    student = base.decoded(decoding)
    temperatures = settings.grid.temperatures()
    return OtherStudent(
        temperature=temperature,
        top_p=top_p,
        supports=_supports(student),
        best=best(student, temperatures, np.array([settings.grid.top_p])),
        tuned=best(student, temperatures, TOP_PS),
    )


def _with_locks(settings: ToySettings, models: Sequence[Automaton], count: int) -> Row:
    changed = [model.with_locks(count) for model in models]
    coarse, fine = settings.grid.temperatures(), settings.grid.temperatures(fine=True)
    return Row(
        value=count,
        at_fixed_top_p=_pair(changed, fine, np.array([settings.grid.top_p])),
        tuned=_pair(changed, coarse, TOP_PS),
    )
