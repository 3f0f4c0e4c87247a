"""Numbers of a report match brute force, and two reports of one run are equal to the byte."""

import dataclasses
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ssd_ray.artifacts import files, shards
from ssd_ray.errors import UserError
from ssd_ray.reporting.comparison import compare
from ssd_ray.reporting.numbers import json_bytes, logs
from ssd_ray.reporting.numbers.scores_file import scores_text
from ssd_ray.reporting.numbers.timings import timings
from ssd_ray.reporting.page import headline, measure, report
from ssd_ray.reporting.readings import readings
from ssd_ray.reporting.terminal import summary
from ssd_ray.statistics import differences, metrics, paired, significance
from tests.support.commands import exit_status
from tests.support.synthetic_run import PROBLEMS, make_run, printed, recipe, reported, usual_outcome


def brute_pass_at_k(accepted, k):
    """Return the share of all choices of k answers that hold an accepted one."""
    choices = list(itertools.combinations(accepted, k))
    return sum(any(choice) for choice in choices) / len(choices)


def per_problem(verdicts, source, k, difficulty=None):
    """Return pass@k of each problem by id, over graded answers only."""
    answers = {}
    for verdict in verdicts:
        if verdict.source == source and difficulty in (None, verdict.difficulty):
            kept = answers.setdefault(verdict.prompt_id, [])
            kept += (
                [verdict.outcome == "accepted"] if verdict.outcome != "infrastructure_error" else []
            )
    return {name: brute_pass_at_k(kept, k) for name, kept in sorted(answers.items())}


def near(number):
    return pytest.approx(number, rel=1e-9, abs=1e-12)


def test_scores_equal_an_enumeration_of_all_answers(made, shown):
    _, facts, scores, _ = shown
    for source, difficulty, k in itertools.product(PROBLEMS, (None, "easy", "hard"), (1, 5)):
        if source == "humaneval" and difficulty:
            continue
        base, ssd = (
            np.array(list(per_problem(made.verdicts[arm], source, k, difficulty).values()))
            for arm in ("base", "ssd")
        )
        groups = scores["benchmarks"][source]
        arms = (groups["difficulties"][difficulty] if difficulty else groups["all"])["arms"]
        name = f"pass@{k}"
        assert arms["base"]["score"][name]["estimate"] == near(base.mean())
        assert arms["ssd"]["score"][name]["estimate"] == near(ssd.mean())
        result = arms["ssd"]["difference"][name]
        assert result["estimate"] == near((ssd - base).mean())
        assert (result["problems"], result["better"], result["worse"]) == (
            len(base),
            (ssd > base).sum(),
            (ssd < base).sum(),
        )
        pair = paired.discordance(ssd, base, answers=6)
        interval = paired.difference_interval(pair, confidence=0.95)
        assert (result["low"], result["high"]) == (near(interval.low), near(interval.high))
        assert result["p_value"] == near(significance.p_value(pair))
        assert result["smallest_detectable_effect"] == pytest.approx(
            2.80159 * result["standard_error"], rel=1e-5
        )
        if name == "pass@1" and not difficulty:
            error = (ssd - base).std(ddof=1) / len(base) ** 0.5
            assert error < result["standard_error"] < 2 * error
        assert arms["base"]["difference"][name] is None
    assert (
        facts.estimates["builtin"]["ssd"]
        == scores["benchmarks"]["builtin"]["all"]["arms"]["ssd"]["score"]["pass@1"]["estimate"]
    )


def test_intervals_over_problems_hold_their_estimate(made, shown):
    scores = shown[2]
    values = np.array(list(per_problem(made.verdicts["ssd"], "builtin", 1).values()))
    result = scores["benchmarks"]["builtin"]["all"]["arms"]["ssd"]["score"]["pass@1"]
    assert result["low"] <= result["estimate"] <= result["high"]
    own = metrics.score_interval(values, confidence=0.95)
    assert (result["low"], result["high"]) == (near(own.low), near(own.high))


