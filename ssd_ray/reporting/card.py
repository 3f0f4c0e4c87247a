"""A data set's papers: where it comes from, as facts for its manifest, and the card that the Hugging Face hub shows.

Reads the manifests of prompts/ and samples/; the card is README.md beside the shards, so that the directory can be uploaded
as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files
from ssd_ray.config import Recipe, SampleConfig, hub_source
from ssd_ray.config.arms import TrainedModel
from ssd_ray.reporting.health import CLASS_WORDS
from ssd_ray.reporting.templates.environment import environment
from ssd_ray.schema import Completion, Example, arrow_schema

LICENSES = {"builtin": "apache-2.0", "rstar-coder": "cc-by-4.0"}
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
SHARDS = "part-*.parquet"


def provenance(
    recipe: Recipe, sample: SampleConfig, prompts: Path, samples: Path
) -> dict[str, Any]:
    """Model, tokenizer, template, decoding, seed, prompts and versions behind a data set, as plain JSON."""
    rendered, drawn = (files.read_json(path / "manifest.json") for path in (prompts, samples))
    commit, timing = rendered["facts"].get("source_revision"), samples / "timing.json"
    attempts = files.read_json(timing).get("versions", []) if timing.exists() else []
    return {
        "recipe": recipe.name,
        "model": {
            "source": _public(recipe.model.source),
            "revision": rendered["facts"].get("model"),
            "weights": " ".join(
                f"{kind} {value}" for kind, value in drawn["choices"]["model"]["weights"].items()
            ),
            "dtype": recipe.model.dtype,
        },
        "tokenizer_sha256": rendered["facts"].get("tokenizer"),
        "chat_template_sha256": rendered["facts"].get("chat_template"),
        "template_date": rendered["facts"].get("template_date"),
        "prompts": {
            "source": _home(recipe.prompts.source, commit),
            "identity": rendered["choices"]["source"],
            "revision": commit,
            "license": license_of(recipe),
            "mode": recipe.prompts.mode,
            "rows": rendered["facts"]["rows"],
        },
        "decoding": {
            "temperature": sample.temperature,
            "top_k": sample.top_k,
            "top_p": sample.top_p,
            "max_tokens": sample.max_tokens,
            "samples_per_prompt": sample.samples_per_prompt,
        },
        "not_drawn": len(drawn["facts"].get("failed", ())),
        "seed": recipe.seed,
        "fingerprints": {
            path.name: manifest["fingerprint"]
            for path, manifest in ((prompts, rendered), (samples, drawn))
        },
        "versions": _every_version([*attempts, drawn["versions"]]),
        "sampled_at": drawn["finished_at"],
    }


def _home(source: str, commit: str | None) -> str:
    """Where prompts come from, without the place where they lie on this machine."""
    if source == "builtin":
        return "the problems that come with ssd_ray"
    hub = hub_source(source)
    return (
        f"files ({Path(source).name})"
        if hub is None
        else str(replace(hub, revision=commit or hub.revision))
    )


def _every_version(attempts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The version of each package; where attempts differ, all of them in their order."""
    found: dict[str, dict[str, None]] = {}
    for attempt in attempts:
        for name, version in attempt.items():
            found.setdefault(name, {})[version] = None
    return {name: " and ".join(versions) for name, versions in found.items()}


def _public(source: str) -> str:
    """A model without the place where it lies on this machine."""
    return Path(source).name if source.startswith((".", "/", "~")) else source


def license_of(recipe: Recipe) -> str:
    """The licence of the prompts, by its name on the hub."""
    return recipe.prompts.license or LICENSES.get(recipe.prompts.source, "unknown")


def card(recipe: Recipe, branch: TrainedModel, facts: Mapping[str, Mapping[str, Any]]) -> str:
    """README.md of a data set, from the facts of `prompts`, `contamination` and `dataset`."""
    from huggingface_hub import DatasetCard, DatasetCardData

    rows = facts["dataset"]["rows"]
    data = DatasetCardData(
        pretty_name=f"Self-samples of {Path(recipe.model.source).name} ({recipe.name}, {branch.name})",
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
            prompts=facts["prompts"],
            dataset=facts["dataset"],
            health=facts["dataset"]["health"],
            provenance=facts["dataset"]["provenance"],
            contamination=facts["contamination"],
            license=license_of(recipe),
            shards=SHARDS,
            columns={"dataset": arrow_schema(Example), "samples": arrow_schema(Completion)},
            CLASS_WORDS=CLASS_WORDS,
        )
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))
