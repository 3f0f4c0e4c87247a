"""Facts of artifacts: the numbers that each stage counts and writes into its manifest.

One frozen dataclass per stage. `document` gives the JSON object for the manifest; `parse` reads it.

- Keys of other versions are ignored, so artifacts of later versions stay readable.
- A field without a default is in every manifest. A manifest that lacks it is refused.
- None means that an earlier version did not record the fact, unless the field says otherwise.

Facts of problems and prompts are in `problem_facts.py`, of data sets in `dataset_facts.py`.
Does no I/O.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from ssd_ray.artifacts.audit import Audit
from ssd_ray.artifacts.files import Json
from ssd_ray.artifacts.ledger import Failure
from ssd_ray.artifacts.shards import ShardFile
from ssd_ray.errors import UserError

_LEFT_OUT_IF_NONE = {"left_out_if_none": True}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of any stage."""

    shards: tuple[ShardFile, ...] | None = field(default=None, compare=False, repr=False)
    """Shards by the ledger of the stage; None without a ledger.

    They are written into the manifest's own list, not among the facts.
    """

    @property
    def gpu_tokens(self) -> int:
        """Tokens drawn or trained on; 0 for a stage without work on GPUs."""
        return 0

    def document(self) -> Json:
        """Return the facts as a JSON object."""
        # Only the fields of facts themselves may be left out; a nested None is a value.
        kept = [item for item in dataclasses.fields(self) if item.name != "shards"]
        plain = dataclasses.asdict(self)
        return {
            item.name: plain[item.name]
            for item in kept
            if plain[item.name] is not None or not item.metadata.get("left_out_if_none")
        }

    @classmethod
    def parse(cls, document: Json, where: str) -> Self:
        """Read facts from the JSON object of a file, named `where` in errors.

        Raises:
            UserError: a fact is missing or has another type.
        """
        try:
            facts: Self = _validator(cls).validate_python(document)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{where} has no readable fact `{name}` ({first['msg'].lower()}); "
                "delete its directory and run again, which makes it again"
            ) from error
        return facts


FactsT = TypeVar("FactsT", bound=Facts)


_validators: dict[type[Facts], TypeAdapter[Any]] = {}


def _validator(kind: type[Facts]) -> TypeAdapter[Any]:
    """Return the validator of a class; each is built once, at the first use."""
    if kind not in _validators:
        _validators[kind] = TypeAdapter(kind)
    return _validators[kind]


@dataclass(frozen=True, kw_only=True)
class RowFacts(Facts):
    """Facts of a stage with rows, whatever else it counts."""

    rows: int
    """Rows of all shards."""


@dataclass(frozen=True, kw_only=True)
class AnswerFacts(RowFacts):
    """Facts of `samples/` and of `generations/<arm>/`."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reasons: Mapping[str, int] | None = None
    """Rows by finish reason."""
    failed: tuple[Failure, ...] = ()
    """Answers without a row."""
    engine_losses: int | None = None
    """Engines that crashed."""

    @property
    def gpu_tokens(self) -> int:
        """Tokens drawn."""
        return self.output_tokens or 0

    @classmethod
    def of(cls, audit: Audit, *, engine_losses: int) -> Self:
        """Return the facts of a directory with a ledger."""
        records = audit.records
        return cls(
            rows=sum(record.rows for record in records),
            prompt_tokens=sum(record.prompt_tokens for record in records),
            output_tokens=sum(record.output_tokens for record in records),
            finish_reasons=audit.finish_reasons,
            failed=audit.failed,
            engine_losses=engine_losses,
            shards=audit.shards,
        )


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """Isolation of the graded programs on the weakest machine."""

    level: str
    """Level of the sandbox, and its walls in words."""
    network: bool
    """True if programs had no network."""


@dataclass(frozen=True, kw_only=True)
class VerdictFacts(RowFacts):
    """Facts of `verdicts/<arm>/`, `verdicts-lcb/<arm>/` and `sample-verdicts/`."""

    outcomes: Mapping[str, int] | None = None
    """Rows by outcome."""
    reasoning: Mapping[str, int] | None = None
    """Rows with reasoning, by its state."""
    infrastructure_errors: int
    """Answers without a verdict because of the machine; they are graded again by the next run."""
    profile: str | None = None
    official_grader: Mapping[str, str] | None = field(default=None, metadata=_LEFT_OUT_IF_NONE)
    """The grader that profile `lcb-compat` follows; None also for other profiles."""
    sandbox_level: str | None = None
    """The weakest level of all machines; empty if no program ran."""
    isolation: Isolation | None = None
    """None also if no program ran."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts(Facts):
    """Facts of `checkpoint/`, and the contents of its `training.json`."""

    steps: int | None = None
    first_loss: float | None = None
    final_loss: float | None = None
    response_tokens: int | None = None
    """Tokens with a loss, over all steps."""
    tokens: int | None = None
    """Tokens of all sequences, over all steps."""
    epochs: float | None = None
    num_workers: int | None = None
    heldout_rows: int | None = None
    heldout_response_tokens: int | None = None
    parameters: int | None = None
    trained_parameters: int | None = None

    @property
    def gpu_tokens(self) -> int:
        """Tokens trained on."""
        return self.tokens or 0


Estimates = Mapping[str, Mapping[str, float | None]]
"""Estimate by benchmark and arm; None if the score is refused."""


@dataclass(frozen=True, kw_only=True)
class ForecastFacts(Facts):
    """Facts of `forecast/`."""

    answers: int
    """Answers of the base behind it."""
    problems: int
    positions: int
    """Tokens of the answers."""


@dataclass(frozen=True, kw_only=True)
class SweepFacts(Facts):
    """Facts of `sweep/`."""

    cells: int
    """Cells, those of the base included."""
    problems: int
    """Problems behind each cell."""


@dataclass(frozen=True, kw_only=True)
class ReportFacts(Facts):
    """Facts of `report/`: the headline estimates, under the name of their metric."""

    metric: str
    estimates: Estimates

    def document(self) -> Json:
        """Return {metric: estimates}."""
        return {self.metric: {name: dict(arms) for name, arms in self.estimates.items()}}

    @classmethod
    def parse(cls, document: Json, where: str) -> Self:
        """Read {metric: estimates} from the JSON object of a file, named `where` in errors.

        Raises:
            UserError: there is not exactly one metric, or an estimate is not a number.
        """
        if len(document) != 1:
            raise UserError(
                f"{where} has {len(document)} metrics among its facts, and a report has one; "
                "delete its directory and run again, which makes it again"
            )
        (metric, estimates) = next(iter(document.items()))
        fields: Json = {"metric": metric, "estimates": estimates}
        return super().parse(fields, where)
