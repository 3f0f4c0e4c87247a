"""Sections `engine` and `cluster` of a recipe: vLLM, devices, numbers of workers.

Does no I/O.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from ssd_ray.config.section import Section, tuning

# Arguments of vLLM's engine that are refused in `extra`, each with the field to change instead.
# Prompts, reservations of devices or provenance follow from that field.
_DECIDED_ELSEWHERE = {
    "model": "model.source",
    "revision": "model.revision",
    "tokenizer": "model.source",
    "dtype": "model.dtype",
    "max_model_len": "model.max_model_len",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "pipeline_parallel_size": "engine.pipeline_parallel_size",
    "data_parallel_size": "cluster.max_engines",
    "prefill_context_parallel_size": "engine.tensor_parallel_size",
    "skip_tokenizer_init": "the model's tokenizer",
    "max_num_seqs": "engine.max_num_seqs",
    # Data health judges answers by the end tokens of the model's own file.
    "generation_config": "the model's generation_config.json",
    "override_generation_config": "the model's generation_config.json",
}
REPLACES_SAMPLER = frozenset({"speculative_config", "logits_processors"})
"""Arguments of vLLM's engine that exclude this package's sampler."""


RolesChoice: TypeAlias = Literal["auto", "required", "off"]


class EngineConfig(Section):
    """Section `engine`: the vLLM engine of sampling and evaluation."""

    max_num_seqs: int | None = tuning(None, ge=1)
    """Maximum number of sequences in one decoding step of an engine. `null` is 64 on a CPU and 256
    on CUDA.
    """
    enforce_eager: bool = tuning(False)
    """Skip compilation and CUDA graphs, for a faster start and slower tokens."""
    kv_cache_gib: float | None = tuning(None, gt=0)
    """KV cache of a CPU engine in GiB; `null` is 4. Ignored on CUDA, where `gpu_memory_utilization`
    applies.
    """
    gpu_memory_utilization: float = tuning(0.9, gt=0, le=1)
    """Share of a GPU's memory for the engine."""
    tensor_parallel_size: int = tuning(1, ge=1)
    """Number of GPUs that share each layer of one engine; ignored on a CPU."""
    pipeline_parallel_size: int = tuning(1, ge=1)
    """Pipeline stages of one engine, each a group of GPUs with some of its layers; ignored on a
    CPU.
    """
    expert_parallel: bool = tuning(False)
    """For a mixture of experts, place complete experts on the GPUs of an engine instead of a slice
    of each; ignored on a CPU.
    """
    prefix_caching: bool = tuning(True)
    """Compute a prefix shared by prompts, or by all samples of one prompt, only once."""
    sampler: Literal["auto", "exact", "vllm"] = "auto"
    """Implementation of top-k and top-p. `exact`: this package's code, which keeps all ties of the
    k-th token. `vllm`: vLLM's own. `auto`: `exact`, unless `extra` has arguments that exclude it;
    on CUDA it leaves a top-p without a top-k to vLLM, as `exact` would sort there. On a CPU without
    Triton all give the same tokens. On CUDA vLLM keeps exactly k tokens, so samples with a top-k
    differ. None was ever run on CUDA.
    """
    cpus: float = tuning(2, gt=0)
    """Cores of one CPU engine, and its number of compute threads."""
    stall_s: float = tuning(3600, gt=0)
    """Timeout in seconds for the start of an engine and for each step. After it the engine is
    restarted.
    """
    metrics: bool = tuning(False)
    """Publish vLLM's own metrics among those of Ray, as `ray_vllm_*`."""
    extra: dict[str, object] = Field(default_factory=dict)
    """Further arguments of vLLM's engine, passed through; they override the fields above. Arguments
    that shape prompts, reservations of devices or provenance are refused.
    """

    @model_validator(mode="after")
    def _check_extra(self) -> EngineConfig:
        for name, field in _DECIDED_ELSEWHERE.items():
            if name in self.extra:
                raise ValueError(f"extra sets {name!r}, which {field} decides: change that")
        if self.extra.get("trust_remote_code"):
            raise ValueError(
                "extra sets 'trust_remote_code': code that comes with a model is never run, "
                "leave it out"
            )
        # Only `exact` insists on this package's sampler: with these arguments, `auto` is `vllm`.
        clash = sorted(self.extra.keys() & REPLACES_SAMPLER)
        if self.sampler == "exact" and clash:
            raise ValueError(
                f"sampler 'exact' does not work with {clash[0]!r} in extra: use sampler 'vllm'"
            )
        return self

    @property
    def has_processors(self) -> bool:
        """True if an engine has this package's logits processors.

        vLLM takes none together with speculative decoding.
        """
        return self.sampler == "exact" or (
            self.sampler == "auto" and not self.extra.keys() & REPLACES_SAMPLER
        )


