"""The real vLLM engine: exact tokens and texts, end tokens, refusals, and exact draws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ssd_ray.inference.vllm.engine import sample_seed
from tests.support import vllm_cases
from tests.support.operator_reference import probabilities, survivors, tempered

pytestmark = pytest.mark.real

DRAWS = 1000
# (temperature, top_k, top_p): both cuts, each alone, none, more than the vocabulary holds, greedy.
DECODINGS = [
    (1.5, 6, 0.9),
    (0.8, 5, 1.0),
    (1.2, None, 0.8),
    (2.0, None, 1.0),
    (1.0, 9999, 0.95),
    (1.6, 20, 0.95),
    (0.0, 20, 0.8),
]
END_TOKENS = (2, 259, 0)
MARKS = {83: "[THINK]", 204: "[/THINK]"}
"""Frequent bytes of the tiny model, made marks of reasoning."""


@pytest.fixture(scope="module")
def several_ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with reasoning marks and three end tokens, one of them not special."""
    from tests.support.tiny import tiny_model

    directory = tiny_model(tmp_path_factory.mktemp("ends") / "tiny-qwen3", "qwen3", marks=MARKS)
    path = directory / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [*END_TOKENS]}))
    return directory


@pytest.fixture(scope="module")
def engines(
    several_ends: Path,
    tiny_llama: Path,
    tiny_qwen3: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, Any]]:
    """Results of four engines, each in a process of its own as in a worker."""
    usual = {"function": "everything", "decodings": DECODINGS, "end_tokens": [], "draws": 1}
    several = usual | {"directory": str(several_ends), "draws": DRAWS}
    # generation_config has one end token; the recipe adds others by text and by id.
    recipe_ends = ["<|endoftext|>", 259]
    cases: dict[str, dict[str, Any]] = {
        "llama": usual | {"directory": str(tiny_llama), "sampler": "exact", "metrics": True},
        "exact": several | {"sampler": "exact"},
        "vllm": several | {"sampler": "vllm"},
        "ends of the recipe": usual
        | {"directory": str(tiny_qwen3), "sampler": "exact", "end_tokens": recipe_ends},
    }
    results = vllm_cases.run_cases(tmp_path_factory.mktemp("drawn"), cases, cpus=2)
    return {
        name: {**results[name], "directory": Path(case["directory"])}
        for name, case in cases.items()
    }


