"""Save and restore the resume state of an interrupted training.

- A state is a DeepSpeed checkpoint, one shard a worker, on storage that all workers see.
- Each worker records its files in `part-RANK.json`: sizes, and digests if it copied them
  (`saver.py`). The record of the state is `state.json`.
- A state is renamed into place when all shards are on disk, so a partial one is never read.
- The latest ones are kept. Training goes back from a bad one, whose files differ from the records.
- As many workers as wrote it restore it bit for bit. Another number of workers, another ZeRO stage,
  or another division of experts assembles its own shards (`resharding.py`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from ssd_ray.artifacts.files import Json, replace_directory, sync, write_atomic
from ssd_ray.errors import LastingError, OutsideError, one_line
from ssd_ray.machine.storage import free_bytes
from ssd_ray.training.model.expert_parallel import Division
from ssd_ray.training.state import resharding
from ssd_ray.training.state.export import STEPS
from ssd_ray.training.state.logs import cut_log

T = TypeVar("T")
RESUME = "resume"
STOP = "leave"
"""Name of the file that requests a stop."""
_EXPERTS = "expert_parallel_size"
_FULL_BYTES = 64 << 20
"""Free bytes below which a disk is full."""


def latest(out: Path) -> tuple[int, Json]:
    """Return step and record of the latest complete resume state; 0 and {} without one.

    A state with a bad record is passed over, as `restore` does.

    Raises:
        LastingError: no state has a good record.
    """
    faults = []
    for step in reversed(steps(out)):
        record, fault = _read_record(_directory(out, step))
        if not fault:
            return step, record
        faults.append(fault)
    if faults:
        raise _without_state(out, faults[0])
    return 0, {}


def _without_state(out: Path, fault: str) -> LastingError:
    return LastingError(f"{fault}: delete {out / RESUME} to train from the first step")


def _read_record(directory: Path) -> tuple[Json, str]:
    """Return the record of a state and its first fault; one of the two is empty."""
    record, fault = _read(directory / "state.json", {"num_workers": int, "zero_stage": int})
    # States of earlier versions have no parts.
    if not fault and not isinstance(record.get("parts", 0), int):
        fault = f"{directory / 'state.json'} is damaged"
    return ({}, fault) if fault else (record, "")


def _read(path: Path, fields: Mapping[str, type]) -> tuple[Json, str]:
    """Return the JSON object in a file, and the first fault of the file or of `fields`."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}, f"{path.parent} lacks the file {path.name}"
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return {}, f"{path} is damaged"
    for name, kind in fields.items():
        if name not in value:
            return {}, f"{path} has no field {name}"
        if not isinstance(value[name], kind):
            return {}, f"{path} is damaged"
    return value, ""


def _directory(out: Path, step: int) -> Path:
    return out / RESUME / f"step-{step}"


def request_stop(out: Path) -> None:
    """Ask the workers for a resume state after the current step; `save` deletes the request."""
    (out / RESUME).mkdir(exist_ok=True)
    (out / RESUME / STOP).touch()


def stop_requested(out: Path) -> bool:
    """Return True if a request to stop is pending."""
    return (out / RESUME / STOP).exists()


def begin(out: Path, step: int) -> None:
    """Remove the remains of an interrupted attempt after `step`.

    These are lines of the loss log, and partial states and exports.
    """
    cut_log(out, step)
    for folder in (out / RESUME, out / STEPS):
        for partial in folder.glob(".*.partial"):
            shutil.rmtree(partial)


def save(engine: Any, out: Path, step: int, model: str = "", *, kept: int = 1) -> None:
    """Write the resume state after `step` steps, then delete all but the latest `kept` states.

    Every worker calls it. `model` is the digest of the base.
    """
    resume = out / RESUME
    partial = resume / f".step-{step}.partial"
    if engine.global_rank == 0:
        # A partial state of more workers would leave its shards among those of fewer workers.
        shutil.rmtree(partial, ignore_errors=True)
    write(engine, partial)
    # Each node flushes the shards it wrote, and counts their bytes; another node cannot.
    own = list(own_files(partial, engine.global_rank))
    sync(own)
    files = {path.name: {"bytes": path.stat().st_size} for path in own}
    write_part(partial, engine.global_rank, files)
    distributed.barrier()
    if engine.global_rank == 0:
        sync_logs(out)
        seal(partial, record_of(engine, step, model), kept)
        # A request to stop is met by a complete state only.
        (resume / STOP).unlink(missing_ok=True)
    distributed.barrier()


def write(engine: Any, directory: Path) -> None:
    """Write the files of this worker into `directory`; every worker calls it.

    Raises:
        OutsideError: the disk is full.
    """
    try:
        engine.save_checkpoint(
            str(directory.parent),
            tag=directory.name,
            save_latest=False,
            exclude_frozen_parameters=True,
        )
    except (RuntimeError, OSError) as error:
        # torch raises the same error for a full disk as for other failures. A retry would fail
        # again, hours later.
        if free_bytes(directory.parent) < _FULL_BYTES:
            raise OutsideError(
                f"{directory.parent} is full ({one_line(error)}): make room there and run again, "
                "and training resumes from the latest complete state"
            ) from error
        raise


def own_files(directory: Path, rank: int) -> Iterator[Path]:
    """Yield the files of a state that worker `rank` has written."""
    yield from directory.glob(f"*zero_pp_rank_{rank}_mp_rank_*")
    if rank == 0:
        yield from directory.glob("mp_rank_*")


