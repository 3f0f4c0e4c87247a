"""Answers of NVML and nvidia-smi, in the formats of real machines."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ssd_ray.machine.facts import Machine
from ssd_ray.machine.gpus import Gpu, Gpus
from ssd_ray.machine.host import Host
from ssd_ray.machine.installed import Tools, TorchBuild

MIB = 1 << 20
GIB = 1 << 30
H100 = "NVIDIA H100 80GB HBM3"
SMI_H100 = (
    "0, NVIDIA H100 80GB HBM3, GPU-8a56a4bc-e184-a047-2620-be19fdf913d5, "
    "81559, 81078, 580.95.05, Disabled\n"
    "1, NVIDIA H100 80GB HBM3, GPU-29a4bbd8-b1c7-1a1d-9a59-c4a5d4c8f5a1, "
    "81559, 12034, 580.95.05, Disabled\n"
)
SMI_GRACE = (
    "0, NVIDIA GB10, GPU-62a2b0a5-08b9-2e1b-8a0c-0a35bfb1e14e, [N/A], [N/A], 580.95.05, [N/A]\n"
)
SMI_NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running.\n"
)
SMI_MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\n"


def gpu(index: int, **changes: Any) -> Gpu:
    """Return one free H100 with changes."""
    facts: dict[str, Any] = {
        "name": H100,
        "uuid": f"GPU-{index:08d}-e184-a047-2620-be19fdf913d5",
        "total": 81559 * MIB,
        "free": 81078 * MIB,
        "processes": (),
        "links": 18,
    }
    return Gpu(index=index, **{**facts, **changes})


def gpus(count: int, **changes: Any) -> Gpus:
    """Return free H100s with a driver for CUDA 13."""
    facts: dict[str, Any] = {
        "installed": tuple(gpu(index) for index in range(count)),
        "driver": "580.95.05",
        "cuda": (13, 0),
    }
    return Gpus(**{**facts, **changes})


def slice_of(index: int, place: int, **changes: Any) -> Gpu:
    """Return one free MIG slice of an H100 with changes."""
    facts: dict[str, Any] = {
        "name": f"{H100} MIG 3g.40gb",
        "uuid": f"MIG-{index:04d}{place:04d}-9a2b-5f1c-8d47-0c1f6a0e2b11",
        "total": 40448 * MIB,
        "free": 40400 * MIB,
        "links": 0,
        "is_slice": True,
    }
    return gpu(index, **{**facts, **changes})


def machine(count: int, **changes: Any) -> Machine:
    """Return a node of H100s with changes."""
    facts: dict[str, Any] = {
        "gpus": gpus(count),
        "host": Host(cores=192, memory=2000 * GIB, available=1900 * GIB),
        "torch": TorchBuild(version="2.13.0+cu130", cuda="13.0"),
        "engine": "vllm 0.32.0",
        "tools": Tools(
            ninja="/bin/ninja", c="/bin/cc", cxx="/bin/c++", headers=Path("/usr/include/Python.h")
        ),
        "packages": ("kernels",),
    }
    return Machine(**{**facts, **changes})


class FakeNvml:
    """The functions of pynvml that are used, with answers as of two H100s on driver 570.

    `slices` are the places of MIG slices of the second GPU, as handles.
    """

    NVML_NVLINK_MAX_LINKS = 18
    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        """Base of NVML's errors."""

    class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
        """The device has no such figure."""

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801, N818
        """There is no library of a driver."""

    class NVMLError_NotFound(NVMLError):  # noqa: N801, N818
        """There is no such device."""

    def __init__(
        self,
        failure: str = "",
        links: int = 18,
        memory: bool = True,
        slices: tuple[int, ...] | None = None,
    ) -> None:
        self.slices = slices
        self.failure = failure
        self.links = links
        self.memory = memory
        self.is_open = False

    def nvmlInit(self) -> None:  # noqa: N802
        if self.failure:
            raise self.NVMLError(self.failure)
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.133.20"

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 12080

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        if handle == 0 or self.slices is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, _handle: int) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _handle: int, place: int) -> str:  # noqa: N802
        if place not in (self.slices or ()):
            raise self.NVMLError_NotFound("Not Found")
        return f"slice {place}"

    def nvmlDeviceGetName(self, handle: int | str) -> str:  # noqa: N802
        return f"{H100} MIG 3g.40gb" if isinstance(handle, str) else H100

    def nvmlDeviceGetUUID(self, handle: int | str) -> str:  # noqa: N802
        if isinstance(handle, str):
            return f"MIG-{handle.split()[1]}"
        return f"GPU-{handle:08d}-e184-a047-2620-be19fdf913d5"

    def nvmlDeviceGetMemoryInfo(self, handle: int | str) -> Any:  # noqa: N802
        if not self.memory:
            raise self.NVMLError_NotSupported("Not Supported")
        if isinstance(handle, str):
            return SimpleNamespace(total=40448 * MIB, free=40000 * MIB, used=448 * MIB)
        return SimpleNamespace(total=85520809984, free=84989313024, used=531496960)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=4242, usedGpuMemory=1 << 30)] if handle else []

    def nvmlDeviceGetNvLinkState(self, _handle: int, link: int) -> int:  # noqa: N802
        if link >= self.links:
            raise self.NVMLError_NotSupported("Not Supported")
        return 1
