"""Fine-tuning as one call: Ray Train starts the workers, restarts them after a crash, and this process shows how far they are.

Workers agree through the artifact's directory: resume states and a loss log go there, so a restart by Ray Train and a
rerun of the whole program continue alike from the latest whole state. This process only reads the log.
Reads a data set and a model directory; the workers fill `out` (see `loop.py`), their output goes to `logs`.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig

from ssd_ray import models
from ssd_ray.artifacts import read_json
from ssd_ray.config import ClusterConfig, Decoding, TrainConfig
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.progress import Progress
from ssd_ray.training import checkpoints, trackers
from ssd_ray.training.engine import process_environment
from ssd_ray.training.examples import Examples
from ssd_ray.training.heldout import split
from ssd_ray.training.loop import UNCHANGED, Job, work
from ssd_ray.training.worker_group import SizedTrainer, TakesNotice, sizes

POLL_S = 0.5
NOTICE_S = 25.0
"""What a run that is told to leave takes for its state: Kubernetes and Slurm wait 30 s before they kill."""


def train(
    dataset: Path,
    model: Path,
    choices: TrainConfig,
    cluster: ClusterConfig,
    *,
    sampling: Decoding = UNCHANGED,
    decoding: Decoding | None = None,
    seed: int,
    out: Path,
    logs: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Fine-tune `model` on `dataset` into `out`, from wherever an earlier attempt stopped; Ray must be initialised.

    Afterwards `out` is a Hugging Face directory with `loss.jsonl` (a line a step) and `training.json` (the facts). All
    paths are on storage that every node sees. Facts: steps, first_loss, final_loss, response_tokens, tokens, epochs,
    num_workers, parameters, trained_parameters.

    `sampling` is how the data set was drawn: the held-out measures are against that distribution. `decoding` is how the trained
    model is to be decoded, for its generation_config.json; without it the base's stays.

    Raises:
        UserError: the model, the data or a choice makes training impossible.
        InfrastructureError: workers crashed more than `cluster.max_failures` times; a rerun goes on from the last state.
    """
    job = Job(
        dataset=dataset.resolve(),
        model=model.resolve(),
        out=out.resolve(),
        logs=logs.resolve(),
        train=choices,
        cluster=cluster,
        sampling=sampling,
        decoding=decoding,
        seed=seed,
    )
    job.logs.mkdir(parents=True, exist_ok=True)
    if not (job.out / checkpoints.FINISHED).exists():
        begin = _begin(job)
        _say_if_crowded(cluster, progress)
        with progress.task("train", total=choices.steps, unit="steps", done=begin) as task, _shown(job, begin, task, progress):
            _run(job, progress)
    shutil.rmtree(job.out / checkpoints.RESUME, ignore_errors=True)
    return read_json(job.out / checkpoints.FINISHED)


def _begin(job: Job) -> int:
    """The step that workers will start from, after what can be checked without them."""
    from transformers import AutoConfig

    if not (job.model / "config.json").exists():
        raise UserError(f"{job.model} is not a Hugging Face model directory: it has no config.json")
    if "quantization_config" in read_json(job.model / "config.json"):
        raise UserError(f"{job.model} holds quantised weights, which cannot be trained: use a model.source with plain weights")
    try:
        job.train.check_workers(job.cluster.train_workers)
    except ValueError as error:
        raise UserError(str(error)) from error
    if job.cluster.device == "cpu" and job.train.needs_cuda:
        raise UserError(f"{job.train.needs_cuda} needs cluster.device=cuda")
    config = AutoConfig.from_pretrained(job.model, local_files_only=True)
    _check_attention(config, job)
    examples = Examples(job.dataset)
    _check_samples(examples, config.get_text_config(), job)
    split(examples, job.train.heldout_samples, job.seed)
    trackers.check(job.train.trackers)
    if job.train.loss_kernel == "liger" and importlib.util.find_spec("liger_kernel") is None:
        raise UserError("train.loss_kernel is 'liger', and its package is not installed: pip install liger-kernel")
    return _step_to_go_on_from(job)


def _step_to_go_on_from(job: Job) -> int:
    """The step of the latest resume state, which stage 0 and the others cannot take from one another."""
    step, state = checkpoints.latest(job.out)
    if step and (state["zero_stage"] == 0) != (job.train.zero_stage == 0):
        resume, before = job.out / checkpoints.RESUME, state["zero_stage"]
        raise UserError(
            f"{resume} holds a state that was written with train.zero_stage {before}, and {job.train.zero_stage} cannot read it: "
            f"set train.zero_stage={before}, or delete that directory to train from the first step"
        )
    return step


