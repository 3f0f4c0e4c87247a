"""Sections `prompts`, `sample` and `prepare` of a recipe: everything before the training.

Does no I/O.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import Field, field_validator

from ssd_ray.config.section import Decoding, Section, tuning

Contamination = Literal["refuse", "drop", "allow"]


class PromptsConfig(Section):
    """Section `prompts`: the source, selection and form of training prompts."""

    source: str = "builtin"
    """Where problems come from: `builtin`, `rstar-coder`, a path of JSONL or Parquet files with one
    problem a row, or a data set of the Hugging Face hub, streamed:
    `hub:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]`. A run keeps the commit of its first read (file
    `prompts-revision`).
    """
    split: Literal["train", "eval", "all"] = "train"
    """Part of the built-in problems. Other sources are not divided: `train` and `all` take all
    their rows.
    """
    mode: Literal["paper", "chat", "release"] = "paper"
    """Form of a prompt. `paper`: chat template with a system message asking for a code block.
    `chat`: chat template without it. `release`: the raw template text of the authors' released
    script, without a chat template. After the statement, each mode explains how the program is
    called: through the starter code if the problem has some, else through standard input.
    """
    system_message: str = (
        "Solve the problem in Python. Put the complete program in one ```python code block."
    )
    """System message of mode `paper`. The paper describes its purpose but does not quote it."""
    template_arguments: dict[str, object] = Field(default_factory=dict)
    """Further arguments of the chat template, for training and evaluation alike (GPT-OSS:
    `reasoning_effort: high`).
    """
    template_date: str | None = None
    """Current time as seen by a chat template with a clock: an ISO date, or date and time
    (`2026-01-31`, `2026-01-31T09:30`). `null` is the moment of the first render with such a
    template; the run keeps it in `template-date`.
    """
    only_passed: bool = True
    """Keep only rows whose stored solution passed, if rows have a column `is_passed` (rStar-Coder,
    from the hub or from files). The paper's count of about 10,168 needs it.
    """
    deduplicate: bool = True
    """Keep the first of rows with the same statement, up to whitespace."""
    id_column: str | None = None
    """Column with a unique id. `null` numbers the rows."""
    statement_column: str = "question"
    """Column with the problem statement of a JSONL or Parquet source."""
    starter_code_column: str | None = "starter_code"
    """Column with starter code, used where it is present and not empty. `null` ignores it."""
    tests_column: str | None = None
    """Column with tests, in the format of custom problems (docs/benchmarks.md); `kind` and
    `entry_point` are then read as well. Only training on accepted answers needs tests. `null` reads
    none.
    """
    license: str | None = tuning(None)
    """License of the prompts by its name on the Hugging Face hub, for the data set's card. `null`
    uses the known license of `builtin` and `rstar-coder`, else `unknown`.
    """
    contamination: Contamination = "refuse"
    """Treatment of prompts that overlap with a problem of `evaluate.benchmarks`: by 13 words in a
    row (in scripts without spaces, 26 characters), or by all words of a shorter statement.
    `refuse`: stop the run before sampling. `drop`: leave them out. `allow`: keep them. All are
    counted and reported.
    """
    limit: int | None = Field(None, ge=1)
    """Maximum number of prompts, taken from the start after filtering and deduplication."""
    over_length: Literal["error", "skip", "truncate-left"] = "error"
    """Treatment of a training prompt without room for an answer in `model.max_model_len`. `error`:
    stop the run. `skip`: leave it out. `truncate-left`: keep its end, and reserve
    `sample.max_tokens` for the answer, but at most half of the context. All are counted.
    """

    @field_validator("template_date", mode="before")
    @classmethod
    def _iso_moment(cls, value: Any) -> Any:
        if value is None:
            return None
        # YAML parses a bare date or time itself. A datetime is a date, too.
        text = value.isoformat() if isinstance(value, date) else value
        try:
            moment = datetime.fromisoformat(text)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "use an ISO date, or date and time, such as 2026-01-31 or 2026-01-31T09:30"
            ) from error
        if moment.tzinfo is not None:
            raise ValueError("leave the time zone out: a chat template reads local time")
        return text

    @field_validator("system_message")
    @classmethod
    def _without_byte_order_mark(cls, value: str) -> str:
        # An editor may save one at the start of a file, and the model would see it.
        return value.lstrip("\ufeff")


class SampleConfig(Decoding):
    """Section `sample`: decoding of the training samples."""

    samples_per_prompt: int = Field(1, ge=1)
    """Answers for each prompt; the paper's main results use one."""
    max_tokens: int = Field(2048, ge=1)
    """Longest answer in tokens. An answer cut here has no end token."""
    shard_rows: int = tuning(16, ge=1)
    """Answers in a shard. Later steps read a shard once it is complete. A crash keeps the finished
    answers of an incomplete shard.
    """


Policy = Literal["keep", "mask", "drop"]


class Policies(Section):
    """Section `prepare.policies`: the treatment of each class of answers."""

    empty: Policy = "drop"
    """Answers without any text (the paper drops them, section 3.1)."""
    stub: Policy = "drop"
    """Answers of a single line (the paper drops them, section 3.1)."""
    no_code: Policy = "keep"
    """Answers without a program, by the rule `evaluate.extract`."""
    cut_off: Policy = "keep"
    """Answers cut at sample.max_tokens or at the end of the context."""
    no_end_token: Policy = "keep"
    """Answers whose last token is not an end token of the model: cut off, or stopped in another
    way.
    """
    loop: Policy = "keep"
    """Answers in which at least a quarter of the 8-grams of tokens occur four times or more."""
    duplicate: Policy = "keep"
    """Answers with the same tokens as an earlier answer; the earlier one stays."""


class PrepareConfig(Section):
    """Section `prepare`: the choice of samples, and their form as training sequences."""

    select: Literal["all", "accepted"] = "all"
    """Answers to train on. `all`: self-distillation as in the paper. `accepted`: only answers whose
    program passes the tests of its problem, as a comparison; prompts then need tests. The arm
    `accepted` (see `evaluate.controls`) compares both in one run.
    """
    policies: Policies = Policies()
    """Treatment of each class of answers. `keep`: train on it. `mask`: leave it in its batches but
    out of the loss. `drop`: leave it out. The defaults are the paper's filter.
    """
    drop_shortest_percent: float = Field(0.0, ge=0, lt=100)
    """Percentage of the kept answers to drop, shortest first, by characters. The paper uses 0, the
    authors' released configuration 10.
    """
    max_length: int = Field(65536, ge=2)
    """Longest training sequence in tokens, prompt included."""
    over_length: Literal["drop", "truncate"] = "truncate"
    """Treatment of a longer sequence. `truncate`: cut the end of the answer. `drop`: leave the
    sequence out. Both are counted.
    """
