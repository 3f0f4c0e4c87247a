"""The operator and the theory reproduce numbers computed from the paper's equations alone.

`known_answers.json` has the cases by equation, with named logits. All cases lie at least 1e-5 from
the border of top-p.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssd_ray.analysis.operator import (
    Setting,
    Support,
    distribution,
    log_normalize,
    support,
)
from ssd_ray.analysis.theory import (
    LogProbabilities,
    composition,
    cross_entropy,
    divergence,
    entropy,
    entropy_split,
    logit_gradient,
    renyi_entropy,
    temperature_response,
    terms,
)

ANSWERS = json.loads((Path(__file__).parent / "known_answers.json").read_text())
Case = dict[str, Any]
Check = Callable[[Case, Case, torch.dtype, float], None]
FLOAT32_TOLERANCE = 1e-5


def _logits(name: str, dtype: torch.dtype) -> Tensor:
    return torch.tensor([ANSWERS["logits"][name]], dtype=dtype)


def _setting(settings: Case) -> Setting:
    return Setting(settings["temperature"], settings["top_k"], settings["top_p"])


def _pair(case: Case, dtype: torch.dtype) -> tuple[Support, LogProbabilities, LogProbabilities]:
    """Return the support of the samples, the base and the model."""
    base = _logits(case["base_logits"], dtype)
    model = _logits(case["model_logits"], dtype)
    return support(base, _setting(case)), LogProbabilities(base), LogProbabilities(model)


def _same(ours: Tensor | float | list[float], answer: float | list[float], within: float) -> None:
    left, right = (torch.as_tensor(side, dtype=torch.float64).flatten() for side in (ours, answer))
    assert left.shape == right.shape
    assert float((left - right).abs().max()) <= within, (left, right)


def _check_operator(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    logits = _logits(case["logits"], dtype)
    kept = support(logits, _setting(case))
    q = distribution(logits, _setting(case))
    assert (q[0] > 0).nonzero()[:, 0].tolist() == answer["support"]
    _same(q, answer["q"], within)
    _same(entropy(kept.log_q), answer["entropy"], within)
    mass = LogProbabilities(logits).log_kept_mass(kept).exp()
    _same(mass, answer["kept_mass_base"], within)


def _check_order(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    """Truncate first: the operator at temperature 1, then once more at the temperature alone."""
    logits = _logits(case["logits"], dtype)
    first = support(logits, _setting(case))
    truncated = support(logits, Setting(1.0, case["top_k"], case["top_p"])).dense(logits.shape[1])
    last = support(truncated, Setting(case["temperature"]))
    for order, kept in (("temperature_first", first), ("truncation_first", last)):
        assert int(kept.sizes) == answer[f"support_{order}"]
        _same(entropy(kept.log_q), answer[f"entropy_{order}"], within)


def _check_zipf(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    ranks = torch.arange(1, case["V"] + 1, dtype=torch.float64)
    logits = (-case["s"] * ranks.log())[None].to(dtype)
    kept, base = support(logits, _setting(case)), LogProbabilities(logits)
    top = support(logits, Setting(top_k=20))
    assert int(kept.sizes) == answer["support_size"]
    _same(kept.log_q[0, 0].exp(), answer["q_first"], within)
    _same(entropy(kept.log_q), answer["entropy_q"], within)
    _same(base.entropy, answer["entropy_base"], within)
    _same(base.log_kept_mass(kept).exp(), answer["kept_mass_base"], within)
    _same(base.log_kept_mass(top).exp(), answer["top20_mass_base"], within)
    split = entropy_split(kept, base)
    for name, part in answer["entropy_split_base"].items():
        _same(getattr(split, name), part, within)


def _check_terms(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    kept, base, model = _pair(case, dtype)
    parts = terms(kept, base, model, case["temperature"])
    assert int(kept.sizes) == answer["support_size"]
    for name in ("support_compression", "reshaping", "alignment", "constant", "floor"):
        _same(getattr(parts, name), answer[name], within)
    _same(parts.cross_entropy, answer["cross_entropy"], within)
    _same(parts.kept_mass, answer["kept_mass_model"], within)
    _same(parts.kept_mass_base, answer["kept_mass_base"], within)
    head = log_normalize(model.on(kept))
    _same(renyi_entropy(head, answer["renyi_order"]), answer["renyi_head"], within)
    _same(cross_entropy(kept.log_q, head), answer["conditional_cross_entropy"], within)
    total = parts.support_compression + parts.reshaping + parts.alignment + parts.constant
    _same(total, answer["sum_of_terms"], within)


def _check_start(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    _check_terms(case, answer, dtype, within)
    assert float(terms(*_pair(case, dtype), case["temperature"]).alignment) == 0


def _check_fixed_point(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    kept, base, model = _pair(case, dtype)
    parts = terms(kept, base, model, case["temperature"])
    assert float(logit_gradient(kept, model).abs().max()) == answer["gradient_max_abs"]
    for name in ("support_compression", "reshaping", "alignment"):
        assert float(getattr(parts, name)) == answer[name] == 0, name
    _same(parts.cross_entropy, answer["cross_entropy"], within)
    _same(parts.floor, answer["floor"], within)


def _check_renyi(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    kept, _, model = _pair(case, dtype)
    head = log_normalize(model.on(kept))
    orders = [*answer["orders"], 0, math.inf]
    entropies = [*answer["renyi_of_head"], answer["order_0"], answer["order_infinity"]]
    assert int(kept.sizes) == answer["support_size"]
    _same([float(renyi_entropy(head, order)) for order in orders], entropies, within)


def _check_gradient(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    kept, _, model = _pair(case, dtype)
    outside = kept.dense(model.logits.shape[1])[0] == -torch.inf
    assert outside.nonzero()[:, 0].tolist() == answer["outside_support"]
    _same(logit_gradient(kept, model), answer["gradient"], within)


def _check_descent(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    """Plain gradient descent on one context approaches the floor from above."""
    logits = _logits(case["base_logits"], dtype)
    kept = support(logits, _setting(case))
    path = []
    for _ in range(answer["step_loss_kept_kl"][-1][0]):
        logits = logits - case["learning_rate"] * logit_gradient(kept, LogProbabilities(logits))
        log_p = LogProbabilities(logits).on(kept)
        loss = float(cross_entropy(kept.log_q, log_p))
        path.append([loss, float(log_p.exp().sum()), float(divergence(kept.log_q, log_p))])
    assert min(loss for loss, _, _ in path) > answer["floor"]
    _same(entropy(kept.log_q), answer["floor"], within)
    for step, loss, mass, gap in answer["step_loss_kept_kl"]:
        # The third number is CE(q, p) - H(q).
        _same([*path[step - 1][:2], path[step - 1][0] - answer["floor"]], [loss, mass, gap], within)


def _check_entropy(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    kept, _, model = _pair(case, dtype)
    split = entropy_split(kept, model)
    for name in ("gate", "head", "tail", "total"):
        _same(getattr(split, name), answer[name], within)
    head = log_normalize(model.on(kept))
    for temperature, numbers in answer["of_head_by_tau"].items():
        response = temperature_response(head, float(temperature))
        for name, number in numbers.items():
            _same(getattr(response, name), number, within)


def _check_figure6(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    logits = _logits(case["base_logits"], dtype)
    student = support(logits, _setting(case["train"])).dense(logits.shape[1])
    for temperature, numbers in answer.items():
        setting = _setting(case["evaluate"] | {"temperature": float(temperature)})
        for name, model in (("base", logits), ("student", student)):
            kept = support(model, setting)
            assert int(kept.sizes) == numbers[f"{name}_survivors"]
            _same(entropy(kept.log_q), numbers[f"{name}_entropy"], within)


def _check_composition(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    logits, train = _logits(case["base_logits"], dtype), _setting(case["train"])
    event = torch.zeros_like(logits, dtype=torch.bool)
    event[0, case["event"]] = True
    parts = composition(logits, train, case["tau"], event)
    _same(parts.effective_temperature, answer["T_eff"], within)
    _same(parts.kept_mass, answer["m"], within)
    for name in ("compression_gain", "reshaping_gain", "base", "student"):
        _same(getattr(parts, name), answer[name], within)
    _same(parts.compression_gain * parts.reshaping_gain * parts.base, answer["product"], within)
    student = support(logits, train).dense(logits.shape[1])
    _same(distribution(student, Setting(case["tau"])), answer["q_tau"], within)


def _check_truncated(case: Case, answer: Case, dtype: torch.dtype, within: float) -> None:
    logits, train, evaluate = _logits(case["base_logits"], dtype), case["train"], case["evaluate"]
    ideal = support(logits, _setting(train)).dense(logits.shape[1])
    student = support(ideal, _setting(evaluate)).dense(logits.shape[1])
    effective = evaluate["temperature"] * train["temperature"]
    base = support(logits, _setting(evaluate | {"temperature": effective})).dense(logits.shape[1])
    for log_q, numbers, kept in (
        (student, "student", "student_support"),
        (base, "base_at_T_eff", "base_support"),
    ):
        assert log_q[0].isfinite().nonzero()[:, 0].tolist() == answer[kept]
        _same(log_q.exp(), answer[numbers], within)
    variation = (student.exp() - base.exp()).abs().sum() / 2
    _same(variation, answer["total_variation"], within)
    _same(divergence(student, base), answer["kl_student_to_base"], within)


CHECKS: dict[str, Check] = {
    "operator": _check_operator,
    "order": _check_order,
    "zipf": _check_zipf,
    "eq15": _check_terms,
    "eq15-at-start": _check_start,
    "fixed-point": _check_fixed_point,
    "renyi": _check_renyi,
    "gradient": _check_gradient,
    "descent": _check_descent,
    "entropy": _check_entropy,
    "figure6": _check_figure6,
    "composition": _check_composition,
    "composition-truncated": _check_truncated,
}


def test_every_group_of_answers_has_a_check() -> None:
    assert set(CHECKS) == set(ANSWERS) - {"about", "logits"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("group", "number"),
    [(group, number) for group in CHECKS for number in range(len(ANSWERS[group]["cases"]))],
)
def test_the_known_answer_is_reproduced(group: str, number: int, dtype: torch.dtype) -> None:
    case = ANSWERS[group]["cases"][number]
    within = ANSWERS[group]["tolerance"]
    if dtype == torch.float32:
        within = max(within, FLOAT32_TOLERANCE)
    CHECKS[group](case["given"], case["expected"], dtype, within)
