"""Filters of the answers, as the address of a page holds them.

Does no I/O.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from ssd_ray.errors import UserError

FACETS = {
    "stage": "Stage",
    "arm": "Arm",
    "benchmark": "Benchmark",
    "difficulty": "Difficulty",
    "outcome": "Outcome",
    "finish": "Finish reason",
    "health": "Health",
}
"""Filters by value: name in a link, heading."""
CLASSES = ("empty", "stub", "no_code", "cut_off", "loop", "duplicate")
"""Classes of health, in the order of their bits; `none` is an answer in no class."""
SORTS = {
    "position": "as on disk",
    "tokens": "length",
    "time_s": "time",
    "peak_bytes": "memory",
    "num_passed": "tests passed",
    "prompt_id": "problem",
}
_LONGEST_SEARCH = 500


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The state of the table of answers."""

    stage: tuple[str, ...] = ()
    arm: tuple[str, ...] = ()
    benchmark: tuple[str, ...] = ()
    difficulty: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    problem: str = ""
    least: int | None = None
    """Least number of tokens."""
    most: int | None = None
    """Largest number of tokens."""
    q: str = ""
    """Text to search for."""
    sort: str = "position"
    descending: bool = False

    @classmethod
    def parse(cls, parameters: QueryParams) -> Filters:
        """Read filters from the parameters of an address.

        Raises:
            UserError: a length is no number, or the sort is unknown.
        """
        sort = parameters.get("sort", "") or "position"
        if sort not in SORTS:
            raise UserError(f"answers cannot be sorted by {sort!r}: use one of {', '.join(SORTS)}")
        search = parameters.get("q", "")
        if len(search) > _LONGEST_SEARCH:
            raise UserError(f"a search takes at most {_LONGEST_SEARCH} characters")
        return cls(
            **{
                name: tuple(dict.fromkeys(value for value in parameters.getlist(name) if value))
                for name in FACETS
            },
            problem=parameters.get("problem", ""),
            least=_number(parameters, "least"),
            most=_number(parameters, "most"),
            q=search,
            sort=sort,
            descending=parameters.get("descending", "") == "1",
        )

    def pairs(self) -> list[tuple[str, str]]:
        """Return names and values for an address; defaults are left out."""
        pairs = [(name, value) for name in FACETS for value in getattr(self, name)]
        for name in ("problem", "least", "most", "q"):
            value = getattr(self, name)
            if value not in ("", None):
                pairs.append((name, str(value)))
        if self.sort != "position":
            pairs.append(("sort", self.sort))
        if self.descending:
            pairs.append(("descending", "1"))
        return pairs

    def address(self, run: str, **more: str | int) -> str:
        """Return the query string of these filters on a run."""
        extra = [(name, str(value)) for name, value in more.items()]
        return urlencode([("run", run), *self.pairs(), *extra])

    def without(self, name: str) -> Filters:
        """Return these filters with one of them taken off."""
        blank = {name: getattr(Filters(), name)}
        return dataclasses.replace(self, **blank)


def _number(parameters: QueryParams, name: str) -> int | None:
    text = parameters.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise UserError(f"{name}={text[:40]!r} is no length: give a number of tokens")
    return int(text)
