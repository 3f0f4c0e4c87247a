"""Check safetensors weights by their headers and index, without reading a tensor.

A header lists the tensors of its file and their bytes; the index names the file of each tensor.
Both are a few kilobytes. So a stopped download, a git-lfs pointer or a missing shard is found in
milliseconds, before an engine or a training worker starts. Reads headers and
`model.safetensors.index.json`.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

from ssd_ray.artifacts.files import Json
from ssd_ray.errors import one_line
from ssd_ray.file_kinds import POINTER, fetch_command, kind_of

INDEX = "model.safetensors.index.json"
_MARK = "\ufeff"  # the byte order mark
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
"""Limit of the safetensors library, in bytes."""
_NUM_NAMED = 3
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<parts>\d{5})\.safetensors")
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
}


class FaultError(Exception):
    """A fault of a model's files. Without a remedy, the caller gives that of the model's origin."""

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


def check(directory: Path) -> None:
    """Check by headers and index that the weights of a model directory are complete.

    Raises:
        FaultError: a file is missing, cut short, unreadable, or not a safetensors file.
        OSError: the storage fails, and the state of the file is unknown.
    """
    index = read_index(directory)
    if index is None:
        files = sorted(directory.glob("*.safetensors"))
        _check_parts([path.name for path in files])
        for path in files:
            read_header(path)
        return
    for name in sorted(set(index.values())):
        path = directory / name
        if not os.path.lexists(path):
            raise FaultError(f"{name} is missing, although {INDEX} names it")
        tensors = read_header(path).keys()
        expected = {tensor for tensor, file in index.items() if file == name}
        if lacking := sorted(expected - tensors):
            shown = ", ".join(lacking[:_NUM_NAMED])
            raise FaultError(
                f"{name} lacks {len(lacking)} of the {len(expected)} tensors "
                f"that {INDEX} lists for it ({shown})"
            )


def read_index(directory: Path) -> dict[str, str] | None:
    """Return the file of each tensor by the index, None if there is no index.

    Raises:
        FaultError: the index is not JSON, or names files outside of the directory.
    """
    path = directory / INDEX
    if not os.path.lexists(path):
        return None
    files = read_json_object(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise FaultError(f"{INDEX} holds no weight_map")
    for name in files.values():
        # A path would lead a reader out of the directory.
        if not isinstance(name, str) or name != os.path.basename(name):
            raise FaultError(f"{INDEX} names {name!r}, which is not a file of the directory")
        if not name.endswith(".safetensors"):
            raise FaultError(f"{INDEX} names {name!r}, which is not a safetensors file")
    return files


def read_json_object(path: Path) -> Json:
    """Return the JSON object of a model's configuration file.

    Raises:
        FaultError: the file is unreadable, a git-lfs pointer, or not a JSON object, or it begins
            with a byte order mark, on which transformers and vLLM fail.
    """
    _require_content(path)
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text.removeprefix(_MARK))
    except (ValueError, RecursionError) as error:
        raise _wrong_kind(path, "JSON", one_line(error, 160)) from error
    if not isinstance(value, dict):
        raise FaultError(f"{path.name} holds no JSON object")
    if text.startswith(_MARK):
        raise FaultError(
            f"{path.name} begins with a byte order mark", f"save {path} as UTF-8 without one"
        )
    return value


def read_header(path: Path) -> Json:
    """Return the entry of each tensor in the header of a safetensors file.

    Raises:
        FaultError: there is no header, or the file's length differs from the header's.
    """
    _require_content(path)
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(_LENGTH_BYTES), "little")
        if not 2 <= length <= _LONGEST_HEADER:
            raise _wrong_kind(path, "a safetensors file", "its header has no length")
        header = handle.read(length)
    if len(header) < length:
        # Eight bytes of another format may look like a length.
        if not header.lstrip().startswith(b"{"):
            raise _wrong_kind(path, "a safetensors file", "its header is not JSON")
        raise FaultError(f"{path.name} is cut short within its header: {size:,} bytes are there")
    tensors = _parsed_header(path, header)
    _check_size(path, tensors, size - _LENGTH_BYTES - length, size)
    return tensors


def _parsed_header(path: Path, header: bytes) -> Json:
    try:
        tensors = json.loads(header.decode())
    except (ValueError, RecursionError) as error:
        raise _wrong_kind(path, "a safetensors file", "its header is not JSON") from error
    if not isinstance(tensors, dict):
        raise _wrong_kind(path, "a safetensors file", "its header is not a JSON object")
    tensors.pop("__metadata__", None)
    return tensors


def _check_size(path: Path, tensors: Json, data_bytes: int, size: int) -> None:
    """Check that the tensors fill the file without gaps."""
    end = 0
    try:
        for entry in sorted(tensors.values(), key=lambda entry: entry["data_offsets"]):
            start, stop = entry["data_offsets"]
            if start != end or _tensor_bytes(entry) not in (None, stop - start):
                raise FaultError(f"{path.name} is damaged: its header contradicts itself")
            end = stop
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong_kind(path, "a safetensors file", "its header names no tensors") from error
    if data_bytes < end:
        missing = end - data_bytes
        raise FaultError(
            f"{path.name} is cut short: {size:,} of {size + missing:,} bytes are there"
        )
    if data_bytes > end:
        surplus = data_bytes - end
        raise FaultError(f"{path.name} is damaged: {surplus:,} bytes more than its header lists")


def _tensor_bytes(entry: Json) -> int | None:
    """Return the bytes of a tensor with this entry in a header, None if its type is unknown."""
    bits = _BITS.get(entry["dtype"])
    shape = entry["shape"]
    if not all(isinstance(length, int) for length in shape):
        raise ValueError(f"{shape!r} is not a shape")
    return None if bits is None else -(-math.prod(shape) * bits // 8)


def _check_parts(names: list[str]) -> None:
    """Check by file names that no part is missing; used without an index."""
    parts: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if match := _PART.fullmatch(name):
            numbers = parts.setdefault((match["stem"], match["parts"]), set())
            numbers.add(int(match["number"]))
    for (stem, total), numbers in parts.items():
        missing = sorted(set(range(1, int(total) + 1)) - numbers)
        # Some publishers number from 0.
        if missing and 0 not in numbers:
            raise FaultError(f"{stem}-{missing[0]:05d}-of-{total}.safetensors is missing")


def _require_content(path: Path) -> None:
    require_regular_file(path)
    if path.stat().st_size == 0:
        raise FaultError(f"{path.name} is empty")


def require_regular_file(path: Path) -> None:
    """Check that a path is a regular file, readable by this user.

    Raises:
        FaultError: the path is something else; the message names it.
    """
    if path.is_symlink() and not path.exists():
        raise FaultError(f"{path.name} is {kind_of(path)}", "copy the model with `cp -rL`")
    if not path.is_file():
        raise FaultError(f"{path.name} is {kind_of(path) or 'not a regular file'}")
    if not os.access(path, os.R_OK):
        raise FaultError(
            f"{path.name} cannot be read by this user", f"change its mode: chmod a+r {path}"
        )


def _wrong_kind(path: Path, expected: str, reason: str) -> FaultError:
    """Return the fault of a file with other content than its name suggests."""
    kind = kind_of(path)
    if kind == POINTER:
        return FaultError(f"{path.name} is {kind}", fetch_command(path))
    return FaultError(
        f"{path.name} is {kind or 'not'}{', not' if kind else ''} {expected} ({reason})"
    )
