"""Install the CPU build of torch, from PyTorch's index or from pip's configured one.

Where only an index without this build answers, the ordinary build is installed with all of its
dependencies: several gigabytes more, the same results on a CPU. Everything else is in cpu.lock.
Standard library only.
"""

import importlib.util
import platform
import subprocess
import sys

VERSION = "2.13.0"
INDEX = "https://download.pytorch.org/whl/cpu"


def pip(*arguments: str) -> bool:
    """Whether a pip install succeeded."""
    return (
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments]).returncode
        == 0
    )


def main() -> None:
    """Install torch unless this version is there."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.__version__.split("+")[0] == VERSION:
            return
    local = "+cpu" if platform.system() == "Linux" and platform.machine() == "x86_64" else ""
    if pip(
        "--no-deps",
        "--retries",
        "0",
        "--timeout",
        "15",
        "--extra-index-url",
        INDEX,
        f"torch=={VERSION}{local}",
    ):
        return
    print(
        f"no CPU build of torch {VERSION} was found; installing the ordinary build, "
        "which is several gigabytes larger"
    )
    if not pip(f"torch=={VERSION}"):
        sys.exit(f"torch {VERSION} could not be installed: see pip's message above")


if __name__ == "__main__":
    main()
