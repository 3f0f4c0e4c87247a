"""The sandbox of most tests of grading, one a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ssd_ray.evaluation.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A sandbox at the best level of this machine."""
    with Sandbox() as sandbox:
        yield sandbox
