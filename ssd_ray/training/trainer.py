"""Fine-tuning as one call: start workers with Ray Train and show their progress.

- Ray Train restarts workers after a crash.
- Workers agree through the artifact's directory, where resume states and the loss log go. A restart
  by Ray Train and a rerun of the program continue alike from the latest complete state.
- Reads a data set, a model directory, and the workers' loss log and heartbeat.
- Workers fill `out` (`loop.py`) and write output to `logs`. This process requests a state there
  before it stops, and deletes the resume states of a complete training.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

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

from ssd_ray import roles
from ssd_ray.artifacts.facts import CheckpointFacts
from ssd_ray.artifacts.files import digest, read_json
from ssd_ray.cluster.room import Need, check_room, training_need
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import (
    InfrastructureError,
    LastingError,
    UserError,
    first_line,
    kind_of_mistake,
)
from ssd_ray.progress import Progress, Task
from ssd_ray.throughput import Remaining
from ssd_ray.training import gang
from ssd_ray.training.checks import check_model, check_samples
from ssd_ray.training.job import Job
from ssd_ray.training.loop import work
from ssd_ray.training.model.engine import process_environment
from ssd_ray.training.observe import heartbeat
from ssd_ray.training.observe.heartbeat import Beat
from ssd_ray.training.observe.worker_use import WorkerUse
from ssd_ray.training.state import export, resume
from ssd_ray.training.state.logs import GrowingLog, read_log
from ssd_ray.training.worker_group import GracefulStop, SizedTrainer, sizes

POLL_S = 0.5


def train(job: Job, progress: Progress) -> CheckpointFacts:
    """Fine-tune `job.model` on `job.dataset` into `job.out` and return the facts.

    - Training resumes from the latest state of an earlier attempt. Ray must be initialized.
    - Afterwards `job.out` is a Hugging Face directory with `loss.jsonl` (a line a step) and
      `training.json` (the facts).

    Raises:
        UserError: the model, the data or a choice makes training impossible.
        InfrastructureError: workers crashed more than `cluster.max_failures` times without a new
            state. A rerun resumes from the latest one.
    """
    job = job.resolved()
    job.logs.mkdir(parents=True, exist_ok=True)
    if not (job.out / export.FINISHED).exists():
        check_model(job.model, job.train, job.cluster)
        check_samples(job.dataset, job.model, job.train, job.seed)
        base = [job.model / "config.json", *sorted(job.model.glob("*.safetensors"))]
        job = replace(job, model_digest=digest(base))
        begin = _first_step(job)
        _check_room(job, progress)
        with (
            progress.task("train", total=job.train.steps, unit="steps", done=begin) as task,
            _follow(job, begin, task, progress),
            gang.reported(_need(job), progress.say, job.cluster.nodes_timeout_s),
        ):
            _run(job, progress)
    shutil.rmtree(job.out / resume.RESUME, ignore_errors=True)
    path = job.out / export.FINISHED
    return CheckpointFacts.parse(read_json(path), str(path))


def _first_step(job: Job) -> int:
    """Return the step of the latest resume state, 0 without one.

    Raises:
        LastingError: the state is of another model, or ZeRO-0 wrote it and another stage is to read
            it, or the other way round.
    """
    step, state = resume.latest(job.out)
    if step and state.get("model", "") not in ("", job.model_digest):
        raise LastingError(
            f"{job.out / resume.RESUME} holds a state of another model than {job.model}: "
            "train that one, choose another --out, or delete that directory to train from the "
            "first step"
        )
    if step and (state["zero_stage"] == 0) != (job.train.zero_stage == 0):
        directory = job.out / resume.RESUME
        before = state["zero_stage"]
        raise LastingError(
            f"{directory} holds a state that was written with train.zero_stage {before}, and "
            f"{job.train.zero_stage} cannot read it: "
            f"set train.zero_stage={before}, or delete that directory to train from the first step"
        )
    return step


def _resources(train: TrainConfig, cluster: ClusterConfig) -> dict[str, float]:
    """Return what each worker reserves.

    Ray gives a worker as many threads as it reserves cores. With offloading, the optimizer's step
    runs on cores: the workers of a node divide all its cores but one.
    """
    shares = [1]
    if train.offload != "none" and cluster.device != "cpu":
        labels = roles.selector(roles.TRAINER, cluster.roles)
        present = (node["Resources"] for node in roles.live_nodes(labels))
        shares = [
            max(1, int((node.get("CPU", 1) - 1) // node["GPU"]))
            for node in present
            if node.get("GPU")
        ]
    return roles.worker_bundle(cluster, min(shares, default=1))


def _need(job: Job) -> Need:
    cores = _resources(job.train, job.cluster)["CPU"]
    return training_need(job.train, job.cluster, cores)


def _check_room(job: Job, progress: Progress) -> None:
    """Refuse a training whose workers the cluster can never hold; report a wait for its growth.

    Raises:
        UserError: Ray would wait forever.
    """
    need = _need(job)

    def remedy(most: int) -> str:
        counts = job.train.worker_counts(1, most)
        if not counts:
            return "use larger machines, or more of them"
        return f"set cluster.train_workers={counts[-1]}, or take a recipe that fits"

    check_room(need, progress.say, remedy)


class _UserErrorsEndTheRun(UserCallback):  # type: ignore[misc]
    """Callback to end the run at a user's mistake, where Ray Train would restart the workers."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # Raised in the controller, an error ends the run instead of one more attempt.
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error


