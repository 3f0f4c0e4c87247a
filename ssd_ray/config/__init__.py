"""The recipe's sections: every choice a person makes, its default, and one sentence on what it does.

Unknown keys are refused, and `sources` says for any field where its number comes from. Fields marked `tuning` change speed
or progress but not results, and are left out of fingerprints. Reads and writes nothing: `ssd_ray.recipes` does.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ssd_ray.config.evaluation import NAMED_BENCHMARKS, Arm, Benchmark, EvaluateConfig
from ssd_ray.config.hub import HubSource, hub_source
from ssd_ray.config.section import (
    REQUIRED,
    Decoding,
    Default,
    Section,
    choices,
    defaults,
    fields,
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
    "SampleConfig",
    "Section",
    "TrainConfig",
    "choices",
    "defaults",
    "fields",
    "hub_source",
]


class ModelConfig(Section):
    source: str
    """Hub id (`Qwen/Qwen3-4B-Instruct-2507`), a directory with safetensors, a `.gguf` file, or `package:NAME/FILE.gguf` for a
    file inside an installed package."""
    revision: str | None = None
    """Commit or tag of a hub id; `null` takes the head of `main`, and the commit is recorded with the prompts."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the weights in the engine."""
    max_model_len: int = Field(4096, ge=2)
    """Longest prompt plus answer in tokens."""
    chat_template: str | None = None
    """Path of a Jinja chat template to use instead of the model's own."""
    end_tokens: tuple[str | int, ...] = ()
    """Further tokens that end an answer, by text or id, beside those of the model's own configuration: such as `<|im_end|>` for a
    base model whose chat template ends a turn with it. They also end answers of the trained model, wherever it is served."""


Contamination = Literal["refuse", "drop", "allow"]


class PromptsConfig(Section):
    source: str = "builtin"
    """`builtin`, `rstar-coder`, a path of JSONL or Parquet files with one problem a row, or any data set of the Hugging Face hub,
    streamed: `hub:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]`. A run stays with the commit that it got first (`prompts-revision`)."""
    split: Literal["train", "eval", "all"] = "train"
    """Which part of the built-in set; other sources have only `all`."""
    mode: Literal["paper", "chat", "release"] = "paper"
    """`paper`: chat template and a system message asking for a code block; `chat`: chat template without it; `release`: the raw
    template text of the authors' released script, without a chat template. Each says after the statement how the program is
    called: by the starter code where a problem has some, else that it reads standard input."""
    system_message: str = (
        "Solve the problem in Python. Put the complete program in one ```python code block."
    )
    """System message of mode `paper`; the paper says what it asks for, not its words."""
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the chat template, for training and evaluation alike (GPT-OSS: `reasoning_effort: high`)."""
    template_date: str | None = None
    """What a chat template that reads the clock takes for now: an ISO date or date and time (`2026-01-31`, `2026-01-31T09:30`).
    `null` is the moment at which a run first renders with such a template; the run keeps it in `template-date`."""
    only_passed: bool = True
    """Keep rows whose stored solution passed, where rows have a column `is_passed`: rStar-Coder from the hub or from files. The
    paper's count of about 10,168 needs it."""
    deduplicate: bool = True
    """Keep the first of rows with the same whitespace-normalised statement."""
    id_column: str | None = None
    """Column with a unique id; `null` numbers the rows."""
    statement_column: str = "question"
    """Column with the problem statement of a JSONL or Parquet source."""
    starter_code_column: str | None = "starter_code"
    """Column with starter code, used where it is present and not empty; `null` ignores it."""
    tests_column: str | None = None
    """Column with tests in the form of one's own problems (docs/benchmarks.md), beside which `kind` and `entry_point` are read;
    only verified selection needs them. `null` reads none."""
    license: str | None = tuning(None)
    """Licence of the prompts by its name on the Hugging Face hub, for the data set's card; `null` is known for `builtin` and
    `rstar-coder`, else `unknown`."""
    contamination: Contamination = "refuse"
    """Prompts that share 13 words in a row (in scripts without spaces, 26 letters), or a shorter statement, with a problem of
    `evaluate.benchmarks`: `refuse` ends the run, before samples
    count, `drop` leaves them out, `allow` keeps them; all are counted and reported."""
    limit: int | None = Field(None, ge=1)
    """Keep only the first so many prompts, after filtering and de-duplication."""
    over_length: Literal["error", "skip", "truncate-left"] = "error"
    """A training prompt that leaves no room for an answer in model.max_model_len: `error` ends the run, `skip`
    leaves it out, `truncate-left` keeps its end and leaves sample.max_tokens of room, at most half of the context; counted."""

    @field_validator("template_date", mode="before")
    @classmethod
    def _iso_moment(cls, value: Any) -> Any:
        if value is None:
            return None
        text = (
            value.isoformat() if isinstance(value, date) else value
        )  # YAML reads dates; a datetime is a date, too
        try:
            moment = datetime.fromisoformat(text)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "use an ISO date, or date and time, such as 2026-01-31 or 2026-01-31T09:30"
            ) from error
        if moment.tzinfo is not None:
            raise ValueError("leave the time zone out: a chat template reads local time")
        return text

    @field_validator("system_message")
    @classmethod
    def _without_byte_order_mark(cls, value: str) -> str:
        return value.lstrip("\ufeff")


