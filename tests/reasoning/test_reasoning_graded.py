"""Grading, data health and recipes share one rule of reasoning, by ids for special tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import recipes
from ssd_ray.artifacts import shards
from ssd_ray.artifacts.dataset_facts import DatasetFacts
from ssd_ray.artifacts.slices import Slice
from ssd_ray.config import Policies, PrepareConfig
from ssd_ray.evaluation.grader import Grader, GradingSpec
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.evaluation.tests_on_disk import store_problems
from ssd_ray.models import answers
from ssd_ray.pipeline.run import Run
from ssd_ray.progress import LineProgress
from ssd_ray.reasoning import (
    TEXT_MARKS,
    ReasoningFormat,
    format_from_prompts,
    special_marks,
    spelled,
)
from ssd_ray.reporting.health import readings
from ssd_ray.schema import Completion, Problem, Prompt, Test, Verdict
from ssd_ray.training.data.dataset import prepare
from ssd_ray.training.data.health import ParseOptions
from tests.support.marked import (
    ANALYSIS,
    DRAFT,
    FINAL,
    HARMONY,
    PROGRAM,
    answer,
    form_of,
    ids_of,
    marked_tokenizer,
)

RULES = Rules(limits=Limits(time_s=5, memory_mib=256, output_kib=64))
NUMBER = "\\boxed{4}"
ASKED = "<|start|>user<|message|>Double it.<|end|><|start|>assistant"
THINK = marked_tokenizer("<think>", "</think>")
GPT_OSS = marked_tokenizer(*HARMONY, end="<|return|>")
RIGHT_DRAFT = f"First:\n{PROGRAM}\nor rather"


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    tests = tuple(Test(input=f"{number}\n", output=f"{2 * number}\n") for number in range(2))
    double = Problem(problem_id="p", source="test", statement="Double it.", tests=tests)
    number = Problem(
        problem_id="n",
        source="test",
        statement="2 + 2?",
        kind="numeric",
        tests=(Test(input="", output="4"),),
    )
    problems = list(store_problems([double, number], tmp_path / "benchmark" / "tests", "L1", []))
    shards.write_shard(tmp_path / "benchmark", "problems", problems, Problem)
    return tmp_path / "benchmark"


def _graded(benchmark: Path, form: ReasoningFormat, rows: list[Completion]) -> list[Verdict]:
    """Return the verdicts on answers; every answer gets its own sample index."""
    folder = benchmark.parent
    rows = [dataclasses.replace(row, sample_index=place) for place, row in enumerate(rows)]
    shards.write_shard(folder / "answers", "a", rows, Completion)
    out = folder / "verdicts"
    out.mkdir()
    grader = Grader(
        GradingSpec(benchmark=benchmark, rules=RULES, floor="L1", out=out, reasoning=form)
    )
    (path,) = shards.shard_paths(folder / "answers")
    grader.grade(Slice(file=path, rows=tuple(range(len(rows)))))
    grader.close()
    return sorted(shards.read_rows(out, Verdict), key=lambda verdict: verdict.sample_index)


def _now(tokenizer: Any, row: Completion) -> Completion:
    """Return the answer as engines write it today, with the names of drawn marks in its text."""
    ids = row.output_token_ids[:-1] if row.finish_reason == "stop" else row.output_token_ids
    text = spelled(ids, special_marks(tokenizer), answers.text_decoder(tokenizer))
    return dataclasses.replace(row, text=text)


def test_special_marks_are_read_from_the_ids(benchmark: Path, tmp_path: Path) -> None:
    """As users reported: without marks in the text, drafts were graded, or no code was found."""
    rows = [
        answer(THINK, DRAFT, "</think>", PROGRAM, prompt="Q<think>"),
        answer(THINK, RIGHT_DRAFT, prompt="Q<think>", ended=False),
        answer(THINK, "<think>", RIGHT_DRAFT, prompt="Q", ended=False),
        answer(THINK, "<think>hm</think>", PROGRAM, prompt="Q"),
        answer(THINK, PROGRAM, prompt="Q"),
        answer(THINK, "4 or 5?</think>", NUMBER, prompt="Q<think>", prompt_id="n"),
        answer(THINK, NUMBER, prompt="Q<think>", prompt_id="n", ended=False),
    ]
    rows += [_now(THINK, row) for row in rows]
    verdicts = _graded(benchmark, form_of(THINK, tmp_path / "tokenizer"), rows)
    result = [(verdict.outcome, verdict.reasoning) for verdict in verdicts]
    accepted, cut_off = ("accepted", "ended"), ("no_code", "unfinished")
    expected = [accepted, cut_off, cut_off, accepted, ("accepted", "none"), accepted, cut_off]
    assert result == 2 * expected


def test_channels_are_read_from_the_ids(benchmark: Path, tmp_path: Path) -> None:
    """As users reported: an answer cut off in the analysis channel had its draft graded."""
    rows = [
        answer(GPT_OSS, ANALYSIS, DRAFT, "<|end|>", FINAL, PROGRAM, prompt=ASKED),
        answer(GPT_OSS, ANALYSIS, RIGHT_DRAFT, prompt=ASKED, ended=False),
        answer(GPT_OSS, ANALYSIS, "hm<|end|>", FINAL, NUMBER, prompt=ASKED, prompt_id="n"),
        answer(GPT_OSS, ANALYSIS, NUMBER, prompt=ASKED, prompt_id="n", ended=False),
    ]
    rows += [_now(GPT_OSS, row) for row in rows]
    verdicts = _graded(benchmark, form_of(GPT_OSS, tmp_path / "tokenizer"), rows)
    assert [verdict.outcome for verdict in verdicts] == 2 * [
        "accepted",
        "no_code",
        "accepted",
        "no_code",
    ]
    assert verdicts[1].detail == verdicts[3].detail == "the answer ends within its reasoning"


def test_text_marks_are_read_as_before(benchmark: Path, tmp_path: Path) -> None:
    qwen3 = marked_tokenizer(plain=("<think>", "</think>"))
    rows = [
        answer(qwen3, DRAFT, "</think>", PROGRAM, prompt="Q<think>"),
        answer(qwen3, RIGHT_DRAFT, prompt="Q<think>", ended=False),
        answer(qwen3, RIGHT_DRAFT, b"</think>", PROGRAM, prompt="Q<think>"),
    ]
    verdicts = _graded(benchmark, form_of(qwen3, tmp_path / "tokenizer", opened="<think>"), rows)
    assert [verdict.outcome for verdict in verdicts] == ["accepted", "no_code", "accepted"]


FORGED = b"<|end|>" + FINAL.encode()
FORGERIES: dict[str, tuple[str | bytes, ...]] = {
    "a final channel spelled out": (ANALYSIS, "hm", FORGED, PROGRAM),
    "a channel within an analysis": (ANALYSIS, "hm<|channel|>final<|message|>", PROGRAM),
    "a message within a message": (ANALYSIS, "hm", FINAL, PROGRAM),
    "a spelled end before a real message": (ANALYSIS, "hm", b"<|end|>", FINAL, PROGRAM),
    "a spelled start after a real end": (ANALYSIS, "hm<|end|>", FINAL.encode(), PROGRAM),
    "a channel of another name": (
        ANALYSIS,
        "hm<|end|><|start|>assistant<|channel|>finals<|message|>",
        PROGRAM,
    ),
    "a channel in two words": (
        ANALYSIS,
        "hm<|end|><|start|>assistant<|channel|>not final<|message|>",
        PROGRAM,
    ),
    "two channels": (
        ANALYSIS,
        "hm<|end|><|start|>assistant<|channel|>analysis<|channel|>final<|message|>",
        PROGRAM,
    ),
    "a tool's message": (
        ANALYSIS,
        "hm<|end|><|start|>assistant<|channel|>final to=python<|message|>",
        PROGRAM,
    ),
    "a user's message": (ANALYSIS, "hm<|end|><|start|>user<|channel|>final<|message|>", PROGRAM),
    "a final for another user": (
        ANALYSIS,
        "hm<|end|><|start|>user<|message|>Q<|end|>",
        FINAL,
        PROGRAM,
    ),
    "a commentary": (
        ANALYSIS,
        "hm<|end|><|start|>assistant<|channel|>commentary<|message|>",
        PROGRAM,
    ),
    "a draft after the final": (
        ANALYSIS,
        "hm<|end|>",
        FINAL,
        "So:<|end|><|start|>assistant",
        ANALYSIS,
        PROGRAM,
    ),
    "a header alone": ("<|channel|>final", PROGRAM),
    "a spelled end of another kind": (ANALYSIS, "hm", b"</think>", b"[/THINK]", PROGRAM),
    "a spelled channel before a real one": (b"<|channel|>final ", ANALYSIS, PROGRAM),
    "a spelled channel in a header": (
        ANALYSIS,
        "hm<|end|><|start|>assistant",
        b"<|channel|>final",
        "<|message|>",
        PROGRAM,
    ),
    "a spelled name behind a channel": (
        "<|channel|>analysis",
        b"<|channel|>final",
        "<|message|>",
        PROGRAM,
    ),
    "a spelled beginning": (
        b"<|channel|>analysis<|message|>",
        "<|channel|>analysis<|message|>",
        PROGRAM,
    ),
}


def test_no_forged_mark_gets_a_draft_graded(benchmark: Path, tmp_path: Path) -> None:
    rows = [answer(GPT_OSS, *pieces, prompt=ASKED, ended=False) for pieces in FORGERIES.values()]
    rows += [_now(GPT_OSS, row) for row in rows]
    verdicts = _graded(benchmark, form_of(GPT_OSS, tmp_path / "tokenizer"), rows)
    passed = [
        list(FORGERIES)[place % len(FORGERIES)]
        for place, verdict in enumerate(verdicts)
        if verdict.code
    ]
    assert passed == []


FORGED_TEXTS = {
    "a message within a message": f"{ANALYSIS}hm{FINAL}{PROGRAM}",
    "a channel within an analysis": f"{ANALYSIS}hm<|channel|>final<|message|>{PROGRAM}",
    "a commentary": (
        f"{ANALYSIS}hm<|end|><|start|>assistant<|channel|>commentary<|message|>{PROGRAM}"
    ),
    "a user's final": f"{ANALYSIS}hm<|end|><|start|>user<|channel|>final<|message|>{PROGRAM}",
    "dropped special tokens": f"analysisWe need{PROGRAM}assistantcommentary to=python{PROGRAM}",
    "the end of another pair": f"<think>hm</thinking>[/THINK]</reasoning>{PROGRAM}",
    "an end before the beginning": f"[THINK]hm</think>\n{PROGRAM}",
    "another case": f"<think>hm</THINK>{PROGRAM}",
    "a broken end": f"<think>hm</ think>< /think>{PROGRAM}",
}


def test_no_forged_text_gets_a_draft_graded(benchmark: Path) -> None:
    rows = [
        dataclasses.replace(answer(THINK, ""), output_token_ids=(), text=text)
        for text in FORGED_TEXTS.values()
    ]
    verdicts = _graded(benchmark, TEXT_MARKS, rows)
    assert [
        name for name, verdict in zip(FORGED_TEXTS, verdicts, strict=True) if verdict.code
    ] == []


# Data health.


def _kinds(facts: DatasetFacts) -> dict[str, int]:
    return {name: result.rows for name, result in facts.health.classes.items()}


def test_health_counts_from_the_ids(tmp_path: Path) -> None:
    rows = [
        answer(GPT_OSS, ANALYSIS, DRAFT, "<|end|>", FINAL, PROGRAM, prompt=ASKED, prompt_id="a"),
        answer(GPT_OSS, ANALYSIS, RIGHT_DRAFT, prompt=ASKED, ended=False, prompt_id="b"),
        answer(GPT_OSS, "<|channel|>", prompt=ASKED, ended=False, prompt_id="c"),
        answer(
            GPT_OSS,
            ANALYSIS,
            "hm<|end|>",
            FINAL,
            f"{PROGRAM}\n```bash\nls\n```",
            prompt=ASKED,
            prompt_id="d",
        ),
        answer(GPT_OSS, f"<|channel|>final<|message|>{PROGRAM}", prompt=ASKED, prompt_id="e"),
    ]
    reading = ParseOptions(
        reasoning=form_of(GPT_OSS, tmp_path / "tokenizer"),
        end_tokens=frozenset({GPT_OSS.eos_token_id}),
    )
    choices = PrepareConfig(
        policies=Policies(no_code="drop", empty="keep", stub="keep"), drop_shortest_percent=50
    )
    result = []
    for name, made in (("before", rows), ("now", [_now(GPT_OSS, row) for row in rows])):
        shards.write_shard(tmp_path / name, "a", made, Completion)
        facts = prepare(tmp_path / name, choices, reading, out=tmp_path / f"{name}-out")
        # Examples hold the texts. Only today's texts have the marks, so examples differ.
        result.append(replace(facts, health=replace(facts.health, examples={})))
        assert facts.health.reasoning == {"none": 1, "ended": 2, "unfinished": 2}
        assert facts.health.other_language.rows == 1
        assert {name: rows for name, rows in _kinds(facts).items() if rows} == {
            "empty": 1,
            "no_code": 2,
            "cut_off": 2,
            "no_end_token": 2,
        }
        assert (facts.dropped["no_code"], facts.dropped["shortest"]) == (2, 1)
    assert result[0] == result[1]
    health = result[0].health
    messages = {reading.where: reading.what.replace("\xa0", " ") for reading in readings(health)}
    assert messages["Reasoning"] == "50 % of 4 answers with reasoning end it"
    assert (
        messages["Other languages"]
        == "the program of 20 % of the answers is marked as another language"
    )
    before = replace(health, reasoning=None, other_language=None)
    assert {reading.where for reading in readings(before)} == set(messages) - {
        "Reasoning",
        "Other languages",
    }


# Recipes of reasoning models.

GPT_OSS_TEMPLATE = """<|start|>system<|message|>You are ChatGPT, \
a large language model trained by OpenAI.

