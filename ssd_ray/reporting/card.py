"""Provenance of a data set, and its card for the Hugging Face hub.

Reads the manifests of prompts/ and samples/. The provenance goes into the manifest. The card is
README.md next to the shards: the directory can be uploaded as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.dataset_facts import (
    ModelOrigin,
    PromptOrigin,
    Provenance,
    SampleDecoding,
)
from ssd_ray.artifacts.facts import AnswerFacts
from ssd_ray.artifacts.problem_facts import PromptFacts
from ssd_ray.config import Recipe, SampleConfig, hub_source
from ssd_ray.config.arms import TrainedModel
from ssd_ray.reporting.health import CLASS_WORDS, DataFacts
from ssd_ray.reporting.templates.environment import environment
from ssd_ray.schema import Completion, Example, arrow_schema

# Licenses of prompts that ssd_ray knows; a recipe states that of any others.
LICENSES = {"builtin": "apache-2.0", "rstar-coder": "cc-by-4.0"}
# Size categories of the hub, each after its exclusive upper bound of rows.
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
SHARDS = "part-*.parquet"


def provenance(recipe: Recipe, sample: SampleConfig, prompts: Path, samples: Path) -> Provenance:
    """Return the origin of a data set.

    `prompts` and `samples` are the artifacts behind the data set.
    """
    # Manifests, not the recipe: they state what the artifacts were really made with.
    rendered = manifests.read_manifest(prompts)
    drawn = manifests.read_manifest(samples)
    prompt_facts = PromptFacts.parse(rendered.facts, str(prompts / "manifest.json"))
    answer_facts = AnswerFacts.parse(drawn.facts, str(samples / "manifest.json"))
    weights = drawn.choices["model"]["weights"]
    commit = prompt_facts.source_revision
    # Attempts before a crash or a resume may have drawn with other versions.
    timing = samples / "timing.json"
    attempts = files.read_json(timing).get("versions", []) if timing.exists() else []
    return Provenance(
        recipe=recipe.name,
        model=ModelOrigin(
            source=_public(recipe.model.source),
            revision=prompt_facts.model,
            weights=" ".join(f"{kind} {value}" for kind, value in weights.items()),
            dtype=recipe.model.dtype,
        ),
        tokenizer_sha256=prompt_facts.tokenizer,
        chat_template_sha256=prompt_facts.chat_template,
        template_date=prompt_facts.template_date,
        prompts=PromptOrigin(
            source=_home(recipe.prompts.source, commit),
            identity=rendered.choices["source"],
            revision=commit,
            license=license_of(recipe),
            mode=recipe.prompts.mode,
            rows=prompt_facts.rows,
        ),
        decoding=SampleDecoding(
            temperature=sample.temperature,
            top_k=sample.top_k,
            top_p=sample.top_p,
            max_tokens=sample.max_tokens,
            samples_per_prompt=sample.samples_per_prompt,
        ),
        not_drawn=len(answer_facts.failed),
        seed=recipe.seed,
        fingerprints={prompts.name: rendered.fingerprint, samples.name: drawn.fingerprint},
        versions=_every_version([*attempts, drawn.versions]),
        sampled_at=drawn.finished_at,
    )


def _home(source: str, commit: str | None) -> str:
    """Return the origin of the prompts, without paths of this machine."""
    if source == "builtin":
        return "the problems that come with ssd_ray"
    hub = hub_source(source)
    if hub is None:
        return f"files ({Path(source).name})"
    return str(replace(hub, revision=commit or hub.revision))


def _every_version(attempts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the version of each package; if attempts differ, all of them in their order."""
    # Dictionaries as ordered sets: a version counts once, at its first attempt.
    by_package: dict[str, dict[str, None]] = {}
    for attempt in attempts:
        for name, version in attempt.items():
            by_package.setdefault(name, {})[version] = None
    return {name: " and ".join(versions) for name, versions in by_package.items()}


def _public(source: str) -> str:
    """Return the source of a model, without paths of this machine."""
    # A path means nothing to others, and may be private.
    return Path(source).name if source.startswith((".", "/", "~")) else source


def license_of(recipe: Recipe) -> str:
    """Return the license of the prompts, by its name on the hub."""
    return recipe.prompts.license or LICENSES.get(recipe.prompts.source, "unknown")


def card(recipe: Recipe, branch: TrainedModel, facts: DataFacts) -> str:
    """Return README.md of a data set."""
    from huggingface_hub import DatasetCard, DatasetCardData

    rows = facts.dataset.rows
    data = DatasetCardData(
        pretty_name=(
            f"Self-samples of {Path(recipe.model.source).name} ({recipe.name}, {branch.name})"
        ),
        license=license_of(recipe),
        task_categories=["text-generation"],
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>10M")],
        tags=["code", "synthetic", "self-distillation", "ssd_ray"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": SHARDS}]}],
    )
    body = (
        environment(escape=False)
        .get_template("card.md.j2")
        .render(
            recipe=recipe,
            branch=branch,
            sample=branch.sample,
            prompts=facts.prompts,
            dataset=facts.dataset,
            health=facts.dataset.health,
            provenance=facts.dataset.provenance,
            contamination=facts.contamination,
            license=license_of(recipe),
            shards=SHARDS,
            columns={"dataset": arrow_schema(Example), "samples": arrow_schema(Completion)},
            CLASS_WORDS=CLASS_WORDS,
        )
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))
