"""Section `panel` of a recipe: capabilities that a training must not cost. Does no I/O."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ssd_ray.config.section import Section


class Capability(Section):
    """A capability: how it is measured, and how much of it may be lost."""

    kind: Literal["benchmark", "choices", "format", "kl"]
    """`benchmark`: pass@1 of a benchmark of `evaluate.benchmarks`, from the answers of the run.
    `choices`: multiple choice by the likelihood of the label. `format`: instructions on the form of
    an answer, checked on files of answers. `kl`: divergence of the trained model from the base on
    the text of general prompts.
    """
    source: str
    """Name of the benchmark, or path of a JSONL or Parquet file (docs/panel.md). For `format`,
    `builtin` is the package's own file.
    """
    tolerance: float = Field(gt=0)
    """Largest acceptable loss: a share of one, or for `kl` nats a token."""
    limit: int | None = Field(None, ge=2)
    """Most rows of the file, from its start."""
    arm: str | None = None
    """Trained arm of a benchmark. `null` is the first with model ssd."""
    against: str | None = None
    """Arm to compare with. `null` is the baseline."""
    answers: str | None = None
    """Path of the trained model's answers, for `format`."""
    base_answers: str | None = None
    """Path of the base's answers, for `format`."""

    @model_validator(mode="after")
    def _check_kind(self) -> Capability:
        if self.kind == "format" and not (self.answers and self.base_answers):
            raise ValueError(
                "kind 'format' draws nothing: set answers and base_answers to files of answers"
            )
        if self.kind != "format" and (self.answers or self.base_answers):
            raise ValueError(f"kind {self.kind!r} reads no files of answers: leave them out")
        if self.kind == "format" and (self.arm or self.against):
            raise ValueError("kind 'format' compares files of answers: leave arm and against out")
        if self.kind != "benchmark" and (self.arm or self.against):
            raise ValueError(
                f"kind {self.kind!r} compares the weights of ssd and base: leave arm and against "
                "out"
            )
        if self.kind == "benchmark" and self.limit is not None:
            raise ValueError("a benchmark takes evaluate.limit: leave limit out")
        if self.kind != "kl" and self.tolerance >= 1:
            raise ValueError(f"tolerance {self.tolerance:g} is a share of one: use below 1")
        return self
