"""Compare peak memory of the chunked and the plain loss: 16,384 tokens, 151,936 classes.

    python benchmarks/loss_memory.py [--measured-tokens 2048] --out figures.json

The plain loss at full size needs about 30 GiB. Both losses are therefore traced without data
(torch's fake tensors), counting every storage while it is alive. Then both run for real at
`--measured-tokens`, each in its own process. The growth of the resident set (ru_maxrss) is
compared with the same count. All figures include weights and hidden states.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import weakref
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from machine import machine
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

Kind = Literal["plain", "chunked"]
TOKENS, VOCABULARY, WIDTH, CHUNK = 16_384, 151_936, 1024, 1024


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators return, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operator and count the bytes of its output."""
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def run_loss(kind: Kind, tokens: int, vocabulary: int, width: int) -> None:
    """Run forward and backward of the mean cross-entropy of `tokens` hidden states."""
    from ssd_ray.models.logit_transform import LogitTransform
    from ssd_ray.training.model.response_head import ResponseHead

    head = torch.nn.Linear(width, vocabulary, bias=False)
    hidden = torch.randn(tokens, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,))
    if kind == "plain":
        functional.cross_entropy(head(hidden), targets).backward()
    else:
        ResponseHead(head, LogitTransform(), CHUNK)(
            hidden, targets, torch.full((tokens,), 1 / tokens)
        ).backward()


def loss_peak_bytes(kind: Kind, tokens: int, vocabulary: int, width: int) -> int:
    """Return the most bytes alive at once, counted without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), LiveBytes() as live:
        run_loss(kind, tokens, vocabulary, width)
    return live.peak


def measured_bytes(kind: Kind, tokens: int) -> int:
    """Return the growth of this process's resident set while the loss runs with data."""
    run_loss(kind, 8, 64, 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_loss(kind, tokens, VOCABULARY, WIDTH)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def main() -> None:
    """Count and measure; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--measured-tokens",
        type=int,
        default=2048,
        help="tokens of the real run (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for kind in ("plain", "chunked"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            real = pool.submit(measured_bytes, kind, options.measured_tokens).result()
        figures[kind] = {
            "counted_gib": loss_peak_bytes(kind, TOKENS, VOCABULARY, WIDTH) / 2**30,
            "counted_small_gib": loss_peak_bytes(kind, options.measured_tokens, VOCABULARY, WIDTH)
            / 2**30,
            "measured_small_gib": real / 2**30,
        }
        print(
            f"{kind:>8}: {figures[kind]['counted_gib']:.2f} GiB at {TOKENS} tokens; at "
            f"{options.measured_tokens} tokens "
            f"{figures[kind]['counted_small_gib']:.2f} counted, "
            f"{figures[kind]['measured_small_gib']:.2f} measured"
        )
    ratio = figures["chunked"]["counted_gib"] / figures["plain"]["counted_gib"]
    print(f"ratio: {ratio:.3f} of the plain loss's peak")
    if options.out:
        record = {
            "machine": machine(),
            "tokens": TOKENS,
            "vocabulary": VOCABULARY,
            "width": WIDTH,
            "chunk": CHUNK,
        }
        options.out.write_text(
            json.dumps({**record, "figures": figures, "ratio": round(ratio, 4)}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
