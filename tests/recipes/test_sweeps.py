"""Designs of a sweep: shared work, stable names, and one sentence for each mistake."""

from __future__ import annotations

import pytest

from ssd_ray.errors import UserError
from ssd_ray.pipeline.sweeping import sweep_steps
from ssd_ray.recipes.sweeps import Design, design

TRAIN = "sample.temperature=1,1.5,2"
PLAIN = ("sample.top_k=null", "sample.top_p=1")
EVAL = "evaluate.temperature=0.2,0.6,1,1.3"


def _counts(designed: Design) -> dict[str, int]:
    verbs = [step.verb for step in sweep_steps(designed)]
    return {verb: verbs.count(verb) for verb in ("sample", "train", "generate", "grade")}


def test_three_by_one_by_four_cost_three_trainings() -> None:
    designed = design("quickstart", PLAIN, [TRAIN, EVAL])
    assert designed.shape == "3 × 1 × 4"
    assert [student.name for student in designed.students] == ["T=1", "T=1.5", "T=2"]
    # The base answers at the four temperatures; its own is one of them.
    assert _counts(designed) == {"sample": 3, "train": 3, "generate": 16, "grade": 16}


def test_the_student_at_t_1_without_truncation_is_added_once() -> None:
    designed = design("quickstart", [], [TRAIN, EVAL])
    assert designed.shape == "3 × 1 × 4"
    added = [student.name for student in designed.students if student.added]
    assert added == ["T=1"]
    assert _counts(designed) == {"sample": 4, "train": 4, "generate": 20, "grade": 20}


def test_settings_of_the_training_share_samples() -> None:
    rates = "train.learning_rate=1e-5,2.0e-5"
    designed = design("quickstart", PLAIN, [TRAIN, rates, EVAL])
    assert designed.shape == "3 × 2 × 4"
    assert _counts(designed) == {"sample": 3, "train": 6, "generate": 28, "grade": 28}
    assert {student.settings["train.learning_rate"] for student in designed.students} == {
        1e-5,
        2e-5,
    }


def test_checkpoints_are_within_one_training() -> None:
    designed = design("quickstart", PLAIN, [TRAIN, "checkpoint=2,4,5", EVAL])
    assert designed.shape == "3 × 1 × 3 × 4"
    assert _counts(designed) == {"sample": 3, "train": 3, "generate": 40, "grade": 40}
    assert {student.recipe.train.export_every for student in designed.students} == {1}
    fingerprints = [step.identity.fingerprint for step in sweep_steps(designed)]
    assert len(set(fingerprints)) == len(fingerprints)


@pytest.mark.parametrize(
    "more",
    [
        [TRAIN.replace("2", "2,1.2"), EVAL],
        [TRAIN, EVAL.replace("1.3", "1.3,1.6")],
        [TRAIN, EVAL, "train.learning_rate=1e-5,2.0e-5"],
        [TRAIN, EVAL, "sample.top_k=null,20"],
        [TRAIN, EVAL, "sample.max_tokens=256,128"],
        [TRAIN, EVAL, "evaluate.top_p=0.8,1"],
        [EVAL, TRAIN],
    ],
)
def test_a_larger_sweep_keeps_the_artifacts_of_a_smaller_one(more: list[str]) -> None:
    smaller, larger = (
        {step.name: step.identity.fingerprint for step in sweep_steps(design("quickstart", [], o))}
        for o in ([TRAIN, EVAL], more)
    )
    assert {name: larger[name] for name in smaller if name != "sweep"} == {
        name: fingerprint for name, fingerprint in smaller.items() if name != "sweep"
    }


def test_the_base_has_one_pool_and_each_student_one() -> None:
    designed = design("quickstart", [], [TRAIN, EVAL])
    steps = sweep_steps(designed)
    assert {step.engines for step in steps if step.verb == "sample"} == {"base"}
    pools = {step.engines for step in steps if step.verb == "generate"}
    assert pools == {"base", *(student.name for student in designed.students)}
    # Each student answers before the next one is trained.
    order = [step.engines or step.name for step in steps if step.verb in ("train", "generate")]
    assert list(dict.fromkeys(order)) == [
        "base",
        *(each for s in designed.students for each in (f"checkpoint/{s.name}", s.name)),
    ]


def test_cells_of_one_group_differ_in_temperatures_alone() -> None:
    designed = design("quickstart", [], [TRAIN, "sample.top_k=10,20", EVAL, "evaluate.top_p=0.8,1"])
    groups: dict[str, set[float]] = {}
    for cell in designed.cells:
        if cell.student is not None and not cell.student.added:
            groups.setdefault(cell.group, set()).add(cell.t_eff)
    assert len(groups) == 4
    assert {len(temperatures) for temperatures in groups.values()} == {12}


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ([], "a sweep needs an axis: give --over"),
        (["sample.temperature"], "is not of the form FIELD=v1,v2"),
        (["sample.temperatur=1,2"], "is no axis, .*: did you mean sample.temperature"),
        (["model.source=a,b"], "model.source is no axis"),
        (["evaluate.limit=1,2"], "evaluate.limit is no axis"),
        (["train.micro_batch_tokens=1,2"], "changes no result, .*: sweep another field"),
        (["sample.temperature=1.2"], "has 1 value: give two or more, or --set"),
        (["evaluate.temperature=1"], "has 1 value: give two or more$"),
        (["sample.temperature="], "has no value: give two or more$"),
        (["sample.temperature=[1,2],3"], "give numbers or words, separated by commas"),
        (["sample.temperature=1,1.0", EVAL], "two students .* the same, .* one fingerprint"),
        (["evaluate.temperature=1,1.0"], "two decodings .* the same, .* one fingerprint"),
        ([TRAIN, TRAIN], "is given twice: list all its values in one"),
        (["sample.temperature=1,3", EVAL], "sample.temperature=3: use 0 for greedy"),
        (["evaluate.temperature=1,3"], r"evaluate.temperature=3: use 0 for greedy"),
        (["checkpoint=2,9"], r"checkpoint=9 is above train.steps 5: lower the first"),
        (["checkpoint=0,2"], r"checkpoint=0: give steps of the training, from 1"),
        (["sample.temperature=1,1.5"], "2 different T_eff .* needs 4: add values .* or .*no-fit"),
    ],
)
def test_a_mistake_is_one_sentence(over: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        design("quickstart", [], over)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("repeated", ["rounds=2", "train.seeds=3"])
def test_repeated_trainings_are_refused(repeated: str) -> None:
    with pytest.raises(UserError, match=f"{repeated} repeats trainings, .*: --set .*=1$"):
        design("quickstart", [repeated], [TRAIN, EVAL])


def test_samples_chosen_by_tests_are_refused() -> None:
    with pytest.raises(UserError, match=r"prepare.select accepted .*: set prepare.select=all"):
        design("quickstart", ["prepare.select=accepted"], [TRAIN, EVAL])


def test_without_a_fit_two_temperatures_are_enough() -> None:
    assert design("quickstart", [], ["sample.temperature=1,1.5"], fit=False).shape == "2 × 1 × 1"


def test_no_fit_is_needed_where_no_temperature_is_swept() -> None:
    assert not design("quickstart", [], ["train.learning_rate=1e-5,2.0e-5"]).fits
