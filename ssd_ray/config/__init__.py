"""Sections of a recipe: every choice of a run, its default and its documentation.

- Unknown keys are refused.
- `sources` names the origin of a value, such as a table of the paper.
- Fields marked `tuning` do not change results. Fingerprints leave them out.

`ssd_ray.recipes` reads the files.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ssd_ray.config.engines import REPLACES_SAMPLER, ClusterConfig, EngineConfig, RolesChoice
from ssd_ray.config.evaluation import NAMED_BENCHMARKS, Arm, Benchmark, EvaluateConfig
from ssd_ray.config.hub import HubSource, hub_source
from ssd_ray.config.panel import Capability
from ssd_ray.config.rounds import StopConfig
from ssd_ray.config.sampling import (
    Contamination,
    Policies,
    PrepareConfig,
    PromptsConfig,
    SampleConfig,
)
from ssd_ray.config.section import (
    REQUIRED,
    Decoding,
    Default,
    Section,
    choices,
    defaults,
    fields,
    remedy,
    tuning,
)
from ssd_ray.config.training import LoraConfig, TrainConfig

__all__ = [
    "NAMED_BENCHMARKS",
    "REPLACES_SAMPLER",
    "REQUIRED",
    "Arm",
    "Benchmark",
    "ClusterConfig",
    "Contamination",
    "Decoding",
    "Default",
    "EngineConfig",
    "EvaluateConfig",
    "HubSource",
    "LoraConfig",
    "ModelConfig",
    "Policies",
    "PrepareConfig",
    "PromptsConfig",
    "Recipe",
    "RolesChoice",
    "SampleConfig",
    "Section",
    "StopConfig",
    "TrainConfig",
    "choices",
    "defaults",
    "fields",
    "hub_source",
    "remedy",
]


class ModelConfig(Section):
    """Section `model`: the frozen model, for sampling, training and evaluation."""

    source: str
    """Hub id (`Qwen/Qwen3-4B-Instruct-2507`), directory with safetensors, `.gguf` file, or
    `package:NAME/FILE.gguf` for a file inside an installed package.
    """
    revision: str | None = None
    """Commit or tag of a hub id. `null` takes the head of `main`; the commit is recorded with the
    prompts.
    """
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the weights in the engine."""
    max_model_len: int = Field(4096, ge=2)
    """Context length in tokens: the longest prompt plus answer."""
    chat_template: str | None = None
    """Path of a Jinja chat template to use instead of the model's own."""
    end_tokens: tuple[str | int, ...] = ()
    """Further tokens that end an answer, by text or id, in addition to those of the model's
    configuration. Example: `<|im_end|>` for a base model whose chat template closes messages with
    it. They also end the answers of the trained model, wherever it is served.
    """


class Recipe(Section):
    """Every choice of a run, section by section."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the recipe; the default run directory is runs/NAME."""
    description: str = tuning("")
    """One or two sentences for a reader."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the run. The seed of a sample follows from it, the prompt id and the sample index."""
    model: ModelConfig
    """The frozen model to sample from and to fine-tune."""
    prompts: PromptsConfig = PromptsConfig()
    """Source, selection and form of training prompts."""
    sample: SampleConfig = SampleConfig()
    """Decoding of the training samples (T_train and its truncation)."""
    prepare: PrepareConfig = PrepareConfig()
    """Filtering of samples before training."""
    train: TrainConfig = TrainConfig()
    """Fine-tuning on the raw samples."""
    evaluate: EvaluateConfig
    """Benchmarks, arms and limits."""
    engine: EngineConfig = EngineConfig()
    """The vLLM engine."""
    cluster: ClusterConfig = ClusterConfig()
    """Devices, numbers of workers and retries."""
    rounds: int = tuning(1, ge=1, le=100)
    """Rounds of self-distillation by `ssd-ray run`: each samples from the student of the round
    before, frozen, in a run directory of its own (docs/rounds.md). 1 is the paper's method.
    """
    stop: StopConfig = tuning(StopConfig())
    """Limits at which rounds stop before the last one."""
    panel: dict[str, Capability] = tuning({})
    """Capabilities for `ssd-ray panel`, by name: what the training may cost elsewhere
    (docs/panel.md).
    """
    sources: dict[str, str] = tuning({})
    """Origins of values, by dotted field name."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        known = {name for name, _, _ in fields(self)}
        for name in self.sources:
            if not any(leaf == name or leaf.startswith(f"{name}.") for leaf in known):
                raise ValueError(f"sources names {name!r}, which is not a field of the recipe")
        self.train.check_workers(self.cluster.train_workers)
        if self.cluster.device == "cpu" and self.train.needs_cuda:
            raise ValueError(f"{self.train.needs_cuda} needs cluster.device=cuda")
        return self

    @model_validator(mode="after")
    def _check_context(self) -> Recipe:
        for name, section in (("sample", self.sample), ("evaluate", self.evaluate)):
            # Only an explicit limit is a mistake. The default is lowered to the context silently.
            is_explicit = section.max_tokens != type(section).model_fields["max_tokens"].default
            if is_explicit and section.max_tokens > self.model.max_model_len:
                raise ValueError(
                    f"{name}.max_tokens {section.max_tokens} is above model.max_model_len "
                    f"{self.model.max_model_len}, which holds prompt and answer: lower the first "
                    "or raise the second"
                )
        return self
