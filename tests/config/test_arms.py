"""Arms of a recipe: the named ones, a fair sweep of them, and their controls."""

import pytest

from ssd_ray import recipes
from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.facts import VerdictFacts
from ssd_ray.cli import plan
from ssd_ray.config import arms
from ssd_ray.errors import UserError
from ssd_ray.pipeline import graph
from ssd_ray.pipeline.context import RunContext
from ssd_ray.planner.assumptions import assumptions
from ssd_ray.progress import LineProgress
from ssd_ray.reporting.numbers.timings import Total, timings
from tests.support.synthetic_run import recipe


def steps(chosen, tmp_path):
    return [step.name for step in graph.steps(chosen)]


def test_without_a_sweep_the_arms_are_those_named():
    chosen = recipe()
    assert arms.arms(chosen) == chosen.evaluate.arms
    assert arms.baseline(chosen) == "base"
    assert arms.families(chosen) == {}
    assert [branch.name for branch in arms.branches(chosen)] == ["ssd"]


def test_a_sweep_changes_temperatures_and_keeps_truncation():
    chosen = recipe(evaluate={"sweep": [1.3, 0.5]})
    swept = arms.arms(chosen)
    grid = (0.5, 0.7, 1.1, 1.3)  # the sweep, and the temperatures of base and ssd
    assert arms.temperatures(chosen) == grid
    assert list(swept) == [*(f"base@T={t}" for t in grid), *(f"ssd@T={t}" for t in grid), "teacher"]
    for name, points in arms.families(chosen).items():
        for t, arm in points.items():
            assert (
                swept[arm].model,
                swept[arm].temperature,
                swept[arm].top_k,
                swept[arm].top_p,
            ) == (name, t, 20, 0.8)
    teacher, sample = swept["teacher"], chosen.sample
    assert (teacher.model, teacher.temperature, teacher.top_k, teacher.top_p) == (
        "base",
        sample.temperature,
        20,
        0.8,
    )
    assert arms.baseline(chosen) == "base@T=0.7"
    assert "teacher" not in arms.arms(recipe(evaluate={"sweep": [1.3], "controls": []}))


def test_the_naive_control_trains_on_samples_at_temperature_1(tmp_path):
    chosen = recipes.load("quickstart", ["evaluate.controls=[naive]"])
    assert arms.arms(chosen)["naive"].model_dump() == chosen.evaluate.arms["ssd"].model_dump() | {
        "model": "naive"
    }
    sample = arms.naive_sample(chosen)
    assert (sample.temperature, sample.top_k, sample.top_p, sample.max_tokens) == (
        1.0,
        None,
        1.0,
        chosen.sample.max_tokens,
    )
    names = steps(chosen, tmp_path)
    assert {
        "samples-naive",
        "dataset-naive",
        "checkpoint-naive",
        "generations/naive",
        "verdicts/naive",
    } <= set(names)
    by_name = {step.name: step for step in graph.steps(chosen)}
    assert [step.name for step in by_name["generations/naive"].inputs] == [
        "eval-prompts",
        "checkpoint-naive",
    ]
    assert [step.name for step in by_name["generations/ssd"].inputs] == [
        "eval-prompts",
        "checkpoint",
    ]
    assert by_name["checkpoint-naive"].choices() == by_name["checkpoint"].choices()
    assert by_name["samples-naive"].identity.fingerprint != by_name["samples"].identity.fingerprint
    assert (
        by_name["verdicts/naive"].identity.fingerprint
        != by_name["verdicts/ssd"].identity.fingerprint
    )


def test_a_trained_model_is_decoded_like_its_first_arm(tmp_path, monkeypatch):
    from ssd_ray.training import trainer

    asked = {}
    monkeypatch.setattr(
        trainer,
        "train",
        lambda job, _: asked.update({job.dataset.name: job.serving.decoding}) or {},
    )
    chosen = recipes.load("qwen3-4b-instruct", ["evaluate.controls=[naive]"])
    monkeypatch.setattr(RunContext, "model", tmp_path)
    monkeypatch.setattr("ssd_ray.models.loading.template_to_export", lambda *_: None)
    for step in graph.steps(chosen):
        if step.verb == "train":
            step.make(tmp_path / step.name, RunContext(chosen, tmp_path, LineProgress()))
    drawn = {name: (arm.temperature, arm.top_k, arm.top_p) for name, arm in asked.items()}
    assert drawn == {"dataset": (1.1, 20, 0.8), "dataset-naive": (1.1, 20, 0.8)}
    assert arms.decoding(recipe(evaluate={"arms": {"base": {"model": "base"}}}), "ssd") is None