def test_outcomes_rates_and_lengths_are_counts_of_the_rows(made, shown):
    scores = shown[2]
    for arm, source in itertools.product(("base", "ssd"), PROBLEMS):
        verdicts = [verdict for verdict in made.verdicts[arm] if verdict.source == source]
        answers = [answer for answer in made.completions[arm] if answer.source == source]
        result = scores["benchmarks"][source]["all"]["arms"][arm]
        assert {name: number for name, number in result["outcomes"].items() if number} == Counter(
            v.outcome for v in verdicts
        )
        assert result["no_code_rate"] == near(
            sum(v.outcome == "no_code" for v in verdicts) / len(verdicts)
        )
        assert result["time_limit_rate"] == near(
            sum(v.outcome == "time_limit" for v in verdicts) / len(verdicts)
        )
        assert (result["thinking"], result["think_close_rate"]) == (0, None)
        assert result["cap_hit_rate"] == near(
            sum(a.finish_reason == "length" for a in answers) / len(answers)
        )
        assert result["mean_answer_tokens"] == near(
            np.mean([len(a.output_token_ids) for a in answers])
        )
        assert result["median_answer_tokens"] == np.median(
            [len(a.output_token_ids) for a in answers]
        )


def test_the_sample_histogram_holds_every_sample_once(made, shown):
    samples = shown[2]["training"]["samples"]
    lengths = [
        len(row[0]) for row in shards.read_columns(made.path / "samples", "output_token_ids")
    ]
    histogram = samples["histogram"]
    both = [stop + cut for stop, cut in zip(histogram["stop"], histogram["length"], strict=True)]
    assert both == np.histogram(lengths, bins=histogram["edges"])[0].tolist()
    assert sum(histogram["length"]) == samples["finish_reasons"]["length"]
    assert samples["median_answer_tokens"] == np.median(lengths)
    assert samples["output_tokens"] == sum(lengths)


def test_scores_are_the_same_bytes_at_any_place_and_time(made, shown, tmp_path):
    again = make_run(tmp_path / "elsewhere")
    for timing in again.path.glob("**/timing.json"):
        timing.write_text('{"seconds": 12345.6, "attempts": 7, "tokens": 9}')
    text = scores_text(measure(again.recipe, again.path)[0])
    assert text == (shown[0] / "scores.json").read_text()
    assert timings(again.recipe, again.path, again.steps).stages[0].seconds == 12345.6
    assert not re.search(r"\d{4}-\d\d-\d\d|seconds|time_s|/tmp|/work", text)


def test_use_and_money_of_gpus_are_in_the_costs(made, shown):
    cost = json.loads((shown[0] / "timings.json").read_text())
    stages = {each["stage"]: each for each in cost["stages"]}
    assert stages["samples"]["use"]["devices"] == [
        {"name": "engine a", "gpus": 2, "busy_s": 300.0, "idle_s": 100.0, "load_s": 47.0}
    ]
    assert stages["samples"]["use"]["redone"] == 12
    assert stages["samples"]["usd"] == pytest.approx(2 * 400 / 3600 * 2.5)
    assert stages["prompts"]["use"] is stages["prompts"]["usd"] is None
    used = [each for each in stages.values() if each["use"]]
    assert cost["total"]["busy_gpu_s"] == 600 * len(used)
    assert cost["total"]["idle_gpu_s"] == 200 * len(used)
    text = " ".join(shown[3].split())
    assert "at 2.5 USD an hour, a round figure of the planner" in text
    row = re.search(r"<tr>(?:(?!</tr>).)*samples</th>(?:(?!</tr>).)*25.0.%.*?</tr>", text)
    assert row is not None
    assert '<td class="n">47 s</td>' in row[0], "the longest load of an engine"


@pytest.mark.slow
def test_the_same_report_twice_draws_the_same_pictures(made, shown, tmp_path):
    report(made.recipe, made.path, made.steps, out=tmp_path)
    pictures = re.findall(r'src="(data:[^"]+)"', (tmp_path / "report.html").read_text())
    assert pictures == re.findall(r'src="(data:[^"]+)"', shown[3])
    assert len(pictures) == 12


