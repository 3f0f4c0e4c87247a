"""The charts of toy.html: states, success over temperature, the frontier of decoding alone.

Pure functions of `ToyFigures`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssd_ray.analysis.toy_figures import Best, Pair, ToyFigures
from ssd_ray.reporting.plots.inline_svg import Cells, Drawing, Line, Mark, Words, bars, cells, lines
from ssd_ray.reporting.words import percent

_NAMES = ("base", "student")
_TOKENS = 8
_SUCCESS = "success (%)"
_TEMPERATURE = "evaluation temperature"


def state_charts(figures: ToyFigures) -> Iterator[Drawing]:
    """Yield the distribution of each state, before and after training."""
    for name, state in figures.states.items():
        groups = [
            [100 * value for value in values[:_TOKENS]]
            for values in (state.probabilities, state.student)
        ]
        yield bars(
            groups,
            _NAMES,
            Words(
                title=name,
                x="token",
                y="probability (%)",
                alt=(
                    f"Bars of the first tokens of the {name}. Token 0 goes from "
                    f"{percent(state.probabilities[0])} to {percent(state.student[0])}."
                ),
                caption=(
                    f"{state.entropy_bits:.2f} bits. The samples keep {state.support} of "
                    f"{len(state.probabilities)} tokens, with {percent(state.kept_mass)} of the "
                    "mass."
                ),
            ),
        )


def fixed_chart(figures: ToyFigures) -> Drawing:
    """Draw success over the temperature at the fixed top-p."""
    curves, best = figures.curves, figures.frontier.fixed_top_p
    top_p = f"top-p {figures.settings.grid.top_p:g}"
    return lines(
        [
            _line(0, curves.temperatures, curves.base, best.base),
            _line(1, curves.temperatures, curves.student, best.student),
        ],
        Words(
            x=_TEMPERATURE,
            y=_SUCCESS,
            alt=f"Success over the temperature at {top_p}. {_peaks(best)}.",
            caption=f"Only the temperature is tuned, at {top_p}, as in the paper.",
        ),
    )


def tuned_chart(figures: ToyFigures) -> Drawing:
    """Draw success over the temperature, with the best top-p at each."""
    curves, best, bound = figures.curves, figures.frontier.tuned_top_p, figures.bound
    return lines(
        [
            _line(0, curves.temperatures, curves.base_tuned, None),
            _line(1, curves.temperatures, curves.student_tuned, None),
        ],
        Words(
            x=_TEMPERATURE,
            y=_SUCCESS,
            alt=(
                "Success over the temperature, with the best top-p at each. "
                f"{_peaks(best)}. Bound {percent(bound.success)}."
            ),
            caption="Top-p is tuned too, at each temperature: the frontier of decoding alone.",
        ),
        rule=(100 * bound.success, f"bound of any decoding of the base, {percent(bound.success)}"),
    )


def maps(figures: ToyFigures) -> Iterator[Drawing]:
    """Yield the success of base and student over temperature and top-p."""
    surface, best = figures.surface, figures.frontier.tuned_top_p
    highest = max(best.base.success, best.student.success)
    pairs = ((surface.base, best.base), (surface.student, best.student))
    for name, (values, point) in zip(_NAMES, pairs, strict=True):
        text = f"{percent(point.success)} at T {point.temperature:g}, top-p {point.top_p:g}"
        yield cells(
            Cells(
                xs=surface.temperatures,
                ys=surface.top_ps,
                values=values,
                highest=highest,
                best=(point.temperature, point.top_p, text),
                rule=figures.settings.grid.top_p,
            ),
            Words(
                title=name,
                x=_TEMPERATURE,
                y="top-p",
                alt=f"Map of the success of the {name} over temperature and top-p. Best: {text}.",
                caption=(
                    f"Success of the {name}, without top-k. The strongest color is "
                    f"{percent(highest)}; the line is the fixed top-p."
                ),
            ),
        )


def _line(index: int, xs: list[float], ys: list[float], best: Best | None) -> Line:
    mark = None
    if best is not None:
        text = f"{percent(best.success, 2)} at T {best.temperature:g}"
        # The base's text goes to the right, into the room below the student's line.
        shift = (4.0, -9.0) if index else (46.0, 5.0)
        mark = Mark(x=best.temperature, y=100 * best.success, text=text, shift=shift)
    return Line(
        label=_NAMES[index], xs=xs, ys=[100 * value for value in ys], color=index, mark=mark
    )


def _peaks(best: Pair) -> str:
    return "; ".join(
        f"{name}: best {percent(point.success, 2)} at T {point.temperature:g}, "
        f"top-p {point.top_p:g}"
        for name, point in zip(_NAMES, (best.base, best.student), strict=True)
    )
