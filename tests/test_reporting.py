"""A report says what the rows say: numbers against brute force, the same bytes twice, nothing unescaped, nothing hidden."""

import dataclasses
import io
import itertools
import json
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ssd_ray import artifacts
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.reporting import counts, tables, words
from ssd_ray.reporting.comparison import compare
from ssd_ray.reporting.page import headline, measure, report
from ssd_ray.reporting.terminal import summary
from ssd_ray.reporting.timings import timings
from ssd_ray.schema import Completion, Example, Prompt, Verdict

EVIL = "<script>alert(1)</script>"
PROBLEMS = {"builtin": ("easy", "easy", "medium", "medium", "hard", "hard") * 2, "humaneval": ("unknown",) * 12}
SAMPLES = 6
CAP = 64


def recipe(**changes):
    evaluate = {
        "arms": {
            "base": {"model": "base", "temperature": 0.7, "top_k": 20, "top_p": 0.8},
            "ssd": {"model": "ssd", "temperature": 1.1, "top_k": 20, "top_p": 0.8},
        },
        "samples_per_problem": SAMPLES,
        "pass_at": [1, 5],
        "max_tokens": CAP,
        "bootstrap_samples": 500,
        "max_infrastructure_errors": 0.1,
    } | changes.pop("evaluate", {})
    values = {
        "name": "quickstart",
        "description": "A small model on a small machine.",
        "model": {"source": "package:tiny/model.gguf", "dtype": "float32", "max_model_len": 512},
        "sample": {"temperature": 1.6, "top_k": 20, "top_p": 0.8, "max_tokens": CAP},
        "train": {"steps": 40, "global_batch_size": 4, "warmup_steps": 4},
        "evaluate": evaluate,
        "sources": {"sample": "paper, table 3", "sample.temperature": "paper, table 3; 1.5 in the released configuration"},
    }
    return Recipe.model_validate(values | changes)


@dataclasses.dataclass(kw_only=True)
class Made:
    """A synthetic run: where it is, and the rows that went into it."""

    path: Path
    recipe: Recipe
    verdicts: dict[str, list[Verdict]]
    completions: dict[str, list[Completion]]


def make_run(path, made_by=None, *, seed=0, evil="", outcome=None, mutate=lambda name, rows: rows, facts=True):
    """A whole run at `path`; `outcome(arm, problem, sample, rng)` decides, `mutate(directory, rows)` spoils rows."""
    chosen = made_by or recipe()
    rng = random.Random(seed)
    prompts = [
        Prompt(prompt_id=f"{evil}train-{i:03}", source="builtin", difficulty="easy", text="Write.", token_ids=(1,) * 9)
        for i in range(40)
    ]
    samples = [_completion(prompt, 0, rng, evil) for prompt in prompts]
    examples = [
        Example(prompt_id=s.prompt_id, sample_index=0, input_ids=s.prompt_token_ids + s.output_token_ids, num_prompt_tokens=9)
        for s in samples[3:]
    ]
    problems = [
        Prompt(
            prompt_id=f"{evil}{source}/{i:02}",
            source=source,
            difficulty=difficulty,
            text=f"{evil} Solve {i}.",
            token_ids=(1,) * 11,
        )
        for source, difficulties in PROBLEMS.items()
        for i, difficulty in enumerate(difficulties)
    ]
    known = _facts(prompts, samples, examples) if facts else {}
    _write(path / "prompts", "prompts", mutate("prompts", prompts), Prompt, known.get("prompts", {}), 3.2)
    _write(path / "samples", "samples", mutate("samples", samples), Completion, known.get("samples", {}), 80.5)
    _write(path / "dataset", "dataset", mutate("dataset", examples), Example, known.get("dataset", {}), 1.1)
    _write(path / "checkpoint", "checkpoint", [], Example, known.get("checkpoint", {}), 120.0, losses=True)
    _write(path / "eval-prompts", "eval-prompts", mutate("eval-prompts", problems), Prompt, {}, 2.0)
    made = Made(path=path, recipe=chosen, verdicts={}, completions={})
    decide = outcome or _outcome
    for arm in chosen.evaluate.arms:
        answers = [_completion(problem, i, rng, evil) for problem in problems for i in range(chosen.evaluate.samples_per_problem)]
        verdicts = [_verdict(answer, decide(arm, answer, rng), evil) for answer in answers]
        made.completions[arm], made.verdicts[arm] = answers, verdicts
        sandbox = {"isolation": {"level": f"namespaces{evil}", "network": False}} if facts else {}
        _write(path / "generations" / arm, "generations", mutate(f"generations/{arm}", answers), Completion, {}, 300.0)
        _write(path / "verdicts" / arm, "verdicts", mutate(f"verdicts/{arm}", verdicts), Verdict, sandbox, 30.0)
    return made