@pytest.mark.usefixtures("blank_figures")
def test_base_tests_have_a_score_next_to_that_of_all_tests(tmp_path):
    passing = {"accepted": "accepted", "wrong_answer": "accepted"}

    def with_base(name, rows):
        if not name.startswith("verdicts/"):
            return rows
        return [
            dataclasses.replace(row, outcome_base=passing.get(row.outcome, row.outcome))
            if row.source == "humaneval"
            else row
            for row in rows
        ]

    made = make_run(tmp_path, mutate=with_base)
    out, _, scores = reported(made)
    for arm, verdicts in made.verdicts.items():
        eased = [
            dataclasses.replace(row, outcome=passing.get(row.outcome, row.outcome))
            for row in verdicts
        ]
        for k in (1, 5):
            right = per_problem(eased, "humaneval", k)
            result = scores["benchmarks"]["humaneval"]["all"]["arms"][arm]
            assert result["base_score"][f"pass@{k}"]["estimate"] == near(
                np.mean(list(right.values()))
            )
            assert (
                result["base_score"][f"pass@{k}"]["estimate"]
                > result["score"][f"pass@{k}"]["estimate"]
            )
        assert scores["benchmarks"]["builtin"]["all"]["arms"][arm]["base_score"] == {}
    assert (out / "report.html").read_text().count("base tests alone") == 1


@pytest.mark.usefixtures("blank_figures")
def test_an_infrastructure_error_is_counted_and_not_wrong(tmp_path):
    def sometimes(arm, answer, rng):
        ungraded = arm == "ssd" and answer.prompt_id == "builtin/03" and answer.sample_index < 2
        return "infrastructure_error" if ungraded else usual_outcome(arm, answer, rng)

    made = make_run(tmp_path, outcome=sometimes)
    scores, _ = measure(made.recipe, made.path)
    result = scores.benchmarks["builtin"].all.arms["ssd"]
    assert (result.infrastructure_errors, result.graded, result.refused) == (2, 70, None)
    right = per_problem(made.verdicts["ssd"], "builtin", 1)
    assert result.score["pass@1"].estimate == near(np.mean(list(right.values())))
    assert result.score["pass@1"].problems == 12
    assert result.score["pass@5"].problems == result.difference["pass@5"].problems == 11


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(("broken", "spared"), [("ssd", "base"), ("base", "ssd")])
def test_too_many_infrastructure_errors_withhold_the_score(tmp_path, broken, spared):
    def often(arm, answer, rng):
        return (
            "infrastructure_error"
            if arm == broken and answer.sample_index == 0
            else usual_outcome(arm, answer, rng)
        )

    made = make_run(tmp_path, outcome=often)
    scores, _ = measure(made.recipe, made.path)
    arms = scores.benchmarks["builtin"].all.arms
    assert (
        "12 of 72 answers could not be graded, 16.7 %, above "
        "evaluate.max_infrastructure_errors 10 %"
    ) in arms[broken].refused
    assert set(arms[broken].score.values()) == set(arms["ssd"].difference.values()) == {None}
    assert arms[spared].score["pass@1"].estimate > 0
    assert headline(scores).estimates["builtin"][broken] is None
    assert f"No score for {broken}: 12 of 72" in readings(scores)[0].text
    assert "no score" in printed(summary(scores))
    if broken == "ssd":
        html = (reported(made)[0] / "report.html").read_text()
        assert html.count("no score") > 4
        assert "12 of 72 answers could not be graded" in html


def drop_last(directory):
    return lambda name, rows: rows[:-1] if name == directory else rows


def change_last(directory, **changes):
    return lambda name, rows: (
        [*rows[:-1], dataclasses.replace(rows[-1], **changes)] if name == directory else rows
    )


