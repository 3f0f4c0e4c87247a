"""Findings about a machine: each fact as a line, with the remedy where a run cannot work.

Pure functions of the facts of `gpus`, `host`, `storage` and `installed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ssd_ray.machine.gpus import Gpu, Gpus
from ssd_ray.machine.host import Host
from ssd_ray.machine.installed import Tools, TorchBuild
from ssd_ray.machine.storage import Storage

GIB = 1 << 30
_SAME_SIZE = 0.02
"""Largest difference in memory between GPUs of one kind, as a share."""
_GPU_LOCK = "install requirements/gpu.lock in another environment (docs/gpu.md)"
_NAMED = 3
"""Most GPUs to name in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact about the machine."""

    subject: str
    state: Literal["ok", "note", "fault"]
    """`fault`: a run that needs it fails. `note`: it works with a limit."""
    text: str
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """The text with its remedy."""
        return f"{self.text}: {self.remedy}" if self.remedy else self.text


def gib(value: int) -> str:
    """Format bytes as a number of GiB."""
    return f"{value / GIB:,.1f}"


def gpu_findings(gpus: Gpus, torch: TorchBuild, share: float) -> Iterator[Finding]:
    """Yield findings about GPUs and their driver, in the order of their causes.

    `share` is the share of a GPU's memory that an engine takes at its start.
    """
    if gpus.unread_slices:
        yield Finding(
            subject="GPUs",
            state="note",
            text="MIG slices are in use, and nvidia-smi does not list them: driver, memory and "
            "sizes are not checked",
            remedy="pip install nvidia-ml-py",
        )
        return
    if fault := _unseen(gpus):
        yield fault
        return
    yield _driver(gpus, torch)
    yield _kinds(gpus.visible)
    yield _room(gpus.visible, share)
    if any(gpu.is_slice for gpu in gpus.visible):
        yield Finding(
            subject="MIG",
            state="note",
            text="a slice works alone: each engine and the training use one",
        )
    elif len(gpus.visible) > 1:
        yield _links(gpus.visible)


def _unseen(gpus: Gpus) -> Finding | None:
    """Return the reason why no GPU is visible."""
    if gpus.failure:
        text = f"no GPU is visible: {gpus.failure}"
        remedy = "install the driver, or start the container with --gpus all"
        if "ersion mismatch" in gpus.failure:
            remedy = "restart the machine, whose driver was updated while it was loaded"
        elif "no answer" in gpus.failure:
            remedy = "try it by hand, look into dmesg, or restart the machine"
    elif not gpus.installed:
        text = f"no GPU is visible: the driver {gpus.driver} finds none, and no MIG slice"
        remedy = "start the container with --gpus all, or use a machine with GPUs"
    elif not gpus.visible:
        text = f"CUDA_VISIBLE_DEVICES={gpus.chosen!r} leaves none of {len(gpus.installed)} GPUs"
        remedy = "unset it, or name GPUs by the indices of nvidia-smi"
        if "MIG-" in (gpus.chosen or ""):
            remedy = "name slices by the UUIDs of nvidia-smi -L"
    else:
        return None
    return Finding(subject="GPUs", state="fault", text=text, remedy=remedy)


def _driver(gpus: Gpus, torch: TorchBuild) -> Finding:
    newest = f", for CUDA up to {gpus.cuda[0]}.{gpus.cuda[1]}" if gpus.cuda else ""
    text = f"driver {gpus.driver}{newest}"
    needed = torch.needed_driver
    # A data center GPU runs newer CUDA on an older driver with the package cuda-compat.
    is_enough = gpus.cuda is not None and gpus.cuda[0] >= (torch.cuda_major or 0)
    major = gpus.driver.split(".")[0]
    if needed is not None and not is_enough and not major.isdecimal():
        text = f"the version of the driver is unknown ({gpus.driver}), {needed} or newer is needed"
        return Finding(subject="driver", state="note", text=text)
    if needed is None or is_enough or int(major) >= needed:
        return Finding(subject="driver", state="ok", text=text)
    return Finding(
        subject="driver",
        state="fault",
        text=f"{text} is too old for torch {torch.version}, a build for CUDA {torch.cuda}",
        remedy=f"install driver {needed} or newer",
    )


def _kinds(visible: Sequence[Gpu]) -> Finding:
    groups = _groups(visible)
    text = ", ".join(_kind(group) for group in groups)
    if len(groups) == 1:
        return Finding(subject="GPUs", state="ok", text=text)
    largest = max(groups, key=lambda group: (len(group) * group[0].total, group[0].total))
    chosen = ",".join(gpu.entry for gpu in largest)
    return Finding(
        subject="GPUs",
        state="fault",
        text=f"the GPUs have different sizes ({text}), and engines and workers need equal ones",
        remedy=f"set CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={chosen}",
    )


def _groups(visible: Sequence[Gpu]) -> list[list[Gpu]]:
    """Return the GPUs in groups of equal name and nearly equal memory."""
    groups: list[list[Gpu]] = []
    for gpu in visible:
        for group in groups:
            first = group[0]
            if gpu.name == first.name and abs(gpu.total - first.total) <= _SAME_SIZE * first.total:
                group.append(gpu)
                break
        else:
            groups.append([gpu])
    return groups


def _kind(group: Sequence[Gpu]) -> str:
    size = f" with {gib(group[0].total)} GiB" if group[0].total else ""
    return f"{len(group)} × {group[0].name}{size}"


def _room(visible: Sequence[Gpu], share: float) -> Finding:
    busy = [gpu for gpu in visible if gpu.free < share * gpu.total]
    if not busy:
        least = min(visible, key=lambda gpu: gpu.free)
        text = f"at least {gib(least.free)} of {gib(least.total)} GiB on each"
        return Finding(subject="free memory", state="ok", text=text)
    text = "; ".join(map(_occupied, busy[:_NAMED]))
    more = f"; and {len(busy) - _NAMED} more" if len(busy) > _NAMED else ""
    free = [gpu.entry for gpu in visible if gpu not in busy]
    others = f"choose others with CUDA_VISIBLE_DEVICES={','.join(free)}, " if free else ""
    return Finding(
        subject="free memory",
        state="fault",
        text=f"{text}{more}, and an engine takes {share:.0%} of a GPU",
        remedy=f"end the process, {others}or lower engine.gpu_memory_utilization",
    )


def _occupied(gpu: Gpu) -> str:
    users = "another process"
    if gpu.processes:
        users = f"process {', '.join(map(str, gpu.processes[:_NAMED]))}"
    name = gpu.uuid if gpu.is_slice else f"GPU {gpu.index}"
    return f"{name} is in use by {users} and has {gib(gpu.free)} of {gib(gpu.total)} GiB free"


def _links(visible: Sequence[Gpu]) -> Finding:
    known = [gpu.links for gpu in visible if gpu.links is not None]
    if not known:
        return Finding(subject="NVLink", state="note", text="unknown: nvidia-ml-py is missing")
    if min(known):
        text = f"{min(known)} links on each GPU"
        return Finding(subject="NVLink", state="ok", text=text)
    return Finding(
        subject="NVLink",
        state="note",
        text="not on every GPU, so GPUs exchange over PCIe",
        remedy="add --assume node_gb_s=25 to a plan",
    )


def build_finding(torch: TorchBuild, engine: str) -> Finding:
    """Return the finding about the installed builds; a run on GPUs needs those for CUDA."""
    kind = f"CUDA {torch.cuda}" if torch.cuda else "CPU build"
    text = f"torch {torch.version or 'missing'} ({kind}), {engine or 'no vLLM'}"
    if torch.cuda and engine.startswith("vllm "):
        return Finding(subject="software", state="ok", text=text)
    return Finding(
        subject="software",
        state="note",
        text=f"{text}: it runs recipes with cluster.device=cpu only",
        remedy=f"for GPUs, {_GPU_LOCK}",
    )


def with_build(fault: Finding, torch: TorchBuild) -> Finding:
    """Return the fault of a missing GPU, with torch's build for a CPU as a further reason."""
    if torch.cuda or not torch.version:
        return fault
    return replace(
        fault,
        text=f"{fault.text}, and torch {torch.version} is a build for a CPU",
        remedy=(f"choose a recipe with cluster.device=cpu; else {_GPU_LOCK}, and {fault.remedy}"),
    )


