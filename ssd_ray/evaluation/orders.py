"""Orders for graders apart from Ray: everything they need to know, as JSON files of the run.

    grading/orders.json            written by the run: names and fingerprints of all orders
    grading/verdicts/base.json     written by the run: one order
    graded/verdicts/base/ID/       written by graders apart: shards of verdicts

- `grading/` is the word of the run, so graders may have it read-only.
- `graded/` is all that graders apart write. The run trusts nothing in it (`returned.py`).
- An order's ID covers its rules and its inputs. So verdicts on other answers, of other rules or
  of another benchmark lie in another directory.

Reads and writes `grading/` of a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ssd_ray.artifacts.files import read_json, write_atomic
from ssd_ray.errors import LastingError, UserError
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.reasoning import ReasoningFormat

ORDERS = "grading"
"""Directory of orders under a run."""
GRADED = "graded"
"""Directory under a run in which graders apart write."""
MOUNTED = (
    "benchmark",
    "eval-prompts",
    "generations",
    "prompts",
    "samples",
    "training-problems",
    ORDERS,
    GRADED,
)
"""All directories of a run that graders apart read or write; a pod mounts these."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The grading of one artifact of completions, with all paths relative to the run."""

    name: str
    """The artifact of verdicts, such as `verdicts/base`."""
    fingerprint: str
    """Fingerprint of that artifact."""
    answers: str
    """The artifact of completions."""
    claim: str
    """Claim of the completions: another one means other contents."""
    problems: str
    """The artifact of problems."""
    contents: str
    """Digest of the problems."""
    prompts: str
    """The artifact of prompts that the completions answer."""
    samples_per_prompt: int
    total: int
    """Completions once their artifact is complete."""
    rules: Rules
    floor: str
    """The weakest sandbox level allowed."""
    reasoning: ReasoningFormat
    """Marks of reasoning; its tokenizer is relative to the run too."""

    @property
    def id(self) -> str:
        """Sixteen hex digits over all fields."""
        return hashlib.sha256(self.document().encode()).hexdigest()[:16]

    def document(self) -> str:
        """Return the order as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, default=str, indent=1)

    @property
    def place(self) -> Path:
        """Directory for its verdicts, relative to the run."""
        return Path(GRADED, self.name, self.id)

    def spec(self, run: Path, out: Path) -> GradingSpec:
        """Return the specification for graders of verdicts in `out`."""
        tokenizer = self.reasoning.tokenizer
        return GradingSpec(
            benchmark=(run / self.problems).resolve(),
            rules=self.rules,
            floor=self.floor,
            out=out.resolve(),
            reasoning=dataclasses.replace(
                self.reasoning, tokenizer=None if tokenizer is None else (run / tokenizer).resolve()
            ),
        )


_ORDER = TypeAdapter(Order)


def announce(run: Path, fingerprints: Mapping[str, str]) -> None:
    """Write the list of orders to come: fingerprints of artifacts of verdicts, by name.

    Graders apart end once all of these are graded.
    """
    write_atomic(_index(run), json.dumps({"orders": dict(fingerprints)}, indent=1))


def announced(run: Path) -> dict[str, str] | None:
    """Return the list of orders to come, None before the run has written it.

    Raises:
        LastingError: the file is not a list of this program.
    """
    if not _index(run).exists():
        return None
    orders = read_json(_index(run)).get("orders")
    if not isinstance(orders, dict):
        raise LastingError(f"{_index(run)} lists no orders: delete it and start the run again")
    return {str(name): str(fingerprint) for name, fingerprint in orders.items()}


def publish(run: Path, order: Order) -> Order:
    """Write an order for graders, add it to the list if it is not there, and return it as read."""
    text = order.document()
    write_atomic(_path(run, order.name), text)
    listed = announced(run) or {}
    if listed.get(order.name) != order.fingerprint:
        announce(run, {**listed, order.name: order.fingerprint})
    # As graders read it: 20 may have become 20.0, and the ID covers every digit.
    return _ORDER.validate_json(text)


def read(run: Path, name: str) -> Order | None:
    """Return an order by the name of its verdicts, None before the run has written it.

    Raises:
        UserError: the file is not an order of this version.
    """
    path = _path(run, name)
    if not path.exists():
        return None
    try:
        return _ORDER.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path} is no order that this version of ssd_ray can read ({field}: "
            f"{first['msg'].lower()}): use the same version for the run and its graders"
        ) from error


def _index(run: Path) -> Path:
    return run / ORDERS / "orders.json"


def _path(run: Path, name: str) -> Path:
    return run / ORDERS / f"{name}.json"