class ClusterConfig(Section):
    """Section `cluster`: devices, numbers of workers, and retries."""

    device: Literal["cpu", "cuda"] = tuning("cuda")
    """Device of engines and training workers."""
    roles: RolesChoice = tuning("auto")
    """Place each process on nodes of its role, by their Ray label `ssd-ray/role`: `driver`,
    `sampler`, `trainer`, `grader`. `auto`: where any node has the label. `required`: refuse a
    cluster without it. `off`: place processes anywhere.
    """
    min_engines: int = tuning(1, ge=1)
    """Minimum number of engines, kept from the start until all answers are on disk."""
    max_engines: int = tuning(1, ge=1)
    """Maximum number of engines. The pool grows to it while prompts wait. It may exceed the present
    cluster, so that the cluster can scale up.
    """
    train_workers: int = tuning(1, ge=1)
    """Number of training workers: one for each GPU, or processes on a CPU."""
    min_train_workers: int | None = tuning(None, ge=1)
    """Minimum number of workers for training to continue after the loss of nodes. `null` waits for
    all `train_workers`.
    """
    cpus_per_train_worker: float = tuning(1, gt=0)
    """Cores of one training worker on a CPU."""
    grader_cpus: float = tuning(1, ge=0)
    """Cores reserved by one grader. With 0, graders run next to an engine that holds every core,
    one grader a core.
    """
    max_graders: int | None = tuning(None, ge=1)
    """Maximum number of graders over all steps. `null` is as many as the present cores of the
    cluster hold; where nodes have roles, as many as the group of graders holds at its largest.
    """
    graders: Literal["ray", "apart"] = tuning("ray")
    """Place of the graders. `ray`: actors of the cluster. `apart`: `ssd-ray grade --follow RUN` on
    another machine or in a pod of its own, without Ray and without a network. The run waits for
    their verdicts, and checks their form (docs/cluster.md).
    """
    max_failures: int = tuning(3, ge=0)
    """Retries before the run stops, counted apart: consecutive crashes of an engine without an
    answer between them; crashes of training workers without a new checkpoint between them; crashes
    of graders on one slice of answers, or in a row before one has started.
    """
    nodes_timeout_s: float | None = tuning(None, gt=0)
    """Seconds without a node for any engine, or for the training workers, until the run ends with
    status 1. The same command resumes it. `null` waits without end. Each wait is reported once a
    minute.
    """
    local_states: str | None = tuning(None)
    """Directory on a disk of each node, where the run directory is on shared storage. Workers write
    a resume state there and train on, while it is copied to the run directory. The disk needs room
    for the parts of a node's workers. `null` writes straight to the run directory, as is right
    where it is on a local disk.
    """
    local_weights: str = tuning("auto")
    """Directory on a disk of each node for one copy of the model, from which all engines and
    training workers of the node load. `auto`: the directory that the node names in `SSD_RAY_LOCAL`,
    if the model lies on shared storage; else no copy. `off`: no copy. The disk needs room for the
    models in use. Unused copies are removed before another one is made.
    """
    notice_s: float = tuning(25, gt=0)
    """Seconds after SIGTERM for training to end its step and save its state. Raise it for large
    models, and keep it below the grace period of the scheduler.
    """

    @field_validator("roles", "local_weights", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value

    @model_validator(mode="after")
    def _consistent(self) -> ClusterConfig:
        if self.max_engines < self.min_engines:
            raise ValueError(
                f"max_engines {self.max_engines} is below min_engines {self.min_engines}"
            )
        if self.local_states is not None and not self.local_states.startswith("/"):
            # Workers of other nodes have another working directory.
            raise ValueError(f"local_states {self.local_states!r} is no absolute path")
        if self.local_weights not in ("auto", "off") and not self.local_weights.startswith("/"):
            raise ValueError(
                f"local_weights {self.local_weights!r} is no absolute path: give one, auto or off"
            )
        if self.min_train_workers is not None and self.min_train_workers > self.train_workers:
            raise ValueError(
                f"min_train_workers {self.min_train_workers} is above "
                f"train_workers {self.train_workers}"
            )
        return self
