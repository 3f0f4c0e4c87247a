"""Prompts from real tokenizers and chat templates: end tokens, clocks, marks and names."""

from __future__ import annotations

import codecs
import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import models, recipes
from ssd_ray.artifacts import manifests, shards
from ssd_ray.config import ModelConfig, PromptsConfig
from ssd_ray.errors import UserError
from ssd_ray.models import loading, templates
from ssd_ray.pipeline.run import Run
from ssd_ray.problems import notes, prompting
from ssd_ray.problems.chat_template import Clock
from ssd_ray.problems.renderer import Renderer
from ssd_ray.problems.rendering import Mode, release_text, renderer, user_message
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Problem, Prompt
from tests.support.tiny import TEMPLATE, tiny_model, tiny_tokenizer
from tests.support.tokenizer_kinds import KINDS, tokenizer_of

PROBLEM = Problem(problem_id="x/1", source="x", statement="Add two numbers.")
MARK = "\ufeff"
CLOCK = 'Now: {{ strftime_now("%Y-%m-%d %H:%M:%S") }}\n' + TEMPLATE
# As Llama 3.2, Mistral and Granite guard it.
GUARDED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = "
    "strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}Today Date: {{ "
    "date_string }}\n" + TEMPLATE
)
EARLY, LATE = datetime(2026, 1, 31, 23, 59, 59), datetime(2026, 2, 1, 0, 0, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def own_model(model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, for a test to change."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def _recipe(model: Path, *chosen: str) -> Any:
    prompts = model.parent / "prompts.jsonl"
    prompts.write_text(
        '{"question": "Read two numbers and print their product."}\n'
        '{"question": "Reverse a word."}\n'
    )
    few = [
        "evaluate.limit=2",
        "evaluate.benchmarks=[builtin]",
        "model.max_model_len=4096",
        "prompts.limit=null",
    ]
    return recipes.load(
        "quickstart", [f"model.source={model}", f"prompts.source={prompts}", *few, *chosen]
    )


def _rendered(model: Path, out: Path, *chosen: str) -> dict[str, Any]:
    """Render the prompts of a run; return the facts of each artifact."""
    artifacts = Run(_recipe(model, *chosen), out, LineProgress()).make("render")
    return {made.path.name: manifests.read_manifest(made.path).facts for made in artifacts}


def _prompts(out: Path) -> list[Prompt]:
    return list(shards.read_rows(out / "prompts", Prompt))


def _put(
    tokenizer: Any, mode: Mode = "paper", clock: Clock | None = None, **arguments: Any
) -> Renderer:
    return renderer(tokenizer, mode, "s", arguments, field="prompts.mode", clock=clock)


def _noted(tokenizer: Any, ends: set[int], mode: Mode = "paper") -> list[str]:
    return list(notes.before(_put(tokenizer, mode), tokenizer, ends, system=mode == "paper"))


# Tokens that a tokenizer adds


def _adding(tokenizer: Any, form: str) -> Any:
    """Make a tokenizer add tokens by `form`, with $A for the text, such as `<s> $A </s>`."""
    from tokenizers import processors

    special = [
        (token, tokenizer.convert_tokens_to_ids(token)) for token in form.split() if token != "$A"
    ]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=special
    )
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("form", "before"),
    [
        ("$A </s>", 0),
        ("<s> $A </s>", 1),
        ("<s> $A <|im_end|> </s>", 1),
        ("<s> $A", 1),
        ("</s> $A </s>", 1),
        ("$A", 0),
    ],
)
def test_a_prompt_ends_in_no_token_that_the_tokenizer_adds(
    kind: str, form: str, before: int
) -> None:
    tokenizer = _adding(tokenizer_of(kind), form)
    text, ids = _put(tokenizer, "release")(PROBLEM)
    assert text == release_text(PROBLEM)
    assert list(ids[before:]) == tokenizer.encode(text, add_special_tokens=False)
    assert list(ids[:before]) == [tokenizer.convert_tokens_to_ids(form.split()[0])] * before


