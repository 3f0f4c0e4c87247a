"""The states of the toy as a real model are read back exactly, and a training finds them.

`make toy-model` is the test with engines: it distils such a model.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssd_ray.analysis.operator import Setting
from ssd_ray.analysis.toy import Automaton, ToySettings
from tests.support.toy_model import FIRST, PROMPTS, Paths, read_paths, toy_model, toy_tokenizer

SETTINGS = ToySettings()


def _paths(model: Automaton) -> Paths:
    """Return the states of a model with exactly the automaton's distributions."""

    def rows(name: str, *shape: int) -> Tensor:
        row = torch.full((FIRST + SETTINGS.vocabulary + PROMPTS,), -torch.inf).double()
        row[FIRST : FIRST + SETTINGS.vocabulary] = torch.tensor(
            model.states[name].probabilities
        ).log()
        return row.expand(PROMPTS, *shape, -1)

    return Paths(
        logits={
            "root": rows("root"),
            "fork": rows("fork", 2),
            "lock": rows("lock", 2, SETTINGS.locks),
        },
        settings=SETTINGS,
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.9, 2.09])
def test_a_model_of_exact_states_has_the_success_of_the_toy(temperature: float) -> None:
    base = SETTINGS.base()
    decoding = Setting(temperature, None, 0.8)
    for model in (base, base.decoded(SETTINGS.samples)):
        assert _paths(model).success(decoding) == pytest.approx(model.success_at(decoding))


def test_mass_on_the_support_is_that_of_the_toy() -> None:
    base, student = _paths(SETTINGS.base()), _paths(SETTINGS.base().decoded(SETTINGS.samples))
    assert base.largest_error() == pytest.approx(0, abs=1e-12)
    assert base.kept_mass(base, "lock") == pytest.approx([0.805] * 2 * SETTINGS.locks * PROMPTS)
    assert student.kept_mass(base, "fork") == pytest.approx([1.0] * 2 * PROMPTS)


def test_the_tokenizer_keeps_the_first_line_of_a_prompt() -> None:
    tokenizer = toy_tokenizer(SETTINGS)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "walk 3\n\nThe program reads."}],
        tokenize=False,
        add_generation_prompt=True,
    )
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert tokens == ["walk", "3", "<root>"]


@pytest.mark.slow
def test_a_short_training_comes_near_the_table(tmp_path: Path) -> None:
    paths = read_paths(toy_model(tmp_path / "base", SETTINGS, steps=120), SETTINGS)
    assert paths.largest_error() < 0.05
