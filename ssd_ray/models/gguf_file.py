"""Check that a GGUF file is a complete model in convertible types, and convert it.

The check reads the metadata, and one row of one tensor of each type.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from struct import error as StructError
from typing import Any

from ssd_ray.errors import OutsideError, UserError, one_line
from ssd_ray.file_kinds import POINTER, fetch_command, kind_of
from ssd_ray.models.loading import library_bars
from ssd_ray.models.weights import FaultError

_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<parts>\d{5})\.gguf$")
_OTHER = "give a file of a text model, in a type such as Q4_0, Q8_0 or F16"


def check(file: Path) -> None:
    """Check that a file holds a complete GGUF model of convertible tensors.

    Raises:
        FaultError: the file holds something else, or only a part of a model.
    """
    kind = kind_of(file)
    if kind != "a GGUF file":
        remedy = fetch_command(file) if kind == POINTER else ""
        raise FaultError(f"is {kind or 'something else'}, not a GGUF file", remedy)
    if (match := _PART.search(file.name)) and int(match["parts"]) > 1:
        raise FaultError(
            f"is part {int(match['number'])} of {int(match['parts'])}, "
            "and parts cannot be converted",
            "join them with `llama-gguf-split --merge FIRST-PART OUT.gguf`",
        )
    reader = _read(file)
    if not reader.tensors:
        raise FaultError("holds no weights", _OTHER)
    # Adapters, vocabularies and image projectors are GGUF files as well.
    content = _text(reader, "general.type") or "model"
    if content != "model":
        raise FaultError(f"holds no model, its general.type is {content!r}", _OTHER)
    _check_types(reader)


def convert(file: Path, out: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face directory, in float32.

    Bars of loading and writing are shown on a terminal alone; that of conversion, always.

    Raises:
        UserError: transformers cannot convert the file.
        OutsideError: the directory cannot be written.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    directory = str(file.parent)
    options: dict[str, Any] = {
        "gguf_file": file.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    try:
        # An unsupported architecture is refused here, before a tensor is read.
        AutoConfig.from_pretrained(directory, **options)
        AutoTokenizer.from_pretrained(directory, **options).save_pretrained(out)
        with library_bars(sys.stderr.isatty()):
            model = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                **options,
            )
    except (ValueError, LookupError, NotImplementedError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be converted by transformers ({one_line(error)}): "
            "give a file of a supported architecture, or the model's safetensors"
        ) from error
    try:
        with library_bars(sys.stderr.isatty()):
            model.save_pretrained(out)
    except OSError as error:
        raise OutsideError(
            f"cannot write the model into {out}: {error}; "
            "make room or set SSD_RAY_CACHE to another directory"
        ) from error


def _read(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, KeyError, IndexError, TypeError, OSError, StructError) as error:
        raise FaultError(f"is not a complete GGUF file ({one_line(error, 160)})") from error


def _text(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else str(field.contents())


def _check_types(reader: Any) -> None:
    """Check that each type of tensor can be converted, by converting one row of each.

    Raises:
        FaultError: a type cannot be converted.
    """
    from gguf import dequantize

    for kind, tensor in {tensor.tensor_type: tensor for tensor in reader.tensors}.items():
        try:
            dequantize(tensor.data[:1], kind)
        except (NotImplementedError, ValueError, KeyError) as error:
            raise FaultError(
                f"holds tensors of type {kind.name}, which cannot be converted", _OTHER
            ) from error
