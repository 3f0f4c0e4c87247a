"""Training for real: Ray Train and ZeRO-3 on two processes, killed and restarted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ssd_ray import cluster as ray_cluster
from ssd_ray.config import TrainConfig
from ssd_ray.errors import InfrastructureError, UserError
from tests.support.sample_rows import write_sequences
from tests.support.tiny import tiny_model
from tests.support.training_runs import (
    ELASTIC,
    EVERY,
    EXPORTED,
    ROOT,
    SEED,
    STEPS,
    TRAIN,
    log_lines,
    loss_log,
    save_weights,
    start_driver,
    train,
    training_workers,
    wait_for,
    weights_of,
)

pytestmark = pytest.mark.real
HALFWAY = f"step-{EXPORTED}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    with ray_cluster.connected():
        yield


@pytest.fixture(scope="module")
def uninterrupted(
    dataset: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, connected: None
) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "checkpoint"
    facts = train(dataset, model, out)
    assert facts.steps == STEPS
    assert facts.epochs == STEPS * 8 / 30
    assert facts.num_workers == 2
    return out


def test_training_matches_a_bare_torch_loop(
    dataset: Path, model: Path, uninterrupted: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from ssd_ray.training.data.batches import global_rows
    from ssd_ray.training.data.examples import Examples
    from ssd_ray.training.worker import learning_rate

    torch.set_num_threads(1)
    train, examples = TrainConfig(**TRAIN), Examples(dataset)
    bare = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    groups: list[list[Any]] = [[], []]
    for parameter in bare.parameters():
        groups[parameter.ndim < 2].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    log = loss_log(uninterrupted)
    for step in range(train.steps):
        rows = global_rows(len(examples), train.global_batch_size, SEED, step)
        total = torch.zeros(())
        for row in rows:
            ids, num_prompt = (
                torch.tensor(examples.row(int(row)).astype("int64")),
                examples.num_prompt_tokens[row],
            )
            logits = bare(input_ids=ids[None]).logits[0, num_prompt - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(
                logits, ids[num_prompt:], reduction="sum"
            )
        loss = total / int(examples.response_lengths[rows].sum())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(bare.parameters(), train.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step)
        optimizer.step()
        optimizer.zero_grad()
        assert log[step]["loss"] == pytest.approx(loss.item(), rel=2e-4)
        assert log[step]["grad_norm"] == pytest.approx(norm.item(), rel=2e-3)
        assert log[step]["learning_rate"] == learning_rate(train, step)
        assert log[step]["step"] == step + 1
        if step + 1 in (EXPORTED, STEPS):
            exported = uninterrupted if step + 1 == STEPS else uninterrupted / "steps" / HALFWAY
            for name, value in weights_of(exported).items():
                torch.testing.assert_close(value, bare.state_dict()[name], atol=2e-4, rtol=1e-3)


def test_the_result_is_a_model_directory_like_the_base(model: Path, uninterrupted: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert [path.name for path in (uninterrupted / "steps").iterdir()] == [HALFWAY]
    for exported in (uninterrupted, uninterrupted / "steps" / HALFWAY):
        trained, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert trained.dtype == torch.float32
        assert trained.lm_head.weight is trained.model.embed_tokens.weight
        assert set(weights_of(exported)) == set(weights_of(model))
        for name in (
            "config.json",
            "generation_config.json",
            "chat_template.jinja",
            "tokenizer.json",
        ):
            assert (exported / name).read_text().strip() == (model / name).read_text().strip()
    messages = [{"role": "user", "content": "hi"}]
    ours, base = (AutoTokenizer.from_pretrained(path) for path in (uninterrupted, model))
    assert ours.apply_chat_template(messages, tokenize=False) == base.apply_chat_template(
        messages, tokenize=False
    )
    assert not (uninterrupted / "resume").exists()
    assert not list(uninterrupted.glob(".*"))


@pytest.mark.parametrize("place", ["run directory", "local disk"])
def test_killed_workers_and_drivers_change_no_result(
    place: str, dataset: Path, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    import torch

    out = tmp_path / "checkpoint"
    disk = tmp_path / "disk"
    local_states = str(disk) if place == "local disk" else None
    driver = start_driver(dataset, model, out, local_states)
    wait_for(lambda: len(log_lines(out)) >= EVERY + 2)
    training_workers(out)[0].kill()
    wait_for(lambda: len(log_lines(out)) < EVERY + 2 or (out / "resume" / HALFWAY).exists())
    wait_for(lambda: len(log_lines(out)) >= EVERY + 2)
    stopped = training_workers(out)[0]
    wait_for(lambda: len(log_lines(out)) >= EXPORTED + 2)
    # The other worker waits for this one: training cannot end before the driver is killed.
    stopped.suspend()
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    stopped.kill()
    wait_for(lambda: not training_workers(out))
    assert not (out / "model.safetensors").exists()
    # The copy of the last state may have been under way.
    steps = range(EVERY if local_states else EXPORTED, STEPS, EVERY)
    complete = [[f"step-{step}"] for step in steps]
    assert [path.name for path in (out / "resume").glob("step-*")] in complete

    train(dataset, model, out, local_states=local_states)
    assert loss_log(out) == loss_log(uninterrupted)
    assert not list(disk.rglob("*"))
    for exported in (".", f"steps/{HALFWAY}"):
        for name, value in weights_of(out / exported).items():
            assert torch.equal(value, weights_of(uninterrupted / exported)[name]), (exported, name)
    assert disk.exists() == (local_states is not None)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert train(dataset, model, out).document() == json.loads((out / "training.json").read_text())
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.fixture(scope="module")
def stopped(dataset: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of which a worker received SIGTERM, and later the run received Ctrl-C."""
    out = tmp_path_factory.mktemp("stopped") / "checkpoint"
    driver = start_driver(dataset, model, out)
    wait_for(lambda: len(log_lines(out)) >= EVERY + 1)
    notified, other = training_workers(out)
    # No step ends until the worker has taken the notice, at its next health check.
    other.suspend()
    notified.terminate()
    time.sleep(8)
    assert notified.is_running()
    other.resume()
    wait_for(lambda: not notified.is_running() or notified.status() == psutil.STATUS_ZOMBIE)
    saved = _saved_step(out)
    assert saved not in (0, EVERY), "the state is that of the last step, not of the last interval"
    wait_for(lambda: len(log_lines(out)) > saved)
    held = training_workers(out)[0]
    held.suspend()  # the other worker waits for it: training cannot end before the driver does
    reached = len(log_lines(out))
    os.kill(driver.pid, signal.SIGINT)
    wait_for((out / "resume" / "leave").exists)
    held.resume()
    _, stderr = driver.communicate(timeout=120)
    assert driver.returncode != 0
    assert b"asked to stop" in stderr
    assert b"KeyboardInterrupt" in stderr
    assert b"SIGTERM is a Ctrl-C" in stderr
    wait_for(lambda: not training_workers(out), timeout_s=60)
    assert _saved_step(out) >= reached > saved
    return out


