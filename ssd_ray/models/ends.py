"""End tokens of answers: those in a model's files, and further ones in a recipe.

Reads a model directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ssd_ray.artifacts.files import read_json
from ssd_ray.errors import UserError


def of_model(directory: Path, tokenizer: Any) -> frozenset[int]:
    """Return the end tokens of a model directory as vLLM reads them.

    These are the tokenizer's and those of generation_config.json, or of config.json without one.
    """
    ids: list[int | None] = [tokenizer.eos_token_id]
    # transformers makes a generation configuration from config.json if the file is absent.
    path = directory / "generation_config.json"
    path = path if path.exists() else directory / "config.json"
    if path.exists():
        listed = read_json(path).get("eos_token_id")
        ids += listed if isinstance(listed, list) else [listed]
    return frozenset(number for number in ids if number is not None)


def of_recipe(tokenizer: Any, names: Iterable[str | int]) -> frozenset[int]:
    """Return the ids of tokens given by text or by id in `model.end_tokens`.

    Raises:
        UserError: a text is not a token, or an id is not in the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    ids = set()
    for name in names:
        number = vocabulary.get(name, -1) if isinstance(name, str) else name
        if not 0 <= number <= max(vocabulary.values()):
            raise UserError(
                f"model.end_tokens has {name!r}, which is not a token of the model: "
                "give a token's text or its id"
            )
        ids.add(number)
    return frozenset(ids)
