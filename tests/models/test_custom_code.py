"""Code in a model directory is never run, and the user is never asked about it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import models
from ssd_ray.config import EngineConfig, ModelConfig
from ssd_ray.errors import UserError
from ssd_ray.models import loading

PACKAGE = Path(models.__file__).parent
LOADERS = {"from_pretrained", "from_config"}
CODE = "raise SystemExit('code of the model was run')\n"


def change(path: Path, **fields: Any) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | fields))


def custom_config(model: Path) -> None:
    change(
        model / "config.json",
        model_type="its-own",
        auto_map={"AutoConfig": "configuration_own.OwnConfig"},
    )
    (model / "configuration_own.py").write_text(CODE)


def custom_tokenizer(model: Path) -> None:
    change(
        model / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    )
    change(
        model / "config.json",
        model_type="its-own",
        auto_map={"AutoConfig": "configuration_own.OwnConfig"},
    )
    for name in ("tokenization_own", "configuration_own"):
        (model / f"{name}.py").write_text(CODE)


def custom_tokenizer_alone(model: Path) -> None:
    change(
        model / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    )
    change(
        model / "config.json", model_type="nanochat"
    )  # transformers has no tokenizer class for it
    (model / "tokenization_own.py").write_text(CODE)


FETCH = """
import sys
from ssd_ray import models
from ssd_ray.config import ModelConfig
from ssd_ray.errors import UserError
for source in sys.argv[1:]:
    try:
        models.fetch(ModelConfig(source=source))
    except UserError as error:
        print("refused:", error)
"""


@pytest.mark.slow
def test_custom_code_is_refused_and_never_asked_for(tmp_path: Path, tiny_llama: Path) -> None:
    """transformers would prompt on the terminal, and advise an option unknown here."""
    sources = []
    for make in (custom_config, custom_tokenizer, custom_tokenizer_alone):
        sources.append(Path(shutil.copytree(tiny_llama, tmp_path / make.__name__)))
        make(sources[-1])
    ours, theirs = os.openpty()
    process = subprocess.run(
        [sys.executable, "-c", FETCH, *map(str, sources)],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0, process.stderr
    for line, source in zip(process.stdout.splitlines(), sources, strict=True):
        assert line.startswith("refused:")
        assert source.name in line
        assert (
            "Python code that comes with it (auto_map), which is never run here: choose a model"
            in line
        )
    assert "trust_remote_code" not in process.stdout
    assert "[y/N]" not in process.stdout + process.stderr


def test_custom_code_next_to_a_known_class_is_ignored(tmp_path: Path, tiny_llama: Path) -> None:
    """Many models name code of their own for old versions, and transformers has their classes."""
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    names = ("AutoConfig", "AutoModelForCausalLM")
    change(model / "config.json", auto_map={name: f"modeling_own.Own{name}" for name in names})
    change(
        model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]}
    )
    change(model / "processor_config.json", auto_map={"AutoProcessor": "processing_own.Own"})
    change(model / "generation_config.json", auto_map={"GenerationConfig": "generation_own.Own"})
    (model / "custom_generate").mkdir()
    for name in (
        "modeling_own.py",
        "tokenization_own.py",
        "processing_own.py",
        "custom_generate/generate.py",
    ):
        (model / name).write_text(CODE)
    assert models.fetch(ModelConfig(source=str(model))) == model
    assert loading.load_tokenizer(model).encode("a")
    assert loading.load_config(model).model_type == "llama"


def test_the_engine_runs_no_code_either() -> None:
    with pytest.raises(ValueError, match="code that comes with a model is never run"):
        EngineConfig(extra={"trust_remote_code": True})
    assert EngineConfig(extra={"trust_remote_code": False})


def test_a_model_that_transformers_does_not_know_is_named(tmp_path: Path, tiny_llama: Path) -> None:
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    change(model / "config.json", model_type="of-next-year")
    with pytest.raises(UserError, match=r"holds no configuration that loads .*of-next-year"):
        loading.load_config(model)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0"'),
        ("config.json", '{"model_type": "llama", "hidden_size": "x"}'),
    ],
)
def test_a_tokenizer_that_does_not_load_is_refused(
    tmp_path: Path, tiny_llama: Path, name: str, content: str
) -> None:
    """The libraries behind it raise bare exceptions and types of their own."""
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (model / name).write_text(content)
    with pytest.raises(
        UserError, match=r"holds no tokenizer that loads \(\w+: .*\): download"
    ) as raised:
        loading.load_tokenizer(model)
    assert "\n" not in str(raised.value)


def test_every_loader_runs_no_code() -> None:
    """A call without `trust_remote_code` asks on the terminal."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LOADERS
            ):
                names = {keyword.arg for keyword in node.keywords}
                assert names & {"trust_remote_code", None}, f"{path.name}:{node.lineno}"


RACE = """
import sys, threading
from pathlib import Path
from ssd_ray.models import loading
sys.setswitchinterval(1e-6)
barrier, errors = threading.Barrier(8), []
def load():
    barrier.wait()
    try:
        loading.load_tokenizer(Path(sys.argv[1]))
    # A thread has no caller: its error is printed below.
    except BaseException as error:
        errors.append(repr(error))
threads = [threading.Thread(target=load) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(errors)
"""


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_steps_in_threads_may_load_a_tokenizer_at_once(tiny_llama: Path, attempt: int) -> None:
    """As two grading steps of a resumed run do; only the first import in a process can fail."""
    command = [sys.executable, "-c", RACE, str(tiny_llama)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout == "[]\n"
