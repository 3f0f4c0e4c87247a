"""Models with quantized weights: they can be sampled, and cannot be trained.

Known before any download for the models with a configuration in this package. Reads config.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from ssd_ray import models
from ssd_ray.config import ModelConfig
from ssd_ray.models import architecture


def untrainable(model: ModelConfig) -> tuple[str, str]:
    """Return the reason why a recipe's weights cannot be trained, and a remedy; "" if they can."""
    directory = models.local_directory(model)
    method = architecture.quantization(model.source) or (method_of(directory) if directory else "")
    return refusal(model.source, method) if method else ("", "")


def refusal(source: str, method: str) -> tuple[str, str]:
    """Return the reason why weights of a quantization cannot be trained, and a remedy."""
    reason = f"{source} holds weights in {method}, which cannot be trained"
    if method != "mxfp4":
        return reason, "set model.source to plain weights"
    directory = f"{source.rstrip('/').rpartition('/')[2]}-bf16"
    return reason, (
        f"make bfloat16 weights with `{to_bfloat16(source, directory)}`, "
        f"and add --set model.source=./{directory}"
    )


def to_bfloat16(source: str, directory: str) -> str:
    """Return the command that writes MXFP4 weights as plain bfloat16 weights."""
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T, Mxfp4Config as C; "
        f"s, d = {source!r}, {directory!r}; "
        "M.from_pretrained(s, dtype='bfloat16', quantization_config=C(dequantize=True))"
        ".save_pretrained(d); T.from_pretrained(s).save_pretrained(d)"
    )
    return f'python -c "{code}"'


def method_of(directory: Path) -> str:
    """Return the quantization of a model directory; "" without one."""
    if not (directory / "config.json").is_file():
        return ""
    try:
        config = json.loads((directory / "config.json").read_text())
    except ValueError:
        # Later checks refuse a damaged file with a message of their own.
        return ""
    settings = config.get("quantization_config") or {}
    return str(settings.get("quant_method", "a quantized form")) if settings else ""
