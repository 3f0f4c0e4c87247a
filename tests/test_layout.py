"""The house: imports point downwards, modules say what they are for, and importing the command line is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "ssd_ray"

# A module may import from the lines below its own, and stages never from one another.
LAYERS = [
    {"cli"},
    {"pipeline", "standalone"},
    {"inference", "training", "evaluation", "reporting", "problems"},
    {"statistics"},
    {"cluster", "recipes", "planner"},
    {"models"},
    {"artifacts", "progress"},
    {"config", "extraction", "lcb_official", "throughput"},
    {"reasoning"},
    {"schema", "wire", "file_kinds"},
    {"errors"},
]


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ssd_ray"):
            inner = node.module.removeprefix("ssd_ray").removeprefix(".")
            found |= {f"{inner}.{alias.name}".removeprefix(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("ssd_ray.")
                for alias in node.names
                if alias.name.startswith("ssd_ray")
            }
    return found


def _layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def test_imports_point_downwards() -> None:
    for path in _modules():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own in {"__init__", "__main__"}:
            continue
        for target in _imports(path):
            other = target.split(".")[0]
            allowed = other == own or _layer(other) > _layer(own)
            assert allowed, f"{path.relative_to(PACKAGE)} imports {target}: upwards or sideways"


def test_every_module_says_what_it_is_for() -> None:
    for path in _modules():
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_files_stay_short() -> None:
    for path in _modules():
        assert len(path.read_text().splitlines()) <= 380, path


def test_the_command_line_loads_no_engine() -> None:
    heavy = "ray torch vllm transformers deepspeed pyarrow matplotlib datasets numpy"
    code = f"import sys, ssd_ray.cli.app; print([name for name in {heavy.split()!r} if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
