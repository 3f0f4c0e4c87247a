"""Rules of the code base: the order of imports, sizes, docstrings, and the layout of tests."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssd_ray.errors import UserError
from tests.prose import nodes

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "ssd_ray"
MAX_LINES = 330
MAX_PARAMETERS = 6
MAX_NAME = 60

# A module may import from the lines below its own, and stages never from one another.
LAYERS = [
    {"cli"},
    {"pipeline", "standalone", "view"},
    {"inference", "training", "evaluation", "reporting", "problems"},
    {"statistics", "analysis"},
    {"cluster", "recipes", "planner", "machine", "submissions"},
    {"models"},
    {"artifacts", "progress", "roles"},
    {"config", "extraction", "lcb_official", "throughput"},
    {"reasoning"},
    {"schema", "wire", "file_kinds", "quantities", "shares"},
    {"errors"},
]


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _tree(path: Path) -> ast.Module:
    tree = nodes(path.read_text())[0]
    assert isinstance(tree, ast.Module)
    return tree


def _imports(path: Path) -> set[str]:
    targets = set()
    for node in nodes(path.read_text()):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ssd_ray"):
            inner = node.module.removeprefix("ssd_ray").removeprefix(".")
            targets |= {f"{inner}.{alias.name}".removeprefix(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            targets |= {
                alias.name.removeprefix("ssd_ray.")
                for alias in node.names
                if alias.name.startswith("ssd_ray")
            }
    return targets


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


def test_every_module_has_a_docstring() -> None:
    for path in _modules():
        assert ast.get_docstring(_tree(path)), path


def test_files_stay_short() -> None:
    for path in _modules():
        assert len(path.read_text().splitlines()) <= MAX_LINES, path


def test_the_command_line_loads_no_engine() -> None:
    heavy = "ray torch vllm transformers deepspeed pyarrow matplotlib datasets numpy"
    code = (
        "import sys, ssd_ray.cli.app\n"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def _functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in nodes(path.read_text()) if isinstance(node, kinds)]


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [name.arg for name in names if name.arg not in {"self", "cls"}]


def test_functions_have_few_parameters() -> None:
    wide = {
        f"{path.relative_to(PACKAGE)} {function.name}"
        for path in _modules()
        for function in _functions(path)
        if len(_parameters(function)) > MAX_PARAMETERS
    }
    assert wide == set()


def test_names_of_tests_are_short_and_unique_in_their_file() -> None:
    for path in TESTS.rglob("test_*.py"):
        names = [node.name for node in _functions(path) if node.name.startswith("test_")]
        assert [name for name in names if len(name) > MAX_NAME] == [], path
        assert len(names) == len(set(names)), path


def test_folders_of_tests_are_named_like_subpackages() -> None:
    subpackages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    folders = {path.parent.name for path in TESTS.glob("*/test_*.py")}
    assert folders <= subpackages


def test_no_test_module_imports_another() -> None:
    imports_test = re.compile(r"^\s*(?:from|import) +(?:[\w.]+ +import +)?[\w.]*\btest_\w+", re.M)
    for path in TESTS.rglob("*.py"):
        assert imports_test.findall(path.read_text()) == [], path


def _private_uses_of_ray(tree: ast.Module) -> list[str]:
    """Return private modules of Ray, private attributes of foreign objects, and patched names."""
    uses = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            uses += [name for name in names if name.startswith("ray.") and "._" in name]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            uses += [name for name in names if name.startswith("ray.") and "._" in name]
        elif isinstance(node, ast.Attribute) and re.match("_(?!exit$)[a-z]", node.attr):
            is_own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            uses += [] if is_own else [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and (node.arg or "").startswith("_"):
            uses.append(f"{node.arg}=")
    return uses


def test_private_ray_api_is_used_in_one_file() -> None:
    from ssd_ray.cluster import ray_internals

    uses_ray = re.compile(r"^\s*(import|from) ray\b|ray_internals", re.MULTILINE)
    for path in _modules():
        if path.name != "ray_internals.py" and uses_ray.search(path.read_text()):
            assert _private_uses_of_ray(_tree(path)) == [], path
    assert len(_private_uses_of_ray(_tree(Path(ray_internals.__file__)))) > 10
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text()
    assert f"ray[data,default,train]=={ray_internals.PINNED}" in pyproject


def test_another_version_of_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from ssd_ray import cluster

    cluster.require_pinned_version()
    monkeypatch.setattr(ray, "__version__", "2.99.0")
    with pytest.raises(UserError, match=r"ray 2\.99\.0 is installed .* pip install"):
        cluster.require_pinned_version()


def _imported_modules(path: Path) -> set[str]:
    """Imports of a file from the package, also within functions and for types."""
    names = {_name(module) for module in _modules()}
    imported: set[str] = set()
    for node in nodes(path.read_text()):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            imported.add(full if full in names else node.module)
    return imported & names


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_imports_have_no_cycle() -> None:
    imports = {_name(path): _imported_modules(path) - {_name(path)} for path in _modules()}
    graphlib.TopologicalSorter(imports).prepare()


def _public_annotations(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield names and annotations of public functions, methods and fields."""
    bodies = [("", tree.body)]
    while bodies:
        owner, body = bodies.pop()
        for node in body:
            name = getattr(node, "name", "")
            if name.startswith("_") and name != "__init__":
                continue
            if isinstance(node, ast.ClassDef):
                bodies.append((f"{name}.", node.body))
            elif isinstance(node, ast.AnnAssign) and owner:
                yield owner + ast.unparse(node.target), ast.unparse(node.annotation)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for part in ast.walk(node.args):
                    if isinstance(part, ast.arg) and part.annotation is not None:
                        yield f"{owner}{name}({part.arg})", ast.unparse(part.annotation)
                yield f"{owner}{name}()", ast.unparse(node.returns) if node.returns else ""


