"""A run of the complete pipeline on a tiny model."""

from __future__ import annotations

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
  gradient_checkpointing: false}}
evaluate:
  benchmarks: [builtin, humaneval]
  limit: 12
  arms:
    base: {{model: base, temperature: 0.7}}
    ssd: {{model: ssd, temperature: 0.9, top_k: 20}}
  samples_per_problem: 2
  pass_at: [1, 2]
  max_tokens: 48
engine: {{enforce_eager: true, kv_cache_gib: 0.25, max_num_seqs: 4, cpus: 2}}
cluster: {{device: cpu, train_workers: 2}}
"""
