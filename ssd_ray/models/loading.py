"""Load the configuration and the tokenizer of a model directory, without its own code."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray.artifacts.files import read_json
from ssd_ray.errors import UserError, one_line
from ssd_ray.file_kinds import refuse_pointer
from ssd_ray.models import ends, templates

if TYPE_CHECKING:
    # Graders load this module without a recipe: importing the recipe takes a third of a second.
    from ssd_ray.config import ModelConfig

# Steps overlap in threads, and the first import of a name from transformers is not safe there.
_LOADING = threading.Lock()
DOWNLOAD_AGAIN = "download the model again"
CUSTOM_CODE = (
    "it can only be loaded by Python code that comes with it (auto_map), which is never run here: "
    "choose a model and tokenizer that transformers has classes for"
)


def refuse_custom_code(directory: Path) -> None:
    """Refuse a model or tokenizer that only its own Python code can load.

    An `auto_map` does no harm if transformers has a class for the model, which is loaded instead.

    Raises:
        UserError: transformers has no class for the model or its tokenizer.
    """
    if any(_names_code(directory / name) for name in ("config.json", "tokenizer_config.json")):
        load_config(directory)
        load_tokenizer(directory)


def _names_code(path: Path) -> bool:
    return path.exists() and "auto_map" in read_json(path)


def load_config(directory: Path) -> Any:
    """Return the transformers configuration of a model directory, without running its code.

    Raises:
        UserError: transformers has no class for it, or the file is damaged.
    """
    try:
        with _LOADING:
            from transformers import AutoConfig

            return AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    # transformers, tokenizers and the hub's client raise exceptions of many types.
    except Exception as error:
        raise _not_loaded(directory, "configuration", error) from error


def _not_loaded(directory: Path, part: str, error: Exception) -> Exception:
    """Return the error for a part of a model that does not load."""
    if isinstance(error, MemoryError):
        return error
    # The message of transformers advises an option that does not exist here.
    if "trust_remote_code" in str(error):
        return UserError(f"the {part} of {directory}: {CUSTOM_CODE}")
    return UserError(
        f"{directory} holds no {part} that loads ({one_line(error)}): {DOWNLOAD_AGAIN}"
    )


def load_tokenizer(directory: Path, chat_template: str | None = None) -> Any:
    """Return the tokenizer of a model directory, with `chat_template` in place of its own.

    Byte order marks at the beginning of templates are removed.

    Raises:
        UserError: the template or the tokenizer cannot be read.
    """
    tokenizer = _tokenizer(directory)
    if chat_template is not None:
        refuse_pointer(Path(chat_template), "model.chat_template")
        tokenizer.chat_template = templates.read(chat_template)
    else:
        tokenizer.chat_template = templates.of_model(directory, tokenizer.chat_template)
    return tokenizer


def _tokenizer(directory: Path) -> Any:
    try:
        with _LOADING:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    # Exceptions of many types, as for a configuration.
    except Exception as error:
        raise _not_loaded(directory, "tokenizer", error) from error
    # Without its files, some classes of transformers load as an empty tokenizer.
    if not tokenizer.encode("a", add_special_tokens=False):
        raise UserError(
            f"{directory} holds no tokenizer: add its tokenizer.json and tokenizer_config.json"
        )
    return tokenizer


def template_to_export(
    model: ModelConfig, directory: Path, arguments: Mapping[str, object]
) -> str | None:
    """Return the template in use, None if the model's own files have the same."""
    used = templates.in_use(load_tokenizer(directory, model.chat_template), arguments)
    return None if used == _tokenizer(directory).chat_template else used


def end_tokens(directory: Path, further: Iterable[str | int] = ()) -> frozenset[int]:
    """Return the ids of the end tokens in the engine: those of the model and `further` ones.

    Raises:
        UserError: one of `further` is not a token of the model.
    """
    tokenizer = load_tokenizer(directory)
    return ends.of_model(directory, tokenizer) | ends.of_recipe(tokenizer, further)


def tokenizer_digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a tokenizer by name."""
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    )
    return {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in names
        if (directory / name).exists()
    }


@contextmanager
def library_bars(shown: bool) -> Iterator[None]:
    """Show the bars of transformers, or keep them out of the progress of this package."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
