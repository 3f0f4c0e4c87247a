"""Data health for a reader: health.html of a data set, and the section of the report on it.

The page computes nothing but shares. It shows the facts of dataset/, contamination/ and prompts/.
It opens without a network and holds no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from ssd_ray.artifacts.dataset_facts import DatasetFacts, HealthCounts, Provenance
from ssd_ray.artifacts.problem_facts import ContaminationFacts, PromptFacts
from ssd_ray.config import Recipe
from ssd_ray.config.arms import TrainedModel
from ssd_ray.reporting.plots.health_plots import health_pictures, shares
from ssd_ray.reporting.templates.environment import environment
from ssd_ray.reporting.words import count, counted, decimals, percent

WARN_SHARE = 0.05
"""Larger shares get a warning: of the tokens for cut-off answers and loops, else of the answers."""

CLASS_WORDS = {
    "empty": "no text",
    "stub": "a single line of text",
    "no_code": "no program by the rule of extraction, outside of the reasoning",
    "cut_off": "ended by the limit on its length, not by itself",
    "no_end_token": "the last token is none of the model's end tokens",
    "loop": "a quarter or more of its 8-grams of tokens occur in it four times or more",
    "duplicate": "the same tokens as an earlier answer",
}


_CLASS_NOTES = {
    "cut_off": (
        "Cut off",
        "They teach the model nothing about ending; a policy of mask or drop takes them out of the "
        "loss.",
    ),
    "loop": (
        "Loops",
        "A few long loops can outweigh all other answers, since the loss counts tokens.",
    ),
    "no_code": ("No code", "The paper keeps them: it trains on raw answers."),
}


@dataclass(frozen=True, kw_only=True)
class HealthReading:
    """One finding in words."""

    where: str
    what: str
    note: str
    warns: bool
    """True if it should be checked before training."""


def readings(health: HealthCounts) -> Iterator[HealthReading]:
    """Yield findings on the samples, most important first."""
    rows = health.rows
    classes = health.classes
    ended = sum(end.end_token for end in health.ends.values())
    unended = health.ends["stop"].no_end_token
    yield HealthReading(
        where="End token",
        what=f"{count(ended)} of {counted(rows, 'answer')} end with an end token",
        note=f"{counted(unended, 'answer')} stopped by themselves without one.",
        warns=unended > 0,
    )
    for name, (where, note) in _CLASS_NOTES.items():
        answers, tokens = (percent(share, decimals(rows)) for share in shares(health, name))
        yield HealthReading(
            where=where,
            what=f"{answers} of the answers, {tokens} of the tokens",
            note=f"{counted(classes[name].rows, 'answer')}. {note}",
            # Answers without code are the paper's own data: no reason to warn.
            warns=name != "no_code" and shares(health, name)[1] > WARN_SHARE,
        )
    yield from _reasoning(health)
    empty = count(classes["empty"].rows)
    stubs = count(classes["stub"].rows)
    yield HealthReading(
        where="Empty and stubs",
        what=f"{empty} empty, {stubs} of a single line",
        note="The paper's filter leaves these out, and nothing else.",
        warns=False,
    )
    yield HealthReading(
        where="Duplicates",
        what=f"{counted(health.distinct, 'different answer')} of {count(rows)}",
        note=f"The most frequent one occurs {counted(health.most_copies, 'time')}.",
        warns=shares(health, "duplicate")[0] > WARN_SHARE,
    )


def _reasoning(health: HealthCounts) -> Iterator[HealthReading]:
    """Yield findings on reasoning and other languages, if there is any.

    Data sets of earlier versions of ssd_ray lack these counts.
    """
    rows = health.rows
    states = health.reasoning or {}
    if reasoned := sum(states.values()) - states.get("none", 0):
        ended = states["ended"] / reasoned
        yield HealthReading(
            where="Reasoning",
            what=(
                f"{percent(ended, decimals(reasoned))} of {counted(reasoned, 'answer')} "
                "with reasoning end it"
            ),
            note="One that does not end it has no code: a draft is not a program.",
            warns=False,
        )
    foreign = 0 if health.other_language is None else health.other_language.rows
    if foreign:
        yield HealthReading(
            where="Other languages",
            what=(
                f"the program of {percent(foreign / rows, decimals(rows))} of the answers is "
                "marked as another language"
            ),
            note=(
                f"{counted(foreign, 'answer')}, such as a shell command or an output after the "
                "program. They count as code."
            ),
            warns=foreign > WARN_SHARE * rows,
        )


def section(health: HealthCounts) -> dict[str, object]:
    """Return the variables of health_section.html.j2."""
    return {
        "health": health,
        "health_readings": list(readings(health)),
        "health_pictures": health_pictures(health),
        "CLASS_WORDS": CLASS_WORDS,
    }


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts on a data set, for its pages."""

    prompts: PromptFacts
    contamination: ContaminationFacts
    dataset: DatasetFacts


def health_page(recipe: Recipe, branch: TrainedModel, facts: DataFacts) -> str:
    """Return health.html of a data set."""
    template = environment().get_template("health.html.j2")
    return template.render(
        recipe=recipe,
        branch=branch,
        sample=branch.sample,
        dataset=facts.dataset,
        contamination=facts.contamination,
        prompts=facts.prompts,
        prompts_dropped=facts.prompts.dropped or {},
        provenance=_origin(facts.dataset.provenance),
        **section(facts.dataset.health),
    )


def _origin(provenance: Provenance | None) -> list[tuple[str, str]]:
    """Return the provenance as rows of a table."""
    return [] if provenance is None else list(_leaves(asdict(provenance)))


def _leaves(node: Mapping[str, object], at: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested facts as rows of a table."""
    for key, value in node.items():
        name = f"{at}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}: ")
        else:
            yield name, "none" if value is None else str(value)
