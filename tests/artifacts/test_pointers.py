"""A git-lfs pointer in place of a file is named, with the command to fetch it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ssd_ray import file_kinds, recipes
from ssd_ray.artifacts import files, shards
from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.problems.benchmarks.files import list_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 98\n".format("4" * 64)
READERS: dict[str, Callable[[Path], object]] = {
    "prompts.jsonl": lambda path: list_files(path, "prompts.source"),
    "prompts.jsonl.gz": lambda path: list_files(path, "prompts.source"),
    "bench.parquet": lambda path: list_files(path.parent, "benchmark own: file"),
    "answers.jsonl": lambda path: list_files(path, "completions"),
    "recipe.yaml": lambda path: recipes.load(path),
    "manifest.json": files.read_json,
    "shard.parquet": shards.read_table,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_is_named_with_the_command(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(POINTER)
    with pytest.raises(
        UserError, match=rf"{name} is a git-lfs pointer .*run `git lfs pull` in {tmp_path}"
    ):
        READERS[name](path)


def test_a_pointer_is_no_chat_template(tmp_path: Path, tiny_llama: Path) -> None:
    """Read as a template, its text would begin every prompt."""
    (tmp_path / "own.jinja").write_text(POINTER)
    with pytest.raises(UserError, match=r"model.chat_template: .*own.jinja is a git-lfs pointer"):
        loading.load_tokenizer(tiny_llama, str(tmp_path / "own.jinja"))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (POINTER.encode(), file_kinds.POINTER),
        (b"\xef\xbb\xbf" + POINTER.replace("\n", "\r\n").encode(), file_kinds.POINTER),
        (
            b"version https://git-lfs.github.com/spec/v1\n" + bytes(2000),
            "",
        ),  # too long for a pointer
        (b"version 3", ""),
        (b"", "empty"),
        (b"GGUF\3\0\0\0", "a GGUF file"),
        (b"  <!DOCTYPE HTML>\n<html>", "an HTML page"),
        (b"<Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (bytes(257) + b"ustar\0" + bytes(200), "a tar archive"),
        (b'{"a": 1}', ""),
    ],
)
def test_files_are_recognized_by_their_content(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert file_kinds.kind_of(path) == kind


def test_directories_and_missing_paths_are_recognized_too(tmp_path: Path) -> None:
    assert file_kinds.kind_of(tmp_path) == "a directory"
    assert file_kinds.kind_of(tmp_path / "gone") == "missing"
    (tmp_path / "link").symlink_to("gone")
    assert file_kinds.kind_of(tmp_path / "link") == "a link to gone, which is not there"
    assert not file_kinds.is_lfs_pointer(tmp_path / "gone")
