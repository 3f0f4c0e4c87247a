"""Logits of models at every position of given answers, in one forward pass a model.

- Contexts are exact token ids, a prompt and an answer. Nothing is tokenized.
- Batches hold sequences of like length under a budget of padded tokens. Padding follows the
  tokens, so no causal model sees it.
- Only response positions go through the output head, chunk by chunk: a chunk of logits is bounded
  in memory, whatever the vocabulary.
- Several models go through the same batches, side by side.

Reads model directories; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.models.cpu_kernels import product, use_fast_products
from ssd_ray.models.loading import DOWNLOAD_AGAIN
from ssd_ray.models.logit_transform import LogitTransform

BATCH_TOKENS = 2048
"""Default budget of a batch in tokens, padding included."""
CHUNK_ELEMENTS = 1 << 24
"""Most logits of a chunk, 64 MiB in float32."""
_CHECKED = 8


@dataclass(frozen=True, kw_only=True)
class Context:
    """A prompt and an answer to it, as exact token ids."""

    problem_id: str
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]
    sample_index: int = 0

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All ids, the prompt's first."""
        return self.prompt_token_ids + self.output_token_ids

    @property
    def num_skipped(self) -> int:
        """Tokens of the answer that nothing predicts: the first one, after an empty prompt."""
        return 0 if self.prompt_token_ids else min(1, len(self.output_token_ids))

    @property
    def num_positions(self) -> int:
        """Number of positions in the answer."""
        return len(self.output_token_ids) - self.num_skipped

    @property
    def name(self) -> str:
        """The answer by its problem and its index, for messages."""
        return f"{self.problem_id}/{self.sample_index}"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some positions of answers, with the logits of each model there."""

    rows: Tensor
    """Number of the context, int64 [positions], on the CPU."""
    offsets: Tensor
    """Place in the answer, from 0, int64 [positions], on the CPU."""
    tokens: Tensor
    """The token at the place, int64 [positions]."""
    logits: tuple[Tensor, ...]
    """Logits for the place, one tensor a model, float32 [positions, vocabulary]."""


class ScoredModel:
    """A model for scoring: hidden states of a batch, and logits of some of them."""

    def __init__(self, model: Any, name: str) -> None:
        """Take a causal language model of transformers, and check its output head.

        `name` is that of messages.

        Raises:
            UserError: the logits of the model are not those of its output head, transformed as
                configured.
        """
        self.name = name
        self._model = model.eval()
        self._base: Any = model.base_model
        self._head: Any = model.get_output_embeddings()
        self._transform = LogitTransform.of(model.config)
        self._check()

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str | None = None,
        name: str | None = None,
    ) -> ScoredModel:
        """Load the model of a Hugging Face directory; by default onto a GPU, if there is one.

        Raises:
            UserError: as for the constructor, or the directory lacks weights.
        """
        from transformers import AutoModelForCausalLM

        with loading.library_bars(False):
            model, info = AutoModelForCausalLM.from_pretrained(
                directory,
                config=loading.load_config(directory),
                dtype=getattr(torch, dtype),
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        if info["missing_keys"]:
            lacking = ", ".join(sorted(info["missing_keys"])[:3])
            raise UserError(
                f"{directory} lacks weights of {type(model).__name__} ({lacking}): {DOWNLOAD_AGAIN}"
            )
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model.to(place)
        if place == "cpu":
            use_fast_products(model)
        return cls(model, name or str(directory))

    @property
    def vocabulary(self) -> int:
        """Number of logits at a position."""
        return int(self._head.weight.shape[0])

    @property
    def longest(self) -> int | None:
        """Most tokens of a sequence; None if the configuration has no limit."""
        config = self._model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self._head.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        dtype: torch.dtype = self._head.weight.dtype
        return dtype

    @torch.no_grad()
    def hidden(self, input_ids: Tensor) -> Tensor:
        """Return the last hidden states of padded sequences, [sequences, tokens, width]."""
        states: Tensor = self._base(
            input_ids=input_ids.to(self.device), use_cache=False
        ).last_hidden_state
        return states

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states [positions, width], float32."""
        return self._transform(product(hidden, self._head.weight, self._head.bias).float())

    @torch.no_grad()
    def _check(self) -> None:
        kind = type(self._model).__name__
        if self._base is self._model or not isinstance(self._head, nn.Linear):
            raise UserError(
                f"{self.name}: the output head of {kind} is not a linear layer on hidden states "
                "known to transformers: choose another architecture"
            )
        ids = torch.arange(min(_CHECKED, self.vocabulary))[None]
        hidden = self.hidden(ids)
        logits = self.logits(hidden[0])
        expected = self._model(input_ids=ids.to(self.device), use_cache=False).logits[0].float()
        near = 1e-4 if hidden.dtype == torch.float32 else 0.02
        # Weights that are not numbers are reported with their position, while scoring.
        tolerance = near * float(expected.nan_to_num().abs().max())
        if not torch.allclose(logits, expected, rtol=near, atol=tolerance, equal_nan=True):
            raise UserError(
                f"{self.name}: the logits of {kind} are not those of its output head, scaled and "
                "capped as configured: choose another architecture"
            )


