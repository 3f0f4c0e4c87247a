"""Checkpoints on disk: complete states, and a model directory with its decoding."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssd_ray.config import Decoding, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training.state import export, logs, resharding, resume
from ssd_ray.training.state.export import Serving

SHARD, MODEL = "zero_pp_rank_{}_mp_rank_00_optim_states.pt", "{}mp_rank_00_model_states.pt"


def _engine(
    workers: int, rank: int = 0, stage: int = 2, sub_group_size: int = 10, experts: int = 1
) -> Any:
    """Return an engine that writes a shard for each worker, as DeepSpeed's does."""

    def save_checkpoint(folder: str, tag: str, **_: Any) -> None:
        (Path(folder) / tag).mkdir(parents=True, exist_ok=True)
        for each in range(workers):
            torch.save({"of": workers}, Path(folder) / tag / SHARD.format(each))
            torch.save(
                {"of": workers},
                Path(folder) / tag / MODEL.format(f"zero_pp_rank_{each}_" if stage == 3 else ""),
            )

    module = torch.nn.Linear(1, 1)
    if experts > 1:
        # As DeepSpeed marks a sparse block of divided experts.
        vars(module).update(_is_autoep_layer=True, ep_size=experts)
    return SimpleNamespace(
        global_rank=rank,
        world_size=workers,
        module=module,
        save_checkpoint=save_checkpoint,
        zero_optimization_stage=lambda: stage,
        zero_sub_group_size=lambda: sub_group_size,
    )


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(resume, "gather", lambda engine, value: [value])


def test_a_state_is_complete_or_absent_and_only_the_latest_stays(tmp_path: Path) -> None:
    (tmp_path / "resume").mkdir()
    assert resume.latest(tmp_path) == (0, {})
    resume.request_stop(tmp_path)
    resume.save(_engine(2), tmp_path, 5, "a model")
    assert not resume.stop_requested(tmp_path)
    (tmp_path / "resume" / ".step-7.partial").mkdir()
    assert resume.latest(tmp_path) == (
        5,
        {"step": 5, "model": "a model", "parts": 2, "num_workers": 2, "zero_stage": 2},
    )
    resume.save(_engine(2), tmp_path, 9)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-9"]


def test_training_can_go_back_from_a_bad_state(tmp_path: Path) -> None:
    (tmp_path / "resume").mkdir()
    engine, present = _engine(2), []
    write = engine.save_checkpoint

    def save_checkpoint(folder: str, tag: str, **choices: Any) -> None:
        present.append(sorted(path.name for path in Path(folder).glob("step-*")))
        write(folder, tag, **choices)

    engine.save_checkpoint = save_checkpoint
    for step in (5, 9, 12):
        resume.save(engine, tmp_path, step, kept=2)
    assert present == [[], ["step-5"], ["step-5", "step-9"]]
    assert resume.latest(tmp_path)[0] == 12
    shutil.rmtree(tmp_path / "resume" / "step-12")
    assert resume.latest(tmp_path)[0] == 9


def test_a_partial_state_leaves_nothing_for_fewer_workers(tmp_path: Path) -> None:
    half = tmp_path / "resume" / ".step-5.partial"
    half.mkdir(parents=True)
    (half / SHARD.format(1)).write_text("cut off")
    resume.save(_engine(1), tmp_path, 5)
    names = {path.name for path in (tmp_path / "resume" / "step-5").iterdir()}
    assert names == {"state.json", "part-0.json", SHARD.format(0), MODEL.format("")}


def test_a_state_counts_once_every_worker_has_written_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(resume, "sync", lambda paths: done.append([path.name for path in paths]))
    resume.save(_engine(12, rank=1), tmp_path, 5)
    assert done == [[SHARD.format(1)], "barrier", "barrier"]
    (part,) = (tmp_path / "resume").rglob("part-*.json")
    assert part.name == "part-1.json"


