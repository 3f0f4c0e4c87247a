"""Held-out samples, measured under the model in training and the frozen base.

- The loss on training samples starts near its floor and shows little. On held-out samples,
  likelihood is measured against the floor, with the parts of the loss and of the entropy, the
  distance to the base, and the signals of progress (`distributions.py`).
- Every measurement needs the base's distribution. Its logits or a second model would take too much
  memory. Its last hidden states are kept instead, and a copy of its output head if training changes
  the head.
- Both are taken before the latest state is restored: a resumed run measures against the same base.
- Reads a data set; writes the log of measurements, `heldout.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn import functional

from ssd_ray.artifacts.files import Json, read_json_lines, write_atomic
from ssd_ray.config import Decoding, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training.data import batches
from ssd_ray.training.data.examples import Examples, Ints
from ssd_ray.training.model.sequence_parallel import slice_of
from ssd_ray.training.observe.distributions import NUM_COLUMNS, measure, summarize

HELD_OUT_LOG = "heldout.jsonl"
CHUNKS = 8
"""Divisor of the loss's chunk size: a measurement takes several times as many bytes per logit."""


def held_out_order(prompts: Iterable[str], seed: int) -> list[str]:
    """Return the prompts in the order in which they are held out, each once."""
    return sorted(
        set(prompts), key=lambda prompt: hashlib.sha256(f"{seed}/{prompt}".encode()).digest()
    )


def split(examples: Examples, samples: int, seed: int) -> tuple[Examples, Examples | None]:
    """Split a data set into rows to train on and held-out rows; None without `samples`.

    - Prompts are ordered by a digest of (seed, prompt id). All rows of the first ones are held out.
      The choice depends on the seed and the prompts alone.
    - At least `samples` rows are held out, a few more if a prompt has several.

    Raises:
        UserError: nothing would be left to train on, or nothing would be measured.
    """
    if not samples:
        return examples, None
    prompts = examples.prompt_ids()
    order = held_out_order(prompts, seed)
    # A prompt is held out with all its samples, because they resemble one another.
    count = dict(zip(*np.unique(np.array(prompts), return_counts=True), strict=True))
    enough = np.cumsum([count[prompt] for prompt in order]) < samples
    chosen = set(order[: int(enough.sum()) + 1])
    out = np.array([prompt in chosen for prompt in prompts])
    trained, held_out = examples.part(np.flatnonzero(~out)), examples.part(np.flatnonzero(out))
    if not trained.response_lengths.any():
        raise UserError(
            f"train.heldout_samples {samples} leaves nothing of {len(prompts)} sequences to train "
            "on: lower it, or sample more"
        )
    if not held_out.response_lengths.any():
        raise UserError(
            f"train.heldout_samples {samples} holds out no token that counts, "
            "only masked sequences: raise it"
        )
    return trained, held_out