def part(rank: int) -> str:
    """Return the name of the record of a worker's files."""
    return f"part-{rank}.json"


def write_part(directory: Path, rank: int, files: Mapping[str, Json]) -> None:
    """Write the record of a worker's files, after the files: `bytes` and `sha256` of each."""
    write_atomic(directory / part(rank), json.dumps({"files": files}))


def record_of(engine: Any, step: int, model: str) -> Json:
    """Return the contents of `state.json`."""
    return {"step": step, "model": model, "parts": engine.world_size, **_layout(engine)}


def sync_logs(out: Path) -> None:
    """Flush the logs before a state, or a power cut could lose lines of its steps."""
    sync([*out.glob("*.jsonl"), out])


def seal(partial: Path, record: Json, kept: int) -> None:
    """Complete the state in `partial`, then delete all but the latest `kept` states."""
    resume = partial.parent
    write_atomic(partial / "state.json", json.dumps(record))
    sync([partial])
    replace_directory(partial, resume / f"step-{record['step']}")
    sync([resume])
    _delete_others(resume, kept)


def steps(out: Path) -> list[int]:
    """Return the steps of the complete states, in ascending order."""
    paths = (out / RESUME).glob("step-*/state.json")
    names = (path.parent.name.removeprefix("step-") for path in paths)
    return sorted(int(name) for name in names if name.isdecimal())


def _delete_others(resume: Path, kept: int) -> None:
    """Delete all but the latest `kept` states: earlier, partial and bad ones."""
    names = {STOP, *(f"step-{step}" for step in steps(resume.parent)[-kept:])}
    # DeepSpeed also leaves a script there.
    for path in resume.iterdir():
        if path.name in names:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def restore(engine: Any, out: Path, say: Callable[[str], None] = print) -> int:
    """Restore the latest good resume state into a fresh engine and return its step.

    Every worker calls it. The step is 0 without a state. `say` gets a sentence for each bad state.

    Raises:
        LastingError: a file of the only state is missing or damaged.
    """
    step = _latest_good(engine, out, say)
    if not step:
        return 0
    directory = _directory(out, step)
    # States of earlier versions do not name the division of experts.
    record, fault = _read_record(directory)
    if fault:
        raise _without_state(out, fault)
    state = {_EXPERTS: 1, **record}
    if engine.zero_optimization() and any(
        state.get(name) != value for name, value in _layout(engine).items()
    ):
        resharding.load(engine, directory, state["num_workers"])
    else:
        resharding.check(engine, directory)
        # Frozen parameters are not part of a state.
        frozen = any(not parameter.requires_grad for parameter in engine.module.parameters())
        engine.load_checkpoint(str(out / RESUME), tag=directory.name, load_module_strict=not frozen)
    return step


def _latest_good(engine: Any, out: Path, say: Callable[[str], None]) -> int:
    """Return the step of the latest state with files as recorded, 0 without a state.

    The workers share the reading. Later, bad states are renamed, and deleted with the next seal.
    """
    # One worker lists the directory: on network storage, the others may see an earlier list.
    complete = gather(engine, steps(out))[0]
    while complete:
        step = complete.pop()
        directory = _directory(out, step)
        faults = gather(engine, _fault(directory, engine.global_rank, engine.world_size))
        fault = next(filter(None, faults), "")
        if not fault:
            return step
        if not complete:
            raise _without_state(out, fault)
        say(f"the state after step {step} is bad, going back to step {complete[-1]}: {fault}")
        if engine.global_rank == 0:
            replace_directory(directory, directory.with_name(f"bad-step-{step}"))
    return 0


def gather(engine: Any, value: T) -> list[T]:
    """Return the values of all workers, in order."""
    values = [value] * engine.world_size
    if engine.world_size > 1:
        distributed.all_gather_object(values, value)
    return values


def _fault(directory: Path, rank: int, world_size: int) -> str:
    """Return the first fault in this worker's share of a state's files; empty without any."""
    record, fault = _read_record(directory)
    if fault:
        return fault
    # With as many workers as wrote it, each reads the files that it loads afterwards.
    for worker in range(rank, record.get("parts", 0), world_size):
        own, fault = _read(directory / part(worker), {"files": dict})
        files = own.get("files", {}).items()
        faults = (_difference(directory / name, facts) for name, facts in files)
        if fault := fault or next(filter(None, faults), ""):
            return fault
    return ""


def _difference(path: Path, facts: object) -> str:
    """Return the difference between a file and its record; empty without any."""
    if not isinstance(facts, dict) or not isinstance(facts.get("bytes"), int):
        return f"the record of {path} is damaged"
    # Other errors of the storage may pass: they end the attempt, not the state.
    if not path.exists():
        return f"{path.parent} lacks the file {path.name}"
    size = path.stat().st_size
    if size != facts["bytes"]:
        return f"{path} has {size:,} of {facts['bytes']:,} bytes"
    if "sha256" in facts:
        with path.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != facts["sha256"]:
                return f"{path} has other contents than were written"
    return ""


def _layout(engine: Any) -> dict[str, int]:
    """Return the settings that decide the division of weights and moments into shards."""
    stage = int(engine.zero_optimization_stage())
    sizes = {}
    if stage == 3:
        sizes["sub_group_size"] = int(engine.zero_sub_group_size())
        sizes[_EXPERTS] = Division.of(engine.module).size
    return {"num_workers": engine.world_size, "zero_stage": stage, **sizes}