class SampleConfig(Decoding):
    samples_per_prompt: int = Field(1, ge=1)
    """Answers for each prompt; the paper's main results use one."""
    max_tokens: int = Field(2048, ge=1)
    """Longest answer in tokens; an answer cut here has no end token."""
    shard_rows: int = tuning(16, ge=1)
    """Answers in a shard, which later steps read once it is whole; finished answers of an unfinished one survive a crash too."""


Policy = Literal["keep", "mask", "drop"]


class Policies(Section):
    empty: Policy = "drop"
    """Answers without any text (the paper drops them, section 3.1)."""
    stub: Policy = "drop"
    """Answers of a single line (the paper drops them, section 3.1)."""
    no_code: Policy = "keep"
    """Answers without a program, by the rule `evaluate.extract`."""
    cut_off: Policy = "keep"
    """Answers cut at sample.max_tokens or at the end of the context."""
    no_end_token: Policy = "keep"
    """Answers whose last token is none of the model's end tokens: those cut off, and any that stopped in another way."""
    loop: Policy = "keep"
    """Answers of which a quarter or more is 8-grams of tokens that they hold four times or more."""
    duplicate: Policy = "keep"
    """Answers with the same tokens as an earlier one, which stays."""


class PrepareConfig(Section):
    select: Literal["all", "accepted"] = "all"
    """`accepted` keeps only answers whose program passes its problem's tests: no longer self-distillation, but something to
    compare it with; prompts need tests, and the arm `accepted` (evaluate.controls) compares both in one run."""
    policies: Policies = Policies()
    """What becomes of each class of answers: `keep` trains on it, `mask` leaves it in its batches but out of the loss, `drop`
    leaves it out. The defaults are the paper's filter."""
    drop_shortest_percent: float = Field(0.0, ge=0, lt=100)
    """Drop this share of the shortest of the answers that the policies keep, by characters; 10 in the authors' released
    configuration, 0 in the paper."""
    max_length: int = Field(65536, ge=2)
    """Longest training sequence in tokens, prompt included."""
    over_length: Literal["drop", "truncate"] = "truncate"
    """What happens to a longer sequence: `truncate` cuts the answer's tail, `drop` leaves it out; both are counted."""


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
    "generation_config": "the model's generation_config.json",  # its end tokens are those that answers are judged by
    "override_generation_config": "the model's generation_config.json",
}
REPLACES_SAMPLER = frozenset({"speculative_config", "logits_processors"})
"""Arguments of vLLM's engine beside which this package's sampler does not work."""


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
    """GPUs over which each layer of one engine is split; ignored on a CPU."""
    pipeline_parallel_size: int = tuning(1, ge=1)
    """Groups of GPUs over which the layers of one engine are split; ignored on a CPU."""
    expert_parallel: bool = tuning(False)
    """Mixture of experts: give whole experts to the GPUs of an engine instead of a slice of each; ignored on a CPU."""
    prefix_caching: bool = tuning(True)
    """Compute the beginning that prompts share, and that all samples of a prompt share, once."""
    sampler: Literal["auto", "exact", "vllm"] = "auto"
    """What truncates by top-k and top-p: `exact` this package's code, which keeps all ties of the k-th, `vllm` its own. On a CPU
    without Triton both give the same tokens; on CUDA vLLM keeps exactly k of batches of 8 and more, and draws with other noise,
    so that samples are others. `auto` is exact, except beside extra arguments that exclude it; neither was ever run on CUDA."""
    cpus: float = tuning(2, gt=0)
    """Cores of one CPU engine, and the threads it computes on."""
    stall_s: float = tuning(3600, gt=0)
    """Seconds after which an engine whose start or step does not come back is ended, and started again."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's engine, passed through; they win over the fields above. What prompts, reservations and
    provenance are made from is refused here."""

    @model_validator(mode="after")
    def _extra_that_contradicts_nothing(self) -> EngineConfig:
        for name, field in _DECIDED_ELSEWHERE.items():
            if name in self.extra:
                raise ValueError(f"extra sets {name!r}, which {field} decides: change that")
        if self.extra.get("trust_remote_code"):
            raise ValueError(
                "extra sets 'trust_remote_code': code that comes with a model is never run, leave it out"
            )
        clash = sorted(self.extra.keys() & REPLACES_SAMPLER)
        if self.sampler == "exact" and clash:
            raise ValueError(
                f"sampler 'exact' does not work beside {clash[0]!r} in extra: use sampler 'vllm'"
            )
        return self