def test_the_accepted_control_trains_on_samples_that_pass(tmp_path):
    chosen = recipes.load("quickstart", ["evaluate.controls=[accepted]"])
    assert arms.arms(chosen)["accepted"].model_dump() == chosen.evaluate.arms[
        "ssd"
    ].model_dump() | {"model": "accepted"}
    steps = {step.name: step for step in graph.steps(chosen)}
    plain = {step.name: step for step in graph.steps(recipes.load("quickstart"))}
    assert steps.keys() - plain.keys() == {
        *("training-problems", "sample-verdicts", "dataset-accepted", "checkpoint-accepted"),
        *("generations/accepted", "verdicts/accepted"),
    }
    assert {name for name in plain if plain[name].identity != steps[name].identity} == {"report"}
    assert [step.name for step in steps["sample-verdicts"].inputs] == [
        "training-problems",
        "samples",
    ]
    assert steps["sample-verdicts"].follows is steps["samples"]
    assert [step.name for step in steps["dataset-accepted"].inputs] == [
        "samples",
        "sample-verdicts",
    ]
    assert [step.name for step in steps["generations/accepted"].inputs] == [
        "eval-prompts",
        "checkpoint-accepted",
    ]
    assert "training-problems" in {step.name for step in steps["samples"].after}, (
        "missing tests are reported before sampling"
    )


@pytest.mark.parametrize("controls", ["", "naive", "accepted", "naive, accepted, teacher"])
@pytest.mark.parametrize("select", ["all", "accepted"])
def test_every_step_comes_after_its_inputs(controls, select, tmp_path):
    overrides = [f"evaluate.controls=[{controls}]", f"prepare.select={select}"]
    if select == "accepted" and "accepted" in controls:
        return
    seen = set()
    for step in graph.steps(recipes.load("quickstart", overrides)):
        assert {needed.name for needed in (*step.inputs, *step.after)} <= seen, step.name
        assert step.name not in seen
        seen.add(step.name)


ALL = [
    "evaluate.controls=[naive, accepted, teacher]",
    "evaluate.profiles=[strict, lcb-compat]",
    "evaluate.sweep=[0.5, 1.0]",
]


@pytest.mark.parametrize("overrides", [[], ALL, ["prepare.select=accepted"]])
def test_the_cost_of_a_run_includes_every_step(overrides, tmp_path, monkeypatch):
    recipe, passed = recipes.load("quickstart", overrides), []
    monkeypatch.setattr(
        "ssd_ray.reporting.page.report",
        lambda recipe, run, steps, out: passed.append((recipe, run, steps)) or {},
    )
    *steps, report = graph.steps(recipe)
    graded = VerdictFacts(rows=0, infrastructure_errors=0)
    for step in steps:
        manifests.make(tmp_path / step.name, step.identity, lambda out: graded)
        files.write_atomic(
            tmp_path / step.name / "timing.json",
            '{"seconds": 2.0, "wall_seconds": 6.0, "attempts": 1, "tokens": 3}',
        )
    report.make(tmp_path / "report", RunContext(recipe, tmp_path, LineProgress()))
    cost = timings(*passed[0])
    assert [row.stage for row in cost.stages] == [step.name for step in steps]
    assert "benchmark" in {row.stage for row in cost.stages}
    assert cost.total == Total(seconds=2.0 * len(steps), tokens=3 * len(steps))
    assert {row.wall_seconds for row in cost.stages} == {6.0}
    assert {row.tokens_per_second for row in cost.stages} == {0.5}


@pytest.mark.parametrize("overrides", [[], ALL, ["prepare.select=accepted"]])
def test_a_plan_has_a_sentence_for_every_step(overrides, tmp_path):
    recipe = recipes.load("quickstart", overrides)
    shown = plan.as_json(recipe, overrides, tmp_path, assumptions([]))["steps"]
    assert [row["artifact"] for row in shown] == [step.name for step in graph.steps(recipe)]
    assert all(len(row["work"]) > 10 for row in shown)


