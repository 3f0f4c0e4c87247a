"""Write a tiny random model and its recipe to the shared volume of a cluster double.

    python -m tests.kube.example DIRECTORY

DIRECTORY is the volume on this machine; pods mount it at /mnt/shared. Makes `tiny/`, a model of
200,000 parameters, and `tiny.yaml`. Nothing comes from a network.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.tiny import tiny_model

RECIPE = """\
name: tiny
description: a random model on CPUs, to see the cluster at work
model: {source: /mnt/shared/tiny, dtype: float32, max_model_len: 4096}
prompts: {source: builtin, split: train, limit: 40}
sample: {temperature: 1.2, top_k: 20, samples_per_prompt: 2, max_tokens: 96, shard_rows: 4}
prepare: {policies: {stub: keep}, max_length: 4096}
train: {steps: 4, global_batch_size: 4, micro_batch_tokens: 256, learning_rate: 1.0e-3,
  min_learning_rate: 1.0e-4, warmup_steps: 1, dtype: float32, checkpoint_every: 2,
  gradient_checkpointing: false, heldout_samples: 4, evaluate_every: 4}
evaluate:
  benchmarks: [builtin]
  limit: 12
  arms: {base: {model: base, temperature: 0.7}, ssd: {model: ssd, temperature: 0.9, top_k: 20}}
  samples_per_problem: 1
  pass_at: [1]
  max_tokens: 48
engine: {enforce_eager: true, kv_cache_gib: 0.25, max_num_seqs: 4, cpus: 2}
cluster: {device: cpu, cpus_per_train_worker: 2, max_graders: 1}
"""


def main(volume: Path) -> None:
    """Write model and recipe."""
    tiny_model(volume / "tiny")
    for path in (volume / "tiny").iterdir():
        # Pods have a user of their own.
        path.chmod(0o644)
    (volume / "tiny.yaml").write_text(RECIPE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