@pytest.mark.parametrize(
    ("changed", "read"),
    [
        ({}, "as it is"),
        ({"workers": 1}, "anew"),
        ({"stage": 2}, "anew"),
        ({"sub_group_size": 7}, "anew"),
        ({"stage": 2, "sub_group_size": 7}, "anew"),
        ({"experts": 2}, "anew"),
    ],
)
def test_shards_are_recombined_for_other_workers_or_stages(
    changed: dict[str, int], read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resume").mkdir()
    layout = {"workers": 2, "stage": 3}
    resume.save(_engine(**layout), tmp_path, 5)
    resume.write_part(tmp_path / "resume" / "step-5", 1, {})
    engine, loaded = _engine(**layout | changed), []
    engine.zero_optimization = lambda: True
    engine.load_checkpoint = lambda *_, tag, **__: loaded.append(("as it is", tag))
    monkeypatch.setattr(
        resharding,
        "load",
        lambda _, directory, wrote: loaded.append(("anew", directory.name)) or wrote,
    )
    assert resume.restore(engine, tmp_path) == 5
    assert loaded == [(read, "step-5")]


def test_a_state_without_a_division_of_experts_is_read_as_it_is(tmp_path: Path) -> None:
    """Earlier versions did not record it."""
    (tmp_path / "resume").mkdir()
    resume.save(_engine(2, stage=3), tmp_path, 5)
    record = tmp_path / "resume" / "step-5" / "state.json"
    state = json.loads(record.read_text())
    assert state.pop("expert_parallel_size") == 1
    record.write_text(json.dumps(state))
    engine, loaded = _engine(2, stage=3), []
    engine.zero_optimization = lambda: True
    engine.load_checkpoint = lambda *_, tag, **__: loaded.append(tag)
    assert resume.restore(engine, tmp_path) == 5
    assert loaded == ["step-5"]


@pytest.mark.parametrize(
    ("damage", "by_record", "by_reading"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
            " bytes",
            "cannot be read (RuntimeError: PytorchStreamReader",
        ),
        (lambda path: path.write_bytes(b""), "has 0 of ", "cannot be read ("),
        (
            lambda path: path.write_bytes(bytes(path.stat().st_size)),
            "cannot be read (",
            "cannot be read (",
        ),
        (
            lambda path: path.unlink(),
            "lacks the file zero_pp_rank_0",
            "lacks the file *zero_pp_rank_0",
        ),
    ],
)
@pytest.mark.parametrize("name", [SHARD.format(0), MODEL.format("zero_pp_rank_0_")])
def test_a_damaged_state_names_the_directory_to_delete(
    name: str, damage: Callable[[Path], object], by_record: str, by_reading: str, tmp_path: Path
) -> None:
    (tmp_path / "resume").mkdir()
    resume.save(_engine(2, stage=3), tmp_path, 5)
    engine = _engine(2, stage=3)
    engine.zero_optimization = lambda: True
    directory = tmp_path / "resume" / "step-5"
    damage(directory / name)
    remedy = r".*: delete .*/resume to train from the first step"
    with pytest.raises(UserError, match=re.escape(by_record) + remedy):
        resume.restore(engine, tmp_path)
    if name == SHARD.format(0):  # what another number of workers reads
        with pytest.raises(UserError, match=re.escape(by_reading) + remedy):
            resharding._read_all(directory, 2)
        resume.save(_engine(2, stage=3), tmp_path, 4, kept=2)
        with pytest.raises(UserError, match=r"step-5 to go back to the state before it"):
            resharding._read_all(directory, 2)


def test_an_incomplete_record_of_a_state_names_what_to_delete(tmp_path: Path) -> None:
    (tmp_path / "resume").mkdir()
    resume.save(_engine(2), tmp_path, 5)
    (tmp_path / "resume" / "step-5" / "state.json").write_text('{"step": 5}')
    with pytest.raises(
        UserError,
        match=(
            r"state\.json has no field num_workers: delete .*/resume to train from the first step"
        ),
    ):
        resume.latest(tmp_path)


