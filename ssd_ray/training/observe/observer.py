"""What a training shows of itself: speed, share of the peak, memory, place in the data, and the held-out measures.

Every worker takes part, for some numbers are sums or maxima over workers; the first writes them to the logs and trackers.
Reads the model's config.json and /proc; writes `heldout.jsonl` and what the trackers write.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from ssd_ray import config
from ssd_ray.config import TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.models import architecture
from ssd_ray.training.data.batches import GlobalBatch
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.observe import trackers
from ssd_ray.training.observe.heartbeat import SILENT, Heartbeat
from ssd_ray.training.observe.heldout import HELD_OUT_LOG, HeldOut, cut_held_out

if TYPE_CHECKING:
    from ssd_ray.training.job import Job

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.0,
    "H100 PCIE": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
}
"""Dense bfloat16 peaks in TFLOP/s by words of the device's name (NVIDIA data sheets), the first to fit; recipes may say other."""

_SHOWN = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_s",
    "mfu",
    "memory_gib",
    "peak_gib",
    "epoch",
    "expert_imbalance",
)


class Observer:
    """One worker's view of its training; made before a state is restored, while the engine holds the base's weights."""

    def __init__(
        self,
        job: Job,
        engine: Any,
        examples: Examples,
        held_out: Examples | None,
        budget: int,
        heartbeat: Heartbeat = SILENT,
    ) -> None:
        self._heartbeat = heartbeat
        self._job, self._engine, self._examples = job, engine, examples
        self._model = _architecture(job.model)
        lora = job.train.lora
        self._adapters = (
            self._model.lora_parameters(lora.rank, lora.target_modules)
            if self._model and lora
            else None
        )
        self._peak = peak_flops(job.train, engine.device)
        self._held_out = (
            HeldOut(engine, held_out, job.train, job.sampling, budget)
            if held_out is not None
            else None
        )
        self._trackers: list[trackers.Tracker] = []
        self._loading_bytes = 0

    def begin(self, step: int) -> None:
        """Training goes on after `step`: cut the log, open the trackers, and measure the base if nothing is trained yet."""
        self._loading_bytes = _peak_bytes(self._engine.device)
        _forget_peak(self._engine.device)
        if self._engine.global_rank == 0:
            job = self._job
            cut_held_out(job.out, step)
            chosen = config.choices(job.train) | {"sampling": config.choices(job.sampling)}
            self._trackers = trackers.trackers(
                job.train.trackers, job.out.name, job.logs, chosen, step
            )
        if step == 0:
            self._measure(0)

    def step(self, line: dict[str, Any], batch: GlobalBatch) -> dict[str, Any]:
        """A step's line for the loss log, with what this module adds to it."""
        step, seconds = line["step"], line["seconds"]
        line = {
            **line,
            "epoch": round(step * self._job.train.global_batch_size / len(self._examples), 6),
            "tokens_per_s": round(line["tokens"] / seconds, 1) if seconds else None,
            "mfu": self._utilisation(batch, seconds),
            **self._memory(),
        }
        shown = {f"train/{name}": line[name] for name in _SHOWN if line.get(name) is not None}
        for tracker in self._trackers:
            tracker.log(shown, step)
        every = self._job.train.evaluate_every
        if step % every == 0 or step == self._job.train.steps:
            self._measure(step)
        return line

    def close(self) -> None:
        """Training is over."""
        for tracker in self._trackers:
            tracker.close()

    def _measure(self, step: int) -> None:
        if self._held_out is None:
            return
        self._heartbeat.phase("measuring held-out samples")
        found = self._held_out.measure()
        if self._engine.global_rank == 0:
            with (self._job.out / HELD_OUT_LOG).open("a") as handle:
                handle.write(json.dumps({"step": step, **found}) + "\n")
        for tracker in self._trackers:
            tracker.log({f"heldout/{name}": value for name, value in found.items()}, step)

    def _utilisation(self, batch: GlobalBatch, seconds: float) -> float | None:
        """Model FLOPs utilisation: operations without recomputation over what all devices could do; None on a CPU."""
        if self._peak is None or self._model is None or not seconds:
            return None
        prompts, responses = (
            self._examples.num_prompt_tokens[batch.rows],
            self._examples.response_lengths[batch.rows],
        )
        pairs = zip(prompts.tolist(), responses.tolist(), strict=True)
        operations: float = sum(
            self._model.flops(prompt, response, self._adapters)
            for prompt, response in pairs
            if response
        )
        return round(operations / seconds / int(self._engine.world_size) / self._peak, 4)

    def _memory(self) -> dict[str, float]:
        """Peaks of the fullest worker: since training began (`memory_gib`), and loading the model included (`peak_gib`)."""
        now = _peak_bytes(self._engine.device)
        peaks = torch.tensor(
            [now, max(now, self._loading_bytes)], dtype=torch.float64, device=self._engine.device
        )
        distributed.all_reduce(peaks, op=distributed.ReduceOp.MAX)
        return {
            name: round(float(peak) / 2**30, 4)
            for name, peak in zip(("memory_gib", "peak_gib"), peaks, strict=True)
        }


def peak_flops(train: TrainConfig, device: Any) -> float | None:
    """Peak FLOP/s of a device: what the recipe says, else what its name tells of bfloat16; None where that says nothing."""
    if train.peak_tflops is not None:
        return train.peak_tflops * 1e12
    if torch.device(device).type != "cuda" or train.dtype != "bfloat16":
        return None
    words = {*re.split(r"[^A-Z0-9]+", torch.cuda.get_device_name(device).upper())}
    return next(
        (tflops * 1e12 for name, tflops in PEAK_TFLOPS.items() if set(name.split()) <= words), None
    )


def _architecture(model: Path) -> architecture.Architecture | None:
    """The model as the planner counts it, None for one that it does not know: then there is no utilisation to tell."""
    try:
        return architecture.read(model)
    except UserError:
        return None


def _peak_bytes(device: Any) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024 if found else 0


def _forget_peak(device: Any) -> None:
    """Start the peak anew, so that loading the model is not in it; a kernel that cannot (gVisor's) leaves it there."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
