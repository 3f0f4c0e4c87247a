"""Overlaps of prompts and benchmarks match brute force, and common phrases do not count."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import progress, recipes
from ssd_ray.artifacts import manifests, shards
from ssd_ray.artifacts.problem_facts import BenchmarkOverlaps
from ssd_ray.errors import UserError
from ssd_ray.pipeline import graph
from ssd_ray.problems import sources
from ssd_ray.problems.contamination import (
    FEWEST_WORDS,
    PHRASE_PROBLEMS,
    WORDS,
    Benchmarks,
    check,
)
from ssd_ray.problems.word_runs import units
from ssd_ray.schema import Problem, Prompt

LONG = (
    "Given an array of integers, return the length of its longest run of equal neighbours, "
    "counted from the left."
)
SHORT = "Print the sum of all even numbers below ten."


def _problem(number: int, statement: str, source: str = "bench") -> Problem:
    return Problem(problem_id=f"{source}/{number}", source=source, statement=statement)


CHINESE = (
    "给定一个长度为不超过十万的整数数组，请你编写程序求出其中和最大的连续子数组，并输出这个最大的"
    "和。"
)
JAPANESE = (
    "整数が並んだ配列が与えられる。隣り合う要素の差の絶対値の総和が最小になるように要素を並べ替え"
    "よ。"
)
KOREAN = (
    "정수로이루어진배열이주어질때이웃한원소의차이의합이가장작아지도록원소를재배열하는프로그램을작"
    "성하시오."
)
THAI = "จงเขียนโปรแกรมที่รับจำนวนเต็มหลายจำนวนแล้วแสดงผลรวมของจำนวนคู่ทั้งหมดที่มีค่ามากกว่าค่าเฉลี่ยของจำนวนเหล่านั้น"
LAO = "ຈົ່ງຂຽນໂປຣແກຣມທີ່ຮັບຈຳນວນເຕັມຫຼາຍຈຳນວນແລ້ວສະແດງຜົນລວມຂອງຈຳນວນຄູ່ທັງໝົດທີ່ມີຄ່າຫຼາຍກວ່າຄ່າສະເລ່ຍ"
KHMER = "ចូរសរសេរកម្មវិធីដែលទទួលចំនួនគត់ច្រើនហើយបង្ហាញផលបូកនៃចំនួនគូទាំងអស់ដែលធំជាងមធ្យមភាគនៃចំនួនទាំងនោះ"
MIXED = (
    "给定一个 array of n integers，请输出 the sum 之中最大的 subarray 的和，要求 time limit 为 1 "
    "秒以内完成计算。"
)
SPACELESS = {
    "zh": CHINESE,
    "ja": JAPANESE,
    "ko": KOREAN,
    "th": THAI,
    "lo": LAO,
    "km": KHMER,
    "mixed": MIXED,
}

_WEIGHTS = {"字": 0.5, "ก": 1 / 3}
"""Letters of scripts without spaces, with their length in words. Any other piece has length 1."""


def _cut(statement: str) -> list[str]:
    """Split a statement into its words and the letters above."""
    return statement.replace("字", " 字 ").replace("ก", " ก ").split()


def _weight(pieces: list[str]) -> float:
    return round(sum(_WEIGHTS.get(piece, 1) for piece in pieces), 6)


def _parts(pieces: list[str], length: float) -> set[tuple[str, ...]]:
    """Return all contiguous parts that weigh at least `length`."""
    ends = range(len(pieces) + 1)
    return {
        tuple(pieces[i:j]) for i in ends for j in ends if i < j and _weight(pieces[i:j]) >= length
    }


def _overlaps(one: str, other: str) -> bool:
    pieces = _cut(one), _cut(other)
    length = min(WORDS, *map(_weight, pieces))
    if length < FEWEST_WORDS:
        return bool(pieces[0]) and pieces[0] == pieces[1]
    return bool(_parts(pieces[0], length) & _parts(pieces[1], length))


statements = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=24).map(" ".join)
mixtures = st.lists(st.sampled_from(["a ", "字", "字", "ก"]), min_size=1, max_size=40).map("".join)


@given(
    prompt=statements | mixtures,
    benchmark=st.lists(statements | mixtures, min_size=1, max_size=PHRASE_PROBLEMS),
)
def test_an_overlap_is_found_exactly_where_brute_force_finds_one(
    prompt: str, benchmark: list[str]
) -> None:
    result = Benchmarks(
        _problem(number, statement) for number, statement in enumerate(benchmark)
    ).find(prompt)
    assert (result is not None) == any(_overlaps(prompt, statement) for statement in benchmark)
    if result is not None:
        statement = benchmark[int(result.problem_id.removeprefix("bench/"))]
        assert _overlaps(prompt, statement)
        shared = " ".join(_cut(result.words))
        assert f" {shared} " in f" {' '.join(_cut(statement))} "
        assert f" {shared} " in f" {' '.join(_cut(prompt))} "
        assert 0 < result.share <= 1


@pytest.mark.parametrize("language", SPACELESS)
def test_an_overlap_is_found_in_a_script_without_spaces(language: str) -> None:
    statement = SPACELESS[language]
    benchmarks = Benchmarks([_problem(0, statement)])
    same = benchmarks.find(statement)
    assert same is not None
    assert same.share == 1.0
    inside = benchmarks.find(f"Solve this task. {statement}\n\nThank you. 谢谢。")
    assert inside is not None, "within another text"
    half = statement[len(statement) // 3 :]
    assert benchmarks.find(half) is not None, "a part"
    others = [other for name, other in SPACELESS.items() if name != language]
    assert not any(benchmarks.find(other) for other in (*others, LONG, SHORT, statement[::-1]))


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "mixed"])
def test_breaks_punctuation_and_widths_hide_nothing(language: str) -> None:
    benchmarks = Benchmarks([_problem(0, SPACELESS[language])])
    broken = "\n".join(SPACELESS[language].replace("，", "、 ").replace("。", "")).replace(
        "1", "１"
    )
    if language == "mixed":
        broken = SPACELESS[language].replace("，", "\n").upper().replace("1", "１")
    result = benchmarks.find(broken)
    assert result is not None
    assert result.share == 1.0


def test_two_problems_in_chinese_that_open_alike_do_not_overlap() -> None:
    benchmarks = Benchmarks(
        [
            _problem(
                0,
                (
                    "给定一个整数数组 nums 和一个整数目标值 "
                    "target，请你在该数组中找出和为目标值的两个整数。"
                ),
            )
        ]
    )
    assert (
        benchmarks.find("给定一个整数数组 nums 和一个整数目标值 k，返回数组中不同数对的数目。")
        is None
    )
    assert (
        benchmarks.find(
            "请你在该数组中找出最大值，并输出它的位置和出现的次数，若有多个则输出最小的。"
        )
        is None
    )


def test_the_length_of_a_shared_run_is_reported_exactly() -> None:
    words = Benchmarks(
        [_problem(0, LONG), _problem(1, SHORT), _problem(2, CHINESE), _problem(3, MIXED)]
    )
    lengths = {
        statement: result.length
        for statement in (LONG, SHORT, CHINESE)
        if (result := words.find(statement))
    }
    assert lengths == {LONG: "13 words", SHORT: "9 words", CHINESE: "26 characters"}
    mixed = words.find(MIXED)
    assert mixed is not None
    assert mixed.length == "7 words and 12 characters"
    chinese = words.find(CHINESE)
    assert chinese is not None
    assert chinese.words == "给定一个长度为不超过十万的整数数组请你编写程序求出其"


@pytest.mark.parametrize(
    ("statement", "same"),
    [
        ("Print the first hundred prime numbers.", "print the FIRST hundred  prime numbers"),
        ("Sort.", "sort"),
        ("求两个整数的和。", "求两个整数的和"),
        ("แสดงผลรวม", "แสดงผลรวม"),
        ("x + y = ?", "X+Y=?"),
        ("(+) (*)", "(+)\n(*)"),
        ("**Print** the sum of `a`, `b`.", "Print the sum of a, b"),
        ("# Sort\n\n- ascending\n- stable", "Sort: ascending, stable!"),
        ("Print $a + b$.", "print a+b"),
        ("A two-digit number?", "a two digit number"),
        ("x = -1", "x=-1"),
    ],
)
def test_an_identical_statement_of_any_length_is_found(statement: str, same: str) -> None:
    benchmarks = Benchmarks([_problem(0, statement)])
    result = benchmarks.find(same)
    assert result is not None
    assert result.share == 1.0
    assert benchmarks.find(f"{same} Then double it.") is None, (
        "under eight words only the same statement"
    )
    assert (
        Benchmarks([_problem(n, statement) for n in range(PHRASE_PROBLEMS + 1)]).find(same) is None
    ), "a phrase of the format"


@pytest.mark.parametrize(
    ("statement", "other"),
    [
        ("Compute a + b.", "Compute a - b."),
        ("Compute a+b.", "Compute a-b."),
        ("What is 2*3?", "What is 2/3?"),
        ("What is 2*3?", "What is 2**3?"),
        ("Print a<b.", "Print a>=b."),
        ("Print -1", "Print 1"),
        ("`x += 1`", "`x -= 1`"),
        ("f(x) = -x", "f(x) = x"),
        ("Add 😀.", "Add 😎."),
        ("求 a×b", "求 a÷b"),
        ("x ≤ y", "x ≥ y"),
    ],
)
def test_short_statements_with_other_operators_are_not_the_same(statement: str, other: str) -> None:
    assert Benchmarks([_problem(0, statement)]).find(other) is None
    assert Benchmarks([_problem(0, other)]).find(statement) is None


def test_statements_without_any_sign_are_not_the_same() -> None:
    assert Benchmarks([_problem(0, " \n")]).find("") is None


def words(statement: str) -> list[str]:
    """Return the words of a statement; all tests below are in English."""
    return list(units(statement).texts)


def test_case_punctuation_and_line_breaks_hide_nothing() -> None:
    result = Benchmarks([_problem(0, LONG)]).find(
        f"A story.\n\n**{LONG.upper().replace(' ', chr(10))}** The end!"
    )
    assert result is not None
    assert result.share == 1.0
    assert Benchmarks([_problem(0, LONG)]).find(" ".join(LONG.split()[2:12])) is not None, (
        "a part of at least eight words"
    )
    assert Benchmarks([_problem(0, LONG)]).find(" ".join(reversed(LONG.split()))) is None


def test_a_short_problem_is_found_inside_a_long_prompt() -> None:
    benchmarks = Benchmarks([_problem(0, SHORT), _problem(1, "Add two numbers.")])
    result = benchmarks.find(f"Here is your task for today, please do it well. {SHORT} Thank you.")
    assert result is not None
    assert result.problem_id == "bench/0"
    assert benchmarks.find(f"Add two numbers. {' '.join(map(str, range(20)))}") is None, (
        "under eight words only the same statement counts"
    )


def test_a_phrase_of_the_format_marks_no_prompt() -> None:
    phrase = (
        "The input is given from standard input in the following format with every value an integer"
    )
    many = [_problem(number, f"{phrase} task {number}") for number in range(PHRASE_PROBLEMS + 1)]
    assert Benchmarks(many).find(f"{phrase} and more") is None
    assert Benchmarks(many[:-1]).find(f"{phrase} and more") is not None
    twice = [
        _problem(number, LONG, source)
        for number, source in enumerate(("mbpp", "mbpp+", "a", "b", "c"))
    ]
    assert Benchmarks(twice).find(LONG) is not None, (
        "the same problem in five benchmarks is not a phrase"
    )


def _artifacts(tmp_path: Path, statements: list[str], problems: list[Problem]) -> tuple[Path, Path]:
    prompts = [
        Prompt(
            prompt_id=f"p{number}",
            source="s",
            difficulty="d",
            text=text,
            token_ids=(1,),
            statement=text,
        )
        for number, text in enumerate(statements)
    ]
    shards.write_shard(tmp_path / "prompts", "a", prompts, Prompt)
    shards.write_shard(tmp_path / "benchmark", "a", problems, Problem)
    return tmp_path / "prompts", tmp_path / "benchmark"


def test_an_overlap_is_refused_by_default_with_a_remedy(tmp_path: Path) -> None:
    places = _artifacts(
        tmp_path, ["Something else.", LONG], [_problem(7, LONG), _problem(8, SHORT)]
    )
    with pytest.raises(
        UserError,
        match=(
            r"1 of 2 training prompts .* \(1 with bench\), such as p1 with bench/7 \(100%, 13 "
            r"words: 'given an"
        ),
    ) as e:
        check(*places, "refuse", out=tmp_path / "out")
    assert "prompts.contamination=drop" in str(e.value)
    facts = check(*places, "allow", out=tmp_path / "out")
    assert (facts.rows, facts.contaminated) == (2, 1)
    assert facts.benchmarks == {"bench": BenchmarkOverlaps(problems=2, contaminated=1)}
    (line,) = map(json.loads, (tmp_path / "out" / "overlaps.jsonl").read_text().splitlines())
    assert (line["prompt_id"], line["problem_id"], line["share"]) == ("p1", "bench/7", 1.0)
    assert line["length"] == "13 words"


def test_the_refusal_of_a_shorter_run_states_its_own_length(tmp_path: Path) -> None:
    places = _artifacts(
        tmp_path, [f"Please do this. {SHORT}", CHINESE], [_problem(8, SHORT), _problem(9, CHINESE)]
    )
    with pytest.raises(
        UserError,
        match=r"p0 with bench/8 \(100%, 9 words: .*p1 with bench/9 \(100%, 26 characters: ",
    ) as e:
        check(*places, "refuse", out=tmp_path / "out")
    assert "13 words" not in str(e.value)


def test_a_long_check_shows_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, benchmark = _artifacts(
        tmp_path, ["Something else.", "Another thing.", "A third."], [_problem(7, LONG)]
    )
    monkeypatch.setattr(manifests, "load_facts", lambda path, kind: kind(rows=3))
    monkeypatch.setattr("ssd_ray.progress.tasks._QUICK_S", 0.0)
    messages: list[str] = []
    lines = progress.LineProgress()
    monkeypatch.setattr(lines, "say", messages.append)
    check(prompts, benchmark, "refuse", out=tmp_path / "out", progress=lines)
    assert messages[0] == "contamination: 0/3 prompts"
    assert messages[-1].startswith("contamination: done, 3/3 prompts")


def test_dropped_overlaps_are_counted_without_a_refusal() -> None:
    from ssd_ray.config import PromptsConfig

    problems = list(sources.builtin("train"))
    tally = sources.Tally()
    benchmarks = Benchmarks(
        [_problem(0, problems[3].statement), _problem(1, problems[5].statement)]
    )
    kept = list(sources.training_problems(PromptsConfig(contamination="drop"), tally, benchmarks))
    assert tally.dropped == Counter({"overlaps bench": 2})
    assert len(kept) == len(problems) - 2
    assert not any(benchmarks.find(problem.statement) for problem in kept)


def test_built_in_training_problems_overlap_no_benchmark() -> None:
    """The check is no trivial pass: each benchmark problem overlaps with itself."""
    train, evaluated = (
        list(sources.builtin("train")),
        [*sources.builtin("eval"), *sources.humaneval()],
    )
    benchmarks = Benchmarks(evaluated)
    assert not [problem.problem_id for problem in train if benchmarks.find(problem.statement)]
    long = [problem for problem in evaluated if len(words(problem.statement)) >= WORDS]
    assert len(long) > 0.9 * len(evaluated)
    assert all(benchmarks.find(problem.statement) for problem in long)


def test_the_check_precedes_sampling_and_changes_no_sample(tmp_path: Path) -> None:
    """Allowing overlaps, or changing benchmarks, does not make samples stale."""
    runs = [
        {step.name: step for step in graph.steps(recipes.load("quickstart", overrides))}
        for overrides in (
            [],
            ["prompts.contamination=allow"],
            ["evaluate.limit=3"],
            ["prompts.contamination=drop"],
        )
    ]
    assert all(
        "contamination" in {step.name for step in steps["samples"].closure()} for steps in runs
    )
    base, allowed, other, dropped = (
        {name: step.identity.fingerprint for name, step in steps.items()} for steps in runs
    )
    assert base["samples"] == allowed["samples"] == other["samples"] != dropped["samples"]
    assert len({steps["contamination"] for steps in (base, allowed, other, dropped)}) == 4
