"""Measurements of a training: speed, utilization, memory, epoch, and held-out measures.

- Every worker takes part, because some numbers are sums or maxima over workers. The first worker
  writes them to logs and trackers.
- Reads the model's config.json and /proc.
- Writes `heldout.jsonl` and the files of trackers.
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
from ssd_ray.artifacts.files import Json
from ssd_ray.config import TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.models import architecture
from ssd_ray.models.cpu_kernels import release_memory
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
"""Dense bfloat16 peaks in TFLOP/s by words of the device's name, from NVIDIA's data sheets.

The first entry to match counts; `train.peak_tflops` overrides it.
"""

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
    """Measurements of one worker; the first worker writes them to logs and trackers."""

    def __init__(
        self,
        job: Job,
        engine: Any,
        examples: Examples,
        held_out: HeldOut | None,
        heartbeat: Heartbeat = SILENT,
    ) -> None:
        self._job = job
        self._engine = engine
        self._examples = examples
        self._held_out = held_out
        self._heartbeat = heartbeat
        self._model = _architecture(job.model)
        lora = job.train.lora
        self._adapters = None
        if self._model and lora:
            self._adapters = self._model.lora_parameters(lora.rank, lora.target_modules)
        self._peak = peak_flops(job.train, engine.device)
        self._trackers: list[trackers.Tracker] = []
        self._loading_bytes = 0

    def begin(self, step: int) -> None:
        """Cut the held-out log to `step`, open trackers, and measure the base if `step` is 0."""
        self._loading_bytes = _peak_bytes(self._engine.device)
        _reset_peak(self._engine.device)
        if self._engine.global_rank == 0:
            job = self._job
            cut_held_out(job.out, step)
            chosen = config.choices(job.train) | {"sampling": config.choices(job.sampling)}
            self._trackers = trackers.trackers(
                job.train.trackers, job.out.name, job.logs, chosen, step
            )
        if step == 0:
            self._measure(0)

    def step(self, line: Json, batch: GlobalBatch) -> Json:
        """Return a step's line for the loss log; measure the held-out samples if it is time."""
        step = line["step"]
        seconds = line["seconds"]
        line = {
            **line,
            "epoch": round(step * self._job.train.global_batch_size / len(self._examples), 6),
            "tokens_per_s": round(line["tokens"] / seconds, 1) if seconds else None,
            "mfu": self._utilization(batch, seconds),
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
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()

    def _measure(self, step: int) -> None:
        if self._held_out is None:
            return
        self._heartbeat.phase("measuring held-out samples")
        release_memory()
        measures = self._held_out.measure()
        if self._engine.global_rank == 0:
            with (self._job.out / HELD_OUT_LOG).open("a") as handle:
                handle.write(json.dumps({"step": step, **measures}) + "\n")
        defined = {name: value for name, value in measures.items() if value is not None}
        for tracker in self._trackers:
            tracker.log({f"heldout/{name}": value for name, value in defined.items()}, step)

    def _utilization(self, batch: GlobalBatch, seconds: float) -> float | None:
        """Return model FLOPs utilization (MFU): operations over the peak of all devices.

        Recomputation is not counted. None on a CPU or for an unknown architecture.
        """
        if self._peak is None or self._model is None or not seconds:
            return None
        prompts = self._examples.num_prompt_tokens[batch.rows]
        responses = self._examples.response_lengths[batch.rows]
        pairs = zip(prompts.tolist(), responses.tolist(), strict=True)
        operations: float = sum(
            self._model.flops(prompt, response, self._adapters)
            for prompt, response in pairs
            if response
        )
        return round(operations / seconds / int(self._engine.world_size) / self._peak, 4)

    def _memory(self) -> dict[str, float]:
        """Return the peaks of the fullest worker in GiB.

        `memory_gib` counts since training began; `peak_gib` includes loading the model.
        """
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
    """Return the peak FLOP/s of a device, from the recipe or by its name; None if unknown.

    Names give the bfloat16 peak, so float32 training needs `train.peak_tflops`.
    """
    if train.peak_tflops is not None:
        return train.peak_tflops * 1e12
    if torch.device(device).type != "cuda" or train.dtype != "bfloat16":
        return None
    words = {*re.split(r"[^A-Z0-9]+", torch.cuda.get_device_name(device).upper())}
    return next(
        (tflops * 1e12 for name, tflops in PEAK_TFLOPS.items() if set(name.split()) <= words), None
    )


def _architecture(model: Path) -> architecture.Architecture | None:
    """Return the architecture to count operations with; None if the planner does not know it."""
    try:
        return architecture.read(model)
    except UserError:
        return None


def _peak_bytes(device: Any) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    high_water = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(high_water.group(1)) * 1024 if high_water else 0


def _reset_peak(device: Any) -> None:
    """Reset the peak, to leave loading the model out of it."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # gVisor's kernel refuses this; the peak then includes loading.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
