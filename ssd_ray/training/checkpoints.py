"""What training leaves on disk: a state to resume from, a loss log in step with it, and at the end a model directory.

A resume state is a DeepSpeed checkpoint (one shard a worker, on storage that all of them see) written aside and renamed
when every shard is there, so a half one is never taken; only the latest is kept. As many workers as wrote it read it bit for
bit; another number, or another ZeRO stage, puts its own shards together out of it (`resharding.py`). The finished model goes into
the artifact by renames as well, `training.json` last: with it, the weights are whole. So does what is exported on the way, each
into a directory of its own.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssd_ray.artifacts.files import read_json, replace_directory, write_atomic
from ssd_ray.config import Decoding, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training import resharding
from ssd_ray.training.adapters import adapter_of, is_adapter, plain_name

LOSS_LOG = "loss.jsonl"
FINISHED = "training.json"
RESUME = "resume"
STEPS = "steps"
LEAVE = "leave"

_COPIED_SUFFIXES = {".json", ".jinja", ".model", ".tiktoken", ".txt"}
_NOT_COPIED = {"fingerprint.json", "manifest.json", "timing.json", FINISHED}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_NOT_DECODING = {
    *_TOKENS,
    "stop_strings",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "transformers_version",
}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How an exported model is to be prompted and decoded; what is None stays as the base has it."""

    decoding: Decoding | None = None
    chat_template: str | None = None
    end_tokens: tuple[int, ...] = ()
    """All ids that end an answer; empty where they are those of the base."""


AS_THE_BASE = Serving()


def latest(out: Path) -> tuple[int, dict[str, Any]]:
    """The step of the latest whole resume state and its record; step 0 and an empty record when there is none."""
    steps = [int(path.parent.name.removeprefix("step-")) for path in (out / RESUME).glob("step-*/state.json")]
    if not steps:
        return 0, {}
    path = out / RESUME / f"step-{max(steps)}" / "state.json"
    state = read_json(path)
    if lacking := sorted({"num_workers", "zero_stage"} - state.keys()):
        raise UserError(f"{path} does not say {lacking[0]}: delete {out / RESUME} to train from the first step")
    return max(steps), state


def ask_to_leave(out: Path) -> None:
    """Ask the workers to write a resume state after the step they are at; writing one takes the request back."""
    (out / RESUME).mkdir(exist_ok=True)
    (out / RESUME / LEAVE).touch()


def asked_to_leave(out: Path) -> bool:
    """Whether a request to leave stands."""
    return (out / RESUME / LEAVE).exists()


def begin(out: Path, step: int) -> None:
    """Take away what an attempt that was ended left beyond `step`: lines of the loss log, and halves of states and exports."""
    cut_log(out, step)
    for folder in (out / RESUME, out / STEPS):
        for half in folder.glob(".*.partial"):
            shutil.rmtree(half)


def save(engine: Any, out: Path, step: int, model: str = "") -> None:
    """Write the resume state after `step` steps and drop older ones; every worker calls it. `model` names the base."""
    resume = out / RESUME
    aside = resume / f".step-{step}.partial"
    if engine.global_rank == 0:
        shutil.rmtree(aside, ignore_errors=True)  # what more workers began here would stay among the shards of fewer
    engine.save_checkpoint(str(resume), tag=aside.name, save_latest=False, exclude_frozen_parameters=True)
    _sync(aside.glob(f"*zero_pp_rank_{engine.global_rank}_mp_rank_*"))  # only the node that wrote a shard can see to that
    torch.distributed.barrier()
    if engine.global_rank == 0:
        write_atomic(aside / "state.json", json.dumps({"step": step, "model": model, **_layout(engine)}))
        _sync([*aside.iterdir(), aside])
        _sync([*out.iterdir(), out])  # the logs, which must not be behind the state
        replace_directory(aside, resume / f"step-{step}")
        _sync([resume])
        for old in resume.iterdir():  # earlier states, halves of states, a request to leave, and a script that DeepSpeed leaves
            if old.name != f"step-{step}":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    torch.distributed.barrier()