@pytest.mark.parametrize("mode", ["paper", "chat", "published"])
@pytest.mark.parametrize("form", ["$A </s>", "<s> $A </s>"])
def test_a_chat_prompt_has_its_templates_tokens_and_no_more(mode: Mode, form: str) -> None:
    template = "{{ bos_token }}" + TEMPLATE.replace("assistant\n", "assistant\n</s>")
    tokenizer = _adding(tokenizer_of("metaspace-always", template=template), form)
    _, ids = _put(tokenizer, mode)(PROBLEM)
    first, last = (tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>"))
    assert [number for number in ids if number in (first, last)] == [first, last]
    assert (ids[0], ids[-1]) == (first, last)


def test_an_end_token_appended_to_every_prompt_is_left_out(
    own_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In mode release, with a post-processor that appends the end token, as add_eos_token does."""
    path = own_model / "tokenizer.json"
    stated = json.loads(path.read_text())
    stated["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}
        },
    }
    path.write_text(json.dumps(stated))
    modes = ("prompts.mode=release", "evaluate.prompt_mode=release")
    _rendered(own_model, tmp_path / "run", *modes)
    for name in ("prompts", "eval-prompts"):
        rows = list(shards.read_rows(tmp_path / "run" / name, Prompt))
        assert rows
        assert not any(2 in row.token_ids for row in rows)
    assert (
        "the tokenizer puts <|im_end|> (2) after a text: prompts are without it"
        in capsys.readouterr().err
    )


def test_beginnings_and_ends_of_prompts_are_noted() -> None:
    tokenizer = _adding(tokenizer_of("byte-level"), "<s> $A")
    number = tokenizer.convert_tokens_to_ids("<s>")
    ends = {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    (note,) = _noted(tokenizer, ends)
    assert note == (
        f"the tokenizer puts <s> ({number}) before a text, the chat template does not: "
        "prompts lack it"
    )
    written = tokenizer.chat_template
    for times, expected in (
        (1, []),
        (2, [f"the chat template writes <s> ({number}) twice at the beginning of prompts"]),
    ):
        tokenizer.chat_template = "{{ bos_token }}" * times + written
        assert _noted(tokenizer, ends) == expected
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    assert any(
        "ends prompts with <|im_end|>" in note and "needs a generation prompt" in note
        for note in _noted(tokenizer, ends)
    )
    assert _noted(tokenizer, ends, "release") == []


# Templates that read the clock


@pytest.mark.parametrize("template", [CLOCK, GUARDED])
def test_all_prompts_read_one_moment(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    clock = Clock(iter([EARLY, LATE]).__next__)
    texts = [_put(tokenizer, mode, clock)(PROBLEM)[0] for mode in ("paper", "chat", "published")]
    assert {text.splitlines()[0] for text in texts} <= {
        "Now: 2026-01-31 23:59:59",
        "Today Date: 31 Jan 2026",
    }
    assert clock.reading == EARLY


def test_a_template_that_does_not_read_the_clock_has_no_date() -> None:
    tokenizer = tiny_tokenizer()
    for template, arguments, read in (
        (TEMPLATE, {}, False),
        (GUARDED, {"date_string": "26 Jul 2024"}, False),
        (GUARDED, {}, True),
    ):
        tokenizer.chat_template = template
        put = _put(tokenizer, "chat", Clock(lambda: EARLY), **arguments)
        text, _ = put(PROBLEM)
        assert (put.template is not None and put.template.date) == (
            EARLY.isoformat() if read else None
        )
        assert ("26 Jul 2024" in text) == bool(arguments)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Set the clock of this machine, as far as prompts can see it."""

    def set_to(moment: datetime) -> None:
        class Now(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return moment

        monkeypatch.setattr(prompting, "datetime", Now)

    return set_to


def test_a_clock_is_noted_recorded_and_kept_across_midnight(
    own_model: Path,
    tmp_path: Path,
    at: Callable[[datetime], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (own_model / "chat_template.jinja").write_text(CLOCK)
    at(EARLY)
    facts = _rendered(own_model, tmp_path / "run")
    line = (
        f"the chat template reads the clock: prompts of this run have {EARLY.isoformat()}; "
        "prompts.template_date pins it"
    )
    assert capsys.readouterr().err.count(line) == 1
    first = _prompts(tmp_path / "run")
    assert [facts[name]["template_date"] for name in ("prompts", "eval-prompts")] == [
        EARLY.isoformat()
    ] * 2
    assert all("Now: 2026-01-31 23:59:59" in row.text for row in first)
    at(LATE)
    shutil.rmtree(tmp_path / "run" / "prompts")  # as after an interrupted attempt
    _rendered(own_model, tmp_path / "run")
    assert _prompts(tmp_path / "run") == first
    facts = _rendered(own_model, tmp_path / "other")
    assert facts["prompts"]["template_date"] == LATE.isoformat()
    assert _prompts(tmp_path / "other") != first


def test_a_pinned_date_gives_the_same_prompts_at_any_time(
    own_model: Path,
    tmp_path: Path,
    at: Callable[[datetime], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (own_model / "chat_template.jinja").write_text(CLOCK)
    rows = []
    for name, now in (("a", EARLY), ("b", LATE)):
        at(now)
        facts = _rendered(own_model, tmp_path / name, "prompts.template_date=2025-12-24")
        rows.append(_prompts(tmp_path / name))
        assert facts["prompts"]["template_date"] == "2025-12-24T00:00:00"
        assert not (tmp_path / name / prompting.MOMENT).exists()
    assert rows[0] == rows[1]
    assert "Now: 2025-12-24 00:00:00" in rows[0][0].text
    assert "reads the clock" not in capsys.readouterr().err
    with pytest.raises(UserError, match='template_date: "2025-12-24" there, "2025-12-25" here'):
        _rendered(own_model, tmp_path / "a", "prompts.template_date=2025-12-25")


def test_without_a_pinned_date_recipe_digests_are_as_before(model: Path, tmp_path: Path) -> None:
    """Samples of a run from before this field are those of the same recipe."""
    steps = {step.name: step for step, _ in Run(_recipe(model), tmp_path, LineProgress()).states()}
    assert "template_date" not in steps["prompts"].choices()["prompts"]
    assert "template_date" not in steps["eval-prompts"].choices()
    assert "end_tokens" not in steps["samples"].choices()["model"]


def test_the_note_of_a_run_that_holds_no_date_is_named(own_model: Path, tmp_path: Path) -> None:
    (own_model / "chat_template.jinja").write_text(CLOCK)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / prompting.MOMENT).write_text("soon\n")
    with pytest.raises(UserError, match="template-date holds no date"):
        _rendered(own_model, tmp_path / "run")


@pytest.mark.parametrize(
    "value", ["tomorrow", 20260131, "2026-13-01", "2026-01-31T09:30+01:00", True, ""]
)
def test_a_date_in_another_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"template_date\n.*(ISO date|time zone)"):
        PromptsConfig.model_validate({"template_date": value})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31T09:30", "2026-01-31T09:30"),
        (EARLY, EARLY.isoformat()),
        (EARLY.date(), "2026-01-31"),
    ],
)
def test_dates_come_as_text_and_as_yaml_reads_them(value: Any, expected: str) -> None:
    assert PromptsConfig.model_validate({"template_date": value}).template_date == expected


@pytest.mark.parametrize(
    "part", ["{{ ['a', 'b'] | random }}", "{{ lipsum() }}", "{% set x = messages | random %}"]
)
def test_a_template_that_draws_at_random_is_refused(part: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        TEMPLATE.replace(
            "{{ message['content'] }}",
            "{% generation %}{{ message['content'] }}{% endgeneration %}",
        )
        + part
    )
    with pytest.raises(
        UserError, match=r"the chat template draws at random .*: set model.chat_template to a file"
    ):
        _put(tokenizer)
    tokenizer.chat_template = "{# | random #}a random word, lipsum: {{ 'x | random' }}" + TEMPLATE
    assert "random word" in _put(tokenizer)(PROBLEM)[0]


@pytest.mark.parametrize(
    "name",
    ["strftime_now", "chat_template", "messages", "continue_final_message", "tokenizer_kwargs"],
)
def test_template_arguments_cannot_replace_fixed_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"template_arguments holds '{name}', which ssd_ray sets"):
        _put(tiny_tokenizer(), "chat", **{name: "x"})


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{{ now() }}",
        "{{ messages[7].content }}",
        "{{ ''.x() }}",
    ],
)
def test_a_template_that_fails_in_any_way_is_refused(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"the chat template fails for x/1 \(.+\): correct it"):
        _put(tokenizer)(PROBLEM)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "nothing of the messages"])