Reasoning: {{ reasoning_effort }}

# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>
{%- for message in messages -%}
{%- if message.role == "system" -%}
<|start|>developer<|message|># Instructions\n\n{{ message.content }}\n\n<|end|>
{%- elif message.role == "user" -%}
<|start|>user<|message|>{{ message.content }}<|end|>
{%- elif loop.last and not add_generation_prompt -%}
<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|return|>
{%- else -%}
<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""
CHATML = """{%- for message in messages %}<|im_start|>{{ message.role }}\n\
{{ message.content }}<|im_end|>\n{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant\nTAIL{% endif %}"""
QWEN3_THINKING = CHATML.replace("TAIL", "<think>\n")
MAGISTRAL = (
    "[SYSTEM_PROMPT]Think: [THINK]thoughts[/THINK] then answer.[/SYSTEM_PROMPT]"
    "{% for message in messages %}[INST]{{ message.content }}[/INST]{% endfor %}"
)


@pytest.fixture
def rendered(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Any, Prompt, ReasoningFormat]:
    """Return tokenizer, template, a rendered benchmark prompt, and its answer format."""
    from tests.support.tiny import tiny_model

    tokenizer, template, recipe = request.param
    directory = tiny_model(tmp_path / "model")
    (directory / "chat_template.jinja").unlink()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    chosen = recipes.load(recipe)
    wanted = [
        f"model.source={directory}",
        "model.max_model_len=4096",
        "evaluate.limit=2",
        "prompts.limit=2",
    ]
    wanted += [
        f"prompts.template_arguments.{name}={value}"
        for name, value in chosen.prompts.template_arguments.items()
    ]
    wanted += [
        f"evaluate.prompt_mode={chosen.evaluate.prompt_mode}",
        f"prompts.mode={chosen.prompts.mode}",
    ]
    run = Run(recipes.load("quickstart", wanted), tmp_path / "run", LineProgress())
    run.make("render")
    form = answers.reasoning_format(directory, tmp_path / "run" / "eval-prompts")
    return tokenizer, next(iter(shards.read_rows(tmp_path / "run" / "eval-prompts", Prompt))), form