def _completion(prompt, index, rng, evil):
    length = min(CAP, rng.randint(5, 80))
    return Completion(
        prompt_id=prompt.prompt_id,
        sample_index=index,
        seed=rng.randrange(2**31),
        source=prompt.source,
        difficulty=prompt.difficulty,
        prompt_token_ids=prompt.token_ids,
        output_token_ids=tuple(rng.randrange(100) for _ in range(length)),
        text=f"I read a number and double it.\n{evil}\n```python\nprint(2 * int(input()))\n```",
        finish_reason="length" if length == CAP else "stop",
    )


def _outcome(arm, answer, rng):
    chance = {"easy": 0.7, "medium": 0.4, "hard": 0.1}.get(answer.difficulty, 0.3) + (0.1 if arm == "ssd" else 0.0)
    if rng.random() < chance:
        return "accepted"
    return rng.choice(["wrong_answer"] * 4 + ["runtime_error", "time_limit", "no_code"])


def _verdict(answer, outcome, evil):
    return Verdict(
        prompt_id=answer.prompt_id,
        sample_index=answer.sample_index,
        source=answer.source,
        difficulty=answer.difficulty,
        outcome=outcome,
        num_tests=4,
        num_passed=4 if outcome == "accepted" else 1,
        time_s=random.random(),
        code="print(2 * int(input()))",
        detail=f"{evil}test 2: expected 4, got 5" if outcome == "wrong_answer" else "",
    )


def _facts(prompts, samples, examples):
    reasons = Counter(sample.finish_reason for sample in samples)
    tokens = sum(len(sample.output_token_ids) for sample in samples)
    return {
        "prompts": {"rows": len(prompts), "read": 52, "dropped": {"duplicate": 10, "too_long": 2}, "tokens": 9 * len(prompts)},
        "samples": {
            "rows": len(samples),
            "prompt_tokens": 9 * len(samples),
            "output_tokens": tokens,
            "finish_reasons": reasons,
            "retries": 1,
        },
        "dataset": {
            "rows": len(examples),
            "read": len(samples),
            "dropped": {"empty": 2, "stub": 1},
            "truncated": 0,
            "prompt_tokens": 9 * len(examples),
            "response_tokens": sum(len(e.input_ids) - e.num_prompt_tokens for e in examples),
            "finish_reasons": {"stop": 30, "length": 7},
            "token_share": {"stop": 0.7, "length": 0.3},
            "length_histogram": {"edges": [0, 50, 100], "counts": [20, 17]},
        },
        "checkpoint": {
            "steps": 40,
            "first_loss": 0.9,
            "final_loss": 0.7,
            "response_tokens": 4000,
            "tokens": 5500,
            "epochs": 4.3,
            "num_workers": 1,
            "parameters": 134_515_008,
        },
    }