@pytest.fixture(scope="module")
def exact(engines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return engines["exact"]


@pytest.fixture(scope="module", params=[("llama", (2,)), ("exact", END_TOKENS)])
def drawn(request: pytest.FixtureRequest, engines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    name, ends = request.param
    return {**engines[name], "ends": ends}


def test_an_answer_keeps_every_sampled_id_and_its_end_token(drawn: dict[str, Any]) -> None:
    reasons = {reason for _, _, reason in drawn["together"]}
    assert reasons == {"stop", "length"}, "the tiny model must show both ends"
    for ids, _, reason in drawn["together"]:
        assert (ids[-1] in drawn["ends"]) == (reason == "stop")
        assert not set(ids[:-1]) & set(drawn["ends"])
        assert reason == "stop" or len(ids) == 64


def test_every_end_token_of_the_generation_config_ends_an_answer(exact: dict[str, Any]) -> None:
    assert len({ids[-1] for ids, _, reason in exact["together"] if reason == "stop"}) > 1


def test_tokens_count_while_answers_are_in_flight(drawn: dict[str, Any]) -> None:
    *in_flight, last = drawn["counts"]
    assert len(set(in_flight)) > 1
    assert in_flight == sorted(in_flight)
    assert last == drawn["before"] + sum(drawn["lengths"])
    by_job = {job: drawn["by_job"][job] for job in "01"}
    assert by_job == {"0": sum(drawn["lengths"][::2]), "1": sum(drawn["lengths"][1::2])}


def test_vllms_own_metrics_are_among_those_of_ray(engines: dict[str, dict[str, Any]]) -> None:
    """With `engine.metrics`; they count every token of every answer."""
    published = engines["llama"]["published"]
    assert published["vllm_generation_tokens"] == engines["llama"]["drawn"] > 1000
    assert published["vllm_prompt_tokens"] > 0
    assert engines["exact"]["published"] == {}


def test_end_tokens_of_the_recipe_end_answers(engines: dict[str, dict[str, Any]]) -> None:
    asked, exact = engines["ends of the recipe"], engines["exact"]
    # Texts differ: only one of the two models has special marks of reasoning.
    ids_and_reasons = [
        [(ids, reason) for ids, _, reason in each["together"]] for each in (asked, exact)
    ]
    assert ids_and_reasons[0] == ids_and_reasons[1]
    assert {ids[-1] for ids, _, reason in asked["together"] if reason == "stop"} - {2}


def test_the_text_is_exactly_the_ids_without_the_end(drawn: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(drawn["directory"])
    for ids, text, reason in drawn["together"]:
        unmarked = re.sub(r"\[/?THINK\]", "", text)
        assert unmarked == tokenizer.decode(
            ids[:-1] if reason == "stop" else ids, skip_special_tokens=True
        )


def test_special_marks_of_reasoning_stay_in_the_text_and_decide(exact: dict[str, Any]) -> None:
    from ssd_ray.models.answers import answer_parser
    from ssd_ray.models.loading import load_tokenizer
    from ssd_ray.reasoning import ReasoningFormat, special_marks
    from ssd_ray.schema import Completion

    directory = exact["directory"]
    special = special_marks(load_tokenizer(directory))
    assert special == MARKS
    parser = answer_parser(ReasoningFormat(special=special, tokenizer=directory))
    states = set()
    for ids, text, reason in exact["together"]:
        drawn = [
            special[token] for token in (ids[:-1] if reason == "stop" else ids) if token in special
        ]
        assert [
            piece for piece in re.split(r"(\[/?THINK\])", text) if piece in MARKS.values()
        ] == drawn
        content = parser.content(
            Completion(
                prompt_id="p",
                sample_index=0,
                seed=0,
                source="",
                difficulty="",
                prompt_token_ids=(5,),
                output_token_ids=tuple(ids),
                text="marks were dropped from it",
                finish_reason=reason,
            )
        )
        assert (content.text is None) == (drawn[-1:] == ["[THINK]"])
        if content.text is not None and drawn:
            assert content.text.endswith(text.rpartition(drawn[-1])[2])
        states.add(content.reasoning)
    assert states == {"none", "ended", "unfinished"}, "the tiny model must show them all"


def test_a_draw_does_not_depend_on_its_neighbors(drawn: dict[str, Any]) -> None:
    assert drawn["alone"] == [drawn["together"][number] for number in (0, 5, 11)]


def test_an_answer_ends_where_the_context_does(drawn: dict[str, Any]) -> None:
    num_tokens, reason = drawn["long"]
    assert num_tokens == 6 if reason == "length" else num_tokens <= 6


def test_a_request_that_vllm_refuses_is_an_exception_of_its_own(drawn: dict[str, Any]) -> None:
    full, empty, foreign = drawn["refused"]
    assert "256 tokens leave no room for an answer in model.max_model_len 256" in full
    assert all(
        message.startswith("vLLM does not take this prompt: ") for message in (full, empty, foreign)
    )


def test_both_samplers_draw_the_same_tokens(engines: dict[str, dict[str, Any]]) -> None:
    exact, vllm = engines["exact"], engines["vllm"]
    assert exact["together"] == vllm["together"]
    assert exact["draws"] == vllm["draws"]


def test_draws_match_the_support_and_frequencies_of_the_operator(exact: dict[str, Any]) -> None:
    """No token is outside the support, and frequencies pass a chi-square test."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exact["directory"], dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([exact["prompt"]])).logits[0, -1].numpy()
    for (temperature, top_k, top_p), tokens in zip(DECODINGS, exact["draws"], strict=True):
        if temperature == 0:
            assert set(tokens) == {int(logits.argmax())}
            continue
        scores = tempered(logits, temperature)
        expected = probabilities(scores, top_k or len(scores), top_p) * DRAWS
        counts = np.bincount(tokens, minlength=len(scores))
        assert set(tokens) <= survivors(scores, top_k or len(scores), top_p)
        often = expected >= 5
        observed, wanted = counts[often].tolist(), expected[often].tolist()
        if wanted and (rest := DRAWS - sum(wanted)) > 1e-6:
            observed, wanted = [*observed, DRAWS - sum(observed)], [*wanted, rest]
        assert len(observed) > 2, "the tiny model must spread its mass for this to say anything"
        assert stats.chisquare(observed, wanted).pvalue > 1e-4, (temperature, top_k, top_p)


def test_a_seed_follows_from_run_prompt_and_index_alone() -> None:
    assert sample_seed(0, "p", 0) == sample_seed(0, "p", 0)
    seeds = {
        sample_seed(run, prompt, index)
        for run in range(3)
        for prompt in ("p", "p0", "")
        for index in range(5)
    }
    assert len(seeds) == 45
    assert all(0 <= seed < 2**63 for seed in seeds)
