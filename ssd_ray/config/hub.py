"""A data set of the Hugging Face hub, as `prompts.source` names it. Reads and writes nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

FORM = "hub:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]"
_FORM = re.compile(r"hub:([^:@#]+)(?::([^@#]+))?(?:@([^#]+))?(?:#(.+))?")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Which rows: of a data set, one configuration, at a commit, tag or branch (`None`: the head of `main`), one split."""

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
                *(f"{what} {value}" for what, value in chosen if value),
            ]
        )


def hub_source(source: str) -> HubSource | None:
    """What a `prompts.source` takes from the hub; None for any other source, and for another form."""
    if source == "rstar-coder":
        return HubSource(name="microsoft/rStar-Coder", config="seed_sft")
    found = _FORM.fullmatch(source)
    if found is None:
        return None
    name, config, revision, split = found.groups()
    return HubSource(name=name, config=config, revision=revision, split=split or "train")