def tool_findings(tools: Tools) -> Iterator[Finding]:
    """Yield findings about compilers."""
    if tools.c and tools.headers:
        yield Finding(subject="C compiler", state="ok", text=f"{tools.c}, with Python.h")
    else:
        missing = "Python.h" if tools.c else "a C compiler"
        yield Finding(
            subject="C compiler",
            state="fault",
            text=f"{missing} is missing, with which Triton compiles kernels",
            remedy="install gcc and the headers of Python (Debian: apt install gcc python3-dev)",
        )
    if tools.cxx and tools.ninja:
        yield Finding(subject="C++ compiler", state="ok", text=f"{tools.cxx}, {tools.ninja}")
        return
    missing = "ninja" if tools.cxx else "a C++ compiler"
    remedy = "put the environment's bin on the PATH" if tools.cxx else "install g++"
    yield Finding(
        subject="C++ compiler",
        state="fault",
        text=f"{missing} is missing, with which DeepSpeed compiles the offloaded optimizer",
        remedy=remedy,
    )


def host_finding(host: Host) -> Finding:
    """Return the finding about cores and memory."""
    text = f"{host.cores} cores, {gib(host.available)} of {gib(host.memory)} GiB memory available"
    return Finding(subject="host", state="ok", text=text)


def cache_faults(size_gib: float, engines: int, host: Host) -> Iterator[Finding]:
    """Yield a fault if the KV caches of CPU engines exceed the memory available now."""
    needed = round(engines * size_gib * GIB)
    if needed <= host.available:
        return
    count = "an engine" if engines == 1 else f"each of {engines} engines"
    fewer = "" if engines == 1 else " or cluster.max_engines"
    yield Finding(
        # An earlier run that is still ending explains a lack of free memory only.
        subject="free memory" if needed <= host.memory else "KV cache",
        state="fault",
        text=(
            f"engine.kv_cache_gib={size_gib:g} for {count} needs {gib(needed)} GiB of memory, and "
            f"{gib(host.available)} of the {gib(host.memory)} GiB of this machine are available"
        ),
        remedy=f"lower engine.kv_cache_gib{fewer}, or free memory",
    )


def storage_finding(subject: str, storage: Storage) -> Finding:
    """Return the finding about the storage of a directory."""
    text = f"{storage.path} ({storage.kind or 'unknown file system'}), {gib(storage.free)} GiB free"
    if storage.failure:
        return Finding(
            subject=subject,
            state="fault",
            text=f"{text}: {storage.failure}",
            remedy="choose another place",
        )
    return Finding(subject=subject, state="ok", text=f"{text}; writes, renames and locks work")