def _saved_step(out: Path) -> int:
    """Return the step of the only resume state."""
    (state,) = (out / "resume").glob("step-*/state.json")
    step: int = json.loads(state.read_text())["step"]
    return step


def test_sigterm_to_a_worker_and_ctrl_c_cost_no_step(
    dataset: Path, model: Path, stopped: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    import torch

    out = shutil.copytree(stopped, tmp_path / "checkpoint")
    train(dataset, model, out)
    assert loss_log(out) == loss_log(uninterrupted)
    for name, value in weights_of(out).items():
        assert torch.equal(value, weights_of(uninterrupted)[name]), name


def test_one_worker_resumes_a_stopped_training_alike(
    dataset: Path, model: Path, stopped: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    import torch

    out = shutil.copytree(stopped, tmp_path / "checkpoint")
    facts = train(dataset, model, out, workers=1, micro_batch_tokens=1, gradient_checkpointing=True)
    assert facts.num_workers == 1
    for ours, theirs in zip(loss_log(out), loss_log(uninterrupted), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-4)
        assert (ours["step"], ours["tokens"], ours["response_tokens"]) == (
            theirs["step"],
            theirs["tokens"],
            theirs["response_tokens"],
        )
    for name, value in weights_of(out).items():
        torch.testing.assert_close(value, weights_of(uninterrupted)[name], atol=2e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def elastic(
    dataset: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, Path]:
    """Two trainings on one cluster that each lose a node, with and without a notice."""
    folder = tmp_path_factory.mktemp("elastic")
    outs = {False: folder / "sudden" / "checkpoint", True: folder / "notice" / "checkpoint"}
    # The first new group may still ask for the lost node. The default would wait a minute for it.
    impatient = {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    }
    environment = {**os.environ, **impatient, "PYTHONPATH": str(ROOT)}
    script = folder / "driver.py"
    places = {notice: str(out) for notice, out in outs.items()}
    script.write_text(ELASTIC.format(dataset=str(dataset), model=str(model), outs=places))
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return outs


@pytest.mark.parametrize("notice", [False, True])
def test_a_lost_node_leaves_fewer_workers_that_train_the_same(
    notice: bool, elastic: dict[bool, Path], uninterrupted: Path
) -> None:
    out = elastic[notice]
    assert json.loads((out / "training.json").read_text())["num_workers"] == 1
    assert (out.parent / "saved").exists() == notice
    for ours, theirs in zip(loss_log(out), loss_log(uninterrupted), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-4)


def test_a_mistake_found_by_a_worker_is_not_retried(
    dataset: Path, connected: None, tmp_path: Path
) -> None:
    base = tiny_model(tmp_path / "base", "qwen3")
    weights = weights_of(base)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_weights(base, weights, "float32")
    with pytest.raises(
        UserError, match=r"lacks weights of Qwen3ForCausalLM \(model.layers.1.mlp.up_proj.weight\)"
    ):
        train(dataset, base, tmp_path / "out", max_failures=3)
    log = (tmp_path / "out-logs" / "train-worker-0.log").read_text()
    assert log.count("ssd_ray.errors.UserError:") == 1


def test_too_many_crashes_end_with_the_step_to_resume_from(
    dataset: Path, connected: None, tmp_path: Path
) -> None:
    base = tiny_model(tmp_path / "base", "llama")
    (base / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(
        InfrastructureError, match=r"training stopped after 0 restarts .* resumes from step 0"
    ):
        train(dataset, base, tmp_path / "out", workers=1)


def test_a_non_finite_loss_stops_training_and_keeps_the_state(
    dataset: Path, model: Path, connected: None, tmp_path: Path
) -> None:
    choices = {"steps": 5, "warmup_steps": 0, "learning_rate": 1e30, "checkpoint_every": 1}
    with pytest.raises(
        UserError,
        match=(
            r"stopped at step 2: .* the batch was samples p\d\d/0, .*the state after step 1 is "
            r"kept"
        ),
    ):
        train(dataset, model, tmp_path / "out", max_failures=3, **choices)
    assert (tmp_path / "out" / "resume" / "step-1" / "state.json").exists()
    assert len(log_lines(tmp_path / "out")) == 1
