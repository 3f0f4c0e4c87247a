"""Fine-tuning as one call: Ray Train starts the workers, restarts them after a crash, and this process shows how far they are.

Workers agree through the artifact's directory: resume states and a loss log go there, so a restart by Ray Train and a
rerun of the whole program continue alike from the latest whole state. This process only reads the log.
Reads a data set and a model directory; the workers fill `out` (see `loop.py`), their output goes to `logs`.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
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

from ssd_ray.artifacts.files import digest, read_json
from ssd_ray.config import ClusterConfig, Decoding, TrainConfig
from ssd_ray.errors import InfrastructureError, UserError, first_line
from ssd_ray.progress import Progress, Task
from ssd_ray.throughput import Remaining
from ssd_ray.training.checks import check_model, check_samples
from ssd_ray.training.job import UNCHANGED, Job
from ssd_ray.training.loop import work
from ssd_ray.training.model.engine import process_environment
from ssd_ray.training.observe import heartbeat
from ssd_ray.training.observe.heartbeat import Beat
from ssd_ray.training.state import export, resume
from ssd_ray.training.state.export import Serving
from ssd_ray.training.state.logs import GrowingLog, read_log
from ssd_ray.training.worker_group import GracefulStop, SizedTrainer, sizes

POLL_S = 0.5


def train(
    dataset: Path,
    model: Path,
    choices: TrainConfig,
    cluster: ClusterConfig,
    *,
    sampling: Decoding = UNCHANGED,
    serving: Serving = export.AS_THE_BASE,
    seed: int,
    out: Path,
    logs: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Fine-tune `model` on `dataset` into `out`, from wherever an earlier attempt stopped; Ray must be initialised.

    Afterwards `out` is a Hugging Face directory with `loss.jsonl` (a line a step) and `training.json` (the facts). All
    paths are on storage that every node sees. Facts: steps, first_loss, final_loss, response_tokens, tokens, epochs,
    num_workers, parameters, trained_parameters.

    `sampling` is how the data set was drawn: the held-out measures are against that distribution. `serving` is how the trained
    model is to be prompted and decoded, for its chat template and generation_config.json; without it the base's stay.

    Raises:
        UserError: the model, the data or a choice makes training impossible.
        InfrastructureError: workers crashed more than `cluster.max_failures` times without a new state; a rerun goes on from it.
    """
    job = Job(
        dataset=dataset.resolve(),
        model=model.resolve(),
        out=out.resolve(),
        logs=logs.resolve(),
        train=choices,
        cluster=cluster,
        sampling=sampling,
        serving=serving,
        seed=seed,
    )
    job.logs.mkdir(parents=True, exist_ok=True)
    if not (job.out / export.FINISHED).exists():
        check_model(job.model, choices, cluster)
        check_samples(job.dataset, job.model, choices, seed)
        job = replace(
            job,
            model_digest=digest(
                [job.model / "config.json", *sorted(job.model.glob("*.safetensors"))]
            ),
        )
        begin = _step_to_go_on_from(job)
        _say_if_crowded(cluster, progress)
        with (
            progress.task("train", total=choices.steps, unit="steps", done=begin) as task,
            _shown(job, begin, task, progress),
        ):
            _run(job, progress)
    shutil.rmtree(job.out / resume.RESUME, ignore_errors=True)
    return read_json(job.out / export.FINISHED)


def _step_to_go_on_from(job: Job) -> int:
    """The step of the latest resume state, which has to be of this model, and of stage 0 if that is to go on."""
    step, state = resume.latest(job.out)
    if step and state.get("model", "") not in ("", job.model_digest):
        raise UserError(
            f"{job.out / resume.RESUME} holds a state of another model than {job.model}: train that one, choose another "
            "--out, or delete that directory to train from the first step"
        )
    if step and (state["zero_stage"] == 0) != (job.train.zero_stage == 0):
        directory, before = job.out / resume.RESUME, state["zero_stage"]
        raise UserError(
            f"{directory} holds a state that was written with train.zero_stage {before}, and "
            f"{job.train.zero_stage} cannot read it: "
            f"set train.zero_stage={before}, or delete that directory to train from the first step"
        )
    return step