def _drawn(tokenizer: Any, prompt: Prompt, *pieces: str) -> Completion:
    row = answer(tokenizer, *pieces, prompt_id=prompt.prompt_id)
    return dataclasses.replace(row, prompt_token_ids=prompt.token_ids)


@pytest.mark.parametrize(
    "rendered", [(GPT_OSS, GPT_OSS_TEMPLATE, "gpt-oss-20b-high")], indirect=True
)
def test_gpt_oss_is_rendered_and_read_in_its_own_format(
    rendered: tuple[Any, Prompt, ReasoningFormat],
) -> None:
    tokenizer, prompt, form = rendered
    assert "Reasoning: high" in prompt.text
    assert prompt.text.endswith("<|end|><|start|>assistant")
    parser = answers.answer_parser(form)
    assert (
        parser.content(_drawn(tokenizer, prompt, ANALYSIS, DRAFT, "<|end|>", FINAL, PROGRAM)).text
        == PROGRAM
    )
    assert parser.content(_drawn(tokenizer, prompt, ANALYSIS, RIGHT_DRAFT)).text is None


@pytest.mark.parametrize(
    "rendered",
    [
        (
            marked_tokenizer("<|im_start|>", plain=("<think>", "</think>")),
            QWEN3_THINKING,
            "qwen3-4b-thinking",
        ),
        (
            marked_tokenizer("<|im_start|>", plain=("<think>", "</think>")),
            QWEN3_THINKING,
            "qwen3-30b-thinking",
        ),
        (
            marked_tokenizer("<|im_start|>", "<think>", "</think>"),
            QWEN3_THINKING,
            "qwen3-4b-thinking",
        ),
        (
            marked_tokenizer("<|im_start|>", plain=("<think>", "</think>")),
            f"{QWEN3_THINKING}Okay",
            "qwen3-4b-thinking",
        ),
    ],
    indirect=True,
)
def test_prompts_that_open_the_reasoning_are_recognized(
    rendered: tuple[Any, Prompt, ReasoningFormat],
) -> None:
    tokenizer, prompt, form = rendered
    parser = answers.answer_parser(form)
    assert parser.content(_drawn(tokenizer, prompt, DRAFT, "</think>", PROGRAM)).text == PROGRAM
    assert parser.content(_drawn(tokenizer, prompt, RIGHT_DRAFT)).text is None