@pytest.mark.parametrize(
    ("mode", "remedy"),
    [
        ("paper", "use prompts.mode chat, or set model.chat_template"),
        ("chat", "set model.chat_template"),
    ],
)
def test_a_mode_in_use_is_not_proposed_as_a_remedy(template: str, mode: Mode, remedy: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f": {remedy}"):
        _put(tokenizer, mode)(PROBLEM)


# Byte order marks and encodings


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_before_a_recipes_template_is_left_out(
    model: Path, tmp_path: Path, newline: str
) -> None:
    path = tmp_path / "own.jinja"
    path.write_bytes(codecs.BOM_UTF8 + TEMPLATE.replace("\n", newline).encode())
    tokenizer = loading.load_tokenizer(model, str(path))
    text, ids = _put(tokenizer)(PROBLEM)
    assert text == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n"
        f"{user_message(PROBLEM)}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids == _put(tiny_tokenizer())(PROBLEM)[1]


@pytest.mark.parametrize(
    "place", ["chat_template.jinja", "tokenizer_config.json", "named", "chat_template.json"]
)
def test_a_byte_order_mark_in_a_models_own_template_is_left_out(
    own_model: Path, place: str
) -> None:
    jinja = own_model / "chat_template.jinja"
    jinja.unlink()
    stated: Any = MARK + TEMPLATE
    if place == "chat_template.jinja":
        jinja.write_text(stated)
    elif place == "chat_template.json":
        (own_model / place).write_text(MARK + json.dumps({"chat_template": stated}))
    else:
        named = [
            {"name": "default", "template": stated},
            {"name": "tool_use", "template": MARK + "{{ 1 }}"},
        ]
        _state(own_model, named if place == "named" else stated)
    tokenizer = loading.load_tokenizer(own_model)
    assert _put(tokenizer)(PROBLEM)[0].startswith("<|im_start|>system")
    exported = loading.template_to_export(ModelConfig(source=str(own_model)), own_model, {})
    assert exported == TEMPLATE