@pytest.mark.parametrize(
    ("base", "trained", "exported", "from_master"),
    [
        ("bfloat16", "bfloat16", "bfloat16", False),
        ("float16", "bfloat16", "float16", True),  # by way of bfloat16 it would lose three bits
        ("float32", "bfloat16", "float32", True),
        (
            "bfloat16",
            "float32",
            "float32",
            False,
        ),  # the weights of the forward are the master weights
    ],
)
def test_weights_are_exported_from_what_holds_their_precision(
    base: str,
    trained: Any,
    exported: str,
    from_master: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": base}))
    asked = []
    monkeypatch.setattr(
        export, "_gather", lambda _, dtype, from_master: asked.append((dtype, from_master)) or {}
    )
    export.export(_engine(2, rank=1), tmp_path, tmp_path / "out", TrainConfig(dtype=trained))
    assert asked == [(getattr(torch, exported), from_master)]


@pytest.mark.parametrize(
    ("decoding", "stated"),
    [
        (
            Decoding(temperature=1.1, top_k=20, top_p=0.8),
            {"temperature": 1.1, "top_k": 20, "top_p": 0.8},
        ),
        (Decoding(), {"temperature": 1.0, "top_k": 0, "top_p": 1.0}),
        (Decoding(temperature=0, top_k=20), {"temperature": 1.0, "top_k": 1, "top_p": 1.0}),
    ],
)
def test_the_model_records_its_decoding(
    decoding: Decoding, stated: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import GenerationConfig

    others = {
        "typical_p": 0.5,
        "no_repeat_ngram_size": 3,
        "num_beams": 4,
        "length_penalty": 2.0,
        "suppress_tokens": [7],
    }
    base = {
        "eos_token_id": [2, 5],
        "pad_token_id": 0,
        "top_p": 0.95,
        "min_p": 0.1,
        "repetition_penalty": 1.05,
        **others,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(base))
    export.state_decoding(tmp_path, decoding)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert stored == {"eos_token_id": [2, 5], "pad_token_id": 0, "do_sample": True, **stated}
    read = GenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(read, name) for name in stated} == stated
    read.save_pretrained(tmp_path)  # transformers refuses settings that it takes for inconsistent


def test_a_base_without_generation_settings_gets_some(tmp_path: Path) -> None:
    export.state_decoding(tmp_path, Decoding(temperature=0.7))
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.7


def test_the_model_records_its_end_tokens(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    from ssd_ray.models.loading import end_tokens

    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    asked = tuple(sorted(end_tokens(base, ["<|im_start|>"])))
    export.state_decoding(base, Decoding(temperature=0.7))
    export.state_end_tokens(base, asked)
    assert end_tokens(base) == set(asked) == {1, 2}
    assert GenerationConfig.from_pretrained(base).eos_token_id == [1, 2]
    assert GenerationConfig.from_pretrained(base).temperature == 0.7


def test_end_tokens_of_config_json_alone_are_not_lost(tiny_llama: Path, tmp_path: Path) -> None:
    """vLLM reads config.json if generation_config.json is missing; a decoding creates it."""
    from ssd_ray.models.loading import end_tokens

    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "generation_config.json").unlink()
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [0, 2, 5]}))
    assert end_tokens(base) == {0, 2, 5}
    export.state_decoding(base, Decoding(temperature=0.7))
    assert end_tokens(base) == {0, 2, 5}


def test_records_of_an_earlier_run_are_not_exported(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    for name in (
        "tokenizer.json",
        "manifest.json",
        "fingerprint.json",
        "made-from.json",
        "devices.json",
        "timing.json",
        "training.json",
        "loss.jsonl",
    ):
        (base / name).write_text("{}")
    export._copy_others(base, out)
    assert [path.name for path in out.iterdir()] == ["tokenizer.json"]


def test_another_chat_template_replaces_that_of_the_export(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(tiny_llama, base)
    stated = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(
        json.dumps({**stated, "chat_template": "the base's"})
    )
    monkeypatch.setattr(export, "_gather", lambda *_, **__: {})
    monkeypatch.setattr(
        export, "_save", lambda model, weights, directory: directory.mkdir(parents=True)
    )
    engine = _engine(1)
    engine.module = SimpleNamespace(model=None)
    template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    export.export(engine, base, out, TrainConfig(), Serving(chat_template=template))
    assert (out / "chat_template.jinja").read_text() == template
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "[hi]"
    )
    assert tokenizer.eos_token == "<|im_end|>"


def test_exported_files_have_the_modes_of_the_umask(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    export._save(model, model.state_dict(), tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~_umask()}


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_growing_log_is_read_once_and_again_where_cut(tmp_path: Path) -> None:
    log = logs.GrowingLog(tmp_path)
    log.read()
    assert log.tokens == []
    for step in range(3):
        logs.append_log(tmp_path, {"loss": float(step), "tokens": step})
    with (tmp_path / "loss.jsonl").open("a") as handle:
        handle.write('{"loss": 9')
    log.read()
    assert (log.tokens, log.loss) == ([0, 1, 2], 2.0)
    resume.begin(tmp_path, 1)
    logs.append_log(tmp_path, {"loss": 5.0, "tokens": 7})
    log.read()
    assert (log.tokens, log.loss) == ([0, 7], 5.0)
    whole = (tmp_path / "loss.jsonl").stat().st_size
    logs.append_log(tmp_path, {"loss": 6.0, "tokens": 8})
    assert log._offset == whole
    log.read()
    assert (log.tokens, log.loss) == ([0, 7, 8], 6.0)
