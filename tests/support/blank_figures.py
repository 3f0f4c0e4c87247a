"""Figures that are labeled but neither laid out nor drawn, for tests of numbers and text."""

from __future__ import annotations

from typing import Any, TextIO

import pytest


def leave_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save every figure as an empty SVG: layout and drawing take most of a report's time."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda *_: None)
    monkeypatch.setattr(Figure, "savefig", _save)


def _save(figure: Any, sink: TextIO, **_: Any) -> None:
    sink.write('<svg xmlns="http://www.w3.org/2000/svg"/>')
