"""Size, style and colors of the pictures, and their SVG.

Equal numbers give equal bytes, so no date and no state of the process goes into a file.

- Colors are Okabe and Ito's, distinct for color-blind readers. Each arm also has its own marker.
- The machine's matplotlibrc is ignored, and matplotlib's state is restored.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ssd_ray.reporting.numbers.scores import Scores

WIDTH = 5.0
INK, QUIET, RULE, PAPER = "#1f2328", "#59636e", "#d8dde3", "#ffffff"
COLORS = ("#59636e", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLE: Any = {
    # Paths, not text: the page looks the same without the font.
    "svg.fonttype": "path",
    "svg.hashsalt": "ssd_ray",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "ytick.major.pad": 9.0,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row or a bar of a drawing in data coordinates, and the rows behind it."""

    y: float
    x: tuple[float, float] | None = None
    """Ends of a bar; None is the complete width, its label included."""
    height: float = 1.0
    label: str
    rows: str
    """Place of its rows in `ssd-ray view`, as by `words.rows`."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure with its texts."""

    name: str
    svg: str
    """Source of the SVG."""
    width: int
    """CSS pixels."""
    height: int
    """CSS pixels."""
    alt: str
    """The figure in words, for a reader who cannot see it."""
    caption: str
    """One sentence."""
    areas: str = ""
    """JSON: left, top, width and height in percent, label and rows of each bar. Nothing on the page
    reads it; `ssd-ray view` puts links there."""

    @property
    def data_uri(self) -> str:
        """The SVG as an address without a network; in an image no script of it can run."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the report, independent of the machine's matplotlibrc."""
    with mpl.rc_context():
        # Defaults first, or the machine's matplotlibrc would change the page.
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def style_of(scores: Scores, arm: str) -> int:
    """Return the index of an arm in COLORS and MARKERS: 0 for the baseline, then recipe order.

    The arms of a family in a sweep share an index.
    """
    family = {point: name for name, points in scores.families.items() for point in points}
    baseline = family.get(scores.baseline, scores.baseline)
    names = dict.fromkeys(family.get(each, each) for each in scores.order.arms)
    others = [name for name in names if name != baseline]
    name = family.get(arm, arm)
    if name == baseline:
        return 0
    # Colors repeat in a recipe of many arms, but never that of the baseline.
    return 1 + others.index(name) % (len(COLORS) - 1)


def short(text: str, characters: int = 24) -> str:
    """Shorten a label to leave room for the drawing."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def canvas(height: float) -> tuple[Figure, Axes]:
    """Return an empty drawing of the common width and a height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _areas(figure: Figure, bars: Sequence[Bar]) -> str:
    axes = figure.axes[0]
    to_figure = axes.transData + figure.transFigure.inverted()
    areas = []
    for bar in bars:
        low, high = bar.x or axes.get_xlim()
        (left, bottom), (right, top) = to_figure.transform(
            [(low, bar.y + bar.height / 2), (high, bar.y - bar.height / 2)]
        )
        if bar.x is None:
            left, right = 0.0, 1.0
        place = [left, 1 - top, right - left, top - bottom]
        areas.append([*(round(100 * float(share), 2) for share in place), bar.label, bar.rows])
    return json.dumps(areas) if areas else ""


def finish(name: str, figure: Figure, alt: str, caption: str, bars: Sequence[Bar] = ()) -> Picture:
    """Return the drawing as a picture: SVG without a date."""
    # With a layout engine, matplotlib draws a figure twice for a file: first to lay it out.
    if (layout := figure.get_layout_engine()) is not None:
        FigureCanvasSVG(figure)  # the layout depends on the widths of its texts
        layout.execute(figure)
        figure.set_layout_engine(None)
    # Without these keys matplotlib writes the date and its version into the file.
    sink = io.StringIO()
    figure.savefig(
        sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    width, height = figure.get_size_inches() * 96
    return Picture(
        name=name,
        svg=sink.getvalue(),
        width=round(width),
        height=round(height),
        alt=alt,
        caption=caption,
        areas=_areas(figure, bars),
    )