def check(models: Sequence[ScoredModel], contexts: Sequence[Context]) -> None:
    """Check that models can score contexts side by side.

    Raises:
        UserError: the models differ in their vocabulary, an id is beyond it, or a context is longer
            than a model allows.
    """
    first = models[0]
    for model in models[1:]:
        if model.vocabulary != first.vocabulary:
            raise UserError(
                f"{model.name} has a vocabulary of {model.vocabulary:,} tokens and {first.name} "
                f"one of {first.vocabulary:,}: compare models with the same tokenizer"
            )
    limits = [model.longest for model in models if model.longest is not None]
    for context in contexts:
        ids = context.token_ids
        if ids and not 0 <= min(ids) <= max(ids) < first.vocabulary:
            beyond = max(ids) if max(ids) >= first.vocabulary else min(ids)
            raise UserError(
                f"context {context.name} has the token id {beyond}, and {first.name} a vocabulary "
                f"of {first.vocabulary:,}: give contexts of the same tokenizer"
            )
        if limits and len(ids) > min(limits):
            raise UserError(
                f"context {context.name} has {len(ids):,} tokens, more than the {min(limits):,} "
                "of the model's max_position_embeddings: leave it out"
            )


def batches(contexts: Sequence[Context], budget: int = BATCH_TOKENS) -> list[tuple[int, ...]]:
    """Group the numbers of contexts with positions, longest first, under a budget of tokens.

    A context longer than the budget is a batch of its own. Padding counts.
    """
    lengths = [len(context.token_ids) for context in contexts]
    order = sorted(range(len(contexts)), key=lambda row: (-lengths[row], row))
    groups: list[list[int]] = []
    for row in order:
        if not contexts[row].num_positions:
            continue
        if not groups or lengths[groups[-1][0]] * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(row)
    return [tuple(group) for group in groups]


def states(model: ScoredModel, contexts: Sequence[Context], batch: Sequence[int]) -> Tensor:
    """Return the hidden states of the positions of one batch, [positions, width].

    Its positions are in the order of `score`, and `ScoredModel.logits` takes them.
    """
    ids, line_of, _, places = _places(contexts, batch)
    return model.hidden(ids)[line_of, places - 1]


def _places(
    contexts: Sequence[Context], batch: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the padded ids of a batch, and line, offset and place of each position."""
    members = [contexts[row] for row in batch]
    width = max(len(context.token_ids) for context in members)
    ids = torch.zeros((len(members), width), dtype=torch.int64)
    for line, context in enumerate(members):
        ids[line, : len(context.token_ids)] = torch.tensor(context.token_ids)
    lines = [line for line, context in enumerate(members) for _ in range(context.num_positions)]
    offsets = [
        offset
        for context in members
        for offset in range(context.num_skipped, len(context.output_token_ids))
    ]
    line_of, offset_of = torch.tensor(lines), torch.tensor(offsets)
    prompts = torch.tensor([len(context.prompt_token_ids) for context in members])
    # Padding is never selected: each line has its own number of positions.
    return ids, line_of, offset_of, prompts[line_of] + offset_of


def score(
    models: Sequence[ScoredModel],
    contexts: Sequence[Context],
    batch: Sequence[int],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Iterator[Chunk]:
    """Yield the positions of one batch with the logits of each model.

    Args:
        models: models with one vocabulary (`check`).
        contexts: all contexts.
        batch: numbers of the contexts in this batch.
        chunk_elements: most logits of a chunk.

    Raises:
        UserError: a logit is NaN or infinite; the message names the position.
    """
    ids, line_of, offset_of, places = _places(contexts, batch)
    rows = torch.tensor(batch)[line_of]
    # The state before a token predicts it.
    states = [model.hidden(ids)[line_of, places - 1] for model in models]
    tokens = ids[line_of, places].to(models[0].device)
    step = max(1, chunk_elements // models[0].vocabulary)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        logits = tuple(model.logits(own[part]) for model, own in zip(models, states, strict=True))
        chunk = Chunk(rows=rows[part], offsets=offset_of[part], tokens=tokens[part], logits=logits)
        _require_finite(models, contexts, chunk)
        yield chunk


def _require_finite(
    models: Sequence[ScoredModel], contexts: Sequence[Context], chunk: Chunk
) -> None:
    for model, logits in zip(models, chunk.logits, strict=True):
        # Minus infinity is the logit of a token that the model excludes.
        bad = ~logits.amax(1).isfinite()
        if bad.any():
            place = int(bad.nonzero()[0, 0])
            context = contexts[int(chunk.rows[place])]
            raise UserError(
                f"{model.name} gives logits that are NaN or infinite for token "
                f"{int(chunk.offsets[place])} of the answer {context.name}: try --dtype float32, "
                "or check the weights"
            )