def restore(engine: Any, out: Path) -> int:
    """Put the latest whole resume state into a fresh engine and return its step (0: none); every worker calls it.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    step, state = latest(out)
    directory = out / RESUME / f"step-{step}"
    if step and engine.zero_optimization() and any(state.get(name) != here for name, here in _layout(engine).items()):
        resharding.load(engine, directory, state["num_workers"])
    elif step:
        resharding.check(engine, directory)
        frozen = any(not parameter.requires_grad for parameter in engine.module.parameters())  # those are not in a state
        engine.load_checkpoint(str(out / RESUME), tag=directory.name, load_module_strict=not frozen)
    return step


def _layout(engine: Any) -> dict[str, int]:
    """What decides which part of weights and moments lies in which shard."""
    stage = int(engine.zero_optimization_stage())
    sizes = {"sub_group_size": int(engine.zero_sub_group_size())} if stage == 3 else {}
    return {"num_workers": engine.world_size, "zero_stage": stage, **sizes}


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def read_log(out: Path) -> list[dict[str, Any]]:
    """The whole lines of the loss log, one a step."""
    path = out / LOSS_LOG
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class GrowingLog:
    """The loss log as another process sees it grow: read once, and from its beginning again where it was cut."""

    def __init__(self, out: Path) -> None:
        self._path = out / LOSS_LOG
        self._file, self._at = 0, 0
        self.tokens: list[int] = []
        """Of each step so far."""
        self.loss = math.nan
        """Of the last one."""

    def read(self) -> None:
        """Take in the whole lines that are new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as handle:
            now = os.fstat(handle.fileno())
            if (now.st_ino, now.st_size < self._at) != (self._file, False):
                self._file, self._at, self.tokens = now.st_ino, 0, []
            handle.seek(self._at)
            new = handle.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in map(json.loads, whole.splitlines()):
            self.tokens.append(line["tokens"])
            self.loss = line["loss"]


def cut_log(out: Path, steps: int) -> None:
    """Keep the first `steps` lines of the loss log: those that the resume state has seen."""
    lines = [json.dumps(line) + "\n" for line in read_log(out)[:steps]]
    write_atomic(out / LOSS_LOG, "".join(lines))


def append_log(out: Path, line: dict[str, Any]) -> None:
    """Add one step's line to the loss log."""
    with (out / LOSS_LOG).open("a") as handle:
        handle.write(json.dumps(line) + "\n")


