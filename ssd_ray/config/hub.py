"""Data sets of the Hugging Face hub as named by `prompts.source`. Does no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

FORM = "hub:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]"
_FORM = re.compile(r"hub:([^:@#]+)(?::([^@#]+))?(?:@([^#]+))?(?:#(.+))?")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Rows of a data set: one configuration and one split, at a commit, tag or branch.

    A `revision` of None is the head of `main`.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        chosen = (
            ("configuration", self.config),
            ("revision", self.revision),
            ("split", self.split),
        )
        return ", ".join(
            [
                f"{self.name} on the Hugging Face hub",
                *(f"{label} {value}" for label, value in chosen if value),
            ]
        )


def hub_source(source: str) -> HubSource | None:
    """Return the hub data set named by a `prompts.source`, or None for another source or form."""
    # The configuration with a column `is_passed`, for `prompts.only_passed`.
    if source == "rstar-coder":
        return HubSource(name="microsoft/rStar-Coder", config="seed_sft")
    match = _FORM.fullmatch(source)
    if match is None:
        return None
    name, config, revision, split = match.groups()
    return HubSource(name=name, config=config, revision=revision, split=split or "train")