def test_selection_by_tests_happens_only_on_request(tmp_path):
    for name in recipes.shipped():
        shipped = recipes.load(name)
        assert shipped.prepare.select == "all"
        assert "accepted" not in {arm.model for arm in arms.arms(shipped).values()}
    chosen = recipes.load("quickstart", ["prepare.select=accepted", "evaluate.controls=[naive]"])
    steps = {step.name: step for step in graph.steps(chosen)}
    assert {"sample-verdicts", "sample-verdicts-naive"} <= steps.keys()
    assert steps["dataset-naive"].inputs == (steps["samples-naive"], steps["sample-verdicts-naive"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["prompts.source=rstar-coder", "prepare.select=accepted"],
            "prepare.select is accepted, which needs prompts",
        ),
        (
            ["prompts.source=mine.jsonl", "evaluate.controls=[accepted]"],
            r"'mine.jsonl' have none: .* prompts.tests_column",
        ),
        (["prepare.select=accepted", "evaluate.controls=[accepted]"], "set prepare.select=all"),
    ],
)
def test_selection_without_tests_is_refused_before_any_work(overrides, message):
    with pytest.raises(UserError, match=message):
        recipes.load("quickstart", overrides)


def test_the_quick_start_stays_as_small_as_it_was(tmp_path):
    names = steps(recipes.load("quickstart"), tmp_path)
    assert [name for name in names if "/" in name] == [
        "generations/base",
        "verdicts/base",
        "generations/ssd",
        "verdicts/ssd",
    ]


def test_a_second_profile_is_graded_next_to_the_first(tmp_path):
    chosen = recipes.load("quickstart", ["evaluate.profiles=[strict, lcb-compat]"])
    steps = {step.name: step for step in graph.steps(chosen)}
    assert steps["verdicts/ssd"].choices()["profile"] == "strict"
    assert steps["verdicts-lcb/ssd"].choices()["profile"] == "lcb-compat"
    assert steps["generations/ssd"] in steps["verdicts-lcb/ssd"].inputs
    assert {"verdicts/base", "verdicts-lcb/ssd"} <= {step.name for step in steps["report"].inputs}


@pytest.mark.parametrize("name", [name for name in recipes.shipped() if name != "quickstart"])
def test_a_paper_recipe_sweeps_both_models_and_the_teacher(name):
    chosen = recipes.load(name)
    families = arms.families(chosen)
    assert {"base", "ssd"} == set(families)
    assert families["base"].keys() == families["ssd"].keys()
    assert 4 <= len(families["base"]) <= 6
    assert "teacher" in arms.arms(chosen)
    assert chosen.evaluate.profiles == ("strict", "lcb-compat")


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"controls": ["naive"], "arms": {"base": {"model": "base"}}}, "no arm has model ssd"),
        (
            {
                "controls": ["teacher"],
                "arms": {"base": {"model": "base"}, "teacher": {"model": "base"}},
            },
            "'teacher'",
        ),
        (
            {
                "sweep": [0.5],
                "arms": {
                    "base": {"model": "base"},
                    "base@T=1": {"model": "base"},
                    "base@T=1@T=1": {"model": "base"},
                },
            },
            None,
        ),
    ],
)
def test_impossible_arms_are_refused_in_one_sentence(evaluate, message):
    if message is None:
        assert arms.arms(recipe(evaluate=evaluate))
        return
    with pytest.raises(UserError, match=message):
        arms.arms(recipe(evaluate=evaluate))


def test_a_control_equal_to_the_run_is_refused():
    chosen = recipe(
        sample={"temperature": 1.0, "top_k": None, "top_p": 1.0}, evaluate={"controls": ["naive"]}
    )
    with pytest.raises(UserError, match="its own naive control"):
        arms.arms(chosen)


@pytest.mark.parametrize(
    "override",
    ["evaluate.sweep=[0.5, 0.5]", "evaluate.profiles=[strict, strict]", "evaluate.sweep=[-1]"],
)
def test_a_mistaken_sweep_is_refused_in_one_sentence(override):
    with pytest.raises(UserError) as caught:
        recipes.load("quickstart", [override])
    assert "\n" not in str(caught.value)