def drop_problem(directory_suffix):
    return lambda name, rows: (
        [r for r in rows if r.prompt_id != "builtin/00"]
        if name.endswith(directory_suffix)
        else rows
    )


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (
            drop_last("verdicts/ssd"),
            "answers without a verdict: 1, such as 'humaneval/11' sample 5",
        ),
        (drop_last("generations/ssd"), "the verdict on sample 5 of 'humaneval/11' has no answer"),
        (change_last("verdicts/ssd", sample_index=4), "or is there twice"),
        (
            change_last("generations/ssd", sample_index=4),
            "sample 4 of 'humaneval/11' is there twice",
        ),
        (
            drop_problem("/ssd"),
            "its problems are not those of eval-prompts: 'builtin/00' is only in eval-prompts",
        ),
        (drop_problem("eval-prompts"), "'builtin/00' is only in verdicts"),
        (change_last("verdicts/ssd", difficulty="easy"), "more than one source or difficulty"),
        (change_last("eval-prompts", difficulty="easy"), "not as in eval-prompts"),
        (
            change_last("eval-prompts", prompt_id="builtin/00"),
            "holds the problem 'builtin/00' twice",
        ),
        (drop_last("samples"), "the manifest counts 40 rows, the shards hold 39"),
        (drop_last("prompts"), "the manifest counts 40 rows, the shards hold 39"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(tmp_path, mutate, message):
    made = make_run(tmp_path, mutate=mutate)
    with pytest.raises(UserError, match=re.escape(message)):
        reported(made)
    assert not (tmp_path / "report").exists()


def test_an_unexpected_number_of_answers_is_refused(made):
    other = recipe(evaluate={"samples_per_problem": 7})
    with pytest.raises(
        UserError, match=r"'builtin/00' has 6 answers, not evaluate.samples_per_problem 7"
    ):
        report(other, made.path, made.steps, out=made.path / "never")


@pytest.mark.usefixtures("blank_figures")
def test_an_unfinished_run_and_a_damaged_loss_log_are_refused(tmp_path):
    made = make_run(tmp_path)
    (tmp_path / "checkpoint" / "loss.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step":')
    with pytest.raises(UserError, match=r"loss.jsonl:2 is not a line with step and loss"):
        reported(made)
    (tmp_path / "verdicts" / "ssd" / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not complete"):
        reported(made)


@pytest.mark.usefixtures("blank_figures")
def test_uncounted_facts_are_shown_as_not_recorded(tmp_path):
    made = make_run(tmp_path, facts=False)
    for path in (*tmp_path.glob("**/timing.json"), tmp_path / "checkpoint" / "loss.jsonl"):
        path.unlink()
    out, _, scores = reported(made)
    assert scores["training"]["prompts"]["tokens"] is None
    assert scores["training"]["loss"] is None
    assert (out / "report.html").read_text().count("not recorded") > 20


@pytest.mark.usefixtures("blank_figures")
def test_held_out_results_are_in_the_scores(
    tmp_path,
):
    made = make_run(tmp_path)
    result = reported(made)[2]["training"]["held_out"]
    assert result["step"] == [0, 10, 20, 30, 40]
    assert result["nll"][0] == 0.9
    for step in range(5):
        assert result["entropy"][step] == pytest.approx(
            sum(result[f"entropy_{part}"][step] for part in ("gate", "head", "tail"))
        )
    (made.path / "checkpoint" / "heldout.jsonl").unlink()
    out, _, scores = reported(made, "without")
    assert scores["training"]["held_out"] is None
    assert (
        "not trained on"
        not in (out / "report.html")
        .read_text()
        .split('<section id="training">')[1]
        .split("</section>")[0]
    )
    files.write_atomic(made.path / "checkpoint" / "heldout.jsonl", '{"step": 0}\n')
    with pytest.raises(UserError, match=r"heldout.jsonl:1 is not a measurement"):
        reported(made, "spoilt")


def _training_section(out: Path) -> str:
    page = (out / "report.html").read_text()
    return page.split('<section id="training">')[1].split("</section>")[0]


@pytest.mark.usefixtures("blank_figures")
def test_the_page_has_the_signals_of_progress_in_words(tmp_path):
    made = make_run(tmp_path)
    out, _, scores = reported(made)
    held = scores["training"]["held_out"]
    assert held["gap_closed"] == [0, 0.09, 0.18, 0.27, 0.36]
    assert held["sampling_temperature"] == made.recipe.sample.temperature
    section = _training_section(out)
    assert "Gap closed: 36.0\u00a0% of the way from the base" in section
    assert "Temperature reached: 1.44. The base is at 1. The samples were drawn at T" in section
    assert "Tail removed: 53.3\u00a0% of the base" in section
    assert section.index("Gap closed") < section.index("First loss")


@pytest.mark.usefixtures("blank_figures")
def test_logs_of_earlier_versions_have_no_signals_and_are_read(tmp_path):
    made = make_run(tmp_path)
    log = made.path / "checkpoint" / "heldout.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    later = {"gap_closed", "temperature_reached", "tail_removed", "alignment"}
    before = [{name: line[name] for name in line if name not in later} for line in lines]
    files.write_atomic(log, "".join(json.dumps(line) + "\n" for line in before))
    out, _, scores = reported(made)
    held = scores["training"]["held_out"]
    assert held["gap_closed"] is held["alignment"] is None
    assert held["support_compression"] is not None
    assert "Gap closed" not in _training_section(out)
    # A run that another version went on with has both kinds of lines.
    files.write_atomic(log, "".join(json.dumps(line) + "\n" for line in [*before[:2], *lines[2:]]))
    out, _, scores = reported(made, "resumed")
    assert scores["training"]["held_out"]["gap_closed"] == [None, None, 0.18, 0.27, 0.36]
    assert "Gap closed: 36.0" in _training_section(out)


@pytest.mark.usefixtures("blank_figures")
def test_signals_that_are_undefined_or_negative_are_named_so(tmp_path):
    made = make_run(tmp_path)
    log = made.path / "checkpoint" / "heldout.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    none = {"gap_closed": None, "temperature_reached": None, "tail_removed": None}
    worse = {"gap_closed": -0.02, "temperature_reached": 0.9, "tail_removed": -0.5}
    for change, expected in (
        (none, ("Gap closed: undefined", "reached: undefined", "removed: undefined")),
        (worse, ("further away", "reached: 0.9", "The tail has gained 50.0")),
    ):
        files.write_atomic(log, "".join(json.dumps(line | change) + "\n" for line in lines))
        section = _training_section(reported(made, next(iter(expected)))[0])
        assert all(words in section for words in expected)


def test_a_step_repeated_after_a_crash_counts_once(tmp_path):
    lines = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": float("nan")}, {"step": 1, "loss": 0.5}]
    files.write_atomic(
        tmp_path / "checkpoint" / "loss.jsonl", "".join(json.dumps(line) + "\n" for line in lines)
    )
    result = logs.loss(tmp_path / "checkpoint")
    assert result.step == (1, 2)
    assert json_bytes.rounded_to_ten_digits(result.loss) == (0.5, None)


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.4, "higher"), (-0.4, "lower"), (0.0, "cannot tell")]
)
def test_arms_differ_only_if_the_interval_excludes_zero(shift, expected):
    chosen, rng = recipe(), np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, 40)
    assert differences.difference(chosen, base + shift, base).reading == expected
    assert (
        differences.difference(chosen, (base + shift)[:9], base[:9]).reading == "too few problems"
    )
    assert differences.difference(chosen, base + shift, base).smallest_detectable_effect > 0


