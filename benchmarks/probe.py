"""Compare the probe with bare forward passes of transformers, and measure its memory.

    python benchmarks/probe.py [--positions 4096] [--layers 24] --out figures.json

- A random model with the shape of a 0.5B Qwen2 and its vocabulary of 151,936. Answers of several
  lengths fill the batches.
- Speed: forward passes that return logits, and the probe with all measures at seven temperatures,
  take turns batch by batch, on the same batches and threads. The shares are the times of the
  forward passes, divided by those of the probe, for one model and for two.
- Memory: the largest resident size while a probe writes its tables, above that of the loaded
  models, in a process of its own.
- Stream: resident size after each of the shards of 1,000 answers, with a tiny model.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine
from transformers import AutoModelForCausalLM, Qwen2Config

from ssd_ray.analysis import forward, probe_tables
from ssd_ray.analysis.forward import Context, ScoredModel
from ssd_ray.analysis.measures import Settings, measure
from ssd_ray.analysis.operator import Setting
from ssd_ray.models.cpu_kernels import use_fast_products
from ssd_ray.progress import LineProgress

VOCABULARY = 151_936
SETTINGS = Settings(
    training=Setting(temperature=1.6, top_k=20, top_p=0.8),
    evaluation=Setting(temperature=1.1, top_k=20, top_p=0.8),
)
LENGTHS = (480, 320, 256, 192, 128, 64)
PROMPT = 32


def config(layers: int, *, tiny: bool = False) -> Qwen2Config:
    """Return the shape of a 0.5B model with fewer layers, or of a tiny one."""
    if tiny:
        return Qwen2Config(
            vocab_size=5000,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )


def model_of(shape: Qwen2Config, seed: int) -> Any:
    """Return a random model whose logits have some contrast."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()
    with torch.no_grad():
        model.model.norm.weight *= 4
    return model


def contexts_of(positions: int, vocabulary: int) -> list[Context]:
    """Return random answers of several lengths, one to a problem, with `positions` tokens."""
    generator = torch.Generator().manual_seed(0)
    contexts: list[Context] = []
    left = positions
    while left:
        length = min(left, LENGTHS[len(contexts) % len(LENGTHS)])
        ids = torch.randint(vocabulary, (PROMPT + length,), generator=generator).tolist()
        contexts.append(
            Context(
                problem_id=f"p{len(contexts)}",
                prompt_token_ids=tuple(ids[:PROMPT]),
                output_token_ids=tuple(ids[PROMPT:]),
            )
        )
        left -= length
    return contexts


def bare(models: Sequence[Any], contexts: Sequence[Context], batch: Sequence[int]) -> None:
    """Run forward passes that return the logits of a padded batch."""
    width = max(len(contexts[row].token_ids) for row in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.int64)
    for line, row in enumerate(batch):
        ids[line, : len(contexts[row].token_ids)] = torch.tensor(contexts[row].token_ids)
    with torch.no_grad():
        for model in models:
            model(input_ids=ids, use_cache=False)


def probed(
    models: Sequence[ScoredModel], contexts: Sequence[Context], batch: Sequence[int]
) -> None:
    """Compute all measures of a batch."""
    for chunk in forward.score(models, contexts, batch):
        measure(chunk.logits, chunk.tokens, SETTINGS)


def speed(layers: int, positions: int) -> dict[str, float]:
    """Return tokens/s of forward passes and of the probe, and their ratio, for 1 and 2 models."""
    plain = [model_of(config(layers), seed) for seed in (0, 1)]
    fast = [model_of(config(layers), seed) for seed in (0, 1)]
    for own, other in zip(fast, plain, strict=True):
        own.load_state_dict(other.state_dict(), assign=True)
        own.tie_weights()
        use_fast_products(own)
    scored = [ScoredModel(model, str(number)) for number, model in enumerate(fast)]
    contexts = contexts_of(positions, VOCABULARY)
    groups = forward.batches(contexts)
    bare(plain[:1], contexts, groups[-1])
    probed(scored[:1], contexts, groups[-1])
    figures: dict[str, float] = {"positions": positions, "layers": layers, "batches": len(groups)}
    for number in (1, 2):
        seconds = [0.0, 0.0]
        for place, batch in enumerate(groups):
            # In turns, so that other work on the machine slows both.
            for which in (0, 1) if place % 2 else (1, 0):
                began = time.perf_counter()
                if which == 0:
                    bare(plain[:number], contexts, batch)
                else:
                    probed(scored[:number], contexts, batch)
                seconds[which] += time.perf_counter() - began
        figures |= {
            f"forward_{number}_tokens_s": round(positions / seconds[0], 2),
            f"probe_{number}_tokens_s": round(positions / seconds[1], 2),
            f"share_of_forward_{number}": round(seconds[0] / seconds[1], 3),
        }
        print(figures, flush=True)
    return figures


def status_kib(name: str) -> int:
    """Return a size of this process from /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def memory(layers: int, positions: int, models: int) -> dict[str, float]:
    """Return the resident size of loaded models, and the largest above it, while writing tables."""
    scored = []
    for seed in range(models):
        model = model_of(config(layers), seed)
        use_fast_products(model)
        scored.append(ScoredModel(model, str(seed)))
    gc.collect()
    loaded = status_kib("VmRSS")
    # Resets the largest resident size.
    Path("/proc/self/clear_refs").write_text("5")
    contexts = tuple(contexts_of(positions, VOCABULARY))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        probe_tables.write(_job(scored, contexts), Path(folder), LineProgress())
    return {
        "models": models,
        "positions": positions,
        "models_gib": round(loaded / 2**20, 3),
        "above_gib": round((status_kib("VmHWM") - loaded) / 2**20, 3),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _job(scored: Sequence[ScoredModel], contexts: tuple[Context, ...]) -> probe_tables.Job:
    return probe_tables.Job(
        models=tuple(scored),
        contexts=contexts,
        domains=("random",) * len(contexts),
        shown=frozenset({0}),
        kinds=lambda context: ["name"] * len(context.output_token_ids),
        settings=SETTINGS,
    )


def stream(answers: int) -> dict[str, object]:
    """Return the resident size, in MiB, after each shard of a probe of many answers."""
    scored = [ScoredModel(model_of(config(2, tiny=True), seed), str(seed)) for seed in (0, 1)]
    contexts = tuple(
        Context(
            problem_id=f"p{row}", prompt_token_ids=(1, 2, 3), output_token_ids=tuple(range(4, 204))
        )
        for row in range(answers)
    )
    sizes: list[int] = []
    write_shard = probe_tables.write_table

    def written(directory: Path, name: str, table: Any) -> Any:
        result = write_shard(directory, name, table)
        if name.startswith("positions"):
            sizes.append(status_kib("VmRSS") // 1024)
        return result

    probe_tables.write_table = written
    with tempfile.TemporaryDirectory() as folder:
        probe_tables.write(_job(scored, contexts), Path(folder), LineProgress())
    return {"answers": answers, "positions": 200 * answers, "resident_mib": sizes}


def in_process(part: str, *arguments: int) -> Any:
    """Return the figures of one part, measured in a new process."""
    command = [sys.executable, __file__, "--part", part, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the figures, and write them to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--speed-positions", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.part:
        name, *numbers = options.part
        parts = {"speed": speed, "memory": memory, "stream": stream}
        print(json.dumps(parts[name](*map(int, numbers))))
        return
    figures = {
        "machine": machine(),
        "speed": in_process("speed", options.layers, options.speed_positions),
        "memory": [in_process("memory", 4, options.positions, models) for models in (1, 2)],
        "stream": in_process("stream", 1000),
    }
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