class HeldOut:
    """The held-out samples on one worker.

    Every worker creates one before it restores a state, and measures at the same steps.
    """

    def __init__(
        self, engine: Any, examples: Examples, train: TrainConfig, sampling: Decoding, budget: int
    ) -> None:
        """Compute and keep the base's hidden states on `examples`.

        Args:
            engine: the DeepSpeed engine, holding the base's weights.
            examples: the held-out rows.
            train: choices of the training.
            sampling: decoding of the samples.
            budget: tokens of a micro-batch, padding included.
        """
        self._engine = engine
        self._examples = examples
        self._sampling = sampling
        self._chunk_tokens = max(1, train.loss_chunk_tokens // CHUNKS)
        self._shared = train.sequence_parallel_size
        self._micro_batches = self._deal(budget)
        head = engine.module.model.get_output_embeddings()
        with self._gathered():
            parts = [
                None if part is None else part.detach().cpu().clone()
                for part in (head.weight, head.bias)
            ]
            self._base_head = parts if head.weight.requires_grad else None
        self._base_states = [states.cpu() for states, _ in self._hidden()]

    def measure(self) -> dict[str, float | None]:
        """Return measures and signals over all held-out response tokens, and their number.

        Workers add up their sums, so the result is the same for any number of them.
        """
        total = torch.zeros(NUM_COLUMNS + 1, dtype=torch.float64)
        head = self._engine.module.model.get_output_embeddings()
        for (states, drawn), base in zip(self._hidden(), self._base_states, strict=True):
            with self._gathered(), torch.no_grad():
                # A head that is not trained is still the base's, so no copy was kept.
                current_head = [head.weight, head.bias]
                base_head = [
                    part if part is None else part.to(states.device)
                    for part in self._base_head or current_head
                ]
                for start in range(0, len(drawn), self._chunk_tokens):
                    chunk = slice(start, start + self._chunk_tokens)
                    logits = self._logits(states[chunk], current_head)
                    base_logits = self._logits(base[chunk].to(states.device), base_head)
                    values = measure(logits, base_logits, drawn[chunk], self._sampling)
                    total += torch.cat(
                        [values.sum(0).cpu(), torch.tensor([len(values)], dtype=torch.float64)]
                    )
        total = total.to(self._engine.device)
        distributed.all_reduce(total)
        tokens = int(total[-1])
        return {"tokens": tokens, **summarize(total[:-1], tokens)}

    def _deal(self, budget: int) -> list[tuple[Ints, float]]:
        """Return this worker's micro-batches and the weight of their tokens.

        Weight 0 marks a padding micro-batch: under ZeRO-3 every worker must run equally often.
        """
        # Ulysses splits one row at a time over its workers.
        groups = _groups(self._examples.lengths, budget if self._shared == 1 else 1)
        shares = int(self._engine.world_size) // self._shared
        dealt: list[tuple[Ints, float]] = [
            (group, 1.0) for group in groups[self._engine.global_rank // self._shared :: shares]
        ]
        lacking = -(-len(groups) // shares) - len(dealt)
        return dealt + lacking * [(groups[-1][:1], 0.0)]

    def _hidden(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield last hidden states [positions, width] and the response tokens they predict."""
        model = self._engine.module.model
        rank = self._engine.global_rank
        device = self._engine.device
        self._engine.eval()
        for rows, weight in self._micro_batches:
            weights = np.full(len(rows), weight, dtype=np.float32)
            complete = batches.collate(self._examples, rows, weights, multiple=self._shared)
            micro = slice_of(complete, self._shared, rank % self._shared)
            ids, targets = (
                torch.from_numpy(array).to(device) for array in (micro.input_ids, micro.targets)
            )
            counted = torch.from_numpy(micro.weights).to(device) != 0
            places = (
                {"position_ids": torch.from_numpy(micro.position_ids).to(device)}
                if self._shared > 1
                else {}
            )
            places |= self._engine.module.bounds(
                torch.from_numpy(micro.cu_seq_lens).to(device), micro.max_length
            )
            with torch.no_grad():
                states = model.base_model(
                    input_ids=ids, use_cache=False, **places
                ).last_hidden_state
            yield states[counted], targets[counted]
        self._engine.train()

    def _gathered(self) -> Any:
        import deepspeed

        head = self._engine.module.model.get_output_embeddings()
        return deepspeed.zero.GatheredParameters(
            [parameter for parameter in (head.weight, head.bias) if parameter is not None]
        )

    def _logits(self, states: torch.Tensor, head: Sequence[Any]) -> torch.Tensor:
        logits: torch.Tensor = self._engine.module.transform(
            functional.linear(states, *head).float()
        )
        return logits


def _groups(lengths: Ints, budget: int) -> list[Ints]:
    """Group rows, longest first, into padded micro-batches of at most `budget` tokens each."""
    groups: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable"):
        if not groups or int(lengths[groups[-1][0]]) * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(int(row))
    return [np.array(group, dtype=np.int64) for group in groups]


def read_held_out(out: Path) -> list[Json]:
    """Return the measurements of a training so far, by step; the first is the base's."""
    return read_json_lines(out / HELD_OUT_LOG)


def cut_held_out(out: Path, step: int) -> None:
    """Cut the log of measurements to `step`, the step of the resume state.

    At step 0 no measurement is kept, and the base is measured again.
    """
    kept = [line for line in read_held_out(out) if step and line["step"] <= step]
    write_atomic(out / HELD_OUT_LOG, "".join(json.dumps(line) + "\n" for line in kept))