class ClusterConfig(Section):
    device: Literal["cpu", "cuda"] = tuning("cuda")
    """What engines and training workers run on."""
    min_engines: int = tuning(1, ge=1)
    """Engines that sampling starts with, and keeps until the last units are given out."""
    max_engines: int = tuning(1, ge=1)
    """Engines that sampling grows to while prompts wait, also beyond what the cluster has now, so that it can scale."""
    train_workers: int = tuning(1, ge=1)
    """Training workers: one a GPU, or processes on a CPU."""
    min_train_workers: int | None = tuning(None, ge=1)
    """Workers that training goes on with at least when nodes are lost; `null` waits until all `train_workers` are there."""
    cpus_per_train_worker: float = tuning(1, gt=0)
    """Cores of one training worker on a CPU."""
    grader_cpus: float = tuning(1, ge=0)
    """Cores reserved by one grader; with 0 graders work beside an engine that holds every core, one a core."""
    max_graders: int | None = tuning(None, ge=1)
    """Graders at most, of all steps together; `null` is as many as the cluster's present cores hold."""
    max_failures: int = tuning(3, ge=0)
    """What is retried before the run stops: deaths of an engine in a row without an answer of any between, deaths of training
    workers without a new state between, and deaths of graders with one slice of answers, or in a row before one is up."""
    notice_s: float = tuning(25, gt=0)
    """Seconds that a run which is told to leave (SIGTERM) waits for training to end its step and save its state; more for large
    models, and less than what kills the run gives it."""

    @model_validator(mode="after")
    def _ordered(self) -> ClusterConfig:
        if self.max_engines < self.min_engines:
            raise ValueError(
                f"max_engines {self.max_engines} is below min_engines {self.min_engines}"
            )
        if self.min_train_workers is not None and self.min_train_workers > self.train_workers:
            raise ValueError(
                f"min_train_workers {self.min_train_workers} is above train_workers {self.train_workers}"
            )
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
        self.train.check_workers(self.cluster.train_workers)
        if self.cluster.device == "cpu" and self.train.needs_cuda:
            raise ValueError(f"{self.train.needs_cuda} needs cluster.device=cuda")
        return self

    @model_validator(mode="after")
    def _answers_that_the_context_holds(self) -> Recipe:
        for name, section in (("sample", self.sample), ("evaluate", self.evaluate)):
            chosen = (
                section.max_tokens != type(section).model_fields["max_tokens"].default
            )  # a default is cut without a word
            if chosen and section.max_tokens > self.model.max_model_len:
                raise ValueError(
                    f"{name}.max_tokens {section.max_tokens} is above model.max_model_len {self.model.max_model_len}, which "
                    "holds prompt and answer: lower the first or raise the second"
                )
        return self