def _write(out, stage, rows, row_type, facts, seconds, *, losses=False):
    identity = artifacts.Identity(stage=stage, choices={"at": out.name})
    assert artifacts.claim(out, identity) is None
    half = len(rows) // 2
    if rows:
        artifacts.write_shard(out, "part-00000", rows[:half], row_type)
        artifacts.write_shard(out, "part-00001", rows[half:], row_type)
    if losses:
        lines = [
            {"step": i, "loss": 0.9 - 0.004 * i + 0.03 * (i % 3), "learning_rate": 1e-5, "seconds": 2.9} for i in range(1, 41)
        ]
        artifacts.write_atomic(out / "loss.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    timing = {"seconds": seconds, "attempts": 1, "tokens": 1000 * int(seconds), "peak_bytes": 3 * 2**30}
    artifacts.write_atomic(out / "timing.json", json.dumps(timing))
    artifacts.seal(out, identity, facts)


def reported(made, name="report"):
    """The report of a run: its directory, facts and scores."""
    out = made.path / name
    facts = report(made.recipe, made.path, out=out)
    return out, facts, json.loads((out / "scores.json").read_text())


def printed(renderable):
    """What a terminal of 200 columns shows."""
    sink = io.StringIO()
    Console(file=sink, width=200).print(renderable)
    return sink.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def shown(made):
    out, facts, scores = reported(made)
    return out, facts, scores, (out / "report.html").read_text()


def brute_pass_at_k(accepted, k):
    """The share of all choices of k answers that hold an accepted one."""
    choices = list(itertools.combinations(accepted, k))
    return sum(any(choice) for choice in choices) / len(choices)


def per_problem(verdicts, source, k, difficulty=None):
    """pass@k of each problem by id, over graded answers only."""
    answers = {}
    for verdict in verdicts:
        if verdict.source == source and difficulty in (None, verdict.difficulty):
            kept = answers.setdefault(verdict.prompt_id, [])
            kept += [verdict.outcome == "accepted"] if verdict.outcome != "infrastructure_error" else []
    return {name: brute_pass_at_k(kept, k) for name, kept in sorted(answers.items())}


def near(number):
    return pytest.approx(number, rel=1e-9, abs=1e-12)


def test_scores_and_differences_are_what_enumerating_every_choice_of_answers_gives(made, shown):
    _, facts, scores, _ = shown
    for source, difficulty, k in itertools.product(PROBLEMS, (None, "easy", "hard"), (1, 5)):
        if source == "humaneval" and difficulty:
            continue
        base, ssd = (np.array(list(per_problem(made.verdicts[arm], source, k, difficulty).values())) for arm in ("base", "ssd"))
        groups = scores["benchmarks"][source]
        arms = (groups["difficulties"][difficulty] if difficulty else groups["all"])["arms"]
        name = f"pass@{k}"
        assert arms["base"]["score"][name]["estimate"] == near(base.mean())
        assert arms["ssd"]["score"][name]["estimate"] == near(ssd.mean())
        paired = arms["ssd"]["difference"][name]
        assert paired["estimate"] == near((ssd - base).mean())
        assert paired["problems"] == len(base)
        error = (ssd - base).std(ddof=1) / len(base) ** 0.5
        assert (paired["standard_error"] or 0.0) == near(error)
        assert (paired["smallest_detectable_effect"] or 0.0) == near(2.8 * error)
        assert arms["base"]["difference"][name] is None
    assert (
        facts["pass@1"]["builtin"]["ssd"] == scores["benchmarks"]["builtin"]["all"]["arms"]["ssd"]["score"]["pass@1"]["estimate"]
    )


def test_intervals_hold_their_estimate_and_come_from_resampling_problems(made, shown):
    scores = shown[2]
    values = np.array(list(per_problem(made.verdicts["ssd"], "builtin", 1).values()))
    rng = np.random.default_rng(7)
    means = rng.choice(values, (20_000, len(values))).mean(axis=1)
    found = scores["benchmarks"]["builtin"]["all"]["arms"]["ssd"]["score"]["pass@1"]
    assert found["low"] <= found["estimate"] <= found["high"]
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.04)


