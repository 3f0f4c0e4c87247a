"""Contamination: what a prompt shares with a benchmark is found as brute force finds it, phrases are not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import artifacts, recipes
from ssd_ray.errors import UserError
from ssd_ray.pipeline import Pipeline
from ssd_ray.problems import sources
from ssd_ray.problems.contamination import FEWEST_WORDS, PHRASE_PROBLEMS, WORDS, Benchmarks, check, words
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Problem, Prompt

LONG = "Given an array of integers, return the length of its longest run of equal neighbours, counted from the left."
SHORT = "Print the sum of all even numbers below ten."


def _problem(number: int, statement: str, source: str = "bench") -> Problem:
    return Problem(problem_id=f"{source}/{number}", source=source, statement=statement)


def _runs(statement: str, length: int) -> set[tuple[str, ...]]:
    found = words(statement)
    return {tuple(found[start : start + length]) for start in range(len(found) - length + 1)}


def _overlaps(one: str, other: str) -> bool:
    length = min(WORDS, len(words(one)), len(words(other)))
    return length >= FEWEST_WORDS and bool(_runs(one, length) & _runs(other, length))


statements = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=24).map(" ".join)


@given(prompt=statements, benchmark=st.lists(statements, min_size=1, max_size=PHRASE_PROBLEMS))
def test_an_overlap_is_found_exactly_where_brute_force_finds_one(prompt: str, benchmark: list[str]) -> None:
    found = Benchmarks(_problem(number, statement) for number, statement in enumerate(benchmark)).find(prompt)
    assert (found is not None) == any(_overlaps(prompt, statement) for statement in benchmark)
    if found is not None:
        statement = benchmark[int(found.problem_id.removeprefix("bench/"))]
        assert _overlaps(prompt, statement)
        assert f" {found.words} " in f" {' '.join(words(statement))} "
        assert f" {found.words} " in f" {' '.join(words(prompt))} "
        assert 0 < found.share <= 1


def test_case_punctuation_and_line_breaks_hide_nothing() -> None:
    found = Benchmarks([_problem(0, LONG)]).find(f"A story.\n\n**{LONG.upper().replace(' ', chr(10))}** The end!")
    assert found is not None
    assert found.share == 1.0
    assert Benchmarks([_problem(0, LONG)]).find(" ".join(LONG.split()[2:12])) is not None, "a part of at least eight words"
    assert Benchmarks([_problem(0, LONG)]).find(" ".join(reversed(LONG.split()))) is None


def test_a_short_problem_is_found_whole_within_a_long_prompt() -> None:
    benchmarks = Benchmarks([_problem(0, SHORT), _problem(1, "Add two numbers.")])
    found = benchmarks.find(f"Here is your task for today, please do it well. {SHORT} Thank you.")
    assert found is not None
    assert found.problem_id == "bench/0"
    assert benchmarks.find(f"Add two numbers. {' '.join(map(str, range(20)))}") is None, "fewer than eight words say nothing"


def test_a_phrase_of_the_format_marks_nothing_and_is_counted_by_benchmark() -> None:
    phrase = "The input is given from standard input in the following format with every value an integer"
    many = [_problem(number, f"{phrase} task {number}") for number in range(PHRASE_PROBLEMS + 1)]
    assert Benchmarks(many).find(f"{phrase} and more") is None
    assert Benchmarks(many[:-1]).find(f"{phrase} and more") is not None
    twice = [_problem(number, LONG, source) for number, source in enumerate(("mbpp", "mbpp+", "a", "b", "c"))]
    assert Benchmarks(twice).find(LONG) is not None, "the same problem in five benchmarks is no phrase"


def _artifacts(tmp_path: Path, statements: list[str], problems: list[Problem]) -> tuple[Path, Path]:
    prompts = [
        Prompt(prompt_id=f"p{number}", source="s", difficulty="d", text=text, token_ids=(1,), statement=text)
        for number, text in enumerate(statements)
    ]
    artifacts.write_shard(tmp_path / "prompts", "a", prompts, Prompt)
    artifacts.write_shard(tmp_path / "benchmark", "a", problems, Problem)
    return tmp_path / "prompts", tmp_path / "benchmark"


def test_an_overlap_is_refused_by_default_and_told_with_its_mend(tmp_path: Path) -> None:
    places = _artifacts(tmp_path, ["Something else.", LONG], [_problem(7, LONG), _problem(8, SHORT)])
    with pytest.raises(
        UserError, match=r"1 of 2 training prompts .* \(1 with bench\), such as p1 with bench/7 \(100%: 'given an"
    ) as e:
        check(*places, "refuse", out=tmp_path / "out")
    assert "prompts.contamination=drop" in str(e.value)
    facts = check(*places, "allow", out=tmp_path / "out")
    assert (facts["rows"], facts["contaminated"]) == (2, 1)
    assert facts["benchmarks"] == {"bench": {"problems": 2, "contaminated": 1}}
    (line,) = map(json.loads, (tmp_path / "out" / "overlaps.jsonl").read_text().splitlines())
    assert (line["prompt_id"], line["problem_id"], line["share"]) == ("p1", "bench/7", 1.0)


def test_what_is_dropped_is_counted_and_nothing_is_left_to_refuse() -> None:
    from ssd_ray.config import PromptsConfig

    problems = list(sources.builtin("train"))
    tally = sources.Tally()
    benchmarks = Benchmarks([_problem(0, problems[3].statement), _problem(1, problems[5].statement)])
    kept = list(sources.training_problems(PromptsConfig(contamination="drop"), tally, benchmarks))
    assert tally.dropped == Counter({"overlaps bench": 2})
    assert len(kept) == len(problems) - 2
    assert not any(benchmarks.find(problem.statement) for problem in kept)


def test_the_built_in_sets_and_the_quick_start_pass_honestly() -> None:
    """Every built-in training problem against its own evaluation split and HumanEval, and each is found against itself."""
    train, evaluated = list(sources.builtin("train")), [*sources.builtin("eval"), *sources.humaneval()]
    benchmarks = Benchmarks(evaluated)
    assert not [problem.problem_id for problem in train if benchmarks.find(problem.statement)]
    long = [problem for problem in evaluated if len(words(problem.statement)) >= WORDS]
    assert len(long) > 0.9 * len(evaluated)
    assert all(benchmarks.find(problem.statement) for problem in long)


def test_the_check_comes_before_sampling_and_leaves_samples_as_they_are(tmp_path: Path) -> None:
    """Allowing what was refused, or evaluating on something else, does not make the samples stale."""
    runs = [
        {step.name: step for step in Pipeline(recipes.load("quickstart", overrides), tmp_path, LineProgress()).steps}
        for overrides in ([], ["prompts.contamination=allow"], ["evaluate.limit=3"], ["prompts.contamination=drop"])
    ]
    assert all("contamination" in {step.name for step in steps["samples"].closure()} for steps in runs)
    base, allowed, other, dropped = ({name: step.identity.fingerprint for name, step in steps.items()} for steps in runs)
    assert base["samples"] == allowed["samples"] == other["samples"] != dropped["samples"]
    assert len({steps["contamination"] for steps in (base, allowed, other, dropped)}) == 4
