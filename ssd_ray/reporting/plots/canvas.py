"""Paper and ink of the pictures: size, style, colours, and how a drawing becomes SVG.

One idea: the same numbers give the same bytes, so nothing of the day or of the process goes into the file. Colours are Okabe
and Ito's, which colour-blind readers tell apart; each arm also has its own marker. The machine's matplotlibrc plays no part,
and matplotlib's state is left as it was.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 5.0
INK, QUIET, RULE, PAPER = "#1f2328", "#59636e", "#d8dde3", "#ffffff"
COLORS = ("#59636e", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLE: Any = {
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
class Picture:
    """One figure: SVG source, size in CSS pixels, what it shows for one who cannot see it, and a caption of one sentence."""

    name: str
    svg: str
    width: int
    height: int
    alt: str
    caption: str

    @property
    def data_uri(self) -> str:
        """The SVG as an address that needs no network; inside an image no script of it could run."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the report, whatever the machine's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def style_of(scores: Mapping[str, Any], arm: str) -> int:
    """The place of an arm among COLORS and MARKERS: 0 for the baseline, then 1, 2, ... in the recipe's order.

    The arms of a sweep that share a model share its place.
    """
    family = {point: name for name, points in scores["families"].items() for point in points}
    own = family.get(scores["baseline"], scores["baseline"])
    others = [
        name
        for name in dict.fromkeys(family.get(each, each) for each in scores["order"]["arms"])
        if name != own
    ]
    name = family.get(arm, arm)
    return 0 if name == own else 1 + others.index(name) % (len(COLORS) - 1)


def short(text: str, characters: int = 24) -> str:
    """A label that leaves room for the drawing."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def canvas(height: float) -> tuple[Figure, Axes]:
    """An empty drawing of the common width and a height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def finish(name: str, figure: Figure, alt: str, caption: str) -> Picture:
    """The drawing as SVG without a date."""
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
    )
