"""Pages print links, anchors, commands, fields and paths that exist."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from ssd_ray import config, recipes
from ssd_ray.analysis.toy import ToySettings
from ssd_ray.cli.app import app
from ssd_ray.config.overrides import overridden
from ssd_ray.problems.benchmarks import read_problems

ROOT = Path(__file__).parent.parent
PAGES = tuple(page for page in (*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md"))))
CURRENT = tuple(page for page in PAGES if page.name != "CHANGELOG.md")
"""Pages about the present code. The changelog also names what is gone."""
FIELDS = frozenset(field.name for field in config.defaults(config.Recipe))
SECTIONS = frozenset(name.split(".")[0] for name in FIELDS if "." in name)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_headings(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text())
    assert [
        (target, anchor)
        for target, anchor in links
        if anchor not in anchors(page.parent / target if target else page)
    ] == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_a_page_names_fields_of_a_recipe(page: Path) -> None:
    assert [name for name in _named_fields(page) if not _is_field(name)] == []


def _named_fields(page: Path) -> Iterator[str]:
    """Yield the spans such as `sample.top_k`, without values; files such as `cluster.yaml` too."""
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        match = re.fullmatch(r"(\w+)\.([a-z][\w.]*)(:.*|=.*)?", span)
        is_file = (ROOT / span).exists() or span.endswith((".html", ".json"))
        if match and match[1] in SECTIONS and not is_file:
            yield f"{match[1]}.{match[2]}"


def _is_field(name: str) -> bool:
    return name in FIELDS or any(field.startswith(f"{name}.") for field in FIELDS)


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_modules_named_on_a_page_exist(page: Path) -> None:
    spans = re.findall(r"`([\w/]+/[\w/]+\.(?:py|yaml))`", page.read_text())
    foreign = {"evaluation/benchmark.py", "lcb_runner/prompts/code_generation.py"}
    placeholders = {"ssd_ray/problems/benchmarks/NAME.py"}
    paths = set(spans) - foreign - placeholders
    assert {path for path in paths if not _exists(path)} == set()


def _exists(path: str) -> bool:
    return (ROOT / path).exists() or any((ROOT / "ssd_ray").rglob(path))


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_commands_on_a_page_are_accepted(page: Path) -> None:
    parser = get_command(app)
    assert isinstance(parser, TyperGroup)
    for command in _commands(page):
        verb, *arguments = shlex.split(command, comments=True)[1:]
        assert verb in parser.commands, command
        options = {name for each in parser.commands[verb].params for name in each.opts}
        assert {name for name in arguments if name.startswith("--")} <= options, command
        overrides = [value for name, value in itertools.pairwise(arguments) if name == "--set"]
        if overrides and verb == "toy":
            overridden(ToySettings, "--set", overrides)
        elif overrides:
            # A run or a placeholder has the fields of any recipe.
            named = arguments[0] in recipes.shipped()
            recipes.load(arguments[0] if named else "quickstart", overrides)


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_parts_of_recipes_on_a_page_are_valid(page: Path, tmp_path: Path) -> None:
    shipped = yaml.safe_load((ROOT / "ssd_ray/recipes/quickstart.yaml").read_text())
    for part in _parts_of_recipes(page):
        recipe = tmp_path / "recipe.yaml"
        merged = {
            name: {**section, **part.get(name, {})} if isinstance(section, dict) else section
            for name, section in {**{key: {} for key in part}, **shipped}.items()
        }
        recipe.write_text(yaml.safe_dump(merged if "name" not in part else part))
        recipes.load(str(recipe))


def _parts_of_recipes(page: Path) -> Iterator[dict[str, Any]]:
    """Yield the code blocks with sections of a recipe."""
    for block in re.findall(r"(?:^    .*\n)+", page.read_text(), re.MULTILINE):
        if re.match(r"    (name|\w+): ", block) or re.match(r"    \w+:\n", block):
            part = yaml.safe_load(block)
            if isinstance(part, dict) and part.keys() <= SECTIONS | {"name"}:
                yield part


def test_problems_on_the_page_of_benchmarks_are_read(tmp_path: Path) -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    rows = re.findall(r"^    (\{\"problem_id\".*\n(?:     .*\n)*)", page, re.MULTILINE)
    file = tmp_path / "own.jsonl"
    file.write_text("".join(" ".join(row.split("\n")).strip() + "\n" for row in rows))
    problems = list(read_problems(file))
    assert {problem.kind for problem in problems} == {"stdin", "function", "asserts", "numeric"}


def test_a_page_and_the_field_list_the_same_releases() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    # An extraction rule has the same name.
    (row,) = re.findall(r"^\| `release` \|( LiveCodeBench.*)", page, re.M)
    text = config.Benchmark.model_fields["release"].description or ""
    assert set(re.findall(r"`\w+`", row)) == set(re.findall(r"`\w+`", text))


def test_words_of_two_meanings_have_both_in_the_glossary() -> None:
    page = (ROOT / "docs/glossary.md").read_text()
    meanings = dict(re.findall(r"^\| (\w+) \| (.*) \|$", page, re.M))
    assert "optimizer" in meanings["step"]
    assert "`ray job submit`" in meanings["job"]


def _commands(page: Path) -> Iterator[str]:
    """Yield the printed commands of `ssd-ray`, in code blocks and in spans of code."""
    text = page.read_text().replace("\\\n", " ")
    yield from re.findall(r"^    (?:\$ )?(?:\.venv/bin/)?(ssd-ray \w.*)$", text, re.MULTILINE)
    yield from re.findall(r"`(ssd-ray \w[^`\n]*)`", text)
