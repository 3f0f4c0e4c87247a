"""Recipes match the paper, and a mistake in one is reported in one sentence."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import Field

from ssd_ray import config, recipes
from ssd_ray.cli.app import main
from ssd_ray.cli.plan import as_written, origin
from ssd_ray.config import LoraConfig, Policies, Recipe, TrainConfig
from ssd_ray.config.section import tuning
from ssd_ray.errors import UserError
from ssd_ray.planner.assumptions import assumptions

# arXiv 2604.01193, Tables 3 and 4: (temperature, top_k, top_p) of T_train, T_eval and the base.
PAPER = {
    "llama-3.1-8b-instruct": (
        "meta-llama/Llama-3.1-8B-Instruct",
        (0.8, 20, 0.8),
        (0.7, 20, 0.8),
        (0.9, None, 0.8),
    ),
    "qwen3-4b-instruct": (
        "Qwen/Qwen3-4B-Instruct-2507",
        (1.6, 20, 0.8),
        (1.1, 20, 0.8),
        (0.7, 20, 0.8),
    ),
    "qwen3-4b-thinking": (
        "Qwen/Qwen3-4B-Thinking-2507",
        (1.1, 20, 0.95),
        (0.7, 20, 0.95),
        (0.6, 20, 0.95),
    ),
    "qwen3-30b-instruct": (
        "Qwen/Qwen3-30B-A3B-Instruct-2507",
        (1.6, 20, 0.8),
        (0.9, 20, 0.8),
        (0.7, 20, 0.8),
    ),
    "qwen3-30b-thinking": (
        "Qwen/Qwen3-30B-A3B-Thinking-2507",
        (1.2, 20, 0.95),
        (0.7, 20, 0.95),
        (0.6, 20, 0.95),
    ),
    "gpt-oss-20b-high": ("openai/gpt-oss-20b", (1.2, None, 1.0), (1.0, 20, 0.95), (1.0, None, 1.0)),
}
# Section 3.1: steps, warm-up, checkpoint interval. GPT-OSS is not stated there: it takes the values
# of the thinking models.
SCHEDULES = {
    "llama-3.1-8b-instruct": (2500, 250, 250),
    "qwen3-4b-instruct": (2500, 250, 250),
    "qwen3-30b-instruct": (2500, 250, 250),
    "qwen3-4b-thinking": (300, 50, 50),
    "qwen3-30b-thinking": (300, 50, 50),
    "gpt-oss-20b-high": (300, 50, 50),
}


FOR_MACHINES = {
    "qwen3-4b-instruct-1gpu": "qwen3-4b-instruct",
    "qwen3-4b-thinking-1gpu": "qwen3-4b-thinking",
    "qwen3-30b-instruct-8gpu": "qwen3-30b-instruct",
    "qwen3-30b-thinking-8gpu": "qwen3-30b-thinking",
}
"""Recipes for machines, and the recipe that each extends."""
RELEASED = {
    "qwen3-4b-instruct-release": ("qwen3-4b-instruct", 1.5),
    "qwen3-30b-instruct-release": ("qwen3-30b-instruct", 1.5),
    "qwen3-4b-thinking-release": ("qwen3-4b-thinking", 1.1),
}
"""Recipes by the authors' released code: the recipe that each extends, and T_train."""


def _decoding(section: config.Decoding) -> tuple[float, int | None, float]:
    return section.temperature, section.top_k, section.top_p


