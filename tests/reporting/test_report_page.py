"""The page works without network, escapes text, reads well, and states its limits."""

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import pytest

from ssd_ray.lcb_official import GRADER, with_reason
from ssd_ray.reasoning import content_of_text
from ssd_ray.reporting import words
from ssd_ray.reporting.numbers.scores_file import read_scores
from ssd_ray.reporting.readings import reading, readings
from ssd_ray.reporting.terminal import summary
from ssd_ray.statistics.differences import Difference
from tests.support.synthetic_run import EVIL, make_run, printed, recipe, reported


def all_numbers(value):
    if isinstance(value, dict):
        return set().union(*map(all_numbers, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(all_numbers, value)) if value else set()
    return {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def test_every_number_in_the_tables_is_from_scores_json(shown):
    _, _, scores, html = shown
    numbers = all_numbers(scores)
    percentages = {
        words.percent(number, digits) for number in numbers if 0 <= number <= 1 for digits in (0, 1)
    }
    signed = {
        words.points(number, digits) for number in numbers if abs(number) <= 1 for digits in (0, 1)
    }
    result = html[html.index('<section id="result">') : html.index('<section id="run">')]
    tables_only = (
        result + html[html.index('<section id="benchmarks">') : html.index('<section id="data">')]
    )
    cells = re.sub(
        "<[^>]+>", "|", "".join(re.findall(r"<tbody.*?</tbody>", tables_only, re.DOTALL))
    )
    shown_percentages = set(re.findall(r"\d[\d.]*\u00a0%", cells))
    assert len(shown_percentages) > 20
    assert shown_percentages <= percentages
    assert set(re.findall(r"[+\u2212]\d[\d.]*", cells)) <= signed


class Page(HTMLParser):
    """Parts of an HTML page; raises for tags that are not nested."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input", "line", "circle"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.stack, self.text = [], [], []
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


def assert_safe(html):
    page = Page(html)
    assert not page.all("script", "iframe", "object", "embed", "link")
    for attrs in page.all(*{tag for tag, _ in page.tags}):
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:image/svg+xml;base64,"))
    assert not re.search(r"@import|url\(", html)
    return page


def test_the_page_is_self_contained_and_accessible(shown):
    html = shown[3]
    page = assert_safe(html)
    assert html.lstrip().startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert len(page.all("title")) == len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert all(th.get("scope") for th in page.all("th"))
    assert all(img["alt"] for img in page.all("img"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}


def test_the_page_states_what_the_run_shows_and_does_not(shown):
    text = " ".join("".join(Page(shown[3]).text).split())
    doubt = r"p (0\.\d+|1\.0|below 0\.001), detectable ±\d+"
    assert re.search(
        rf"ssd − base: [+−]?\d+ points, 95 % interval [+−]?\d+ to [+−]?\d+, {doubt}: ", text
    )
    for promised in (
        "It proves the pipeline, not the method.",
        "135 million parameters",
        "no independent reproduction of its gains was known",
        "No arm decodes the base model with the decoding of ssd.",
        "The run has no control of training.",
        "10 duplicate, 2 too long",
        "2 empty, 1 stub",
        "paper, table 3; 1.5 in the released configuration",
        "namespaces; network not isolated",
    ):
        assert promised in text


def test_text_of_models_recipes_and_problems_is_escaped(tmp_path):
    chosen = recipe(description=EVIL, model={"source": EVIL}, sources={"sample": EVIL})
    arms = {"base": chosen.evaluate.arms["base"], EVIL: chosen.evaluate.arms["ssd"]}
    chosen = chosen.model_copy(
        update={"evaluate": chosen.evaluate.model_copy(update={"arms": arms})}
    )
    out, _, _ = reported(make_run(tmp_path, chosen, evil=EVIL))
    html = (out / "report.html").read_text()
    page = assert_safe(html)
    assert "<script" not in html
    assert "".join(page.text).count(EVIL) > 30
    text = printed(summary(read_scores(out / "scores.json")))
    assert EVIL in text


@pytest.mark.slow
def test_runs_of_one_arm_and_of_many_arms_have_a_page(tmp_path):
    alone = recipe(evaluate={"arms": {"base": {"model": "base"}}, "pass_at": [1]})
    out, _, _ = reported(make_run(tmp_path / "one", alone))
    assert_safe((out / "report.html").read_text())
    arms = {f"base@T={t}": {"model": "base", "temperature": t} for t in (0, 0.5, 1, 1.5)}
    many = recipe(evaluate={"arms": arms | {"ssd": {"model": "ssd"}, "base": {"model": "base"}}})
    out, _, scores = reported(make_run(tmp_path / "many", many))
    html = (out / "report.html").read_text()
    assert_safe(html)
    assert "6 arms answered the same problems" in html
    assert "No arm decodes the base model with the decoding of" not in html
    assert scores["order"]["arms"][-1] == "base"


@pytest.mark.parametrize(
    ("actual", "output"),
    [
        (
            (0.012, -0.031, 0.054, 0.3, "cannot tell"),
            "+1.2 points, 95 % interval −3.1 to +5.4, p 0.3, detectable ±4.0: this run cannot tell",
        ),
        (
            (0.05, 0.01, 0.09, 0.0001, "higher"),
            (
                "+5.0 points, 95 % interval +1.0 to +9.0, p below 0.001, detectable ±4.0: ssd "
                "did better than"
            ),
        ),
        (
            (-0.05, -0.09, -0.01, 0.012, "lower"),
            (
                "−5.0 points, 95 % interval −9.0 to −1.0, p 0.012, detectable ±4.0: ssd did "
                "worse than base"
            ),
        ),
        (
            (0.0, -0.01, 0.01, 1.0, "cannot tell"),
            (
                "0.0 points, 95 % interval −1.0 to +1.0, p 1.0, detectable ±4.0: this run cannot "
                "tell them"
            ),
        ),
    ],
)
def test_a_difference_ends_in_plain_words(actual, output):
    text = reading("ssd", "base", difference(*actual), 0.95).replace("\u00a0", " ")
    assert text.startswith(f"ssd − base: {output}")
    assert text.endswith("(12 better, 9 worse, 379 equal)")


def difference(estimate, low, high, p_value, reading, *, problems=400, better=12, worse=9):
    """Return a difference of two arms with a fixed detectable effect and standard error."""
    return Difference(
        estimate=estimate,
        low=low,
        high=high,
        problems=problems,
        better=better,
        worse=worse,
        p_value=p_value,
        standard_error=0.014,
        smallest_detectable_effect=0.04,
        reading=reading,
    )


def test_a_difference_over_few_problems_is_given_in_counts():
    few = difference(0.1, -0.3, 0.5, 0.6, "too few problems", problems=9, better=2, worse=1)
    text = reading("ssd", "base", few, 0.95)
    assert text == (
        "ssd − base: 2 better, 1 worse, 6 equal of 9 problems: too few problems to tell them apart"
    )
    single = dataclasses.replace(few, problems=1, better=0, worse=0)
    assert "all 1 equal of 1 problem:" in reading("ssd", "base", single, 0.95)


def few_problems(monkeypatch, tmp_path, samples):
    """A run over 9 problems of one benchmark and 12 of another, and the text of its page."""
    from tests.support import synthetic_run

    monkeypatch.setattr(
        synthetic_run, "PROBLEMS", {"own": ("easy",) * 4 + ("hard",) * 5, "builtin": ("easy",) * 12}
    )
    evaluate = {
        "samples_per_problem": samples,
        "pass_at": [1],
        "sweep": [0.9],
        "bootstrap_samples": 200,
    }
    out, _, _ = reported(make_run(tmp_path, recipe(evaluate=evaluate)))
    return read_scores(out / "scores.json"), (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("samples", [1, 6])
def test_below_10_problems_the_page_prints_counts(monkeypatch, tmp_path, samples):
    scores, html = few_problems(monkeypatch, tmp_path, samples)
    result = html[html.index('aria-label="Scores of each arm"') : html.index('<section id="run">')]
    rows = re.sub("<[^>]+>", "|", result[result.index(">own <") : result.index("</table>")])
    assert re.search(r"\d of 9\|", rows)
    gains = html[
        html.index('aria-label="Gains with temperatures') : html.index(
            'aria-label="Scores of each arm"'
        )
    ]
    assert "%" not in re.sub(
        r"T.\S+ \([^)]*\)", "", gains[gains.index(">own<") : gains.index("</table>")]
    )
    assert "equal" in rows
    assert "%" not in rows
    assert "detectable" not in rows
    table = html[
        html.index('aria-label="Scores on own"') : html.index('aria-label="Answers to own"')
    ]
    cells = re.sub("<[^>]+>", "|", table[table.index("</thead>") :])
    assert "%" not in cells
    assert re.search(r"\d of 4\|", cells)
    summarized = printed(summary(scores))
    assert "too few problems to tell them apart" in summarized
    assert re.search(r"\d of 9 \([\d.]+ to [\d.]+ of 9\)", summarized)
    for text in re.findall(r'alt="([^"]*)"', html):
        assert not re.search(r"own[^.;]*\d\u00a0%", text), text


@pytest.mark.usefixtures("blank_figures")
def test_where_no_problem_differs_interval_and_effect_agree(monkeypatch, tmp_path):
    from tests.support import synthetic_run

    monkeypatch.setattr(synthetic_run, "PROBLEMS", {"builtin": ("easy",) * 32})
    same = recipe(evaluate={"samples_per_problem": 1, "pass_at": [1]})
    solved = {f"builtin/{number:02}" for number in (3, 17)}
    run = make_run(
        tmp_path,
        same,
        outcome=lambda arm, answer, rng: (
            "accepted" if answer.prompt_id in solved else "wrong_answer"
        ),
    )
    out, _, _ = reported(run)
    (actual,) = readings(read_scores(out / "scores.json"))
    assert actual.text.replace("\u00a0", " ") == (
        "ssd − base: 0 points, 95 % interval −11 to +11, p 1.0, detectable ±15: this run cannot "
        "tell them apart (all 32 equal)"
    )


def test_numbers_round_to_digits_that_the_sample_supports():
    assert [words.decimals(size) for size in (1, 99, 100, 9_999, 10_000)] == [0, 0, 1, 1, 2]
    assert words.percent(0.0625) == "6.3\u00a0%"
    assert words.percent(0.145, 0) == "15\u00a0%"
    assert words.percent(0.0625, words.decimals(16)) == "6\u00a0%"
    assert words.points(-0.0625) == "−6.3"
    assert words.points(0.0004, 1) == "0.0"
    assert words.points(-0.0004, 1) == "0.0"
    shown = [
        words.duration(seconds).replace("\u00a0", " ")
        for seconds in (0.0257, 4.13, 41.3, 59.7, 725, 12_000)
    ]
    assert shown == ["0.026 s", "4.1 s", "41 s", "60 s", "12 min 5 s", "3 h 20 min"]


SWEEP = {
    "sweep": [0.9, 1.3],
    "controls": ["teacher", "naive"],
    "profiles": ["strict", "lcb-compat"],
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A run over a sweep with both controls and both profiles."""
    made = make_run(
        tmp_path_factory.mktemp("swept"), recipe(evaluate=SWEEP | {"bootstrap_samples": 200})
    )
    out, _, _ = reported(made)
    return made, read_scores(out / "scores.json"), (out / "report.html").read_text()


@pytest.mark.slow
def test_a_sweep_states_the_selection_free_gain_first(swept):
    _, scores, html = swept
    page = assert_safe(html)
    text = " ".join("".join(page.text).split())
    assert scores.families["ssd"] == tuple(f"ssd@T={t}" for t in ("0.7", "0.9", "1.1", "1.3"))
    assert scores.baseline == "base@T=0.7"
    assert [(actual.treated, actual.control) for actual in scores.selection["builtin"]] == [
        ("ssd", "base"),
        ("naive", "base"),
        ("ssd", "naive"),
    ]
    first = readings(scores)[0]
    assert first.how == "temperatures chosen on other problems"
    gain = scores.selection["builtin"][0].metrics["pass@1"]
    assert words.points(gain.selection_free.estimate, 0) in first.text
    assert "selected on the test problems themselves" in first.note
    assert text.index(first.text.replace("\u00a0", " ")) < text.index(first.note)
    assert {actual.arm for actual in readings(scores)} == {"ssd", "naive", "teacher"}
    assert "Only one number here is free of selection." in text
    assert "The run has no control of training." not in text
    assert "The control naive" in text
    assert "selected on the test problems" in printed(summary(scores))
    for pair in scores.selection["builtin"]:
        for actual in pair.metrics.values():
            assert sum(actual.chosen.treated) == pytest.approx(1)
            assert set(actual.difficulties) == {"easy", "medium", "hard"}


def test_the_best_cell_is_the_difference_of_the_best_means(swept):
    _, scores, _ = swept
    arms = scores.benchmarks["humaneval"].all.arms
    best = {
        name: max(arms[arm].score["pass@1"].estimate for arm in points)
        for name, points in scores.families.items()
    }
    for pair in scores.selection["humaneval"]:
        assert pair.metrics["pass@1"].best_cell == pytest.approx(
            best[pair.treated] - best[pair.control]
        )


def test_both_profiles_are_scored_and_flips_listed(swept):
    made, scores, html = swept
    flips = scores.profiles.flips["lcb-compat"]
    assert scores.profiles.order == ("strict", "lcb-compat")
    assert set(scores.profiles.scores["lcb-compat"]) == {
        "builtin"
    }  # the other profile graded no other benchmark
    assert len(flips) == 4 * len(made.verdicts)
    for flip in flips:
        strict = next(
            verdict
            for verdict in made.verdicts[flip.arm]
            if (verdict.prompt_id, verdict.sample_index) == (flip.problem_id, flip.sample_index)
        )
        assert flip.first == strict.outcome
        assert (flip.second == "accepted") == (strict.outcome != "accepted")
    assert "Under both ways of grading" in html
    assert html.count('<tr><th scope="row" class="fit">builtin/') >= len(flips)


@pytest.mark.usefixtures("blank_figures")
def test_a_flip_caused_by_the_official_grader_is_labeled(tmp_path):
    detail = "test 2: " + with_reason(
        "official -2: line 1 is missing", "it cannot be iterated over"
    )

    def explained(name, rows):
        if not name.startswith("verdicts-lcb/"):
            return rows
        return [
            dataclasses.replace(row, detail=detail if row.outcome == "wrong_answer" else "")
            for row in rows
        ]

    made = make_run(
        tmp_path / "run", recipe(evaluate={"profiles": ["strict", "lcb-compat"]}), mutate=explained
    )
    out, _, scores = reported(made)
    flips = scores["profiles"]["flips"]["lcb-compat"]
    lost = [flip for flip in flips if flip["second"] == "wrong_answer"]
    assert lost
    assert {flip["reason"] for flip in lost} == {
        "official stand-in for sys.stdin: it cannot be iterated over"
    }
    assert {flip["reason"] for flip in flips if flip["second"] == "accepted"} == {""}
    assert scores["profiles"]["official_grader"] == dict(GRADER)
    html = (out / "report.html").read_text()
    assert f"{len(lost)} answers of these flipped because of the official grader" in html.replace(
        "\n", " "
    )
    assert "LiveCodeBench/LiveCodeBench at 28fef95 (2025-07-16)" in html


@pytest.mark.usefixtures("blank_figures")
def test_a_long_example_shows_the_end_of_its_answer(tmp_path):
    long = "<think>" + "hm\n" * 5000 + "</think>" + "```python\nprint(4711)\n```"

    def spoken(name, rows):
        return (
            [dataclasses.replace(row, text=long) for row in rows]
            if name.startswith("generations/")
            else rows
        )

    html = (reported(make_run(tmp_path, mutate=spoken))[0] / "report.html").read_text()
    assert "print(4711)" in html
    assert "characters, not shown here" in html


@pytest.mark.usefixtures("blank_figures")
def test_answers_with_reasoning_count_whether_it_ends(tmp_path):
    texts = ["<think>hm", "<think>hm</think>x", "no thought", "<think>a</think>", "x", "<think>"]

    def spoken(name, rows):
        if not name.startswith("verdicts/"):
            return rows
        opened = {"builtin": "", "humaneval": "<think>"}
        read = (
            content_of_text(texts[row.sample_index], opened[row.source]).reasoning for row in rows
        )
        return [
            dataclasses.replace(row, reasoning=state) for row, state in zip(rows, read, strict=True)
        ]

    scores = reported(make_run(tmp_path, mutate=spoken))[2]["benchmarks"]
    opened, prompted = (scores[name]["all"]["arms"]["ssd"] for name in ("builtin", "humaneval"))
    assert (opened["thinking"], opened["think_close_rate"]) == (4 * 12, pytest.approx(2 / 4))
    assert (prompted["thinking"], prompted["think_close_rate"]) == (6 * 12, pytest.approx(2 / 6))


def test_the_cost_table_has_wall_times_and_shares(made, shown):
    html = shown[3]
    cost = html[html.index('<section id="cost">') :]
    head, row = (
        re.sub("<[^>]+>", "|", part)
        for part in re.search(
            r"<thead>(.*?)</thead>.*?(<tr><th[^>]*>checkpoint<.*?</tr>)", cost, re.DOTALL
        ).groups()
    )
    head_cells, row_cells = ([cell for cell in part.split("|") if cell] for part in (head, row))
    assert head_cells == [
        "Stage", "Wall time", "Share of the run’s time", "Tokens", "Tokens/s", "Attempts"
    ]  # fmt: skip
    assert [cell.replace("\u00a0", " ") for cell in row_cells] == [
        "checkpoint", "4 min 0 s", "2 min 0 s", "120,000", "500", "1"
    ]  # fmt: skip
    assert "wall times do not add up" in cost