def test_no_public_signature_has_an_unnamed_dictionary_of_any() -> None:
    """Use a dataclass, or an alias: `Json` for a document, another for a library's values."""
    anything = re.compile(r"\b(dict|Mapping|MutableMapping)\[str, Any\]")
    bare = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in _modules()
        for name, annotation in _public_annotations(_tree(path))
        if anything.search(annotation)
    ]
    assert bare == []


def test_a_module_with_json_names_the_document() -> None:
    names_one = re.compile(r"JSON|YAML|\.jsonl?\b|\.yaml\b")
    silent = []
    for path in _modules():
        tree = _tree(path)
        holds_json = any(
            re.search(r"\bJson\b", annotation) for _, annotation in _public_annotations(tree)
        )
        is_alias = "artifacts.files.Json" in _imports(path)
        if holds_json and is_alias and not names_one.search(ast.get_docstring(tree) or ""):
            silent.append(path.relative_to(PACKAGE))
    assert silent == []


def _broad(node: ast.AST) -> bool:
    """Return True for an `except` or a `suppress` of Exception or BaseException, or a bare one."""
    if isinstance(node, ast.ExceptHandler):
        types = [node.type] if node.type else []
        if not types:
            return True
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
        types = list(node.args)
    else:
        return False
    names = {ast.unparse(inner) for outer in types for inner in ast.walk(outer)}
    return not names.isdisjoint({"Exception", "BaseException"})


def test_broad_excepts_say_why() -> None:
    for path in [*_modules(), *TESTS.rglob("*.py")]:
        lines = path.read_text().splitlines()
        for node in filter(_broad, nodes(path.read_text())):
            around = lines[node.lineno - 2 : node.end_lineno]  # type: ignore[attr-defined]
            commented = any(line.lstrip().startswith("#") for line in around)
            assert commented, f"{path}:{node.lineno}: name a narrower type, or say why not"
