"""Read chat templates of models and recipes, without byte order marks.

- A model keeps its template in chat_template.jinja or tokenizer_config.json.
- A model with a processor may keep it in chat_template.json alone.
- A model may have several templates, each with a name.
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
    """Read a recipe's chat template: Jinja in UTF-8.

    Raises:
        UserError: the file is unreadable, empty, JSON, or in another encoding.
    """
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"model.chat_template {name!r} cannot be read: {reason}") from error
    if not text.strip():
        raise UserError(
            f"model.chat_template {name!r} is empty: "
            "give a file with a template, or leave the field out"
        )
    if "\0" in text:
        raise UserError(f"model.chat_template {name!r} cannot be read: it is not UTF-8")
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    # tokenizer_config.json is a frequent mistake here.
    remedy = "give a file with a template"
    if isinstance(parsed, dict) and "chat_template" in parsed:
        remedy = "give a file with the text of its chat_template alone"
    raise UserError(f"model.chat_template {name!r} is JSON, not a template: {remedy}")


def of_model(directory: Path, loaded: Any) -> Any:
    """Return the template of a model, or its templates by name.

    `loaded` is the template of its tokenizer as transformers loads it.

    Raises:
        UserError: a template is not text, or the tokenizer has none and chat_template.json exists
            without one.
    """
    if not loaded and (directory / PROCESSOR).is_file():
        loaded = _of_processor(directory / PROCESSOR)
    if not loaded:
        return None
    texts = loaded if isinstance(loaded, dict) else {"default": loaded}
    if wrong := next((name for name, text in texts.items() if not isinstance(text, str)), None):
        kind = type(texts[wrong]).__name__
        raise UserError(
            f"{directory}: its chat template {wrong!r} is not text ({kind}): "
            "set model.chat_template to a file"
        )
    texts = {name: text.removeprefix(_MARK) for name, text in texts.items()}
    return texts if isinstance(loaded, dict) else texts["default"]


def _of_processor(path: Path) -> Any:
    """Read the template of a processor, or its templates by name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))["chat_template"]
        if isinstance(content, list):
            return {row["name"]: row["template"] for row in content}
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no chat template that can be read ({error}): correct or remove it"
        ) from error


def in_use(tokenizer: Any, arguments: Mapping[str, object]) -> str | None:
    """Return the text of the template chosen by transformers for these template arguments.

    None if there is no template, or if none of several is named `default`.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        return templates or None
    chosen = (
        "tool_use" if arguments.get("tools") is not None and "tool_use" in templates else "default"
    )
    text: str | None = templates.get(chosen)
    return text