def test_outcomes_rates_and_lengths_are_counts_of_the_rows(made, shown):
    scores = shown[2]
    for arm, source in itertools.product(("base", "ssd"), PROBLEMS):
        verdicts = [verdict for verdict in made.verdicts[arm] if verdict.source == source]
        answers = [answer for answer in made.completions[arm] if answer.source == source]
        found = scores["benchmarks"][source]["all"]["arms"][arm]
        assert {name: number for name, number in found["outcomes"].items() if number} == Counter(v.outcome for v in verdicts)
        assert found["no_code_rate"] == near(sum(v.outcome == "no_code" for v in verdicts) / len(verdicts))
        assert found["cap_hit_rate"] == near(sum(a.finish_reason == "length" for a in answers) / len(answers))
        assert found["mean_answer_tokens"] == near(np.mean([len(a.output_token_ids) for a in answers]))
        assert found["median_answer_tokens"] == np.median([len(a.output_token_ids) for a in answers])


def test_the_sample_histogram_holds_every_sample_once(made, shown):
    samples = shown[2]["training"]["samples"]
    lengths = [len(row[0]) for row in artifacts.read_columns(made.path / "samples", "output_token_ids")]
    histogram = samples["histogram"]
    both = [stop + cut for stop, cut in zip(histogram["stop"], histogram["length"], strict=True)]
    assert both == np.histogram(lengths, bins=histogram["edges"])[0].tolist()
    assert sum(histogram["length"]) == samples["finish_reasons"]["length"]
    assert samples["median_answer_tokens"] == np.median(lengths)
    assert samples["output_tokens"] == sum(lengths)


def test_scores_are_the_same_bytes_wherever_and_whenever_the_run_was_made(made, shown, tmp_path):
    again = make_run(tmp_path / "elsewhere")
    for timing in again.path.glob("**/timing.json"):
        timing.write_text('{"seconds": 12345.6, "attempts": 7, "tokens": 9}')
    text = tables.canonical(measure(again.recipe, again.path)[0]) + "\n"
    assert text == (shown[0] / "scores.json").read_text()
    assert timings(again.recipe, again.path)["stages"][0]["seconds"] == 12345.6
    assert not re.search(r"\d{4}-\d\d-\d\d|seconds|time_s|/tmp|/work", text)


def test_the_same_report_twice_draws_the_same_pictures(made, shown, tmp_path):
    report(made.recipe, made.path, out=tmp_path)
    pictures = re.findall(r'src="(data:[^"]+)"', (tmp_path / "report.html").read_text())
    assert pictures == re.findall(r'src="(data:[^"]+)"', shown[3])
    assert len(pictures) == 7


