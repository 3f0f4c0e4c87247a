"""All facts about this machine in one value."""

from __future__ import annotations

from dataclasses import dataclass

from ssd_ray.machine.gpus import Gpus, read_gpus
from ssd_ray.machine.host import Host, read_host
from ssd_ray.machine.installed import (
    Tools,
    TorchBuild,
    attention_packages,
    engine_build,
    read_tools,
    torch_build,
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """GPUs, host and software; storage and the hub are tried where they are needed."""

    gpus: Gpus
    host: Host
    torch: TorchBuild
    engine: str
    tools: Tools
    packages: tuple[str, ...]
    """Installed packages of attention kernels."""


def read_machine() -> Machine:
    """Read the facts about this machine."""
    return Machine(
        gpus=read_gpus(),
        host=read_host(),
        torch=torch_build(),
        engine=engine_build(),
        tools=read_tools(),
        packages=attention_packages(),
    )
