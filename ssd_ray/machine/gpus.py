"""GPUs of this machine: driver, memory, processes and links.

- NVML is read through the package `nvidia-ml-py`, which comes with the extra `gpu`.
- Without the package, `nvidia-smi` is asked. The driver's CUDA version, processes, links and MIG
  slices are then unknown.
- A GPU in MIG mode is replaced by its slices, each a device with its own memory.
- CUDA_VISIBLE_DEVICES selects devices by CUDA's rule: by index or UUID, up to the first wrong
  entry. The index of a GPU in MIG mode means its first slice.
"""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ssd_ray.errors import system_reason

_MIB = 1 << 20
_SMI_TIMEOUT_S = 5.0
_FIELDS = (
    "index",
    "name",
    "uuid",
    "memory.total",
    "memory.free",
    "driver_version",
    "mig.mode.current",
)
"""Columns of nvidia-smi."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG slice of it."""

    index: int
    """Index of the GPU by PCI bus, as in nvidia-smi."""
    name: str
    uuid: str
    total: int
    """Bytes of memory; 0 if the driver does not say, as for memory shared with the host."""
    free: int
    """Bytes free now."""
    processes: tuple[int, ...] | None
    """Ids of processes with memory on it; None if unknown. A container sees none of the host's."""
    links: int | None
    """Active NVLink connections; None if unknown."""
    is_slice: bool = False
    """True for a MIG slice, which reaches no other device."""

    @property
    def entry(self) -> str:
        """Entry of CUDA_VISIBLE_DEVICES for this device."""
        return self.uuid if self.is_slice else str(self.index)


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs of a machine and their driver."""

    installed: tuple[Gpu, ...] = ()
    chosen: str | None = None
    """CUDA_VISIBLE_DEVICES; None if it is not set."""
    driver: str = ""
    """Version of the driver; empty without one."""
    cuda: tuple[int, int] | None = None
    """Newest CUDA version of the driver library; None if unknown."""
    unread_slices: bool = False
    """True if MIG slices are in use that nvidia-smi does not list."""
    failure: str = ""
    """Reason why GPUs cannot be read; empty if they were."""
    no_driver: bool = False
    """True if the failure is that of a machine without any driver."""

    @property
    def absent(self) -> bool:
        """True if there is no GPU: no driver, no device, or all of them hidden on purpose."""
        is_hidden = self.chosen in ("", "-1")
        return self.no_driver or is_hidden or not (self.installed or self.failure)

    @property
    def visible(self) -> tuple[Gpu, ...]:
        """GPUs left by CUDA_VISIBLE_DEVICES, in its order."""
        if self.chosen is None:
            return self.installed
        visible: list[Gpu] = []
        for entry in self.chosen.split(","):
            match = next((gpu for gpu in self.installed if _names(entry.strip(), gpu)), None)
            if match is None:
                break
            visible.append(match)
        return tuple(visible)

    @property
    def largest_group(self) -> int:
        """Most visible devices that can work as one group. NCCL joins no MIG slices."""
        is_sliced = any(gpu.is_slice for gpu in self.visible)
        return min(1, len(self.visible)) if is_sliced else len(self.visible)


def _names(entry: str, gpu: Gpu) -> bool:
    prefix = "MIG-" if gpu.is_slice else "GPU-"
    return entry == str(gpu.index) or (entry.startswith(prefix) and gpu.uuid.startswith(entry))


def read_gpus(environment: Mapping[str, str] = os.environ) -> Gpus:
    """Read the GPUs of this machine; a failure is part of the result."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return _by_nvidia_smi(chosen)
    return _by_nvml(nvml, chosen)


def _by_nvml(nvml: Any, chosen: str | None) -> Gpus:
    try:
        with _opened(nvml):
            handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
            version = nvml.nvmlSystemGetCudaDriverVersion()
            return Gpus(
                installed=tuple(
                    device for each in enumerate(handles) for device in _devices(nvml, *each)
                ),
                chosen=chosen,
                driver=nvml.nvmlSystemGetDriverVersion(),
                cuda=(version // 1000, version % 1000 // 10),
            )
    except nvml.NVMLError as error:
        return Gpus(
            chosen=chosen,
            failure=f"the driver's library answers: {error}",
            no_driver=isinstance(error, nvml.NVMLError_LibraryNotFound),
        )


@contextmanager
def _opened(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _devices(nvml: Any, index: int, handle: Any) -> Iterator[Gpu]:
    """Yield the GPU, or its slices in MIG mode: CUDA then sees no other device of it."""
    try:
        in_mig_mode = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:
        # Most kinds of GPUs have no such mode.
        in_mig_mode = False
    if not in_mig_mode:
        yield _gpu(nvml, index, handle)
        return
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError:
            # A place without a slice, or one that this container may not use.
            continue
        yield _gpu(nvml, index, part, is_slice=True)


def _gpu(nvml: Any, index: int, handle: Any, *, is_slice: bool = False) -> Gpu:
    total = free = 0
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = memory.total, memory.free
    except nvml.NVMLError_NotSupported:
        pass
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        processes = tuple(process.pid for process in running)
    except nvml.NVMLError:
        processes = None
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        uuid=nvml.nvmlDeviceGetUUID(handle),
        total=total,
        free=free,
        processes=processes,
        links=0 if is_slice else _links(nvml, handle),
        is_slice=is_slice,
    )


def _links(nvml: Any, handle: Any) -> int:
    active = 0
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        # A GPU without this link, or without any, answers with an error.
        try:
            active += bool(nvml.nvmlDeviceGetNvLinkState(handle, link))
        except nvml.NVMLError:
            break
    return active


def _by_nvidia_smi(chosen: str | None) -> Gpus:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Gpus(
            chosen=chosen,
            failure="no NVIDIA driver was found (no nvidia-smi on the PATH)",
            no_driver=True,
        )
    command = [program, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SMI_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        failure = f"nvidia-smi gave no answer in {_SMI_TIMEOUT_S:g} s, so its driver may hang"
        return Gpus(chosen=chosen, failure=failure)
    except OSError as error:
        return Gpus(chosen=chosen, failure=f"nvidia-smi cannot run: {system_reason(error)}")
    if answer.returncode:
        lines = (answer.stdout + answer.stderr).strip().splitlines() or [""]
        return Gpus(chosen=chosen, failure=f"nvidia-smi answers: {lines[0]}")
    # It adds lines such as "WARNING: infoROM is corrupted" to the table.
    lines = [
        line
        for line in answer.stdout.splitlines()
        if line.strip() and not line.upper().startswith("WARNING")
    ]
    rows = list(csv.reader(lines, skipinitialspace=True))
    for row, line in zip(rows, lines, strict=False):
        if len(row) != len(_FIELDS) or not row[0].isdecimal():
            return Gpus(chosen=chosen, failure=f"nvidia-smi answers: {line}")
    return Gpus(
        installed=tuple(map(_from_row, rows)),
        chosen=chosen,
        driver=rows[0][5] if rows else "",
        unread_slices="MIG-" in (chosen or "") or any(row[6] == "Enabled" for row in rows),
    )


def _from_row(row: list[str]) -> Gpu:
    total, free = (int(cell) * _MIB if cell.isdecimal() else 0 for cell in row[3:5])
    return Gpu(
        index=int(row[0]),
        name=row[1],
        uuid=row[2],
        total=total,
        free=free,
        processes=None,
        links=None,
    )