def export(engine: Any, base: Path, out: Path, train: TrainConfig, serving: Serving = AS_THE_BASE) -> None:
    """Write the model as a Hugging Face directory into `out`; every worker calls it, the first writes.

    Weights keep the base directory's names and precision (float32 after float32 training); configuration, tokenizer and
    chat template are the base's files, and so are the generation settings, but for what `serving` says. The whole model is in
    the first worker's memory once.
    """
    config = json.loads((base / "config.json").read_text())
    field = "torch_dtype" if "torch_dtype" in config else "dtype"
    saved = "float32" if train.dtype == "float32" else config.get(field) or train.dtype
    weights = _gather(engine, getattr(torch, saved), from_master=saved != train.dtype)
    if engine.global_rank == 0:
        aside = out / ".weights.partial"
        shutil.rmtree(aside, ignore_errors=True)
        _save(engine.module.model, weights, aside)
        _copy_others(base, aside)
        if serving.decoding is not None:
            state_decoding(aside, serving.decoding)
        if serving.end_tokens:
            state_end_tokens(aside, serving.end_tokens)
        if serving.chat_template is not None:
            state_template(aside, serving.chat_template)
        (aside / "config.json").write_text(json.dumps({**config, field: saved}, indent=2) + "\n")
        _sync([*aside.iterdir(), aside])
        for path in sorted(aside.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
            path.replace(out / path.name)
        aside.rmdir()
    torch.distributed.barrier()


def step_directory(out: Path, step: int) -> Path:
    """Where the model after `step` steps lies, if it was exported."""
    return out / STEPS / f"step-{step}"


def export_step(engine: Any, base: Path, out: Path, train: TrainConfig, step: int, serving: Serving = AS_THE_BASE) -> None:
    """Write the model after `step` steps as `export` does, into a directory of its own; every worker calls it."""
    whole = step_directory(out, step)
    aside = whole.with_name(f".{whole.name}.partial")
    if engine.global_rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
    export(engine, base, aside, train, serving)
    if engine.global_rank == 0:
        replace_directory(aside, whole)  # one of an attempt that ended before its next resume state: the same weights
        _sync([whole.parent])
    torch.distributed.barrier()


def _gather(engine: Any, dtype: torch.dtype, *, from_master: bool) -> dict[str, torch.Tensor]:
    """The model's weights by name on the first worker, gathered one at a time; adapters are merged, tied weights appear once."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    model, first = engine.module.model, engine.global_rank == 0

    def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
        master = safe_get_full_fp32_param(parameter) if from_master and parameter.requires_grad else None
        return parameter.detach() if master is None else master

    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        adapter = adapter_of(model, name)
        with deepspeed.zero.GatheredParameters([parameter, *(adapter[:2] if adapter else ())]):
            value = whole(parameter)
            if adapter is not None:
                low, high, factor = adapter
                value = value.float() + factor * (whole(high).float() @ whole(low).float())
            if first:
                weights[plain_name(name)] = value.to(device="cpu", dtype=dtype, copy=True)
    kept = {plain_name(name) for name in model.state_dict()}
    if first:
        buffers = ((plain_name(name), buffer) for name, buffer in model.named_buffers())
        weights |= {name: buffer.detach().cpu() for name, buffer in buffers if name in kept}
    return weights


def _save(model: Any, weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Let transformers name and shard the weights as the base directory has them."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # the base's file is copied; its rules are not checked anew here
    model.save_pretrained(directory, state_dict=weights, max_shard_size="5GB")
    for path in directory.glob("*.safetensors"):  # which nobody else could read: safetensors makes its files so
        shutil.copymode(directory / "config.json", path)


def _copy_others(base: Path, directory: Path) -> None:
    (directory / "generation_config.json").unlink(missing_ok=True)
    for path in base.iterdir():
        wanted = path.suffix in _COPIED_SUFFIXES or path.name.startswith(("LICENSE", "NOTICE"))
        if wanted and path.is_file() and path.name not in _NOT_COPIED and not path.name.endswith(".index.json"):
            shutil.copyfile(path, directory / path.name)


def state_decoding(directory: Path, decoding: Decoding) -> None:
    """Have generation_config.json of a model directory say `decoding` and nothing else of the kind; tokens and lengths stay.

    Greedy decoding is stated as top-k 1: vLLM does not read `do_sample`, and transformers saves no temperature of 0.
    """
    path = directory / "generation_config.json"
    if path.exists():
        before = read_json(path)
    else:  # vLLM takes the tokens of config.json only as long as there is no such file
        config = read_json(directory / "config.json") if (directory / "config.json").exists() else {}
        before = {name: config[name] for name in _TOKENS if config.get(name) is not None}
    stated = {"temperature": decoding.temperature, "top_k": decoding.top_k or 0, "top_p": decoding.top_p}
    if not decoding.temperature:
        stated = {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
    rest = {name: value for name, value in before.items() if name in _NOT_DECODING}
    path.write_text(json.dumps({**rest, "do_sample": True, **stated}, indent=2) + "\n")


def state_end_tokens(directory: Path, token_ids: Sequence[int]) -> None:
    """Have generation_config.json of a model directory say that these tokens end an answer."""
    path = directory / "generation_config.json"
    before = read_json(path) if path.exists() else {}
    path.write_text(json.dumps({**before, "eos_token_id": list(token_ids)}, indent=2) + "\n")


def state_template(directory: Path, template: str) -> None:
    """Have a model directory's tokenizer put messages through `template` and no other."""
    (directory / "chat_template.jinja").write_text(template)
    path = directory / "tokenizer_config.json"
    if path.exists():
        rest = {name: value for name, value in read_json(path).items() if name != "chat_template"}
        path.write_text(json.dumps(rest, indent=2, ensure_ascii=False) + "\n")