def test_every_shipped_recipe_loads() -> None:
    assert set(recipes.shipped()) == {*PAPER, *FOR_MACHINES, *RELEASED, "quickstart"}
    for name in recipes.shipped():
        assert recipes.load(name).name == name


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_holds_the_numbers_of_the_paper(name: str) -> None:
    recipe = recipes.load(name)
    source, train, ssd, base = PAPER[name]
    assert recipe.model.source == source
    assert _decoding(recipe.sample) == train
    assert _decoding(recipe.evaluate.arms["ssd"]) == ssd
    assert _decoding(recipe.evaluate.arms["base"]) == base
    assert (recipe.evaluate.arms["ssd"].model, recipe.evaluate.arms["base"].model) == (
        "ssd",
        "base",
    )
    assert recipe.sample.samples_per_prompt == 1
    assert (recipe.evaluate.samples_per_problem, recipe.evaluate.pass_at) == (10, (1, 5))
    train_section = recipe.train
    assert (
        train_section.steps,
        train_section.warmup_steps,
        train_section.checkpoint_every,
    ) == SCHEDULES[name]
    assert (train_section.learning_rate, train_section.min_learning_rate) == (5e-6, 1e-6)
    assert (train_section.beta1, train_section.beta2, train_section.weight_decay) == (
        0.9,
        0.95,
        0.1,
    )
    assert (
        train_section.global_batch_size,
        recipe.prepare.max_length,
        recipe.model.max_model_len,
    ) == (32, 65536, 131072)
    assert recipe.prepare.policies == Policies()
    assert (recipe.prepare.select, recipe.prepare.drop_shortest_percent) == ("all", 0)
    assert (recipe.prompts.source, recipe.prompts.mode) == ("rstar-coder", "paper")
    assert list(map(str, recipe.evaluate.benchmarks)) == ["livecodebench v6 paper-v6"]


@pytest.mark.parametrize("name", FOR_MACHINES)
def test_a_recipe_for_a_machine_has_the_choices_of_the_paper(name: str) -> None:
    recipe, extended = recipes.load(name), recipes.load(FOR_MACHINES[name])
    ours, theirs = config.choices(recipe), config.choices(extended)
    assert ours.pop("name") == name
    theirs.pop("name")
    assert ours == theirs
    number = int(name.rpartition("-")[2].removesuffix("gpu"))
    assert recipe.cluster.train_workers == number
    assert f"{'one' if number == 1 else number} GPU" in recipe.description
    assert "of 80 GB" in recipe.description
    # A value that the recipe changes has a source of its own, or none.
    assert "2604.01193" not in recipe.sources["cluster.train_workers"]
    assert recipe.sources["train.steps"] == extended.sources["train.steps"]


@pytest.mark.parametrize("name", RELEASED)
def test_a_release_recipe_has_only_the_differences_of_the_page(name: str) -> None:
    extended, temperature = RELEASED[name]
    ours, theirs = (
        {field: value for field, value, _ in config.fields(recipes.load(each))}
        for each in (name, extended)
    )
    changed = {field: value for field, value in ours.items() if value != theirs[field]}
    assert changed.pop("name") == name
    differences = {
        "model.max_model_len": 65536,
        "prompts.mode": "release",
        "prompts.only_passed": False,
        "prompts.deduplicate": False,
        "sample.max_tokens": 65536,
        "prepare.drop_shortest_percent": 10,
        "train.loss_mean": "sequence",
        "evaluate.prompt_mode": "release-eval",
        "evaluate.extract": "release",
        "evaluate.max_tokens": 32768,
    }
    if temperature != theirs["sample.temperature"]:
        differences["sample.temperature"] = temperature
    for field in ("description", "sources"):
        changed.pop(field, None)
    assert changed == differences
    page = (Path(__file__).parents[2] / "docs" / "reproducing.md").read_text()
    assert [field for field in differences if f"`{field}: " not in page] == []
    stated = recipes.load(name).sources
    assert [field for field in differences if "released" not in stated[field]] == []


@pytest.mark.parametrize("name", [*PAPER, *RELEASED])
def test_every_number_of_a_paper_recipe_names_its_source(name: str) -> None:
    recipe = recipes.load(name)
    shaping = {"model", "prompts", "sample", "prepare", "train", "evaluate"}
    for field, value, _ in config.fields(recipe):
        stated = origin(recipe, field, [])
        if (
            field.split(".")[0] in shaping
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        ):
            assert stated != "recipe", f"{name}: {field}={value} names no source"