def _resources(cluster: ClusterConfig) -> dict[str, float]:
    return (
        {"CPU": cluster.cpus_per_train_worker} if cluster.device == "cpu" else {"CPU": 1, "GPU": 1}
    )


def _say_if_crowded(cluster: ClusterConfig, progress: Progress) -> None:
    """Ray waits without a word for resources that a cluster does not have yet."""
    there = ray.cluster_resources()
    for name, amount in _resources(cluster).items():
        wanted = amount * (cluster.min_train_workers or cluster.train_workers)
        if there.get(name, 0) < wanted:
            progress.say(
                f"train: waiting for {wanted:g} {name}, the cluster has {there.get(name, 0):g} now"
            )


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
        out=job.out,
        run_config=RunConfig(
            name="train",
            storage_path=str(job.logs / "ray-train"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[_MistakesEndTheRun(), GracefulStop()],
            worker_runtime_env={"env_vars": process_environment(cluster)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:  # Ctrl-C, or SIGTERM to the run
        _await_state(job, progress)
        raise
    except TrainingFailedError as error:
        raise _explained(error, job) from error
    except RayTaskError:  # a mistake of this package in the controller
        raise
    except RayError as error:
        raise InfrastructureError(
            f"training's controller was lost ({first_line(error)}); {_how_to_go_on(job)}"
        ) from error


def _await_state(job: Job, progress: Progress) -> None:
    """Have the workers save their state after the step they are at, and wait for it `cluster.notice_s` at most."""
    if len(read_log(job.out)) <= resume.latest(job.out)[0]:
        return
    progress.say(
        f"train: told to leave, waiting {job.cluster.notice_s:g} s at most for the state to be saved"
    )
    resume.ask_to_leave(job.out)
    until = time.monotonic() + job.cluster.notice_s
    while resume.asked_to_leave(job.out) and time.monotonic() < until:
        time.sleep(POLL_S / 5)


def _explained(error: TrainingFailedError, job: Job) -> UserError | InfrastructureError:
    causes: list[BaseException] = []
    if isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values())
    elif isinstance(error, ControllerError):
        causes = [error.controller_failure]
    for cause in causes:
        if isinstance(cause, UserError):
            return UserError(
                str(getattr(cause, "cause", cause))
            )  # Ray adds a traceback to what it carries
    cause = causes[0] if causes else error
    reason = first_line(
        getattr(cause, "health_check_failure", cause)
    )  # what Ray Train says of it is the same of every death
    return InfrastructureError(
        f"training stopped after {job.cluster.max_failures} restarts without a new state ({reason}); {_how_to_go_on(job)}"
    )


def _how_to_go_on(job: Job) -> str:
    step = resume.latest(job.out)[0]
    return f"the workers' logs are in {job.logs}, and running again goes on from step {step}"


def _show(task: Task, job: Job, log: GrowingLog, begin: int, *, last: bool) -> None:
    """Update the task from the loss log and the first worker's heartbeat."""
    beat = heartbeat.read(job.logs) or Beat(phase="starting workers")
    if beat.phase and not last:
        task.wait(beat.phase)
        return
    steps_done = len(log.tokens)
    computed = beat.tokens if beat.steps_done == steps_done else 0
    batch_tokens = sum(log.tokens) / steps_done if steps_done else beat.batch_tokens
    left = max(0.0, (job.train.steps - steps_done) * batch_tokens - computed)
    note = f"loss {log.loss:.3f}" if steps_done else "step 1"
    task.update(
        steps_done, sum(log.tokens[begin:]) + computed, note, remaining=Remaining(tokens=left)
    )


@contextmanager
def _shown(job: Job, begin: int, task: Task, progress: Progress) -> Iterator[None]:
    """Follow the loss log while the block runs, and once more at its end."""
    over = threading.Event()

    def follow() -> None:
        seen, log = begin, GrowingLog(job.out)
        while True:
            last = over.wait(POLL_S)
            log.read()
            if len(log.tokens) < seen:
                progress.say(
                    f"train: workers were started again and go on from step {len(log.tokens)}"
                )
            seen = len(log.tokens)
            _show(task, job, log, begin, last=last)
            if last:
                return

    heartbeat.forget(job.logs)
    follower = threading.Thread(target=follow, name="training-progress", daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
