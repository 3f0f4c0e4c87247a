"""The learning rate of a step: linear warm-up, then a cosine down to the minimum. Reads and writes nothing."""

from __future__ import annotations

import math

from ssd_ray.config import TrainConfig


def learning_rate(train: TrainConfig, step: int) -> float:
    """The learning rate of optimiser step `step` (from 0).

    Warm-up rises from zero so that its last step has the peak; the last step of training has the minimum (paper, C.1).
    """
    done = step + 1
    if done <= train.warmup_steps:
        return train.learning_rate * done / train.warmup_steps
    progress = (done - train.warmup_steps) / (train.steps - train.warmup_steps)
    fall = 0.5 * (1 + math.cos(math.pi * progress))
    return train.min_learning_rate + (train.learning_rate - train.min_learning_rate) * fall