@pytest.mark.parametrize(
    "rendered",
    [
        (
            marked_tokenizer("<|im_start|>", plain=("<think>", "</think>")),
            CHATML.replace("TAIL", ""),
            "qwen3-4b-instruct",
        ),
        (
            marked_tokenizer("<|im_start|>"),
            CHATML.replace("TAIL", "<think>\n\n</think>\n\n"),
            "qwen3-4b-instruct",
        ),
        (marked_tokenizer("[THINK]", "[/THINK]", end="</s>"), MAGISTRAL, "qwen3-4b-thinking"),
    ],
    indirect=True,
)
def test_prompts_without_open_reasoning_are_recognized(
    rendered: tuple[Any, Prompt, ReasoningFormat],
) -> None:
    tokenizer, prompt, form = rendered
    assert (
        answers.answer_parser(form).content(_drawn(tokenizer, prompt, PROGRAM)).reasoning == "none"
    )


def test_each_prompt_decides_whether_it_opens_the_reasoning(benchmark: Path) -> None:
    rows = [
        ("p", "Q<think>\n", "Q"),
        ("n", "Count <think>.", "Count <think>."),
        ("o", "Q<think>\nSo", "Q"),
    ]
    form = format_from_prompts(rows)
    texts = {"p": f"{RIGHT_DRAFT}", "n": NUMBER}
    made = [
        dataclasses.replace(answer(THINK, text, prompt_id=name), output_token_ids=())
        for name, text in texts.items()
    ]
    assert [verdict.outcome for verdict in _graded(benchmark, form, made)] == [
        "no_code",
        "accepted",
    ]


def test_the_helpers_tell_a_mark_from_its_spelling() -> None:
    assert ids_of(GPT_OSS, "<|end|>") != ids_of(GPT_OSS, b"<|end|>")
    assert len(ids_of(GPT_OSS, b"<|end|>")) == len("<|end|>")
