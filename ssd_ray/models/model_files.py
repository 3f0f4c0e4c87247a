"""Check a Hugging Face directory before it is loaded, or describe a file given instead.

- Weights are safetensors. Pickled weights run code when they are loaded, so they are refused.
- Code of a model is never run, and no option permits it.
- A message names the file, its content and the remedy. The remedy depends on the origin: a
  directory of the user, a download, or a checkpoint of this package.

Reads configuration files, and the headers and index of weights (`weights.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.errors import InfrastructureError, UserError, one_line
from ssd_ray.file_kinds import POINTER, fetch_command, is_lfs_pointer, kind_of
from ssd_ray.models import weights
from ssd_ray.models.weights import FaultError

WEIGHTS = "*.safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_NUM_NAMED = 4
_SMALL_JSON = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_OTHER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.jinja", "*.tiktoken")
TOKENIZER_FILES = (*_SMALL_JSON, *_OTHER_FILES, "*.model")
"""Files from which a tokenizer loads, where they exist."""
_UNFINISHED = (".aria2", ".incomplete", ".part", ".crdownload")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Origin of a model directory, for messages."""

    name: str
    """Name of the directory in messages, with the field of the recipe."""
    remedy: str
    """Remedy for a missing or damaged file."""


def check(directory: Path, origin: Origin) -> None:
    """Check that a model directory is complete: readable files, all weights, no pointers.

    Raises:
        UserError: the directory cannot be loaded as it is, with the file and the remedy.
        InfrastructureError: the storage fails.
    """
    try:
        require_model(directory)
    except FaultError as fault:
        raise UserError(f"{origin.name} {fault}: {fault.remedy}") from fault
    try:
        _check_files(directory)
        weights.check(directory)
    except FaultError as fault:
        raise UserError(f"{origin.name}: {fault}: {fault.remedy or origin.remedy}") from fault
    except OSError as error:
        raise InfrastructureError(f"{origin.name} cannot be read ({one_line(error)})") from error


def require_model(path: Path) -> None:
    """Check by names that a path is a directory with a configuration and safetensors weights.

    Raises:
        FaultError: the path is something else; the message names it.
    """
    _require_directory(path)
    # `lexists`: a broken link counts here, and is named by the later checks.
    has_weights = os.path.lexists(path / weights.INDEX)
    has_weights |= any(not name.startswith("adapter_") for name in _match(path, (WEIGHTS,)))
    if not has_weights and (path / "adapter_config.json").exists():
        raise FaultError(
            "holds an adapter (adapter_config.json), not a model",
            "merge the adapter into its base (merge_and_unload of peft) and give that directory",
        )
    if not os.path.lexists(path / "config.json"):
        raise FaultError(*_without_config(path))
    if not has_weights:
        raise FaultError(*_without_weights(path))


def describe_file(path: Path) -> FaultError:
    """Return the fault of a file given in place of a model directory."""
    if path.suffix == ".safetensors":
        return FaultError("is one file of a model", f"give its directory, {path.parent}")
    kind = kind_of(path)
    if kind == POINTER:
        return FaultError(f"is {kind}", fetch_command(path))
    if "archive" in kind and path.suffix not in (".bin", ".pt", ".pth", ".ckpt"):
        return FaultError(f"is {kind}", "unpack it and give the directory that holds config.json")
    if kind == "a GGUF file":
        return FaultError("is a GGUF file by its content", f"rename it to {path.name}.gguf")
    if kind == "a pickle" or path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        return FaultError(
            "holds pickled weights, which run code when they are loaded", _AS_SAFETENSORS
        )
    return FaultError(f"is {kind or 'a file'}, not a directory", _GIVE_MODEL)


_GIVE_MODEL = "give a Hugging Face model directory, a .gguf file or a hub id"
_AS_SAFETENSORS = "give a model, or a revision of it, with *.safetensors"


def _require_directory(path: Path) -> None:
    try:
        if path.is_symlink() and not path.exists():
            raise FaultError(f"is {kind_of(path)}", _GIVE_MODEL)
        if not path.exists():
            raise FaultError("does not exist", _GIVE_MODEL)
        if path.is_file():
            raise describe_file(path)
        if not path.is_dir():
            raise FaultError("is not a directory", _GIVE_MODEL)
    except OSError as error:
        raise FaultError(f"cannot be accessed ({error.strerror})", _GIVE_MODEL) from error
    require_readable(path)


