"""Read chat templates of models and recipes, without byte order marks.

- A model keeps its template in chat_template.jinja or tokenizer_config.json.
- Where only its processor has one, it is in chat_template.json.
- Several templates have names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd_ray.errors import UserError

PROCESSOR = "chat_template.json"
NAMED = "additional_chat_templates/*.jinja"
_MARK = "\ufeff"  # the byte order mark


def read(name: str) -> str:
    """Read a recipe's chat template, which is Jinja in UTF-8.

    Raises:
        UserError: another encoding, JSON, an empty file, a file that cannot be read.
    """
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"model.chat_template {name!r} cannot be read: {reason}") from error
    if not text.strip():
        raise UserError(
            f"model.chat_template {name!r} is empty: give a file with a template, or leave the field out"
        )
    if "\0" in text:
        raise UserError(f"model.chat_template {name!r} cannot be read: it is not UTF-8")
    try:
        stated = json.loads(text)
    except ValueError:
        return text
    holds = isinstance(stated, dict) and "chat_template" in stated
    remedy = (
        "give a file with the text of its chat_template alone"
        if holds
        else "give a file with a template"
    )
    raise UserError(f"model.chat_template {name!r} is JSON and no template: {remedy}")


def of_model(directory: Path, loaded: Any) -> Any:
    """Return the template, or the templates by name, of a model whose tokenizer has `loaded`.

    Raises:
        UserError: a template that is no text; a chat_template.json that holds none, where the
            tokenizer has none.
    """
    if not loaded and (directory / PROCESSOR).is_file():
        loaded = _of_processor(directory / PROCESSOR)
    if not loaded:
        return None
    texts = loaded if isinstance(loaded, dict) else {"default": loaded}
    if wrong := next((name for name, text in texts.items() if not isinstance(text, str)), None):
        found = type(texts[wrong]).__name__
        raise UserError(
            f"{directory}: its chat template {wrong!r} is no text ({found}): set model.chat_template to a file"
        )
    texts = {name: text.removeprefix(_MARK) for name, text in texts.items()}
    return texts if isinstance(loaded, dict) else texts["default"]


def _of_processor(path: Path) -> Any:
    """Read the template of a processor, or its templates by name."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8-sig"))["chat_template"]
        return (
            {row["name"]: row["template"] for row in stated} if isinstance(stated, list) else stated
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no chat template that can be read ({error}): correct it or take it away"
        ) from error


def in_use(tokenizer: Any, arguments: Mapping[str, Any]) -> str | None:
    """Return the text of the template that transformers takes for these template arguments.

    None where there is no template, or where several have names and none is `default`.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        return templates or None
    chosen = (
        "tool_use" if arguments.get("tools") is not None and "tool_use" in templates else "default"
    )
    text: str | None = templates.get(chosen)
    return text
