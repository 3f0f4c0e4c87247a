"""The toy as a real model: a transformer with the automaton's distributions.

- A prompt is `walk N`. An answer begins at the root. It ends after a wrong token or the last lock.
- `toy_model` trains a Llama of two layers until each state's distribution is that of the table.
- `read_paths` reads the states of any such model back, from its own logits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd_ray.analysis.operator import DecodingLike, distribution, support
from ssd_ray.analysis.toy import ToySettings

PROMPTS = 8
SPECIAL = ["<pad>", "<end>", "<unknown>", "<root>", "walk"]
FIRST = len(SPECIAL)
"""Id of token 0 of the automaton."""
END = SPECIAL.index("<end>")
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} <root>{% endif %}"
)


def _vocabulary(settings: ToySettings) -> list[str]:
    tokens = [f"t{token}" for token in range(settings.vocabulary)]
    return [*SPECIAL, *tokens, *(str(number) for number in range(PROMPTS))]


def statements() -> list[str]:
    """Return the statements of the training prompts."""
    return [f"walk {number}" for number in range(PROMPTS)]


def _prompt_ids(settings: ToySettings, number: int) -> list[int]:
    return [SPECIAL.index("walk"), FIRST + settings.vocabulary + number, SPECIAL.index("<root>")]


def toy_tokenizer(settings: ToySettings) -> Any:
    """Return a tokenizer with one token a word."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(_vocabulary(settings))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    # The pipeline explains to a model where its program reads from. The toy keeps the first line.
    tokenizer.normalizer = normalizers.Replace(Regex(r"\n[\s\S]*"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unknown>",
        additional_special_tokens=["<root>"],
    )
    fast.chat_template = TEMPLATE
    return fast


@dataclass(frozen=True)
class _Tree:
    """All answers of one prompt, padded: ids, and the target at each position.

    The first two rows are the ways to PASS. They hold every state; the others teach the ends.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor


def _tree(settings: ToySettings) -> _Tree:
    width, stages = len(_vocabulary(settings)), ["fork", *["lock"] * settings.locks]
    rows = {"end": torch.zeros(width)}
    rows["end"][END] = 1
    for name, state in settings.base().states.items():
        rows[name] = torch.zeros(width)
        rows[name][FIRST : FIRST + settings.vocabulary] = torch.tensor(state.probabilities).float()
    right = [[path, *[0] * len(stages)] for path in (0, 1)]
    wrong = [[token] for token in range(2, settings.vocabulary)]
    wrong += [
        [path, *[0] * place, token]
        for path, place, token in itertools.product(
            (0, 1), range(len(stages)), range(1, settings.vocabulary)
        )
    ]
    answers, longest = right + wrong, len(stages) + 1
    ids = torch.zeros(len(answers), longest, dtype=torch.long)
    targets = torch.zeros(len(answers), longest + 1, width)
    weights = torch.zeros(len(answers), longest + 1)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.tensor(answer) + FIRST
        targets[row, len(answer)] = rows["end"]
        weights[row, len(answer)] = 0.2
        if row < len(right):
            targets[row, :-1] = torch.stack([rows[name] for name in ("root", *stages)])
            weights[row, :-1] = 1.0
    return _Tree(ids=ids, targets=targets, weights=weights)


def toy_model(directory: Path, settings: ToySettings, *, steps: int = 700, seed: int = 0) -> Path:
    """Train the frozen model and save it as a Hugging Face directory."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(_vocabulary(settings)),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tree = _tree(settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    # All prompts mean the same. Their numbers stay zero vectors, so training on one is enough.
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[FIRST + settings.vocabulary :] = 0
    weights = tree.weights[..., None] / tree.weights.sum()
    for _ in range(steps):
        log_p = _log_probabilities(model, settings, [0], tree.ids)
        loss = -(weights * tree.targets * log_p).sum()
        optimizer.zero_grad()
        loss.backward()
        embedding.grad[FIRST + settings.vocabulary :] = 0
        optimizer.step()
        schedule.step()
    model.save_pretrained(directory)
    toy_tokenizer(settings).save_pretrained(directory)
    return directory


def _log_probabilities(
    model: Any, settings: ToySettings, numbers: list[int], answers: Tensor
) -> Tensor:
    """Return log p at each position of the answers, [prompts, answers, positions, vocabulary]."""
    prompts = torch.tensor([_prompt_ids(settings, number) for number in numbers])
    rows = torch.cat(
        [
            prompts.repeat_interleave(len(answers), 0),
            answers.repeat(len(numbers), 1),
        ],
        dim=1,
    )
    logits = model(input_ids=rows).logits[:, prompts.shape[1] - 1 :]
    return torch.log_softmax(logits, -1).unflatten(0, (len(numbers), len(answers)))


@dataclass(frozen=True)
class Paths:
    """The states on both paths of a model, read from its logits.

    `logits[state]` has a row for each prompt and place of the state; `root` for each prompt.
    """

    logits: dict[str, Tensor]
    settings: ToySettings

    def success(self, decoding: DecodingLike) -> float:
        """Return the probability of PASS, averaged over the prompts."""
        decoded = {
            name: distribution(rows.flatten(0, -2), decoding).unflatten(0, rows.shape[:-1])
            for name, rows in self.logits.items()
        }
        locks = decoded["lock"][..., FIRST].prod(dim=-1)
        paths = decoded["root"][..., FIRST : FIRST + 2] * decoded["fork"][..., FIRST] * locks
        return float(paths.sum(dim=-1).mean())

    def largest_error(self) -> float:
        """Return the largest deviation of a probability from the table, over all states."""
        base, errors = self.settings.base(), []
        for name, rows in self.logits.items():
            table = np.zeros(rows.shape[-1])
            table[FIRST : FIRST + self.settings.vocabulary] = base.states[name].probabilities
            errors.append(float((rows.softmax(-1) - torch.tensor(table)).abs().max()))
        return max(errors)

    def mean(self, state: str) -> list[float]:
        """Return the mean distribution of a state over the automaton's tokens."""
        rows = self.logits[state].softmax(-1).flatten(0, -2).mean(0)
        values: list[float] = rows[FIRST : FIRST + self.settings.vocabulary].tolist()
        return values

    def kept_mass(self, base: Paths, state: str) -> list[float]:
        """Return the mass on the base's S, for each place of a state."""
        kept = support(base.logits[state].flatten(0, -2), self.settings.samples)
        inside = kept.dense(base.logits[state].shape[-1]) > -torch.inf
        rows = self.logits[state].softmax(-1).flatten(0, -2)
        values: list[float] = (rows * inside).sum(-1).tolist()
        return values


@torch.no_grad()
def read_paths(directory: Path, settings: ToySettings) -> Paths:
    """Read the states of a model on its way to PASS, for every prompt."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    right = torch.tensor([[path, *[0] * (settings.locks + 1)] for path in (0, 1)]) + FIRST
    log_p = _log_probabilities(model, settings, list(range(PROMPTS)), right[:, :-1]).double()
    return Paths(
        logits={
            "root": log_p[:, 0, 0],
            "fork": log_p[:, :, 1],
            "lock": log_p[:, :, 2 : 2 + settings.locks],
        },
        settings=settings,
    )
