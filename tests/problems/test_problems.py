"""Problems: the built-in set, counted drops of sources, and prompts of each mode."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssd_ray.artifacts import shards
from ssd_ray.artifacts.problem_facts import EvalPromptFacts
from ssd_ray.config import EvaluateConfig, PromptsConfig
from ssd_ray.errors import UserError
from ssd_ray.problems import sources
from ssd_ray.problems.rendering import ContextBudget, release_text, render, renderer, user_message
from ssd_ray.schema import Problem, Prompt

PROBLEM = Problem(problem_id="x/1", source="x", statement="Add two numbers.")


def _load(**choices: object) -> tuple[list[Problem], sources.Tally]:
    tally = sources.Tally()
    return list(sources.training_problems(PromptsConfig.model_validate(choices), tally)), tally


def test_the_builtin_set_is_large_mixed_and_without_repeats() -> None:
    problems = list(sources.builtin("all"))
    assert len(problems) >= 120
    assert len({problem.problem_id for problem in problems}) == len(problems)
    assert len({" ".join(problem.statement.split()) for problem in problems}) == len(problems)
    assert {problem.difficulty for problem in problems} == set(sources.TIERS)
    kinds = Counter(problem.kind for problem in problems)
    assert kinds["stdin"] >= 50
    assert kinds["function"] >= 50
    assert all(len(problem.tests) >= 5 and problem.reference for problem in problems)


def test_training_and_evaluation_problems_are_disjoint() -> None:
    train, evaluation = (
        {problem.problem_id for problem in sources.builtin(split)} for split in ("train", "eval")
    )
    assert not train & evaluation
    assert len(train) >= 80
    assert len(evaluation) >= 40


@pytest.mark.slow
def test_every_reference_passes_its_tests() -> None:
    from ssd_ray.evaluation.judging.judge import Rules, check_references
    from ssd_ray.evaluation.sandbox import Limits, Sandbox

    rules = Rules(limits=Limits(time_s=10, memory_mib=1024, output_kib=1024))
    with Sandbox(floor="L0") as sandbox:
        assert check_references(sources.builtin("all"), rules, sandbox) == []


def test_duplicates_up_to_whitespace_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = ["Sum  it\nup.", "Sum it up.", "Sum it down."]
    path.write_text("".join(json.dumps({"question": row}) + "\n" for row in rows))
    problems, tally = _load(source=str(path))
    assert [problem.statement for problem in problems] == ["Sum  it\nup.", "Sum it down."]
    assert (tally.read, dict(tally.dropped)) == (3, {"duplicate statement": 1})
    assert len(_load(source=str(path), deduplicate=False)[0]) == 3


def test_jsonl_and_parquet_give_the_same_problems(tmp_path: Path) -> None:
    rows = [
        {"key": "a", "task": "One.", "stub": "def f():"},
        {"key": "b", "task": "Two.", "stub": ""},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    named = {"id_column": "key", "statement_column": "task", "starter_code_column": "stub"}
    first, second = (
        _load(source=str(tmp_path / name), **named)[0] for name in ("p.jsonl", "q.parquet")
    )
    assert [(p.problem_id, p.kind, p.statement) for p in first] == [
        ("a", "function", "One."),
        ("b", "stdin", "Two."),
    ]
    assert [(p.problem_id, p.kind, p.statement) for p in second] == [
        (p.problem_id, p.kind, p.statement) for p in first
    ]


def test_the_limit_counts_what_is_left_after_filtering() -> None:
    problems, _ = _load(limit=3)
    assert len(problems) == 3


def test_a_limit_takes_from_every_difficulty() -> None:
    problems, _ = _load(limit=30)
    assert {problem.difficulty for problem in problems} == set(sources.TIERS)


def test_rstar_rows_are_filtered_by_is_passed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "question": f"Task {number // 2}.",
            "starter_code": "",
            "question_id": number,
            "is_passed": number % 3 > 0,
        }
        for number in range(12)
    ]
    asked = {}

    def load_dataset(*args: str, **kwargs: object) -> list[dict[str, object]]:
        asked.update(kwargs, args=args)
        return rows

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    problems, tally = _load(source="rstar-coder")
    assert asked["args"] == ("microsoft/rStar-Coder", "seed_sft")
    assert asked["streaming"] is True
    assert (tally.read, dict(tally.dropped)) == (
        12,
        {"stored solution did not pass": 4, "duplicate statement": 2},
    )
    assert len(problems) == 6
    assert len(_load(source="rstar-coder", only_passed=False, deduplicate=False)[0]) == 12


@pytest.mark.parametrize(
    ("content", "choices", "message"),
    [
        ("", {}, "gave no prompt"),
        (
            '{"question": "a"}\n{"question": ""}\n',
            {},
            r"p.jsonl, row 2: field 'question' must hold text, not empty text",
        ),
        (
            '{"question": "a"}\n\n{"question": 7}\n',
            {},
            r"p.jsonl, row 3: field 'question' must hold text, not 7",
        ),
        (
            '{"q": "a"}\n',
            {},
            r"row 1: there is no column 'question' \(columns: q\); set prompts.statement_column",
        ),
        ('{"question": "a"}\n{"question"', {}, r"p.jsonl, row 2: not JSONL"),
        ("[1]\n", {}, "row 1: not a JSON object"),
        (
            '{"question": "a", "k": 1}\n{"question": "b", "k": 1}\n',
            {"id_column": "k"},
            "row 2: field 'k': the id '1' occurs twice",
        ),
        (
            '{"question": "a", "k": null}\n',
            {"id_column": "k"},
            "row 1: field 'k' must hold text, not nothing",
        ),
        (
            '{"question": "a"}\n',
            {"id_column": "k"},
            r"row 1: there is no column 'k' \(columns: question\); set prompts.id_column",
        ),
        (
            '{"question": "a\\u0000b"}\n',
            {},
            "row 1: field 'question' holds a NUL character, at place 1",
        ),
        (
            '{"question": "a\\ud800"}\n',
            {},
            r"row 1: field 'question' holds text that is not Unicode: '\\ud800'",
        ),
        (
            '{"question": "a", "starter_code": "\\udfff"}\n',
            {},
            "row 1: field 'starter_code' holds text that is not Unicode",
        ),
        (
            '{"question": "a", "starter_code": 3}\n',
            {},
            "row 1: field 'starter_code' must hold text, not 3",
        ),
        ('{"question": "a", "k": "\\u0000"}\n', {"id_column": "k"}, "row 1: field 'k' holds a NUL"),
        (
            json.dumps({"question": "a", "k": "x" * 100_000}) + "\n",
            {"id_column": "k"},
            "p.jsonl, row 1: field 'k' holds 100,000 characters; at most 512",
        ),
        (
            '{"question": "a", "k": "b\\nc"}\n',
            {"id_column": "k"},
            r"row 1: field 'k' holds the control character '\\n', at place 1",
        ),
        (
            '{"question": "a", "k": "b\\u2028c"}\n',
            {"id_column": "k"},
            "row 1: field 'k' holds the control character",
        ),
        (
            '{"question": "a", "difficulty": {"x": 1}}\n',
            {},
            r"row 1: field 'difficulty' must hold text or a number, not \{'x': 1\}",
        ),
        (
            '{"question": "a", "difficulty": "a\\tb"}\n',
            {},
            "row 1: field 'difficulty' holds the control character",
        ),
        ('{"question": "a"}\n', {"tests_column": "tests"}, "row 1: there is no column 'tests'"),
        (
            '{"question": "a", "tests": [{"input": "1"}]}\n',
            {"tests_column": "tests"},
            "row 1: field 'tests', test 1: it must hold",
        ),
        ('{"question": "a"}\n', {"split": "eval"}, "built-in set only"),
    ],
)
def test_a_bad_prompt_file_is_refused_in_one_sentence(
    tmp_path: Path, content: str, choices: dict[str, str], message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        _load(source=str(path), **choices)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_a_late_mistake_in_a_file_is_reported_before_any_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"question": f"Add {number}.", "k": number} for number in range(3000)]
    for spoilt, message in (
        ({"question": ""}, "row 3001: field 'question'"),
        ({"question": "a", "k": 7}, "row 3001: field 'k': the id"),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, spoilt]))
        tally, chosen = (
            sources.Tally(),
            PromptsConfig(source=str(path), id_column="k" if "k" in spoilt else None),
        )
        with pytest.raises(UserError, match=message):
            next(sources.training_problems(chosen, tally))
        assert tally.read == 0
        limited = list(sources.training_problems(chosen.model_copy(update={"limit": 2000}), tally))
        assert len(limited) == 2000, "rows beyond a limit are not checked"


def test_first_rows_of_a_prompt_file_are_checked_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"question": "Add {number}."}}\n' for number in range(9)) + "{\n")
    chosen = PromptsConfig(source=str(path))
    with pytest.raises(UserError, match=r"row 10: not JSONL"):
        sources.check_file(chosen)
    sources.check_file(chosen.model_copy(update={"limit": 9}))
    monkeypatch.setattr(sources, "CHECK_S", -1.0)
    sources.check_file(chosen)
    sources.check_file(PromptsConfig())


def test_a_difficulty_may_be_a_number(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    difficulties = [None, "", 0, 1400, 2.5, "hard"]
    path.write_text(
        "".join(
            json.dumps({"question": f"Add {n}.", "difficulty": each}) + "\n"
            for n, each in enumerate(difficulties)
        )
    )
    assert [problem.difficulty for problem in _load(source=str(path))[0]] == [
        "unknown",
        "unknown",
        "0",
        "1400",
        "2.5",
        "hard",
    ]


@pytest.mark.parametrize(
    "source",
    ["rstar-coder", "hub:microsoft/rStar-Coder:seed_sft", "hub:microsoft/rStar-Coder:seed_sft@v1"],
)
def test_a_run_keeps_its_first_commit_of_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """The hub changes between two attempts; positions keep their prompts."""
    commits = {"first": ["Add.", "Halve."], "second": ["Print.", "Add."]}
    head, asked = ["first"], []

    class Hub:
        def dataset_info(self, repo_id: str, *, revision: str | None = None) -> SimpleNamespace:
            asked.append((repo_id, revision))
            return SimpleNamespace(sha=head[0])

    def load_dataset(
        path: str,
        name: str | None,
        *,
        split: str,
        revision: str | None,
        streaming: bool,
        columns: list[str] | None = None,
    ) -> list[dict[str, object]]:
        assert (path, name, split, streaming) == (
            "microsoft/rStar-Coder",
            "seed_sft",
            "train",
            True,
        )
        return [{"question": text, "is_passed": True} for text in commits[revision or head[0]]]

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)

    def attempt(source: str, run: str) -> tuple[list[str], str | None]:
        tally, chosen = sources.Tally(), PromptsConfig(source=source)
        problems = sources.training_problems(
            chosen, tally, note=tmp_path / run / "prompts-revision"
        )
        return [problem.statement for problem in problems], tally.revision

    assert attempt(source, "run") == (["Add.", "Halve."], "first")
    assert (tmp_path / "run" / "prompts-revision").read_text() == f"{source} first\n"
    head[0] = "second"
    assert attempt(source, "run") == (["Add.", "Halve."], "first")
    assert attempt(source, "other") == (["Print.", "Add."], "second")
    assert asked == [("microsoft/rStar-Coder", "v1" if "@" in source else None)] * 2
    assert (
        attempt(
            f"{source}#train"
            if source.startswith("hub:")
            else "hub:microsoft/rStar-Coder:seed_sft",
            "run",
        )[1]
        == "second"
    )


def test_a_hub_without_a_commit_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub:
        def dataset_info(self, repo_id: str, *, revision: str | None = None) -> SimpleNamespace:
            raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    message = (
        r"'rstar-coder' could not be streamed from the hub \(OSError: no network\): check name "
        r"and network"
    )
    with pytest.raises(UserError, match=message):
        next(
            sources.training_problems(
                PromptsConfig(source="rstar-coder"), sources.Tally(), note=tmp_path / "note"
            )
        )
    assert not (tmp_path / "note").exists()


def test_a_data_set_of_the_hub_is_streamed_at_a_named_revision(tmp_path: Path) -> None:
    """A directory replaces the hub, since `datasets` reads both alike."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"question": ["Add.", "Add.", "Halve."], "starter_code": ["", "", ""]}),
        tmp_path / "train.parquet",
    )
    chosen, tally = PromptsConfig(source=f"hub:{tmp_path}@main"), sources.Tally()
    assert [problem.statement for problem in sources.training_problems(chosen, tally)] == [
        "Add.",
        "Halve.",
    ]
    assert (tally.read, tally.dropped["duplicate statement"]) == (3, 1)
    for source, message in (
        ("hub:@main", r"is not of the form hub:OWNER/NAME"),
        (f"hub:{tmp_path}@main#nowhere", "could not be streamed"),
        (f"hub:{tmp_path / 'none'}@main", "could not be streamed"),
    ):
        with pytest.raises(UserError, match=message):
            list(sources.training_problems(PromptsConfig(source=source), sources.Tally()))


