"""Facts of data sets: sequences kept and left out, health of the samples, provenance.

They follow the rules of `facts.py`. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ssd_ray.artifacts.facts import Facts, RowFacts


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Rows masked out of the loss."""

    rows: int
    response_tokens: int


@dataclass(frozen=True, kw_only=True)
class LengthHistogram:
    """Rows by their response tokens."""

    edges: tuple[int, ...]
    """Edges of the bins in tokens, one more than bins."""
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """Samples of one class of health."""

    rows: int
    tokens: int
    policy: str
    dropped: int
    """Rows dropped for any reason."""
    masked: int
    """Rows masked for any reason."""


@dataclass(frozen=True, kw_only=True)
class EndCount:
    """Rows of one finish reason, with and without an end token."""

    end_token: int
    no_end_token: int


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of samples in tokens: extremes, mean, quantiles, and histograms by group."""

    min: int
    mean: float
    max: int
    p1: float
    p10: float
    p25: float
    p50: float
    p75: float
    p90: float
    p99: float
    edges: tuple[int, ...]
    """Edges of the bins, one more than bins."""
    counts: Mapping[str, tuple[int, ...]]
    """Rows in each bin, by group."""
    tokens: Mapping[str, tuple[int, ...]]
    """Tokens in each bin, by group."""


@dataclass(frozen=True, kw_only=True)
class RowsAndTokens:
    """Rows, and the tokens in them."""

    rows: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A sample as an example of its class, with beginning and end of its text."""

    prompt_id: str
    sample_index: int
    tokens: int
    finish_reason: str
    text: str


@dataclass(frozen=True, kw_only=True)
class HealthCounts:
    """Health of the samples of a data set, counted before any is dropped."""

    rows: int
    tokens: int
    classes: Mapping[str, ClassCount]
    ends: Mapping[str, EndCount]
    """By finish reason."""
    lengths: Lengths
    distinct: int
    """Distinct answers."""
    most_copies: int
    """Occurrences of the most frequent answer."""
    reasoning: Mapping[str, int] | None = None
    """Rows by the state of their reasoning; None if an earlier version did not count them."""
    other_language: RowsAndTokens | None = None
    """Programs marked as another language; None if an earlier version did not count them."""
    extract: str
    """Rule to find the program of an answer."""
    end_tokens: tuple[int, ...]
    """End tokens of the model."""


@dataclass(frozen=True, kw_only=True)
class Health(HealthCounts):
    """Health of the samples of a data set, with examples of each class."""

    examples: Mapping[str, tuple[Excerpt, ...]]


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """The model behind a data set."""

    source: str
    revision: str | None
    weights: str
    """Kind and digest or commit of its weights."""
    dtype: str


@dataclass(frozen=True, kw_only=True)
class PromptOrigin:
    """The prompts behind a data set."""

    source: str
    identity: str
    """Identifier of the source in fingerprints."""
    revision: str | None
    """Commit of a data set of the hub; None for other sources."""
    license: str
    mode: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class SampleDecoding:
    """The decoding of the samples behind a data set."""

    temperature: float
    top_k: int | None
    top_p: float
    max_tokens: int
    samples_per_prompt: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of a data set."""

    recipe: str
    model: ModelOrigin
    tokenizer_sha256: Mapping[str, str] | None
    """By file; None if it is not recorded."""
    chat_template_sha256: str | None
    """None without a chat template."""
    template_date: str | None = None
    """Date that the chat template reads; None if it reads none."""
    prompts: PromptOrigin
    decoding: SampleDecoding
    not_drawn: int = 0
    """Answers that engines failed to draw."""
    seed: int
    fingerprints: Mapping[str, str]
    """By artifact."""
    versions: Mapping[str, str]
    """By package; several versions are joined by "and"."""
    sampled_at: str | None


@dataclass(frozen=True, kw_only=True)
class DatasetFacts(RowFacts):
    """Facts of `dataset/`."""

    read: int | None = None
    """Samples read."""
    dropped: Mapping[str, int] | None = None
    """Samples dropped, by reason."""
    masked: Masked | None = None
    truncated: int | None = None
    """Rows cut to `prepare.max_length`."""
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    finish_reasons: Mapping[str, int] | None = None
    """Rows by finish reason as trained: an answer cut to `prepare.max_length` is "length"."""
    token_share: Mapping[str, float] | None = None
    """Share of the response tokens, by finish reason."""
    length_histogram: LengthHistogram | None = None
    health: Health
    provenance: Provenance | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerOrigin:
    """The tokenizer behind a data set."""

    tokenizer_sha256: Mapping[str, str] | None = None
    """By file; None if it is not recorded."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts(Facts):
    """The facts of `dataset/` that a training on it reads."""

    provenance: TokenizerOrigin = TokenizerOrigin()


@dataclass(frozen=True, kw_only=True)
class SequenceFacts(RowFacts):
    """The facts of `dataset/` that a plan of the training reads."""

    prompt_tokens: int
    response_tokens: int
    length_histogram: LengthHistogram