def stored(made):
    from ssd_ray.recipes import dump

    scores, _ = measure(made.recipe, made.path)
    files.write_atomic(made.path / "report" / "scores.json", scores_text(scores))
    files.write_atomic(made.path / "recipe.yaml", dump(made.recipe))
    return made


def test_two_runs_are_compared_by_recipe_and_paired_by_problem(tmp_path):
    first = stored(make_run(tmp_path / "a"))
    second = stored(
        make_run(
            tmp_path / "b",
            recipe(train={"steps": 80, "global_batch_size": 4, "warmup_steps": 4}),
            seed=5,
        )
    )
    result = compare(first.path, second.path)
    assert [(change.field, change.first, change.second) for change in result.changes] == [
        ("train.steps", 40, 80)
    ]
    for pair in result.pairs:
        here, there = (
            np.array(
                list(
                    per_problem(
                        run.verdicts[pair.arm],
                        pair.benchmark,
                        int(pair.metric[5:]),
                        pair.difficulty,
                    ).values()
                )
            )
            for run in (first, second)
        )
        assert pair.difference.problems == len(here)
        assert pair.difference.estimate == near((there - here).mean())
        assert pair.first.estimate == near(here.mean())
    assert json.loads(json.dumps(result.plain()))["pairs"]
    text = printed(result)
    assert "train.steps" in text
    assert "second − first (points)" in text
    assert str(second.path) not in text
    assert [
        pair.difficulty for pair in result.pairs if pair.arm == "ssd" and pair.metric == "pass@1"
    ] == [
        *(None, "easy", "medium", "hard"),  # of builtin
        None,  # of humaneval, which has one difficulty
    ]
    easy = next(
        line for line in text.splitlines() if "easy" in line and "pass@1" in line and "ssd" in line
    )
    assert re.search(r"of 4 .*of 4 .*(better|equal)", easy), "four problems are given as counts"
    assert "%" not in easy
    assert compare(first.path, first.path).changes == ()


