"""GPUs of this machine: driver, memory, processes and links.

- NVML is read through the package `nvidia-ml-py`, which comes with the extra `gpu`.
- Without the package, `nvidia-smi` is asked. The driver's CUDA version, processes and links are
  then unknown.
- CUDA_VISIBLE_DEVICES selects GPUs by CUDA's rule: by index or UUID, up to the first wrong entry.
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

_MIB = 1 << 20
_SMI_TIMEOUT_S = 20
_FIELDS = ("index", "name", "uuid", "memory.total", "memory.free", "driver_version")
"""Columns of nvidia-smi."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    index: int
    """Index by PCI bus, as in nvidia-smi."""
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
    failure: str = ""
    """Reason why GPUs cannot be read; empty if they were."""

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
    def sliced(self) -> bool:
        """True if CUDA_VISIBLE_DEVICES names MIG slices, which are not read here."""
        return "MIG-" in (self.chosen or "")


def _names(entry: str, gpu: Gpu) -> bool:
    return entry == str(gpu.index) or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))


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
                installed=tuple(_gpu(nvml, *each) for each in enumerate(handles)),
                chosen=chosen,
                driver=nvml.nvmlSystemGetDriverVersion(),
                cuda=(version // 1000, version % 1000 // 10),
            )
    except nvml.NVMLError as error:
        return Gpus(chosen=chosen, failure=f"the driver's library answers: {error}")


@contextmanager
def _opened(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
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
        links=_links(nvml, handle),
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
        return Gpus(chosen=chosen, failure="no NVIDIA driver was found (no nvidia-smi on the PATH)")
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
    except (OSError, subprocess.TimeoutExpired) as error:
        return Gpus(chosen=chosen, failure=f"nvidia-smi failed: {type(error).__name__}")
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
        installed=tuple(map(_from_row, rows)), chosen=chosen, driver=rows[0][5] if rows else ""
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
