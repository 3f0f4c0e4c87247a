"""A local GGUF file works as model.source, like one inside a package."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ssd_ray import models
from ssd_ray.config import ModelConfig
from ssd_ray.errors import UserError
from ssd_ray.models import gguf_file, loading
from tests.support.tiny_gguf import tiny_gguf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSD_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def source(path: object) -> ModelConfig:
    return ModelConfig(source=str(path))


def test_a_local_gguf_file_is_converted_once(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tiny_gguf(tmp_path / "tiny.Q8_0.gguf")
    assert models.local_directory(source(file)) is None
    directory = models.fetch(source(file))
    shown = capfd.readouterr().err
    assert "Loading weights" not in shown, "bars of loading are for terminals"
    assert "Writing model" not in shown
    assert directory.parent == cache
    assert models.local_directory(source(file)) == directory
    assert (directory / "model.safetensors").exists()
    assert (
        loading.load_tokenizer(directory).decode(loading.load_tokenizer(directory).encode("ab c"))
        == "ab c"
    )
    assert loading.load_config(directory).num_hidden_layers == 2
    monkeypatch.setattr(gguf_file, "convert", lambda *_: pytest.fail("converted twice"))
    assert models.fetch(source(file)) == directory
    monkeypatch.chdir(tmp_path)
    assert models.fetch(source("tiny.Q8_0.gguf")) == directory
    assert models.fetch(source("./tiny.Q8_0.gguf")) == directory


def test_a_damaged_conversion_is_made_again(tmp_path: Path, cache: Path) -> None:
    directory = models.fetch(source(tiny_gguf(tmp_path / "tiny.gguf")))
    os.truncate(directory / "model.safetensors", 5000)
    with pytest.raises(
        UserError,
        match=(
            rf"converted in {directory}: model.safetensors is cut short.*delete {directory} and "
            r"run"
        ),
    ):
        models.fetch(source(tmp_path / "tiny.gguf"))


def test_a_gguf_file_is_identified_by_its_content(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf")
    identity = models.identify(source(file))
    assert set(identity) == {"gguf"}
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(file, tmp_path / "elsewhere" / "renamed.GGUF"))
    (tmp_path / "link.gguf").symlink_to(moved)
    assert (
        models.identify(source(moved))
        == models.identify(source(tmp_path / "link.gguf"))
        == identity
    )
    assert models.identify(source(tiny_gguf(tmp_path / "tiny.gguf", seed=1))) != identity


def test_a_link_into_the_hub_cache_is_followed(tmp_path: Path, cache: Path) -> None:
    """The cache of the hub keeps a file under a name without a suffix, and links to it."""
    blob = tiny_gguf(tmp_path / "tiny.gguf").rename(tmp_path / "4f2e")
    (tmp_path / "tiny.gguf").symlink_to(blob)
    assert models.fetch(source(tmp_path / "tiny.gguf")).parent == cache


def test_a_gguf_file_that_cannot_be_converted_is_named(tmp_path: Path, cache: Path) -> None:
    good = tiny_gguf(tmp_path / "good.gguf")
    cases = {
        "cut.gguf": (
            good.read_bytes()[:-1000],
            "is not a complete GGUF file .*: download the model again",
        ),
        "early.gguf": (good.read_bytes()[:300], "is not a complete GGUF file"),
        "garbage.gguf": (b"GGUF" + bytes(100), "is not a complete GGUF file"),
        "empty.gguf": (b"", "is empty, not a GGUF file"),
        "page.gguf": (b"<!doctype html><html></html>", "is an HTML page, not a GGUF file"),
        "text.gguf": (b"Entry not found", "is something else, not a GGUF file"),
        "pointer.gguf": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "git-lfs pointer .*git lfs pull",
        ),
        "big-00001-of-00003.gguf": (
            good.read_bytes(),
            "is part 1 of 3, .*llama-gguf-split --merge",
        ),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"model.source '.*{name}'.*{message}"):
            models.fetch(source(tmp_path / name))
    assert not cache.exists() or not list(cache.iterdir())


def test_part_1_of_1_is_a_complete_model(tmp_path: Path, cache: Path) -> None:
    assert models.fetch(source(tiny_gguf(tmp_path / "tiny-00001-of-00001.gguf"))).parent == cache


def test_a_gguf_of_an_unknown_kind_is_named(tmp_path: Path, cache: Path) -> None:
    other = tiny_gguf(tmp_path / "other.gguf", architecture="wavtokenizer-dec")
    with pytest.raises(
        UserError, match=r"other.gguf.*wavtokenizer-dec.*give a file of a supported architecture"
    ):
        models.fetch(source(other))
    projector = tiny_gguf(tmp_path / "mmproj.gguf", general__type="mmproj")
    with pytest.raises(UserError, match=r"holds no model, its general.type is 'mmproj'"):
        models.fetch(source(projector))
    integers = tiny_gguf(tmp_path / "integers.gguf", kind="I32")
    with pytest.raises(UserError, match="holds tensors of type I32, which cannot be converted"):
        models.fetch(source(integers))
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q5_1"])
def test_tensors_of_common_types_are_converted(tmp_path: Path, cache: Path, kind: str) -> None:
    assert models.fetch(source(tiny_gguf(tmp_path / f"{kind}.gguf", kind=kind))).parent == cache


def test_a_gguf_that_the_user_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf")
    usual = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != file and usual(path, mode))
    with pytest.raises(UserError, match="cannot be read by this user"):
        models.identify(source(file))


def test_a_user_without_a_home_is_asked_to_set_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no entry in /etc/passwd."""
    for name in ("SSD_RAY_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 1000650000)
    with pytest.raises(UserError, match=r"kept in ~/.cache/ssd_ray: set SSD_RAY_CACHE"):
        models.cache_directory()
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert models.cache_directory() == Path("/scratch/ssd_ray")
    monkeypatch.setenv("SSD_RAY_CACHE", "/models")
    assert models.cache_directory() == Path("/models")