def _check_attention(config: Any, job: Job) -> None:
    """Whether transformers has the model's attention in the kernel that is asked for (GPT-OSS's sinks are not in sdpa)."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if job.train.attention == "sdpa" and not getattr(kind, "_supports_sdpa", True):
        raise UserError(
            f"train.attention 'sdpa' cannot compute the attention of {kind.__name__}: set train.attention=flash_attention_3, "
            "which needs CUDA and the package kernels"
        )


def _check_samples(examples: Examples, text: Any, job: Job) -> None:
    """Whether there is a response, and the model can read every sequence: the tokenizer that made it, its ids, its length."""
    if not examples.response_lengths.any():
        raise UserError(
            f"the data set {job.dataset} holds no response to train on, only masked sequences: set a policy of "
            "prepare.policies to keep"
        )
    here, made_with = models.tokenizer_digests(job.model), _tokenizer_of(job.dataset)
    if any(made_with[name] != digest for name, digest in here.items() if name in made_with):
        raise UserError(
            f"the samples in {job.dataset} were made with another tokenizer than that of {job.model}: train the model that "
            "drew them, or sample anew"
        )
    smallest, largest = examples.extreme_ids
    if smallest < 0 or largest >= text.vocab_size:
        raise UserError(
            f"the data set {job.dataset} holds the token id {smallest if smallest < 0 else largest}, and the vocabulary of "
            f"{job.model} has {text.vocab_size} entries: these are samples of another model"
        )
    context, longest = getattr(text, "max_position_embeddings", None), int(examples.lengths.max())
    if context is not None and longest > context:
        raise UserError(
            f"the data set {job.dataset} holds a sequence of {longest} tokens, and the context of {job.model} is {context}: "
            f"set prepare.max_length={context}"
        )


def _tokenizer_of(dataset: Path) -> dict[str, str]:
    """Digests of the tokenizer's files that a data set's manifest names; empty where there is none."""
    manifest = dataset / "manifest.json"
    provenance = read_json(manifest)["facts"].get("provenance", {}) if manifest.exists() else {}
    return provenance.get("tokenizer_sha256") or {}


def _resources(cluster: ClusterConfig) -> dict[str, float]:
    return {"CPU": cluster.cpus_per_train_worker} if cluster.device == "cpu" else {"CPU": 1, "GPU": 1}


def _say_if_crowded(cluster: ClusterConfig, progress: Progress) -> None:
    """Ray waits without a word for resources that a cluster does not have yet."""
    there = ray.cluster_resources()
    for name, amount in _resources(cluster).items():
        wanted = amount * (cluster.min_train_workers or cluster.train_workers)
        if there.get(name, 0) < wanted:
            progress.say(f"train: waiting for {wanted:g} {name}, the cluster has {there.get(name, 0):g} now")


class _MistakesEndTheRun(UserCallback):  # type: ignore[misc]
    """A user's mistake is no crash: raised in the controller, it ends the run, where Ray Train would start workers again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error


def _run(job: Job, progress: Progress) -> None:
    cluster, allowed = job.cluster, sizes(job.train, job.cluster)
    trainer = SizedTrainer(
        work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="gloo" if cluster.device == "cpu" else "nccl"),
        scaling_config=ScalingConfig(
            num_workers=(allowed[0], allowed[-1]) if len(allowed) > 1 else cluster.train_workers,
            use_gpu=cluster.device == "cuda",
            resources_per_worker=_resources(cluster),
        ),
        allowed=allowed,
        run_config=RunConfig(
            name="train",
            storage_path=str(job.logs / "ray-train"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[_MistakesEndTheRun(), TakesNotice()],
            worker_runtime_env={"env_vars": process_environment(cluster)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit as stop:  # Ray Train's own SIGINT handler has ended the workers and leaves so
        raise KeyboardInterrupt from stop
    except KeyboardInterrupt:  # SIGTERM to this process
        _await_state(job, progress)
        raise
    except TrainingFailedError as error:
        raise _explained(error, job) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _await_state(job: Job, progress: Progress) -> None:
    """Have the workers save their state after the step they are at, and wait for it `NOTICE_S` at most."""
    if len(checkpoints.read_log(job.out)) <= checkpoints.latest(job.out)[0]:
        return
    progress.say(f"train: told to leave, waiting {NOTICE_S:g} s at most for the state to be saved")
    checkpoints.ask_to_leave(job.out)
    until = time.monotonic() + NOTICE_S
    while checkpoints.asked_to_leave(job.out) and time.monotonic() < until:
        time.sleep(POLL_S / 5)


def _explained(error: TrainingFailedError, job: Job) -> UserError | InfrastructureError:
    causes: list[BaseException] = []
    if isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values())
    elif isinstance(error, ControllerError):
        causes = [error.controller_failure]
    for cause in causes:
        if isinstance(cause, UserError):
            return UserError(str(cause))
    last = next((line for cause in causes for line in str(cause).splitlines() if line.strip()), type(error).__name__)
    return InfrastructureError(
        f"training stopped after {job.cluster.max_failures} restarts ({last.strip()}); the workers' logs are in {job.logs}, "
        f"and running again goes on from step {checkpoints.latest(job.out)[0]}"
    )


@contextmanager
def _shown(job: Job, begin: int, task: Any, progress: Progress) -> Iterator[None]:
    """Follow the loss log while the block runs, and once more at its end."""
    over = threading.Event()

    def follow() -> None:
        seen = begin
        while True:
            last = over.wait(POLL_S)
            lines = checkpoints.read_log(job.out)
            if len(lines) < seen:
                progress.say(f"train: workers were started again and go on from step {len(lines)}")
            seen = len(lines)
            if lines and seen > begin:
                task.update(seen, sum(line["tokens"] for line in lines[begin:]), f"loss {lines[-1]['loss']:.3f}")
            if last:
                return

    follower = threading.Thread(target=follow, name="training-progress", daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