def all_numbers(value):
    if isinstance(value, dict):
        return set().union(*map(all_numbers, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(all_numbers, value)) if value else set()
    return {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def test_every_percentage_and_difference_in_the_tables_is_a_number_of_scores_json(shown):
    _, _, scores, html = shown
    numbers = all_numbers(scores)
    percentages = {words.percent(number) for number in numbers if 0 <= number <= 1}
    signed = {words.points(number) for number in numbers if abs(number) <= 1}
    result = html[html.index('<section id="result">') : html.index('<section id="run">')]
    tables_only = result + html[html.index('<section id="benchmarks">') : html.index('<section id="data">')]
    cells = re.sub("<[^>]+>", "|", "".join(re.findall(r"<tbody.*?</tbody>", tables_only, re.DOTALL)))
    shown_percentages = set(re.findall(r"\d[\d.]*\u00a0%", cells))
    assert len(shown_percentages) > 20
    assert shown_percentages <= percentages
    assert set(re.findall(r"[+\u2212]\d[\d.]*", cells)) <= signed


class Page(HTMLParser):
    """What an HTML page is made of; raises where tags are not nested."""

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


def test_the_page_is_self_contained_and_a_screen_reader_finds_its_way(shown):
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


def test_the_page_says_in_plain_words_what_the_run_shows_and_what_it_does_not(shown):
    text = " ".join("".join(Page(shown[3]).text).split())
    assert re.search(r"ssd − base: [+−]?\d+\.\d points, 95 % interval [+−]?\d+\.\d to [+−]?\d+\.\d: ", text)
    for promised in (
        "It proves the pipeline, not the method.",
        "135 million parameters",
        "no independent reproduction of its gains was known",
        "No arm decodes the base model in the way of ssd.",
        "There is no control in it.",
        "10 duplicate, 2 too long",
        "2 empty, 1 stub",
        "paper, table 3; 1.5 in the released configuration",
        "namespaces; network not isolated",
    ):
        assert promised in text


def test_nothing_that_a_model_recipe_or_problem_says_becomes_markup(tmp_path):
    chosen = recipe(description=EVIL, model={"source": EVIL}, sources={"sample": EVIL})
    arms = {"base": chosen.evaluate.arms["base"], EVIL: chosen.evaluate.arms["ssd"]}
    chosen = chosen.model_copy(update={"evaluate": chosen.evaluate.model_copy(update={"arms": arms})})
    out, _, scores = reported(make_run(tmp_path, chosen, evil=EVIL))
    html = (out / "report.html").read_text()
    page = assert_safe(html)
    assert "<script" not in html
    assert "".join(page.text).count(EVIL) > 30
    text = printed(summary(scores))
    assert EVIL in text


def test_an_infrastructure_error_is_no_wrong_answer_and_is_counted(tmp_path):
    def sometimes(arm, answer, rng):
        ungraded = arm == "ssd" and answer.prompt_id == "builtin/03" and answer.sample_index < 2
        return "infrastructure_error" if ungraded else _outcome(arm, answer, rng)

    made = make_run(tmp_path, outcome=sometimes)
    scores, _ = measure(made.recipe, made.path)
    found = scores["benchmarks"]["builtin"]["all"]["arms"]["ssd"]
    assert (found["infrastructure_errors"], found["graded"], found["refused"]) == (2, 70, None)
    right = per_problem(made.verdicts["ssd"], "builtin", 1)
    assert found["score"]["pass@1"]["estimate"] == near(np.mean(list(right.values())))
    assert found["score"]["pass@1"]["problems"] == 12
    assert found["score"]["pass@5"]["problems"] == found["difference"]["pass@5"]["problems"] == 11


@pytest.mark.parametrize(("broken", "spared"), [("ssd", "base"), ("base", "ssd")])
def test_too_many_infrastructure_errors_refuse_the_score_and_every_difference_with_it(tmp_path, broken, spared):
    def often(arm, answer, rng):
        return "infrastructure_error" if arm == broken and answer.sample_index == 0 else _outcome(arm, answer, rng)

    made = make_run(tmp_path, outcome=often)
    scores, _ = measure(made.recipe, made.path)
    arms = scores["benchmarks"]["builtin"]["all"]["arms"]
    assert (
        "12 of 72 answers could not be graded, 16.7 %, above evaluate.max_infrastructure_errors 10 %" in arms[broken]["refused"]
    )
    assert set(arms[broken]["score"].values()) == set(arms["ssd"]["difference"].values()) == {None}
    assert arms[spared]["score"]["pass@1"]["estimate"] > 0
    assert headline(scores)["pass@1"]["builtin"][broken] is None
    assert f"No score for {broken}: 12 of 72" in words.readings(scores)[0]["text"]
    assert "no score" in printed(summary(scores))
    if broken == "ssd":
        html = (reported(made)[0] / "report.html").read_text()
        assert html.count("no score") > 4
        assert "12 of 72 answers could not be graded" in html


def drop_last(directory):
    return lambda name, rows: rows[:-1] if name == directory else rows


def change_last(directory, **changes):
    return lambda name, rows: [*rows[:-1], dataclasses.replace(rows[-1], **changes)] if name == directory else rows


def drop_problem(directory_suffix):
    return lambda name, rows: [r for r in rows if r.prompt_id != "builtin/00"] if name.endswith(directory_suffix) else rows


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (drop_last("verdicts/ssd"), "answers without a verdict: 1, such as 'humaneval/11' sample 5"),
        (drop_last("generations/ssd"), "the verdict on sample 5 of 'humaneval/11' has no answer"),
        (change_last("verdicts/ssd", sample_index=4), "or is there twice"),
        (change_last("generations/ssd", sample_index=4), "sample 4 of 'humaneval/11' is there twice"),
        (drop_problem("/ssd"), "its problems are not those of eval-prompts: 'builtin/00' is only in eval-prompts"),
        (drop_problem("eval-prompts"), "'builtin/00' is only in verdicts"),
        (change_last("verdicts/ssd", difficulty="easy"), "more than one source or difficulty"),
        (change_last("eval-prompts", difficulty="easy"), "not as in eval-prompts"),
        (change_last("eval-prompts", prompt_id="builtin/00"), "holds the problem 'builtin/00' twice"),
        (drop_last("samples"), "the manifest counts 40 rows, the shards hold 39"),
        (drop_last("prompts"), "the manifest counts 40 rows, the shards hold 39"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(tmp_path, mutate, message):
    made = make_run(tmp_path, mutate=mutate)
    with pytest.raises(UserError, match=re.escape(message)):
        reported(made)
    assert not (tmp_path / "report").exists()


def test_another_number_of_answers_than_the_recipe_asked_for_is_refused(made):
    other = recipe(evaluate={"samples_per_problem": 7})
    with pytest.raises(UserError, match=r"'builtin/00' has 6 answers, not evaluate.samples_per_problem 7"):
        report(other, made.path, out=made.path / "never")


def test_an_unfinished_run_and_a_spoilt_loss_are_refused(tmp_path):
    made = make_run(tmp_path)
    (tmp_path / "checkpoint" / "loss.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step":')
    with pytest.raises(UserError, match=r"loss.jsonl:2 is not a line with step and loss"):
        reported(made)
    (tmp_path / "verdicts" / "ssd" / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not complete"):
        reported(made)


def test_facts_that_a_stage_did_not_count_are_shown_as_not_recorded(tmp_path):
    made = make_run(tmp_path, facts=False)
    for path in (*tmp_path.glob("**/timing.json"), tmp_path / "checkpoint" / "loss.jsonl"):
        path.unlink()
    out, _, scores = reported(made)
    assert scores["training"]["prompts"]["tokens"] is None
    assert scores["training"]["loss"] is None
    assert (out / "report.html").read_text().count("not recorded") > 20


def test_a_step_repeated_after_a_crash_counts_once_and_a_loss_that_is_no_number_is_null(tmp_path):
    lines = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": float("nan")}, {"step": 1, "loss": 0.5}]
    artifacts.write_atomic(tmp_path / "checkpoint" / "loss.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    found = counts.loss(tmp_path)
    assert found.steps == (1, 2)
    assert tables.rounded_to_ten_digits(list(found.losses)) == [0.5, None]


def test_a_run_of_the_base_model_alone_and_one_of_many_arms_both_have_a_page(tmp_path):
    alone = recipe(evaluate={"arms": {"base": {"model": "base"}}, "pass_at": [1]})
    out, _, _ = reported(make_run(tmp_path / "one", alone))
    assert_safe((out / "report.html").read_text())
    arms = {f"base@T={t}": {"model": "base", "temperature": t} for t in (0, 0.5, 1, 1.5)}
    many = recipe(evaluate={"arms": arms | {"ssd": {"model": "ssd"}, "base": {"model": "base"}}})
    out, _, scores = reported(make_run(tmp_path / "many", many))
    html = (out / "report.html").read_text()
    assert_safe(html)
    assert "6 arms answered the same problems" in html
    assert "No arm decodes the base model in the way of" not in html
    assert scores["order"]["arms"][-1] == "base"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ((0.012, -0.031, 0.054, "cannot tell"), "+1.2 points, 95 % interval −3.1 to +5.4: this run cannot tell them apart"),
        ((0.05, 0.01, 0.09, "higher"), "+5.0 points, 95 % interval +1.0 to +9.0: ssd did better than base in this run"),
        ((-0.05, -0.09, -0.01, "lower"), "−5.0 points, 95 % interval −9.0 to −1.0: ssd did worse than base in this run"),
        (
            (0.3, 0.3, 0.3, "too few problems"),
            "+30.0 points, 95 % interval +30.0 to +30.0: too few problems (4) to tell them apart",
        ),
        (
            (0.0, 0.0, 0.0, "cannot tell"),
            "0.0 points: every problem came out the same in both, so this run cannot tell them apart",
        ),
    ],
)
def test_a_difference_ends_in_plain_words(found, told):
    values = dict(zip(("estimate", "low", "high", "reading"), found, strict=True)) | {"problems": 4}
    assert words.reading("ssd", "base", values, 0.95).replace("\u00a0", " ") == f"ssd − base: {told}"


@pytest.mark.parametrize(("shift", "expected"), [(0.4, "higher"), (-0.4, "lower"), (0.0, "cannot tell")])
def test_arms_are_called_different_only_by_an_interval_without_zero_over_enough_problems(shift, expected):
    chosen, rng = recipe(), np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, 40)
    assert tables.difference(chosen, base + shift, base).reading == expected
    assert tables.difference(chosen, (base + shift)[:9], base[:9]).reading == "too few problems"
    assert tables.difference(chosen, base + shift, base).standard_error is None


def stored(made):
    from ssd_ray.recipes import dump

    scores, _ = measure(made.recipe, made.path)
    artifacts.write_atomic(made.path / "report" / "scores.json", tables.canonical(scores))
    artifacts.write_atomic(made.path / "recipe.yaml", dump(made.recipe))
    return made


def test_two_runs_are_compared_by_recipe_and_paired_by_problem(tmp_path):
    first = stored(make_run(tmp_path / "a"))
    second = stored(make_run(tmp_path / "b", recipe(train={"steps": 80, "global_batch_size": 4, "warmup_steps": 4}), seed=5))
    found = compare(first.path, second.path)
    assert [(change.field, change.first, change.second) for change in found.changes] == [("train.steps", 40, 80)]
    for pair in found.pairs:
        here, there = (
            np.array(list(per_problem(run.verdicts[pair.arm], pair.benchmark, int(pair.metric[5:])).values()))
            for run in (first, second)
        )
        assert pair.difference.estimate == near((there - here).mean())
        assert pair.first["estimate"] == near(here.mean())
    assert json.loads(json.dumps(found.plain()))["pairs"]
    text = printed(found)
    assert "train.steps" in text
    assert "second − first" in text
    assert compare(first.path, first.path).changes == ()


def test_runs_on_other_problems_are_not_paired_and_a_run_without_report_is_refused(tmp_path, made):
    first = stored(make_run(tmp_path / "a"))
    second = stored(make_run(tmp_path / "b", mutate=lambda name, rows: drop_problem("")(name, rows)))
    found = {(pair.benchmark, pair.arm): pair for pair in compare(first.path, second.path).pairs}
    assert found["builtin", "ssd"].difference is None
    assert "the problems differ: 1 only in the first run, 0 only in the second" in found["builtin", "ssd"].unpaired
    assert found["humaneval", "ssd"].difference is not None
    with pytest.raises(UserError, match=r"has no report/scores.json"):
        compare(first.path, Path("nowhere"))
