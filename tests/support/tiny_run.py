"""A run of the complete pipeline on a tiny model: its recipe, its start, what it left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ssd_ray.artifacts import shards
from ssd_ray.schema import Completion

RECIPE = """
name: tiny
description: a random model, to prove the machinery
model: {{source: {model}, dtype: float32, max_model_len: 4096}}
prompts: {{source: builtin, split: train, limit: 40}}
sample:
  {{temperature: 1.2, top_k: 20, top_p: 0.95, samples_per_prompt: 2, max_tokens: 96, shard_rows: 4}}
prepare: {{policies: {{stub: keep}}, max_length: 4096}}
train: {{steps: 12, global_batch_size: 4, micro_batch_tokens: 256, learning_rate: 1.0e-3,
  min_learning_rate: 1.0e-4, warmup_steps: 2, dtype: float32, checkpoint_every: 3,
  gradient_checkpointing: false, heldout_samples: 4, evaluate_every: 4}}
evaluate:
  benchmarks: [builtin, humaneval]
  limit: 12
  arms:
    base: {{model: base, temperature: 0.7}}
    ssd: {{model: ssd, temperature: 0.9, top_k: 20}}
  samples_per_problem: 2
  pass_at: [1, 2]
  max_tokens: 48
engine: {{enforce_eager: true, kv_cache_gib: 0.25, max_num_seqs: 4, cpus: 1}}
cluster: {{device: cpu, train_workers: 2}}
"""


def write_recipe(path: Path, model: Path, arms: dict[str, str]) -> Path:
    """Write the recipe with these arms; the first is the baseline."""
    head, _, rest = RECIPE.replace("limit: 12", "limit: 8").partition("  arms:\n")
    _, _, tail = rest.partition("  samples_per_problem")
    lines = "".join(
        f"    {name}: {arm.replace('{', '{{').replace('}', '}}')}\n" for name, arm in arms.items()
    )
    baseline = f"  baseline: {next(iter(arms))}\n"
    text = f"{head}  arms:\n{lines}{baseline}  samples_per_problem{tail}"
    path.write_text(text.format(model=model))
    return path


def start(verb: str, recipe: Path, out: Path) -> subprocess.Popen[str]:
    """Start a command of the pipeline in a session of its own."""
    command = [sys.executable, "-m", "ssd_ray", verb, str(recipe), "--out", str(out), "--quiet"]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for its success and return what it printed."""
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr[-4000:]
    return stdout


def engine_starts(run: Path) -> int:
    """Count the engines that became ready, by their logs."""
    return sum(
        path.read_text(errors="replace").count("engine ready at")
        for path in (run / "logs").glob("engine-*.log")
    )


def completions(directory: Path) -> list[Completion]:
    """Read the rows of samples or generations in the order of their keys."""
    rows = shards.read_rows(directory, Completion)
    return sorted(rows, key=lambda row: (row.prompt_id, row.sample_index))