def _process_group(train: TrainConfig, cluster: ClusterConfig) -> TorchConfig:
    """Return Ray Train's choices of the group of all workers."""
    config = TorchConfig(backend="gloo" if cluster.device == "cpu" else "nccl")
    if train.collective_timeout_s is not None:
        config.timeout_s = train.collective_timeout_s
    return config


def _run(job: Job, progress: Progress) -> None:
    cluster = job.cluster
    allowed = sizes(job.train, cluster)
    trainer = SizedTrainer(
        work,
        train_loop_config={"job": job},
        torch_config=_process_group(job.train, cluster),
        scaling_config=ScalingConfig(
            num_workers=(allowed[0], allowed[-1]) if len(allowed) > 1 else cluster.train_workers,
            use_gpu=cluster.device == "cuda",
            resources_per_worker=_resources(job.train, cluster),
            label_selector=roles.selector(roles.TRAINER, cluster.roles),
        ),
        allowed=allowed,
        out=job.out,
        run_config=RunConfig(
            name="train",
            storage_path=str(job.logs / "ray-train"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[_UserErrorsEndTheRun(), GracefulStop()],
            worker_runtime_env={"env_vars": process_environment(job.train, cluster)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        # Ctrl-C, or SIGTERM to the run.
        _await_state(job, progress)
        raise
    except TrainingFailedError as error:
        raise _explained(error, job) from error
    except RayTaskError:
        # An error of this package in the controller keeps its traceback.
        raise
    except RayError as error:
        raise InfrastructureError(
            f"training's controller was lost ({first_line(error)}); {_resume_hint(job)}"
        ) from error


def _await_state(job: Job, progress: Progress) -> None:
    """Request a state after the current step and wait for it, at most `cluster.notice_s`."""
    if not _unsaved(job):
        return
    progress.say(
        f"train: asked to stop, waiting at most {job.cluster.notice_s:g} s "
        "for the state to be saved"
    )
    resume.request_stop(job.out)
    until = time.monotonic() + job.cluster.notice_s
    # A state under way at the request may turn out to hold all steps.
    while resume.stop_requested(job.out) and _unsaved(job) and time.monotonic() < until:
        time.sleep(POLL_S / 5)


def _unsaved(job: Job) -> bool:
    """Return True if the loss log has steps beyond the latest resume state."""
    return len(read_log(job.out)) > resume.latest(job.out)[0]


def _explained(error: TrainingFailedError, job: Job) -> UserError | InfrastructureError:
    """Return the error of this package for a failure of Ray Train: a user's mistake, or crashes."""
    causes: list[BaseException] = []
    if isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values())
    elif isinstance(error, ControllerError):
        causes = [error.controller_failure]
    for cause in causes:
        if isinstance(cause, UserError):
            # Ray wraps the error in another one, whose text ends in a traceback.
            return kind_of_mistake(cause)(str(getattr(cause, "cause", cause)))
    cause = causes[0] if causes else error
    # Ray Train's own message is the same for every crash; the reason is in the health check.
    reason = first_line(getattr(cause, "health_check_failure", cause))
    return InfrastructureError(
        f"training stopped after {job.cluster.max_failures} restarts without a new state "
        f"({reason}); {_resume_hint(job)}"
    )


def _resume_hint(job: Job) -> str:
    step = resume.latest(job.out)[0]
    return f"the workers' logs are in {job.logs}, and running again resumes from step {step}"


def _update(task: Task, job: Job, log: GrowingLog, beat: Beat, begin: int, *, last: bool) -> None:
    """Update the task from the loss log and the first worker's heartbeat."""
    if beat.phase and not last:
        task.wait(beat.phase)
        return
    steps_done = len(log.tokens)
    # A beat of another step belongs to a step that is in the log already, or to an earlier attempt.
    computed = beat.tokens if beat.steps_done == steps_done else 0
    batch_tokens = sum(log.tokens) / steps_done if steps_done else beat.batch_tokens
    left = max(0.0, (job.train.steps - steps_done) * batch_tokens - computed)
    note = f"loss {log.loss:.3f}" if steps_done else "step 1"
    remaining = Remaining(tokens=left, then="saving and exporting")
    task.update(steps_done, sum(log.tokens[begin:]) + computed, note, remaining=remaining)


@contextmanager
def _follow(job: Job, begin: int, task: Task, progress: Progress) -> Iterator[None]:
    """Follow the loss log while the block runs, and once more at its end."""
    over = threading.Event()

    def follow() -> None:
        seen = begin
        notice = ""
        log = GrowingLog(job.out)
        use = WorkerUse(job.out, int(job.cluster.device == "cuda"), begin)
        while True:
            last = over.wait(POLL_S)
            log.read()
            reported = heartbeat.read(job.logs)
            use.mark(reported, log.seconds)
            beat = reported or Beat(phase="starting workers")
            if beat.notice not in ("", notice):
                notice = beat.notice
                progress.say(f"train: {notice}")
            if len(log.tokens) < seen:
                # Only a start of workers cuts the log, back to the step of its resume state.
                progress.say(f"train: workers resume from step {len(log.tokens)}")
            seen = len(log.tokens)
            _update(task, job, log, beat, begin, last=last)
            if last:
                use.close()
                return

    heartbeat.forget(job.logs)
    follower = threading.Thread(target=follow, name="training-progress", daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
