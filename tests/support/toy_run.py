"""The toy as a real model, distilled by the ordinary pipeline: its recipe and its outcome."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.analysis.operator import Setting
from ssd_ray.analysis.toy import ToySettings
from tests.support.toy_model import Paths, read_paths, statements, toy_model

RECIPE = """
name: toy
description: the automaton of forks and locks as a model, with a known answer
model: {{source: {model}, dtype: float32, max_model_len: 32}}
prompts: {{source: {prompts}, mode: chat}}
sample: {{temperature: 0.9, top_p: 0.85, samples_per_prompt: {samples}, max_tokens: 8,
  shard_rows: 512}}
prepare: {{policies: {{stub: keep}}, max_length: 32}}
train: {{steps: {steps}, global_batch_size: 512, micro_batch_tokens: 8192, learning_rate: 4.0e-3,
  min_learning_rate: 1.0e-5, warmup_steps: 10, weight_decay: 0, beta2: 0.98, dtype: float32,
  zero_stage: 0, checkpoint_every: 1000, gradient_checkpointing: false,
  export_every: {export_every}, trackers: []}}
evaluate:
  benchmarks: [builtin]
  limit: 1
  prompt_mode: chat
  arms:
    base: {{model: base, temperature: 1.0, top_p: 0.8}}
    ssd: {{model: ssd, temperature: 1.0, top_p: 0.8}}
  samples_per_problem: 1
  pass_at: [1]
  max_tokens: 8
engine: {{enforce_eager: true, kv_cache_gib: 0.25, max_num_seqs: 512, cpus: 2}}
cluster: {{device: cpu, cpus_per_train_worker: 2}}
"""


@dataclass(frozen=True)
class ToyRun:
    """The states of base and student, read from the weights."""

    settings: ToySettings
    base: Paths
    student: Paths

    def at(self, temperature: float) -> tuple[float, float]:
        """Return the success of base and student at a temperature and the paper's top-p."""
        decoding = Setting(temperature, None, self.settings.grid.top_p)
        return self.base.success(decoding), self.student.success(decoding)

    def kept_mass_at_locks(self) -> float:
        """Return the smallest mass that the student has on S, over all locks."""
        return min(self.student.kept_mass(self.base, "lock"))


def make_base(directory: Path, steps: int = 700) -> Path:
    """Make the frozen model, trained on the automaton's own table, unless it is there."""
    base = directory / "base"
    # The tokenizer is written last.
    return (
        base if (base / "tokenizer.json").exists() else toy_model(base, ToySettings(), steps=steps)
    )


def distil(
    base: Path, directory: Path, *, samples: int, steps: int, export_every: int | None = None
) -> ToyRun:
    """Run `ssd-ray train` on the model: prompts, samples of vLLM, sequences, training.

    Args:
        base: the frozen model.
        directory: place of recipe, prompts and run.
        samples: answers for each prompt.
        steps: optimizer steps.
        export_every: steps between exports of the model; None exports the last one alone.
    """
    prompts = directory / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": text}) + "\n" for text in statements()))
    recipe = directory / "toy.yaml"
    recipe.write_text(
        RECIPE.format(
            model=base,
            prompts=prompts,
            samples=samples,
            steps=steps,
            export_every=export_every or "null",
        )
    )
    command = [sys.executable, "-m", "ssd_ray", "train", recipe, "--out", directory / "run"]
    subprocess.run([*map(str, command), "--quiet"], check=True)
    settings = ToySettings()
    return ToyRun(
        settings=settings,
        base=read_paths(base, settings),
        student=read_paths(directory / "run" / "checkpoint", settings),
    )
