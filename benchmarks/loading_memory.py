"""Host memory of each worker while a mixture of experts loads under ZeRO-3.

    python benchmarks/loading_memory.py [--layers 64] --out figures.json

A random Qwen3-MoE of 16 experts a layer is loaded twice by two workers without Ray. Once every
worker reads all weights, as transformers does by itself. Once only the first worker reads them, as
`training/model/pretrained.py` does.

- Each worker samples its memory every 5 ms. A figure is the peak over the memory before loading.
- Before that, each worker has loaded a model of one layer: libraries and caches do not count.
- Partitions are in host memory here, and on the device under CUDA. They are subtracted.
- The copies of one gathered module are on the device under CUDA too, but are not subtracted.
- Freed memory is given back at once. It does not count.
- Memory is anonymous; pages of mapped files are not counted, because the system can drop them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import socket
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from machine import machine

WORKERS = 2
EXPERTS = 16
READERS = {"every worker reads": False, "the first worker reads": True}


def write_models(folder: str, layers: int) -> None:
    """Write random Qwen3-MoEs of 26 MB a layer: `model`, and `one` of a single layer."""
    _write(f"{folder}/model", layers)
    _write(f"{folder}/one", 1)


def _write(directory: str, layers: int) -> None:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=512,
        moe_intermediate_size=512,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(directory, max_shard_size="400MB")


class Peak(threading.Thread):
    """Sampler of this process's anonymous memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self.before = self.bytes = anonymous_bytes()

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._over.wait(0.005):
            self.bytes = max(self.bytes, anonymous_bytes())

    def stop(self) -> int:
        """Return the peak over the memory at the beginning."""
        self._over.set()
        self.join()
        return self.bytes - self.before


def anonymous_bytes() -> int:
    """Return this process's anonymous resident memory."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, "/proc/self/status has no RssAnon"
    return int(match.group(1)) * 1024


def load(rank: int, port: int, folder: str, only_first: bool, results: Any) -> None:
    """Load the model in `folder` as worker `rank` and put its figures into `results`."""
    from ssd_ray.config import ClusterConfig, TrainConfig
    from ssd_ray.training.model import pretrained
    from ssd_ray.training.model.engine import deepspeed_config, prepare_process

    cluster = ClusterConfig(device="cpu", train_workers=WORKERS, cpus_per_train_worker=1)
    prepare_process(cluster)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORKERS), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    train = TrainConfig(zero_stage=3, dtype="bfloat16", trackers=())
    config = deepspeed_config(train, cluster)
    # As on CUDA: no parameter stays gathered.
    config["zero_optimization"] = {"stage": 3, "stage3_param_persistence_threshold": 0}
    if not only_first:
        pretrained.first_worker_reads = lambda *_, **__: nullcontext()
    pretrained.load(Path(folder) / "one", train, config)
    peak = Peak()
    peak.start()
    began = time.perf_counter()
    network = pretrained.load(Path(folder) / "model", train, config)
    seconds = time.perf_counter() - began
    partitions = sum(
        parameter.ds_tensor.numel() * parameter.ds_tensor.element_size()
        for parameter in network.parameters()
    )
    figures = {
        "peak_gb": peak.stop() / 1e9,
        "partitions_gb": partitions / 1e9,
        "seconds": round(seconds, 2),
    }
    results.put((rank, figures | {"host_gb": figures["peak_gb"] - figures["partitions_gb"]}))


def measure(folder: str, only_first: bool) -> list[dict[str, float]]:
    """Return the figures of all workers by rank."""
    # Otherwise glibc keeps freed memory between the partitions, which are on the device under CUDA.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [
        context.Process(target=load, args=(rank, port, folder, only_first, results))
        for rank in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    figures = dict(results.get(timeout=600) for _ in workers)
    for worker in workers:
        worker.join()
    return [figures[rank] for rank in range(WORKERS)]


def main() -> None:
    """Write a model, measure both ways of loading it, and report the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=64, help="layers (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        writer = multiprocessing.get_context("spawn").Process(
            target=write_models, args=(folder, options.layers)
        )
        writer.start()
        writer.join()
        size = (
            sum(path.stat().st_size for path in Path(folder, "model").glob("*.safetensors")) / 1e9
        )
        print(f"model: {size:.2f} GB, {WORKERS} workers")
        figures = {name: measure(folder, only_first) for name, only_first in READERS.items()}
    for name, workers in figures.items():
        for rank, worker in enumerate(workers):
            print(
                f"{name}: worker {rank} peak {worker['peak_gb']:.2f} GB, of them "
                f"{worker['partitions_gb']:.2f} GB partitions, {worker['host_gb']:.2f} GB others, "
                f"{worker['seconds']:.1f} s"
            )
        print(f"{name}: worker 1 over worker 0 {workers[1]['host_gb'] / workers[0]['host_gb']:.3f}")
    if options.out:
        record = {"machine": machine(), "model_gb": size, "figures": figures}
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