def test_unreadable_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for source in ("x" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(UserError, match=r"prompts.source .*is not a usable path"):
            sources.identify(source)
    far = pa.table({"question": ["Add."], "when": pa.array([2**62], pa.timestamp("us"))})
    pq.write_table(far, tmp_path / "far.parquet")
    with pytest.raises(
        UserError, match=r"far.parquet, row 1: field 'when' holds a value that Python cannot"
    ):
        list(
            sources.training_problems(
                PromptsConfig(source=str(tmp_path / "far.parquet")), sources.Tally()
            )
        )
    twice = pa.Table.from_arrays(
        [pa.array(["Add."]), pa.array(["Halve."])], names=["question", "question"]
    )
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"has two columns named 'question'"):
        list(
            sources.training_problems(
                PromptsConfig(source=str(tmp_path / "twice.parquet")), sources.Tally()
            )
        )


def test_text_that_is_not_utf8_names_its_parquet_row_and_column(tmp_path: Path) -> None:
    spoilt = pa.array([b"fine", b"\xff\xfe", b"fine"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": spoilt}), tmp_path / "p.parquet")
    with pytest.raises(
        UserError, match=r"p.parquet, row 2: field 'question' holds text that is not UTF-8"
    ):
        _load(source=str(tmp_path / "p.parquet"))


def test_a_prompt_file_can_carry_tests(tmp_path: Path) -> None:
    rows = [
        {"question": "Double it.", "tests": [{"input": "2", "output": "4"}]},
        {
            "question": "Return it.",
            "entry_point": "same",
            "tests": [{"arguments": [1], "expected": 1}],
            "notes": "x",
        },
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems, _ = _load(source=str(tmp_path / "p.jsonl"), tests_column="tests")
    assert [(problem.kind, problem.entry_point, len(problem.tests)) for problem in problems] == [
        ("stdin", None, 1),
        ("function", "same", 1),
    ]
    assert not any(problem.tests for problem in _load(source=str(tmp_path / "p.jsonl"))[0])


def test_a_missing_or_corrupt_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no JSONL or Parquet file there"):
        _load(source=str(tmp_path / "none.jsonl"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        _load(source=str(tmp_path / "bad.parquet"))


def test_a_benchmark_without_tests_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "humaneval", lambda: iter([PROBLEM]))
    arms = {"base": {"model": "base"}}
    with pytest.raises(UserError, match="x/1 has no tests"):
        list(
            sources.benchmark_problems(
                EvaluateConfig.model_validate({"arms": arms, "benchmarks": ["humaneval"]})
            )
        )


def test_humaneval_has_its_164_problems() -> None:
    problems = list(sources.humaneval())
    assert len(problems) == 164
    assert all(problem.kind == "asserts" and problem.entry_point for problem in problems)


def test_modes_differ_by_template_and_system_message_only() -> None:
    from tests.support.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    paper, _ = renderer(tokenizer, "paper", "Use a block.", {}, field="prompts.mode")(PROBLEM)
    chat, _ = renderer(tokenizer, "chat", "Use a block.", {}, field="prompts.mode")(PROBLEM)
    release, ids = renderer(tokenizer, "release", "Use a block.", {}, field="prompts.mode")(PROBLEM)
    turn = f"<|im_start|>user\n{user_message(PROBLEM)}<|im_end|>\n<|im_start|>assistant\n"
    assert paper == f"<|im_start|>system\nUse a block.<|im_end|>\n{turn}"
    assert chat == turn
    assert release == release_text(PROBLEM)
    assert "<|im_start|>" not in release
    assert tokenizer.decode(ids) == release


def test_release_text_follows_the_kind_of_the_problem() -> None:
    assert release_text(PROBLEM).endswith("```python\n# YOUR CODE HERE\n```")
    with_starter = Problem(
        problem_id="x", source="x", statement="S.", kind="function", starter_code="def f():"
    )
    assert release_text(with_starter).endswith("delimiters.\n```python\ndef f():\n```")
    number = Problem(problem_id="x", source="x", statement="How many?", kind="numeric")
    assert release_text(number) == user_message(number)


def _render(out: Path, room: ContextBudget) -> dict[str, int]:
    from tests.support.tiny import tiny_tokenizer

    return render(
        [PROBLEM], renderer(tiny_tokenizer(), "paper", "s", {}, field="prompts.mode"), room, out=out
    )


def test_the_token_ids_are_those_of_the_text(tmp_path: Path) -> None:
    from tests.support.tiny import tiny_tokenizer

    facts = _render(tmp_path, ContextBudget(max_model_len=500))
    (prompt,) = shards.read_rows(tmp_path, Prompt)
    assert tiny_tokenizer().decode(prompt.token_ids) == prompt.text
    length = len(prompt.token_ids)
    counts = {"rows": 1, "tokens": length, "longest": length, "skipped": 0, "truncated": 0}
    assert facts == EvalPromptFacts(**counts)


def test_a_prompt_without_room_for_an_answer_is_named(
    tmp_path: Path,
) -> None:
    whole = _render(tmp_path, ContextBudget(max_model_len=500)).longest
    assert _render(tmp_path, ContextBudget(max_model_len=whole + 1)).rows == 1
    with pytest.raises(
        UserError,
        match=rf"prompt x/1 has {whole} tokens and model.max_model_len {whole} must hold it",
    ):
        _render(tmp_path, ContextBudget(max_model_len=whole))


def test_a_long_prompt_is_skipped_or_cut_and_counted(
    tmp_path: Path,
) -> None:
    _render(tmp_path / "whole", ContextBudget(max_model_len=500))
    (whole,) = shards.read_rows(tmp_path / "whole", Prompt)
    for answer_tokens, kept in ((4, 16), (1000, 10)):
        out = tmp_path / str(kept)
        facts = _render(
            out,
            ContextBudget(
                max_model_len=20, answer_tokens=answer_tokens, over_length="truncate-left"
            ),
        )
        counts = {"rows": 1, "tokens": kept, "longest": kept, "skipped": 0, "truncated": 1}
        assert facts == EvalPromptFacts(**counts)
        (cut,) = shards.read_rows(out, Prompt)
        assert cut.token_ids == whole.token_ids[-kept:]
    with pytest.raises(UserError, match=r"all 1 prompts are too long for model.max_model_len 20"):
        _render(tmp_path / "none", ContextBudget(max_model_len=20, over_length="skip"))
    assert ContextBudget(max_model_len=20, over_length="skip").fit("x", (1,) * 20) is None
    assert ContextBudget(max_model_len=20, over_length="skip").fit("x", (1,) * 19) == (1,) * 19


def test_a_model_without_a_template_is_sent_to_release_mode() -> None:
    from tests.support.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(
        UserError, match=r"prompts.mode paper needs a chat template .* or use prompts.mode release"
    ):
        renderer(tokenizer, "paper", "s", {}, field="prompts.mode")
    with pytest.raises(
        UserError,
        match=(
            r"evaluate.prompt_mode chat needs a chat template .* or use evaluate.prompt_mode "
            r"release"
        ),
    ):
        renderer(tokenizer, "chat", "s", {}, field="evaluate.prompt_mode")
    text, _ = renderer(tokenizer, "release", "s", {}, field="evaluate.prompt_mode")(PROBLEM)
    assert text == release_text(PROBLEM)


def test_a_template_argument_that_ssd_ray_sets_is_refused() -> None:
    from tests.support.tiny import tiny_tokenizer

    for name in ("tokenize", "add_generation_prompt"):
        with pytest.raises(
            UserError, match=f"template_arguments holds '{name}', which ssd_ray sets"
        ):
            renderer(tiny_tokenizer(), "chat", "s", {name: False}, field="prompts.mode")


def test_a_failing_template_names_the_right_remedy() -> None:
    from tests.support.tiny import tiny_tokenizer

    for template, message in (
        ("{% if %}", "the chat template is not Jinja"),
        ("{{ 1 + 'a' }}", "the chat template fails for x/1"),
    ):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=message):
            renderer(tokenizer, "chat", "s", {}, field="prompts.mode")(PROBLEM)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('no system role') }}",
            r"refuses the prompt of x/1 \(no system role\): use prompts.mode chat",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "leaves out the system message of x/1",
        ),
    ],
)
def test_a_template_without_a_system_role_names_the_field(template: str, message: str) -> None:
    from tests.support.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"prompts.mode paper: the chat template {message}"):
        renderer(tokenizer, "paper", "Use a block.", {}, field="prompts.mode")(PROBLEM)