def require_readable(path: Path) -> None:
    """Check the permissions of a file or directory.

    Raises:
        FaultError: this user cannot read it.
    """
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        raise FaultError("cannot be read by this user", f"change its mode: chmod -R a+rX {path}")


def _without_config(path: Path) -> tuple[str, str]:
    """Return the fault of a directory without config.json, and the remedy."""
    ggufs = _match(path, ("*.gguf",))
    if len(ggufs) == 1:
        return (
            f"holds a GGUF file ({ggufs[0]}) and no config.json",
            f"give that file: {path / ggufs[0]}",
        )
    if ggufs:
        return f"holds {len(ggufs)} GGUF files and no config.json", f"give one: {path / ggufs[0]}"
    # An archive unpacks into a folder, and the hub's client keeps a repository in `snapshots/`.
    if deeper := _match(path, ("*/config.json", "snapshots/*/config.json")):
        folder = Path(deeper[-1]).parent
        return f"holds no config.json, and its folder {folder} does", f"give {path / folder}"
    contents = _names(path)
    return f"holds no config.json (it holds {contents})", _GIVE_MODEL


def _without_weights(path: Path) -> tuple[str, str]:
    """Return the fault of a directory with config.json and without safetensors, and the remedy."""
    if pickled := _match(path, _PICKLED):
        return (
            f"holds only pickled weights ({pickled[0]}), which run code when they are loaded",
            _AS_SAFETENSORS,
        )
    if ggufs := _match(path, ("*.gguf",)):
        return f"holds GGUF weights ({ggufs[0]})", f"give that file: {path / ggufs[0]}"
    for kind, patterns in _OTHER_WEIGHTS.items():
        if others := _match(path, patterns):
            return f"holds {kind} weights ({others[0]}) and no *.safetensors", _AS_SAFETENSORS
    return f"holds no *.safetensors (it holds {_names(path)})", "download the weights as well"


_OTHER_WEIGHTS = {
    "ONNX": ("*.onnx", "onnx/*.onnx"),
    "MLX": ("*.npz",),
    "TensorFlow": ("*.h5",),
    "Flax": ("*.msgpack",),
    "TensorRT-LLM": ("*.engine",),
}


def _check_files(directory: Path) -> None:
    """Check the small files of a model: readable, no git-lfs pointers, and JSON if named so.

    Raises:
        FaultError: a file is unreadable, a pointer or damaged, or a download is unfinished.
    """
    for name in _SMALL_JSON:
        if os.path.lexists(directory / name):
            weights.read_json_object(directory / name)
    for name in _match(directory, _OTHER_FILES):
        path = directory / name
        if path.is_symlink() and not path.exists():
            raise FaultError(f"{name} is {kind_of(path)}", "copy the model with `cp -rL`")
        if path.is_file() and not os.access(path, os.R_OK):
            raise FaultError(
                f"{name} cannot be read by this user", f"change its mode: chmod a+r {path}"
            )
        if is_lfs_pointer(path):
            raise FaultError(f"{name} is {POINTER}", fetch_command(path))
    if unfinished := _match(directory, tuple(f"{WEIGHTS}{suffix}" for suffix in _UNFINISHED)):
        raise FaultError(f"{unfinished[0]} is a file of an unfinished download")
    quantization = weights.read_json_object(directory / "config.json").get("quantization")
    if isinstance(quantization, dict) and "group_size" in quantization:
        raise FaultError(
            "config.json describes weights quantized for MLX, which vLLM cannot read",
            _UNQUANTIZED,
        )


_UNQUANTIZED = "give the model that they were made from"


def _match(directory: Path, patterns: Iterable[str]) -> list[str]:
    return sorted(
        str(path.relative_to(directory)) for each in patterns for path in directory.glob(each)
    )


def _names(path: Path) -> str:
    """Return the first few names in a directory."""
    names = sorted(child.name for child in path.iterdir())
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more if names else "nothing"
