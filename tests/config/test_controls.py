"""Arms that take the method apart: each builds the recipe that it says, and shares the rest."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ssd_ray import recipes
from ssd_ray.cli.options import seeds_override
from ssd_ray.config import Arm, Recipe, arms, choices
from ssd_ray.config.trained_models import TRAINED_CONTROLS, trained_models
from ssd_ray.errors import UserError
from ssd_ray.pipeline import graph
from ssd_ray.reporting.numbers.questions import questions
from ssd_ray.reporting.words import CONTROLS

TRUNCATED = ("sample.temperature=1.6", "sample.top_k=20", "sample.top_p=0.8")
OWN_SAMPLES = ("naive", "compression", "reshaping", "bad-data")


def load(*overrides: str) -> Recipe:
    return recipes.load("quickstart", [*TRUNCATED, *overrides])


def with_control(name: str, *overrides: str) -> Recipe:
    # The quick start trains by the mean over tokens, so that control needs the other one.
    other = ["train.loss_mean=sequence"] if name == "token-mean" else []
    return load(f"evaluate.controls=[{name}]", *other, *overrides)


def steps(recipe: Recipe) -> dict[str, Any]:
    return {step.name: step for step in graph.steps(recipe)}


@pytest.mark.parametrize(
    ("name", "decoding"),
    [
        ("naive", (1.0, None, 1.0)),
        ("compression", (1.0, 20, 0.8)),
        ("reshaping", (1.6, None, 1.0)),
        ("bad-data", (2.0, None, 1.0)),
        ("accepted", (1.6, 20, 0.8)),
        ("sequence-mean", (1.6, 20, 0.8)),
        ("token-mean", (1.6, 20, 0.8)),
    ],
)
def test_a_control_changes_one_thing_and_shares_the_rest(
    name: str, decoding: tuple[float, int | None, float]
) -> None:
    recipe = with_control(name)
    student, model = (trained_models(recipe)[each] for each in ("ssd", name))
    sample = model.sample
    assert (sample.temperature, sample.top_k, sample.top_p) == decoding
    changed = {
        "samples": sample != student.sample,
        "selection": model.prepare != student.prepare,
        "loss": model.train != student.train,
    }
    expected = {
        "accepted": {"selection"},
        "bad-data": {"samples", "selection"},
        "sequence-mean": {"loss"},
        "token-mean": {"loss"},
    }.get(name, {"samples"})
    assert {key for key, is_changed in changed.items() if is_changed} == expected
    made = steps(recipe)
    plain = steps(load(*(["train.loss_mean=sequence"] if name == "token-mean" else [])))
    # Every artifact of the run without the control keeps its fingerprint, but for the report.
    assert {each for each in plain if plain[each].identity != made[each].identity} == {"report"}
    extra = made.keys() - plain.keys()
    assert (f"samples-{name}" in extra) == (name in OWN_SAMPLES)
    assert (f"dataset-{name}" in extra) == (name in (*OWN_SAMPLES, "accepted"))
    assert f"checkpoint-{name}" in extra
    fingerprints = [made[each].identity.fingerprint for each in extra]
    assert len(set(fingerprints)) == len(fingerprints)


def test_bad_data_keeps_every_class_of_answers() -> None:
    model = trained_models(load("prepare.drop_shortest_percent=10"))["bad-data"]
    assert set(choices(model.prepare.policies).values()) == {"keep"}
    assert model.prepare.drop_shortest_percent == 0


def test_controls_with_one_sampling_share_their_samples() -> None:
    overrides = ("sample.temperature=2.0", "evaluate.controls=[reshaping, bad-data]")
    both = steps(load(*overrides))
    assert "samples-bad-data" not in both
    assert [step.name for step in both["dataset-bad-data"].inputs] == ["samples-reshaping"]
    # A control added later leaves those before as they are.
    alone = steps(load("sample.temperature=2.0", "evaluate.controls=[bad-data]"))
    shared = alone.keys() - {"report"}
    assert {name for name in shared if alone[name].identity != both[name].identity} == set()


@pytest.mark.parametrize(
    ("overrides", "control", "same_as"),
    [
        (["sample.temperature=1.0"], "compression", "ssd"),
        (["sample.top_k=null", "sample.top_p=1.0"], "reshaping", "ssd"),
        (["sample.temperature=1.0"], "naive, reshaping", "naive"),
        (["sample.top_k=null", "sample.top_p=1.0"], "naive, compression", "naive"),
        (["train.loss_mean=sequence"], "sequence-mean", "ssd"),
        ([], "token-mean", "ssd"),
    ],
)
def test_a_control_equal_to_another_model_is_refused(
    overrides: list[str], control: str, same_as: str
) -> None:
    with pytest.raises(UserError, match=f"the same model as {same_as} .*leave .* out"):
        arms.arms(load(f"evaluate.controls=[{control}]", *overrides))


def test_a_fused_kernel_has_no_mean_of_sequences() -> None:
    recipe = with_control("sequence-mean")
    train = recipe.train.model_copy(update={"loss_kernel": "liger"})
    with pytest.raises(UserError, match=r"train\.loss_kernel=chunked"):
        arms.arms(recipe.model_copy(update={"train": train}))


def test_seeds_repeat_the_training_alone() -> None:
    made, plain = steps(load("train.seeds=3")), steps(load())
    assert made.keys() - plain.keys() == {
        f"{kind}ssd-seed{number}"
        for kind, number in itertools.product(("checkpoint-", "generations/", "verdicts/"), (2, 3))
    }
    assert {name for name in plain if plain[name].identity != made[name].identity} == {"report"}
    seeds = [
        made[name].choices()["seed"]
        for name in ("checkpoint", "checkpoint-ssd-seed2", "checkpoint-ssd-seed3")
    ]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    assert {step.name for step in made["checkpoint-ssd-seed2"].inputs} == {"dataset"}


def test_an_option_asks_for_seeds() -> None:
    assert seeds_override(None) == []
    assert seeds_override(3) == ["train.seeds=3"]
    with pytest.raises(UserError, match="needs 2 or more"):
        seeds_override(1)


def test_an_arm_of_a_training_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"raise train\.seeds"):
        arms.arms(load("evaluate.arms.ssd.training=2"))


def test_the_base_has_a_family_for_each_top_p() -> None:
    recipe = load(
        "evaluate.sweep=[0.5, 1.0]", "evaluate.sweep_top_p=[0.8, 0.95]", "evaluate.controls=[]"
    )
    families = arms.families(recipe)
    own = recipe.evaluate.arms["base"].top_p
    assert set(families) == {"base", "ssd", *(f"base@p={p}" for p in (0.8, 0.95) if p != own)}
    (asked,) = questions(recipe)
    assert set(asked.control_cells) == {
        arm for name in families if name != "ssd" for arm in families[name].values()
    }
    assert asked.treated_cells == tuple(families["ssd"].values())


def test_every_control_has_a_question_and_a_description() -> None:
    listed = ", ".join(("teacher", "adaptive", *(set(TRAINED_CONTROLS) - {"token-mean"})))
    recipe = load(f"evaluate.controls=[{listed}]")
    asked = {(each.treated, each.control): each.asks for each in questions(recipe)}
    others = set(arms.arms(recipe)) - {"ssd", "bad-data"}
    assert set(asked) == {("ssd", name) for name in others} | {("bad-data", "base")}
    assert all(text.endswith("?") for text in asked.values())
    assert set(CONTROLS) == set(TRAINED_CONTROLS)


def test_an_adaptive_decoder_needs_the_samplers_processors() -> None:
    recipe = with_control("adaptive")
    arm = arms.arms(recipe)["adaptive"]
    student = arms.arms(recipe)["ssd"]
    assert (arm.model, arm.temperature, arm.is_adaptive) == ("base", student.temperature, True)
    with pytest.raises(UserError, match=r"engine\.sampler=exact"):
        arms.arms(with_control("adaptive", "engine.sampler=vllm"))
    with pytest.raises(ValueError, match="do not change greedy decoding"):
        Arm(model="base", temperature=0, min_p=0.1)


def test_new_fields_at_their_defaults_are_no_choices() -> None:
    arm = Arm(model="ssd", temperature=0.7)
    assert choices(arm).keys() == {"model", "temperature", "top_k", "top_p"}
    changed = arm.model_copy(update={"min_p": 0.1, "training": 2, "entropy_theta": 0.2})
    assert choices(changed).keys() - choices(arm).keys() == {"min_p", "training", "entropy_theta"}
