"""Scoring gives the logits of the model, for any batch, padding and chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    Qwen3Config,
    RecurrentGemmaConfig,
)

from ssd_ray.analysis import forward
from ssd_ray.analysis.forward import Context, ScoredModel
from ssd_ray.errors import UserError
from ssd_ray.models.logit_transform import LogitTransform
from tests.support.tiny import SHAPE, tiny_model

CONFIGS = {
    "llama, tied embeddings": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=False),
    "granite, divided logits": GraniteConfig(**SHAPE, logits_scaling=4.0),
    "gemma2, capped logits": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=3.0),
    "recurrent gemma, capped logits": RecurrentGemmaConfig(
        **SHAPE, head_dim=8, logits_soft_cap=3.0
    ),
    "cohere, scaled logits": CohereConfig(**SHAPE, logit_scale=0.3),
}


def _model(config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _contexts() -> list[Context]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(5, 7), (1, 12), (9, 3), (0, 6), (4, 0), (20, 30), (2, 1)]
    contexts = []
    for number, (prompt, answer) in enumerate(sizes):
        ids = torch.randint(3, 97, (prompt + answer,), generator=generator).tolist()
        contexts.append(
            Context(
                problem_id=f"p{number}",
                prompt_token_ids=tuple(ids[:prompt]),
                output_token_ids=tuple(ids[prompt:]),
            )
        )
    return contexts


def _scored(
    models: list[ScoredModel], budget: int, chunk: int
) -> dict[tuple[int, int], tuple[int, tuple[torch.Tensor, ...]]]:
    """Return token and logits by context and place."""
    contexts = _contexts()
    scored = {}
    for batch in forward.batches(contexts, budget):
        for part in forward.score(models, contexts, batch, chunk):
            for place, key in enumerate(
                zip(part.rows.tolist(), part.offsets.tolist(), strict=True)
            ):
                logits = tuple(own[place].clone() for own in part.logits)
                scored[key] = (int(part.tokens[place]), logits)
    return scored


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_model(name: str) -> None:
    model = _model(CONFIGS[name])
    scored = _scored([ScoredModel(model, name)], budget=64, chunk=1 << 20)
    contexts = _contexts()
    assert len(scored) == sum(context.num_positions for context in contexts)
    for row, context in enumerate(contexts):
        ids = context.token_ids
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0].float()
        for offset in range(context.num_skipped, len(context.output_token_ids)):
            token, (logits,) = scored[row, offset]
            assert token == context.output_token_ids[offset]
            place = len(context.prompt_token_ids) + offset
            torch.testing.assert_close(logits, expected[place - 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("budget", "chunk"), [(1, 1 << 20), (10_000, 1), (64, 500), (50, 97)])
def test_batch_padding_and_chunk_change_nothing(budget: int, chunk: int) -> None:
    models = [ScoredModel(_model(CONFIGS["qwen3"], seed), str(seed)) for seed in (0, 1)]
    expected = _scored(models, budget=40, chunk=1 << 20)
    scored = _scored(models, budget, chunk)
    assert scored.keys() == expected.keys()
    for key, (token, logits) in expected.items():
        assert scored[key][0] == token
        for own, other in zip(scored[key][1], logits, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_batches_keep_to_the_budget_and_lose_no_context() -> None:
    contexts = _contexts()
    groups = forward.batches(contexts, 30)
    assert sorted(row for group in groups for row in group) == [0, 1, 2, 3, 5, 6]
    for group in groups:
        width = max(len(contexts[row].token_ids) for row in group)
        assert width * len(group) <= 30 or len(group) == 1


def test_a_directory_loads_in_both_precisions(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "model")
    exact = ScoredModel.load(directory, device="cpu")
    coarse = ScoredModel.load(directory, dtype="bfloat16", device="cpu")
    ids = torch.arange(30)[None]
    first, second = (model.logits(model.hidden(ids)[0]) for model in (exact, coarse))
    assert first.dtype == second.dtype == torch.float32
    torch.testing.assert_close(first, second, rtol=0.1, atol=0.1 * float(first.abs().max()))


def test_a_position_without_numbers_is_named() -> None:
    model = _model(CONFIGS["qwen3"])
    scored = ScoredModel(model, "broken")
    with torch.no_grad():
        model.get_output_embeddings().weight[11] = torch.nan
    with pytest.raises(UserError, match=r"broken gives logits .* token 0 of the answer p5/0"):
        _scored([scored], 64, 1 << 20)


def test_ids_and_vocabularies_that_do_not_fit_are_refused() -> None:
    model = ScoredModel(_model(CONFIGS["qwen3"]), "first")
    wider = ScoredModel(_model(Qwen3Config(**{**SHAPE, "vocab_size": 98}, head_dim=8)), "second")
    context = Context(problem_id="p", prompt_token_ids=(1,), output_token_ids=(97,))
    with pytest.raises(UserError, match=r"second has a vocabulary of 98 .* first one of 97"):
        forward.check([model, wider], [])
    with pytest.raises(UserError, match="p/0 has the token id 97, and first a vocabulary of 97"):
        forward.check([model], [context])
    longest = Context(problem_id="q", prompt_token_ids=(1,) * 65, output_token_ids=(1,))
    with pytest.raises(UserError, match="q/0 has 66 tokens, more than the 64"):
        forward.check([model], [longest])
    forward.check([wider], [context])


def test_a_head_with_other_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(CONFIGS["granite, divided logits"])
    monkeypatch.setattr(LogitTransform, "of", lambda _config: LogitTransform())
    with pytest.raises(UserError, match="are not those of its output head"):
        ScoredModel(model, "granite")