@pytest.mark.parametrize(
    "stated", [5, True, {"default": 5}, [{"name": "default", "template": None}]]
)
def test_a_models_template_that_is_no_text_is_refused(own_model: Path, stated: Any) -> None:
    (own_model / "chat_template.jinja").unlink()
    _state(own_model, stated)
    with pytest.raises(
        UserError,
        match=r"template 'default' is not text \((int|bool|NoneType)\): set model.chat_template",
    ):
        loading.load_tokenizer(own_model)


@pytest.mark.parametrize("text", ["", " \n", MARK])
def test_an_empty_template_of_a_recipe_is_reported_as_empty(
    own_model: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "own.jinja").write_text(text)
    with pytest.raises(UserError, match=r"own.jinja' is empty: give a file with a template"):
        loading.load_tokenizer(own_model, str(tmp_path / "own.jinja"))


def _state(directory: Path, template: Any) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_template_in_another_encoding_is_refused(
    model: Path, tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "own.jinja"
    path.write_bytes(("é" + TEMPLATE).encode(encoding))
    with pytest.raises(
        UserError, match=r"model.chat_template '.*own.jinja' cannot be read: it is not UTF-8"
    ):
        loading.load_tokenizer(model, str(path))


def test_an_own_template_in_another_encoding_is_refused(own_model: Path) -> None:
    (own_model / "chat_template.jinja").write_bytes(TEMPLATE.encode("utf-16"))
    with pytest.raises(UserError, match="holds no tokenizer that loads"):
        loading.load_tokenizer(own_model)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"chat_template": TEMPLATE}, "give a file with the text of its chat_template alone"),
        ({"a": 1}, "give a file with a template"),
    ],
)
def test_a_json_file_as_a_recipes_template_is_refused(
    model: Path, tmp_path: Path, stated: Any, message: str
) -> None:
    path = tmp_path / "chat_template.json"
    path.write_text(json.dumps(stated))
    with pytest.raises(UserError, match=f"is JSON, not a template: {message}"):
        loading.load_tokenizer(model, str(path))


def test_a_byte_order_mark_before_a_system_message_is_left_out() -> None:
    assert (
        PromptsConfig.model_validate({"system_message": f"{MARK}Solve it."}).system_message
        == "Solve it."
    )


# Ends of turns


def _with_end(end: str, eos: str = "<|endoftext|>") -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<|im_end|>\n", end)
    tokenizer.eos_token = eos
    return tokenizer


def test_an_end_of_turn_that_is_no_end_token_is_named() -> None:
    (note,) = _noted(_with_end("<|im_end|>\n"), {0})
    assert note == (
        "the chat template ends an assistant's turn with <|im_end|>, which is none of the end "
        "tokens (0): answers go on after "
        "it; set model.end_tokens to ['<|im_end|>'] to end them there"
    )


@pytest.mark.parametrize(
    "end",
    ["<|im_end|>\n", "\n<|im_end|>", " <|im_end|><|im_start|>x", "</end> <|im_end|>", "\n", ""],
)
@pytest.mark.parametrize("ends", [{2}, {0, 2}])
def test_an_end_of_turn_that_is_an_end_token_is_nothing_to_note(end: str, ends: set[int]) -> None:
    assert _noted(_with_end(end), ends) == []