def test_compare_prints_paths_in_one_piece(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    path = tmp_path / f"{'long-' * 20}name"
    stored(make_run(path))
    assert exit_status("compare", str(path), str(path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"first run: {path}", f"second run: {path}"]
    assert max(map(len, lines[2:])) <= 100


def test_runs_with_other_benchmarks_are_compared_as_json(tmp_path):
    first = stored(make_run(tmp_path / "a"))
    second = stored(make_run(tmp_path / "b", recipe(evaluate={"benchmarks": ["humaneval"]})))
    (change,) = json.loads(json.dumps(compare(first.path, second.path).plain()))["changes"]
    assert change["field"] == "evaluate.benchmarks"
    assert change["first"] == ["builtin", "humaneval"]
    assert change["second"] == ["humaneval"]


def test_runs_on_other_problems_are_not_paired(tmp_path, made):
    first = stored(make_run(tmp_path / "a"))
    second = stored(
        make_run(tmp_path / "b", mutate=lambda name, rows: drop_problem("")(name, rows))
    )
    pairs = compare(first.path, second.path).pairs
    result = {(pair.benchmark, pair.arm): pair for pair in pairs if pair.difficulty is None}
    assert result["builtin", "ssd"].difference is None
    groups = {
        pair.difficulty: pair for pair in pairs if (pair.benchmark, pair.arm) == ("builtin", "ssd")
    }
    assert (
        groups["easy"].unpaired
        == "the problems differ: 1 only in the first run, 0 only in the second"
    )
    assert groups["hard"].difference is not None
    assert (
        "the problems differ: 1 only in the first run, 0 only in the second"
        in result["builtin", "ssd"].unpaired
    )
    assert result["humaneval", "ssd"].difference is not None


def test_a_run_that_cannot_be_compared_gets_a_remedy_that_works(tmp_path):
    with pytest.raises(UserError, match=r"^there is no directory nowhere: give the --out of"):
        compare(Path("nowhere"), Path("nowhere"))
    with pytest.raises(UserError, match=r"no recipe.yaml, so it is no run: give the --out of"):
        compare(tmp_path, tmp_path)
    (tmp_path / "recipe.yaml").touch()
    command = f"`ssd-ray report {tmp_path}/recipe.yaml --out {tmp_path}`"
    with pytest.raises(UserError, match=rf"scores.json: finish that run first, with {command}$"):
        compare(tmp_path, tmp_path)


@pytest.mark.usefixtures("blank_figures")
def test_ungradable_problems_are_named_next_to_the_scores(tmp_path):
    made = make_run(tmp_path / "run")
    names = [f"own/{number}" for number in range(12)]
    left_out = [
        {"problem_id": name, "place": "p.jsonl, row 1", "reason": "its check fails"}
        for name in names
    ]
    path = made.path / "benchmark" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["problems_left_out"] = left_out
    path.write_text(json.dumps(manifest))
    out, _, scores = reported(made)
    assert scores["problems_left_out"] == left_out
    page = (out / "report.html").read_text()
    assert "Left out, because no program can be graded on them: 12 problems (own/0, " in page
    assert "own/9, …)" in page