def test_every_field_is_documented() -> None:
    for field in config.defaults(Recipe):
        assert field.documentation, field.name


LEAST = {
    "name": "least",
    "model": {"source": "x"},
    "evaluate": {"arms": {"base": {"model": "base"}}},
}


def test_the_fields_that_are_printed_have_the_true_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A recipe without optional fields has exactly the listed values."""
    listed = {field.name: field.value for field in config.defaults(Recipe)}
    resolved = config.fields(Recipe.model_validate(LEAST))
    left_out = {name.replace(".arms.base.", ".arms.NAME."): value for name, value, _ in resolved}
    required = {"name", "model.source", "evaluate.arms.NAME.model"}
    assert {name for name, value in listed.items() if value is config.REQUIRED} == required | {
        "evaluate.arms",
        "evaluate.benchmarks[].name",
        *(f"panel.NAME.{name}" for name in ("kind", "source", "tolerance")),
    }
    assert {name: listed[name] for name in left_out.keys() - required} == {
        name: left_out[name] for name in left_out.keys() - required
    }
    within = ("train.lora.", "evaluate.benchmarks[].", "panel.NAME.")
    assert {name for name in listed.keys() - left_out.keys() if not name.startswith(within)} == {
        "evaluate.arms"
    }
    assert listed["train.lora.rank"] == LoraConfig().rank
    with pytest.raises(SystemExit, match="0"):
        main(["recipes", "--fields"])
    shown = {
        row[0]: row[1]
        for row in map(str.split, capsys.readouterr().out.splitlines())
        if len(row) > 1
    }
    assert (shown["train.steps"], shown["train.global_batch_size"]) == ("2500", "32")
    assert (shown["train.dtype"], shown["cluster.device"], shown["train.lora"]) == (
        "bfloat16",
        "cuda",
        "null",
    )
    assert (shown["model.source"], shown["train.learning_rate"]) == ("required", "5.0e-06")


def test_every_default_is_written_as_set_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "least.yaml"
    path.write_text(yaml.safe_dump(LEAST))
    for field in config.defaults(Recipe):
        if field.value is not config.REQUIRED and not set(field.name.split(".")) & {
            "NAME",
            "benchmarks[]",
            "lora",
        }:
            again = recipes.load(path, [f"{field.name}={as_written(field.value)}"])
            assert {name: value for name, value, _ in config.fields(again)}[
                field.name
            ] == field.value


class _Inner(config.Section):
    shaping: int = 1
    tuned: int = tuning(2)


class _Outer(config.Section):
    own: int = tuning(3)
    direct: _Inner = _Inner()
    optional: _Inner | None = None
    named: dict[str, _Inner] = Field(default_factory=dict)
    listed: tuple[_Inner, ...] = ()


def test_tuning_fields_shape_nothing_at_any_depth() -> None:
    outer = _Outer(
        optional=_Inner(), named={"a": _Inner(shaping=5)}, listed=(_Inner(), _Inner(tuned=7))
    )
    kept = {"shaping": 1}
    assert config.choices(outer) == {
        "direct": kept,
        "optional": kept,
        "named": {"a": {"shaping": 5}},
        "listed": [kept, kept],
    }
    assert config.choices(_Outer()) == {"direct": kept, "optional": None, "named": {}, "listed": []}


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_other_choice_of_a_recipe_is_kept(name: str) -> None:
    recipe = recipes.load(name, ["train.lora={rank: 4}"])
    for section in (
        recipe.model,
        recipe.prompts,
        recipe.prepare,
        recipe.train,
        recipe.evaluate,
        recipe.engine,
    ):
        tuned = {
            name
            for name, info in type(section).model_fields.items()
            if (info.json_schema_extra or {}).get("tuning")
        }
        dumped = section.model_dump(mode="json")
        assert config.choices(section) == {
            name: value for name, value in dumped.items() if name not in tuned
        }


def test_an_override_wins_over_the_file_and_is_shown() -> None:
    overrides = ["sample.temperature=1.25", "evaluate.arms.ssd.top_k=null"]
    recipe = recipes.load("quickstart", overrides)
    assert recipe.sample.temperature == 1.25
    assert recipe.evaluate.arms["ssd"].top_k is None
    assert origin(recipe, "sample.temperature", overrides) == "--set"
    assert origin(recipe, "prompts.deduplicate", overrides) == "default"


def test_the_resolved_recipe_loads_as_itself(tmp_path: Path) -> None:
    recipe = recipes.load("qwen3-30b-instruct", ["seed=7"])
    path = tmp_path / "recipe.yaml"
    path.write_text(recipes.dump(recipe))
    assert recipes.load(path) == recipe


def test_all_mistakes_are_reported_unknown_keys_first(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\nmodel: {source: x}\nsample: {top_k: 3}\nsample: {max_tokens: 9}\n"
    )
    with pytest.raises(
        UserError,
        match=r"mine\.yaml is not valid YAML: the key 'sample' occurs twice .* line",
    ):
        recipes.load(recipe)
    recipe.write_text("name: mine\ninherits: quickstart\nsample: {temperature: 9, top_p: 3}\n")
    with pytest.raises(UserError) as failure:
        recipes.load(recipe)
    assert str(failure.value).startswith("recipe mine: unknown key inherits, known here: ")
    for each in ("model is required", "sample.temperature=9", "sample.top_p=3"):
        assert each in str(failure.value)


def test_a_recipe_extends_another_field_by_field(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("{extends: quickstart, name: mine, sample: {top_k: 3}, train: {lora: {}}}")
    mine, base = recipes.load(recipe, ["seed=5"]), recipes.load("quickstart")
    assert (mine.name, mine.seed, mine.sample.top_k, mine.train.lora) == (
        "mine",
        5,
        3,
        LoraConfig(),
    )
    assert mine.sample.temperature == base.sample.temperature
    assert mine.evaluate == base.evaluate
    further = tmp_path / "further.yaml"
    further.write_text("{extends: mine.yaml, name: further, sample: {top_k: 20}}")
    assert recipes.load(further).sample == base.sample
    assert recipes.load(further).train == mine.train


def test_a_source_stays_with_the_value_that_it_was_stated_for(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("{extends: qwen3-4b-instruct, name: mine, sample: {temperature: 1.2}}")
    mine = recipes.load(recipe)
    assert origin(mine, "sample.temperature", []) == "recipe"
    assert origin(mine, "sample.top_k", []) == "2604.01193 Table 3"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{extends: quickstart}", "name is required and was not given"),
        ("{extends: quickstrat, name: mine}", "there is no recipe 'quickstrat'"),
        (
            "{extends: none.yaml, name: mine}",
            r"cannot read the recipe .*none\.yaml \(.*\): give a readable YAML file, or one of",
        ),
        ("{extends: mine.yaml, name: mine}", r"mine\.yaml extends itself"),
        ("{extends: [a], name: mine}", r"extends=\['a'\]: use the name or the path of a recipe"),
    ],
)
def test_a_wrong_extension_is_refused_in_one_sentence(
    tmp_path: Path, document: str, message: str
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(document)
    with pytest.raises(UserError, match=message) as failure:
        recipes.load(recipe)
    assert "\n" not in str(failure.value)


def test_max_tokens_may_equal_the_context_and_default_above_it(tmp_path: Path) -> None:
    assert recipes.load("quickstart", ["sample.max_tokens=1024"]).sample.max_tokens == 1024
    short = tmp_path / "short.yaml"
    short.write_text(
        "{name: short, model: {source: x, max_model_len: 64}, evaluate: {arms: {base: {model: "
        "base}}}}"
    )
    recipe = recipes.load(short)
    assert min(recipe.sample.max_tokens, recipe.evaluate.max_tokens) > 64
    short.write_text(recipes.dump(recipe))
    assert recipes.load(short) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sample.temprature=1", "did you mean temperature"),
        ("train.workers=8", "did you mean cluster.train_workers?"),
        ("train.temperature=1", "did you mean sample.temperature?"),
        ("engine.max_length=1", "did you mean prepare.max_length?"),
        ("evaluate.arms.ssd.temprature=1", "did you mean temperature"),
        ("sample.temperature=hot", "sample.temperature='hot'"),
        ("sample.temperature=-1", "sample.temperature=-1: use 0 for greedy decoding, or 0.01 to 2"),
        ("sample.temperature=0.001", "sample.temperature=0.001: use 0 for greedy"),
        (
            "evaluate.arms.ssd.temperature=2.5",
            "evaluate.arms.ssd.temperature=2.5: use 0 for greedy",
        ),
        ("sample.top_k=0", "sample.top_k=0: use 1 or more, or null to keep all tokens"),
        ("sample.top_k=-1", "sample.top_k=-1: use 1 or more, or null"),
        ("sample.top_p=0", "sample.top_p=0: use a mass above 0 and up to 1"),
        ("prompts.over_length=drop", "prompts.over_length='drop'"),
        ("evaluate.pass_at=[1, 5]", "pass_at 5"),
        ("evaluate.baseline=nobody", "nobody"),
        ("train.warmup_steps=6", "warmup_steps 6 is above steps 5"),
        ("train.min_learning_rate=1", "min_learning_rate 1.0 is above"),
        ("evaluate.pass_at=[]", "pass_at"),
        ("evaluate.benchmarks=[builtin, builtin]", "an entry twice"),
        ("evaluate.benchmarks=[]", "evaluate.benchmarks=[]: give at least one entry"),
        (
            "evaluate.benchmarks=[humanevel]",
            "humanevel': only builtin, humaneval, livecodebench need no file",
        ),
        ("evaluate.benchmarks=[{name: mine}]", "'mine' needs a file"),
        ("evaluate.benchmarks=[{name: builtin, file: a.jsonl}]", "takes no file"),
        ("evaluate.benchmarks=[{name: humaneval, release: v6}]", "takes no further choice"),
        (
            "evaluate.benchmarks=[{file: a.jsonl, windw: paper-v6}]",
            "unknown key windw; a benchmark has name, file",
        ),
        (
            "evaluate.benchmarks=[{file: a.jsonl, window: paper-v6, end: 2025-05}]",
            "give either window, or start and end",
        ),
        ("evaluate.benchmarks=[{file: a.jsonl, window: 2025}]", "window"),
        ("evaluate.benchmarks=[{file: a.jsonl, start: May}]", "start"),
        ("evaluate.benchmarks=[{file: a b.jsonl}]", "name"),
        ("evaluate.benchmarks=[7]", "evaluate.benchmarks"),
        ("sample.temperature=.inf", "sample.temperature"),
        ("cluster.train_workers=3", "train.global_batch_size 8"),
        ("sources.sample.temprature=x", "sources"),
        ("seed", "section.key=value"),
        ("seed=-1", "seed=-1: use a number greater than or equal to 0"),
        (
            "prepare.drop_shortest_percent=100",
            "prepare.drop_shortest_percent=100: use a number less than 100",
        ),
        ("engine.gpu_memory_utilization=1.5", "=1.5: use a number less than or equal to 1"),
        ("engine.kv_cache_gib=0", "engine.kv_cache_gib=0: use a number greater than 0"),
        ("engine.sampler=fast", "engine.sampler='fast': use one of 'auto', 'exact' or 'vllm'"),
        (
            "evaluate.controls=[naiv]",
            "evaluate.controls.0='naiv': use one of 'teacher', 'adaptive'",
        ),
        ("evaluate.arms.base.model=bas", "model='bas': use one of 'base', 'ssd', 'naive'"),
        ("engine.extra=3", "engine.extra=3: use a mapping of keys to values"),
        ("prompts.deduplicate=maybe", "prompts.deduplicate='maybe': use true or false"),
        ("sample.max_tokens=many", "sample.max_tokens='many': use a valid integer"),
        (
            "sample.max_tokens=1025",
            (
                "sample.max_tokens 1025 is above model.max_model_len 1024, which holds prompt "
                "and answer"
            ),
        ),
        ("evaluate.max_tokens=2000", "evaluate.max_tokens 2000 is above model.max_model_len 1024"),
        ("sample.temperature.x=1", "is a value, not a section"),
        ("seed=[", "--set seed: '[' is not a YAML value: close its brackets and quotes, or give"),
        (
            "prompts.template_date=2024-13-01",
            "prompts.template_date: '2024-13-01' looks like a date or a number and is none",
        ),
    ],
)
def test_a_mistake_gives_one_sentence_that_names_the_field(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("quickstart", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SHARED = ("sequence_parallel_size", "expert_parallel_size")
NOT_YAML = (
    *("[", "{a", "'a", '"', "a: b: c", "a: [1", "]", "@a", "`a", "%a", "*a", "=", "\t- a", "\x01"),
    *("!a b", "!!bool x", "!!timestamp x", "!!set [a]", "<<: 3", "{[1]: 2}", "a\n---\nb"),
    *("[" * 1200, "2024-13-01", "2023-02-29T01:02:03", "0x_", "!!int x"),
)


@pytest.mark.parametrize("text", NOT_YAML, ids=lambda text: repr(text)[:20])
@pytest.mark.parametrize(
    ("option", "name", "read"),
    [
        ("--set", "name", lambda override: recipes.load("quickstart", [override])),
        ("--assume", "mfu_moe", lambda override: assumptions([override])),
    ],
    ids=["set", "assume"],
)
def test_a_text_that_is_no_yaml_gets_a_sentence_of_ours(
    text: str, option: str, name: str, read: Callable[[str], object]
) -> None:
    with pytest.raises(UserError) as caught:
        read(f"{name}={text}")
    sentence = str(caught.value)
    assert sentence.startswith(f"{option} {name}: ")
    assert len(sentence) < 300
    # Words of PyYAML and Python.
    for word in ("while", "expected", "found", "line", "column", "<unicode", "month", "literal"):
        assert word not in sentence
    # The proposed form is accepted: the text is the value, and only its use may be refused.
    command, override = shlex.split(sentence.partition(" as text with ")[2])
    assert command == option
    assert yaml.safe_load(override.partition("=")[2]) == (text if len(text) <= 60 else "TEXT")


@pytest.mark.parametrize(
    ("name", "size", "batch"),
    [(name, size, batch) for name in SHARED for size in (1, 2, 3, 8) for batch in (1, 8, 12)],
)
def test_a_refusal_of_workers_names_numbers_that_work(name: str, size: int, batch: int) -> None:
    sizes = {"global_batch_size": batch, name: size}
    train = TrainConfig.model_construct(**sizes)
    for workers in set(range(1, 33)) - set(train.worker_counts(1, 32)):
        with pytest.raises(ValueError, match=r"is not a multiple of .*: use ") as caught:
            train.check_workers(workers)
        changed, remedy = train, str(caught.value).partition(": use ")[2]
        if " as train.global_batch_size" in remedy:
            (step,) = re.findall(r"a multiple of (\d+) as", remedy)
            changed = TrainConfig.model_construct(**sizes | {"global_batch_size": 3 * int(step)})
        numbers = re.findall(r"\d+", remedy.partition("cluster.train_workers=")[2].split(" and")[0])
        assert numbers
        for number in numbers:
            changed.check_workers(int(number))


def test_the_refusal_of_workers_names_the_nearest_numbers() -> None:
    shares = ["train.sequence_parallel_size=8", "cluster.device=cuda"]
    with pytest.raises(UserError, match=r"train_workers 7 is not .*_size 8: use .*workers=8$"):
        recipes.load("quickstart", [*shares, "cluster.train_workers=7"])
    with pytest.raises(UserError, match=r"batch_size 8 is not .*: use .*workers=4 or 8$"):
        recipes.load("quickstart", ["cluster.train_workers=5"])


def test_a_benchmark_without_its_file_gets_a_form_that_works() -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("quickstart", ["evaluate.benchmarks=[mbpp]"])
    assert str(caught.value).endswith(
        "evaluate.benchmarks.0='mbpp': only builtin, humaneval, livecodebench need no file; give "
        "any other benchmark as {name: mbpp, file: PATH}, or as the path of its JSONL or Parquet "
        "file"
    )
    recipes.load("quickstart", ["evaluate.benchmarks=[{name: mbpp, file: PATH}]"])


def test_a_benchmark_is_a_name_a_path_or_a_mapping() -> None:
    override = (
        "evaluate.benchmarks=[builtin, data/HumanEvalPlus.jsonl.gz, {name: lcb, file: lcb/, "
        "release: release_v6, end: 2025-04}]"
    )
    recipe = recipes.load("quickstart", [override])
    first, second, third = recipe.evaluate.benchmarks
    assert (first.name, first.file) == ("builtin", None)
    assert (second.name, second.file) == ("HumanEvalPlus", "data/HumanEvalPlus.jsonl.gz")
    assert str(third) == "lcb release_v6 to 2025-04"
    assert config.choices(recipe.evaluate)["benchmarks"] == [
        "builtin",
        {"name": "HumanEvalPlus", "file": "data/HumanEvalPlus.jsonl.gz"},
        {"name": "lcb", "file": "lcb/", "release": "release_v6", "end": "2025-04"},
    ]


def test_a_missing_recipe_names_the_ones_that_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quickstart"):
        recipes.load("quickstrat")
    with pytest.raises(UserError, match="cannot read"):
        recipes.load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        recipes.load(broken)
    broken.write_text("- a\n")
    with pytest.raises(UserError, match="mapping"):
        recipes.load(broken)


def test_tuning_fields_do_not_shape_results() -> None:
    slow, fast = (
        recipes.load("quickstart"),
        recipes.load("quickstart", ["engine.max_num_seqs=3", "cluster.train_workers=2"]),
    )
    assert config.choices(slow.engine) == config.choices(fast.engine)
    assert config.choices(slow.cluster) == config.choices(fast.cluster) == {}
    drawn_otherwise = recipes.load("quickstart", ["engine.sampler=vllm"])
    assert config.choices(slow.engine) != config.choices(drawn_otherwise.engine), (
        "on CUDA it draws other tokens"
    )
    assert config.choices(slow.sample) != config.choices(
        recipes.load("quickstart", ["sample.top_p=0.5"]).sample
    )


def test_a_date_that_no_calendar_has_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("prompts: {template_date: 2024-02-30}\n")
    with pytest.raises(UserError, match=r"r.yaml is not valid YAML: day is out of range for month"):
        recipes.load(path)


def test_contest_dates_need_no_quotes() -> None:
    def dates(end: str) -> tuple[str | None, str | None]:
        chosen = f"evaluate.benchmarks=[{{name: lcb, file: lcb/, start: 2024-08, end: {end}}}]"
        (benchmark,) = recipes.load("quickstart", [chosen]).evaluate.benchmarks
        return benchmark.start, benchmark.end

    assert dates("2025-02-15") == dates("'2025-02-15'") == ("2024-08", "2025-02-15")
    with pytest.raises(UserError, match="end='2025-02-15T10:00:00'"):
        dates("2025-02-15 10:00:00")