def test_an_end_of_turn_in_several_tokens_is_named() -> None:
    (note,) = _noted(_with_end("</end>\n"), {0, 2})
    assert note.startswith(
        "the chat template ends an assistant's turn with the text '</end>' and with none of the "
        "end tokens (0, 2)"
    )


def test_ends_of_turns_are_found_in_other_templates() -> None:
    """Templates with tools, a last message alone, trimming, or no assistant turn."""
    tokenizer = _with_end("<|im_end|>\n")
    plain = tokenizer.chat_template
    tokenizer.chat_template = plain.replace(
        "<|im_end|>", "{{ '<|im_end|>' if loop.last else '<|im_start|>' }}"
    )
    assert "with <|im_end|>, which" in _noted(tokenizer, {0})[0]
    tokenizer.chat_template = plain.replace("message['content'] }}", "message['content'] | trim }}")
    assert "with <|im_end|>, which" in _noted(tokenizer, {0})[0]
    tokenizer.chat_template = (
        "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}" + plain
    )
    assert _noted(tokenizer, {0}) == []


def test_the_end_of_a_message_in_a_channel_is_no_end_of_turn() -> None:
    """With <|end|> as an end token, GPT-OSS's answers would end after their reasoning."""
    from tokenizers import AddedToken

    tokenizer = _with_end("<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    assert "with <|end|>, which is none of the end tokens (0)" in _noted(tokenizer, {0})[0]
    tokenizer.add_tokens([AddedToken("<|channel|>", special=True)])
    assert _noted(tokenizer, {0}) == []


def test_a_model_without_an_end_token_is_noted() -> None:
    (note,) = _noted(tiny_tokenizer(), set(), "release")
    assert note.startswith(
        "the model has no end token, so every answer runs to its limit: set model.end_tokens"
    )


def _base_model(directory: Path) -> Path:
    """Give the tiny model the end token <|endoftext|>, as base models have, and ChatML."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 0}))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|endoftext|>"}))
    return directory


def test_an_end_of_turn_is_compared_with_all_end_tokens(
    own_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _base_model(own_model)
    _rendered(own_model, tmp_path / "a")
    line = (
        "the chat template ends an assistant's turn with <|im_end|>, which is none of the end "
        "tokens (0)"
    )
    assert capsys.readouterr().err.count(line) == 1
    _rendered(own_model, tmp_path / "b", 'model.end_tokens=["<|im_end|>"]')
    assert "ends an assistant's turn" not in capsys.readouterr().err
    _rendered(own_model, tmp_path / "c", "prompts.mode=release", "evaluate.prompt_mode=release")
    assert "ends an assistant's turn" not in capsys.readouterr().err
    path = own_model / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [0, 2]}))
    _rendered(own_model, tmp_path / "d")
    assert "ends an assistant's turn" not in capsys.readouterr().err


def test_further_end_tokens_shape_no_prompt(model: Path, tmp_path: Path) -> None:
    def fingerprints(*chosen: str) -> dict[str, str]:
        steps = Run(_recipe(model, *chosen), tmp_path, LineProgress()).states()
        return {step.name: step.identity.fingerprint for step, _ in steps}

    before, after = fingerprints(), fingerprints("model.end_tokens=['<|im_start|>']")
    same = {name for name in before if before[name] == after[name]}
    assert same == {"benchmark", "eval-prompts", "prompts", "contamination"}


def test_end_tokens_are_given_by_text_or_by_id(model: Path) -> None:
    assert loading.end_tokens(model) == {2}
    assert loading.end_tokens(model, ["<|im_start|>", 5]) == {1, 2, 5}


@pytest.mark.parametrize("name", ["<|im_stop|>", 262, -1, ""])
def test_an_end_token_that_is_none_of_the_model_is_named(
    model: Path, tmp_path: Path, name: Any
) -> None:
    with pytest.raises(
        UserError,
        match=f"model.end_tokens has {name!r}, which is not a token of the model".replace(
            "|", r"\|"
        ),
    ):
        _rendered(model, tmp_path / "run", f"model.end_tokens={json.dumps([name])}")


# Several chat templates by name


NAMED = [
    {"name": "tool_use", "template": "tools! {{ messages[0].content }}"},
    {"name": "default", "template": TEMPLATE},
]


def _name(directory: Path, form: str, names: list[dict[str, str]]) -> None:
    """Write named templates in one of the forms that models use."""
    (directory / "chat_template.jinja").unlink()
    if form == "list":
        _state(directory, names)
    elif form == "processor":
        (directory / templates.PROCESSOR).write_text(json.dumps({"chat_template": names}))
    else:
        for row in names:
            path = directory / "additional_chat_templates" / f"{row['name']}.jinja"
            path = directory / "chat_template.jinja" if row["name"] == "default" else path
            path.parent.mkdir(exist_ok=True)
            path.write_text(row["template"])


@pytest.mark.parametrize("form", ["list", "directory", "processor"])
def test_of_named_templates_default_is_used_and_exported(
    own_model: Path, tmp_path: Path, form: str
) -> None:
    _name(own_model, form, NAMED)
    facts = _rendered(own_model, tmp_path / "run")
    assert _prompts(tmp_path / "run")[0].text.startswith("<|im_start|>system")
    assert facts["prompts"]["chat_template"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert facts["eval-prompts"]["chat_template"] == facts["prompts"]["chat_template"]
    assert loading.template_to_export(ModelConfig(source=str(own_model)), own_model, {}) == TEMPLATE


@pytest.mark.parametrize("form", ["list", "directory", "processor"])
def test_named_templates_without_a_default_are_refused(
    own_model: Path, tmp_path: Path, form: str
) -> None:
    _name(own_model, form, NAMED[:1])
    with pytest.raises(
        UserError,
        match=(
            r"has several chat templates \(tool_use\) and none is named default: set "
            r"model.chat_template"
        ),
    ):
        _rendered(own_model, tmp_path / "run")
    modes = ("prompts.mode=release", "evaluate.prompt_mode=release")
    assert _rendered(own_model, tmp_path / "release", *modes)["prompts"]["chat_template"] is None
    own = tmp_path / "own.jinja"
    own.write_text(TEMPLATE)
    assert (
        _rendered(own_model, tmp_path / "own", f"model.chat_template={own}")["prompts"]["rows"] == 2
    )


def test_tools_in_template_arguments_select_its_template(own_model: Path) -> None:
    _name(own_model, "list", [{"name": "tool_use", "template": TEMPLATE + "tools"}, NAMED[1]])
    tokenizer = loading.load_tokenizer(own_model)
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    put = _put(tokenizer, "chat", tools=[tool])
    assert put(PROBLEM)[0].endswith("tools")
    assert put.template is not None
    assert (
        put.template.source == templates.in_use(tokenizer, {"tools": [tool]}) == TEMPLATE + "tools"
    )


@pytest.mark.parametrize("stated", ["{", "[]", '{"a": 1}', '{"chat_template": [1]}'])
def test_a_processors_template_that_cannot_be_read_is_named(own_model: Path, stated: str) -> None:
    (own_model / "chat_template.jinja").unlink()
    (own_model / templates.PROCESSOR).write_text(stated)
    with pytest.raises(
        UserError, match=r"chat_template.json holds no chat template that can be read"
    ):
        loading.load_tokenizer(own_model)


def test_named_templates_are_part_of_a_models_identity(own_model: Path) -> None:
    before = models.identify(ModelConfig(source=str(own_model)))
    (own_model / "additional_chat_templates").mkdir()
    (own_model / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    assert models.identify(ModelConfig(source=str(own_model))) != before


def test_one_template_of_the_models_own_is_copied_as_it_is(model: Path, tmp_path: Path) -> None:
    assert loading.template_to_export(ModelConfig(source=str(model)), model, {}) is None
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}")
    assert (
        loading.template_to_export(
            ModelConfig(source=str(model), chat_template=str(own)), model, {}
        )
        == own.read_text()
    )


# Control tokens in statements, as far as a run shows them


def test_control_tokens_in_statements_are_reported_and_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        "Count how often the text <|im_end|> occurs in the input.",
        "Strip <|im_start|> and <|endoftext|>.",
        "Add two numbers.",
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"question": row}) + "\n" for row in rows))
    facts = _rendered(model, tmp_path / "run", f"prompts.source={tmp_path / 'p.jsonl'}")
    assert facts["prompts"]["control_words"] == 2
    assert facts["prompts"]["control_words_unwritable"] == []
    assert (
        "2 prompts hold the text of control tokens (p/0 is the first): it stays text"
        in capsys.readouterr().err
    )
    for prompt, statement in zip(_prompts(tmp_path / "run"), rows, strict=True):
        assert statement in prompt.text
        assert [number for number in prompt.token_ids if number < 3] == [1, 2, 1, 2, 1]
        assert tiny_tokenizer().decode(prompt.token_ids) == prompt.text
