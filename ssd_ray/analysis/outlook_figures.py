"""Numbers of a forecast as data: `outlook` computes them.

Readers of forecast.json import this module, so it loads neither torch nor numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_EFFECTIVE = 10.0
"""Effective answers below which a predicted success is not compared with others."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its interval over problems, 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """Answers of one outcome under a decoding."""

    answers: int
    survived: int
    """Answers without a token cut."""
    tokens_kept: float
    """Share of the tokens left by the decoding."""
    log_likelihood: float | None
    """Mean over the tokens left, nats; None if none is."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Success under a decoding, by importance weights."""

    success: Estimate
    effective_answers: float

    @property
    def is_ranked(self) -> bool:
        """Return True if enough answers count to compare it with others."""
        return self.effective_answers >= MIN_EFFECTIVE


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A model under one decoding, at the positions of the answers."""

    temperature: float
    top_k: int | None
    top_p: float
    survivors: float
    """Mean number of tokens left."""
    entropy: float
    """Mean entropy after the cut, nats."""
    accepted: Group | None
    """Answers that passed their tests; None without tests."""
    rejected: Group | None
    """Answers that failed them; all answers without tests."""
    prediction: Prediction | None
    """None without tests, or if no answer survives."""


@dataclass(frozen=True, kw_only=True)
class TrainingCell:
    """A training setting: what its samples ask of the model."""

    temperature: float
    top_k: int | None
    top_p: float
    size: float
    """Mean size of S."""
    one: Estimate
    """Share of positions with one token in S (locks)."""
    two: float
    """Share with two tokens."""
    kept_mass: float
    """Mean of p0(S)."""
    start: float
    """CE(q, p0): the loss at the start, nats a token."""
    floor: float
    """H(q): the loss that is approached and never reached."""
    gap: Estimate
    """KL(q || p0) = start - floor: how far the model is asked to move."""
    crossing: float | None
    """T_eval above which the student is less diverse than the base at the same T_eval.

    None if the grid has none; 0 if the student is nowhere more diverse.
    """
    student: tuple[Decoded, ...]
    """The ideal student at each T_eval."""


@dataclass(frozen=True, kw_only=True)
class References:
    """Reference solutions under the same decodings. They are not the model's path."""

    solutions: int
    left_out: int
    """Solutions too long for the model, with their prompts."""
    tokens: int
    log_likelihood: float
    """Mean over their tokens under the base at T 1, nats."""
    log_likelihood_of_answers: float
    """The same for the base's own answers, drawn at T 1."""
    student: tuple[Group, ...]
    """Under the ideal student of the recipe, at each T_eval."""
    base: tuple[Group, ...]
    """Under the base at each decoding of the outlook."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The numbers of a forecast."""

    answers: int
    problems: int
    positions: int
    entropy: float
    """Mean of H(p0), nats."""
    accepted: int | None
    """Answers that passed their tests; None without tests."""
    training: tuple[TrainingCell, ...]
    base: tuple[Decoded, ...]
    """The base at each decoding."""
