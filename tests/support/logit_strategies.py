"""Logits and settings for properties of the operator and the theory."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from ssd_ray.analysis.operator import Setting
from tests.support.operator_reference import borderline, tempered

VOCABULARY = 9
TENTHS = st.integers(-60, 60).map(lambda tenths: tenths / 10)
DISTINCT = st.lists(TENTHS, min_size=VOCABULARY, max_size=VOCABULARY, unique=True)
TIED = st.lists(st.sampled_from([-3.0, -1.0, 0.5, 2.0]), min_size=VOCABULARY, max_size=VOCABULARY)
TEMPERATURES = st.sampled_from([0.3, 0.6, 0.9, 1.0, 1.6, 3.0])
SETTINGS = st.builds(
    Setting,
    temperature=TEMPERATURES,
    top_k=st.sampled_from([None, 1, 3, 5, VOCABULARY, 20]),
    top_p=st.sampled_from([1.0, 0.951, 0.803, 0.502, 0.011]),
)


def row(logits: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the logits of one position, [1, vocabulary]."""
    return torch.tensor([logits], dtype=dtype)


def near_border(logits: list[float] | Tensor, setting: Setting) -> bool:
    """Return True if rounding may put a token on either side of top-p."""
    scores = tempered(np.asarray(logits).reshape(-1), setting.temperature)
    return borderline(scores, setting.top_k or len(scores), setting.top_p)
