"""A probe finds planted effects, resumes after a kill, and refuses inputs that do not fit."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from ssd_ray.analysis import probe_tables
from ssd_ray.analysis.forward import Context, ScoredModel
from ssd_ray.analysis.measures import Settings
from ssd_ray.analysis.operator import Setting
from ssd_ray.errors import UserError
from ssd_ray.progress import LineProgress
from ssd_ray.reporting.numbers.probe_numbers import ProbeNumbers, numbers
from ssd_ray.standalone import probe_models
from ssd_ray.standalone.probe_models import LoadedModels, Place
from tests.support.commands import exit_status
from tests.support.planted import (
    PlantedModel,
    Rule,
    against_decoding,
    answers,
    ideal,
    tempered,
    two_types,
    write_answers,
)
from tests.support.tiny import tiny_model

T_TRAIN = 1.6
PLAIN = Setting(temperature=T_TRAIN)
CUT = Setting(temperature=T_TRAIN, top_k=20, top_p=0.8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "model", "qwen3", seed=0)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, tempered by T_TRAIN through the weights of its output head."""
    directory = tiny_model(tmp_path_factory.mktemp("student") / "student", "qwen3", seed=0)
    path = next(directory.glob("*.safetensors"))
    weights = load_file(path)
    weights["lm_head.weight"] = weights["lm_head.weight"] / T_TRAIN
    save_file(weights, path, metadata={"format": "pt"})
    return directory


def _job(base: Path, rule: Rule, settings: Settings, contexts: list[Context]) -> probe_tables.Job:
    model = ScoredModel.load(base, device="cpu", name="base")
    return probe_tables.Job(
        models=(model, PlantedModel(model, "student", rule)),
        contexts=tuple(contexts),
        domains=tuple("even" if place % 2 == 0 else "odd" for place in range(len(contexts))),
        shown=frozenset({0}),
        kinds=lambda context: ["name"] * len(context.output_token_ids),
        settings=settings,
    )


def _numbers(job: probe_tables.Job, out: Path) -> ProbeNumbers:
    out.mkdir(exist_ok=True)
    probe_tables.write(job, out, LineProgress())
    return numbers(out, ["base", "student"], [None, None], job.settings)


@pytest.mark.parametrize(
    ("rule", "training"), [(tempered(T_TRAIN), PLAIN), (ideal(CUT), CUT)], ids=["tempered", "cut"]
)
def test_the_ideal_fit_is_found(base: Path, rule: Rule, training: Setting, tmp_path: Path) -> None:
    settings = Settings(training=training, evaluation=Setting(temperature=1.1, top_k=20))
    result = _numbers(_job(base, rule, settings, answers()), tmp_path).students[0]
    for signals in result.signals:
        assert signals.gap_closed is not None
        assert signals.gap_closed.estimate == pytest.approx(1.0, abs=1e-4)
        assert signals.temperature_reached is not None
        assert signals.temperature_reached.estimate == pytest.approx(T_TRAIN, abs=0.02)
    assert [signals.domain for signals in result.signals] == ["all", "even", "odd"]
    assert result.decoding.explained is not None
    if training is PLAIN:
        assert result.decoding.explained.estimate > 0.9995
        assert result.decoding.setting.temperature == pytest.approx(1.1 * T_TRAIN, abs=0.02)
        assert result.signals[0].tail_removed is None
    else:
        assert result.signals[0].tail_removed is not None
        assert result.signals[0].tail_removed.estimate == pytest.approx(1.0, abs=1e-4)


def test_supports_against_one_policy_are_not_explained(base: Path, tmp_path: Path) -> None:
    settings = Settings(training=CUT, evaluation=Setting(temperature=1.1, top_k=20, top_p=0.8))
    job = _job(base, against_decoding, settings, answers())
    plain = PlantedModel(job.models[0], "base", two_types)
    result = _numbers(replace(job, models=(plain, job.models[1])), tmp_path).students[0].decoding
    for explained in (result.explained, result.tokens_explained):
        assert explained is not None
        assert explained.high < 0.5
    assert result.tokens_changed.low > 0.2
    assert result.tokens_left.estimate < result.tokens_changed.estimate


def _columns(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    order = np.lexsort([table[name].to_numpy() for name in ("position", "problem_id", "model")])
    return {
        name: np.array(table[name].to_pylist(), dtype=float)[order]
        for name in table.column_names
        if name not in ("problem_id", "domain", "model", "token_kind")
    }


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_batches_and_shards_change_nothing(
    base: Path, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(training=CUT, evaluation=Setting(temperature=1.1, top_k=20))
    job = _job(base, tempered(1.2), settings, answers(5))
    expected = _numbers(job, tmp_path / "expected")
    monkeypatch.setattr(probe_tables, "SHARD_POSITIONS", budget // 2)
    result = _numbers(replace(job, budget=budget), tmp_path / "found")
    before, after = (
        _columns(tmp_path / name / "positions.parquet") for name in ("expected", "found")
    )
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    first, second = (each.students[0].signals[0].gap_closed for each in (expected, result))
    assert first is not None
    assert second is not None
    assert second.low == pytest.approx(first.low, abs=1e-4)


def test_a_killed_probe_resumes_at_its_last_complete_shard(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(training=CUT, evaluation=Setting(top_k=20))
    job = replace(_job(base, tempered(1.2), settings, answers(6)), budget=1)
    monkeypatch.setattr(probe_tables, "SHARD_POSITIONS", 1)
    expected = _numbers(job, tmp_path / "expected")
    write_table = probe_tables.write_table
    written: list[str] = []

    def killed(directory: Path, name: str, table: object) -> object:
        if name == "positions-00003-000":
            raise KeyboardInterrupt
        written.append(name)
        return write_table(directory, name, table)

    monkeypatch.setattr(probe_tables, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        _numbers(job, tmp_path / "found")
    assert written[-1] == "heads-00003-000"
    written.clear()
    monkeypatch.setattr(
        probe_tables, "write_table", lambda *each: written.append(each[1]) or write_table(*each)
    )
    assert _numbers(job, tmp_path / "found") == expected
    assert written[0] == "answers-00003-000"


@pytest.mark.slow
def test_models_in_pairs_give_the_same_numbers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(training=CUT, evaluation=Setting(top_k=20))
    job = replace(_job(base, tempered(1.2), settings, answers(6)), budget=100)
    job = replace(job, models=(*job.models, PlantedModel(job.models[0], "cut", ideal(CUT))))
    names = [model.name for model in job.models]
    monkeypatch.setattr(probe_tables, "SHARD_POSITIONS", 1)
    for name, together in (("together", True), ("pairs", False)):
        (tmp_path / name).mkdir()
        probe_tables.write(replace(job, together=together), tmp_path / name, LineProgress())
    for table in probe_tables.TABLES:
        first, second = (
            pq.read_table(tmp_path / name / f"{table}.parquet") for name in ("together", "pairs")
        )
        assert first.equals(second)
    expected, result = (
        numbers(tmp_path / name, names, [None] * 3, settings) for name in ("together", "pairs")
    )
    assert expected == result


@pytest.mark.slow
def test_large_models_are_loaded_two_at_a_time(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [Place(name=f"step {number}", directory=base) for number in range(4)]
    for available, most in ((10**9, 4), (10, 2)):
        monkeypatch.setattr(probe_models, "_available", lambda room=available: room)
        loaded = LoadedModels(places, "float32", LineProgress())
        alive = [weakref.ref(loaded[place]) for place in range(4)]
        gc.collect()
        assert sum(each() is not None for each in alive) == most
        assert loaded.together == (most == 4)
        assert loaded[0] is alive[0]()


def test_a_full_disk_is_reported_with_the_remedy(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(training=CUT, evaluation=Setting(top_k=20))
    job = _job(base, tempered(1.2), settings, answers(3))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", full)
    with pytest.raises(UserError, match=r"answers.parquet \(No space left on device\): make room"):
        _numbers(job, tmp_path / "out")


def _probe(out: Path, contexts: Path | str, *models: Path | str, **options: str) -> int:
    chosen = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return exit_status("probe", *models, "--contexts", contexts, "--out", out, "--quiet", *chosen)


@pytest.mark.slow
def test_the_command_writes_tables_numbers_and_page(
    base: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts = write_answers(tmp_path / "answers.jsonl", answers())
    out = tmp_path / "out"
    options = {"train_top_k": "0", "train_top_p": "1", "eval_top_k": "0", "eval_top_p": "1"}
    assert _probe(out, contexts, base, student, **options) == 0
    assert "explained by it" in capsys.readouterr().out
    document = json.loads((out / "probe.json").read_text())
    assert document["students"][0]["signals"][0]["gap_closed"]["estimate"] > 0.999
    assert document["domains"] == ["even", "odd"]
    table = pq.read_table(out / "positions.parquet")
    assert table.num_rows == 2 * sum(context.num_positions for context in answers())
    assert set(table["token_kind"].to_pylist()) >= {"keyword", "name", "comment", "prose"}
    texts = dict(
        zip(
            *(
                pq.read_table(out / "tokens.parquet")[name].to_pylist()
                for name in ("token_id", "text")
            ),
            strict=True,
        )
    )
    assert {token for ids in table["top_ids"].to_pylist() for token in ids} <= texts.keys()
    heads = pq.read_table(out / "heads.parquet").slice(0, 1).to_pylist()[0]
    row = next(
        row
        for row in table.to_pylist()
        if all(row[name] == heads[name] for name in ("problem_id", "model", "position"))
    )
    assert row["top_ids"] == heads["head_ids"][:6]
    assert row["top_log_probabilities"] == heads["head_log_probabilities"][:6]
    page = (out / "probe.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    shards = (out / "positions.parquet").stat().st_mtime_ns
    assert _probe(out, contexts, base, student, **options) == 0
    assert (out / "positions.parquet").stat().st_mtime_ns == shards
    assert _probe(out, contexts, base, student, **options, eval_temperature="0.5") == 2
    assert "was made with other choices" in capsys.readouterr().err


def test_reference_solutions_and_one_model(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _probe(out, "humaneval", base, limit="3") == 0
    document = json.loads((out / "probe.json").read_text())
    assert document["domains"] == ["humaneval references"]
    assert document["students"] == []
    assert document["views"]["everything"]["problems"] == 3


def _widen(directory: Path) -> None:
    """Give a model six more rows of logits, for no tokens."""
    path = next(directory.glob("*.safetensors"))
    weights = load_file(path)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = torch.cat([weights[name], weights[name][:6]])
    save_file(weights, path, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "vocab_size": 270}))


def test_inputs_that_do_not_fit_are_refused_in_one_sentence(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts = write_answers(tmp_path / "answers.jsonl", answers())
    other = tiny_model(tmp_path / "other", "qwen3", marks={40: "<mark>"})
    broken = tiny_model(tmp_path / "broken", "qwen3", seed=1)
    path = next(broken.glob("*.safetensors"))
    weights = load_file(path)
    weights["lm_head.weight"][5] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    alien = tmp_path / "alien.jsonl"
    rows = [json.loads(line) for line in contexts.read_text().splitlines()]
    alien.write_text("".join(json.dumps({**row, "text": "other words"}) + "\n" for row in rows))
    beyond = tmp_path / "beyond.jsonl"
    beyond.write_text(
        "".join(json.dumps({**row, "text": "", "output_token_ids": [999]}) + "\n" for row in rows)
    )
    wrong = {name: tmp_path / f"{name}.jsonl" for name in ("sample_index", "output_token_ids")}
    wrong["prompt_token_ids"] = tmp_path / "prompt_token_ids.jsonl"
    for name, path in wrong.items():
        path.write_text("".join(json.dumps({**row, name: "x"}) + "\n" for row in rows))
    single = write_answers(tmp_path / "single.jsonl", answers(1))
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"problem_id": "p", "text": "x"}\n')
    missing = tmp_path / "missing"
    negative = tmp_path / "negative.jsonl"
    negative.write_text(
        "".join(json.dumps({**row, "text": "", "output_token_ids": [-1]}) + "\n" for row in rows)
    )
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({**row, "output_token_ids": []}) + "\n" for row in rows))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    torn = tmp_path / "torn.jsonl"
    torn.write_text(contexts.read_text()[:-40])
    long = tmp_path / "long.jsonl"
    long.write_text(
        "".join(
            json.dumps({**row, "text": "", "output_token_ids": [5] * 5000}) + "\n" for row in rows
        )
    )
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text(2 * contexts.read_text())
    (tmp_path / "folder").mkdir()
    wider = tiny_model(tmp_path / "wider", "qwen3", seed=2)
    _widen(wider)
    cases = {
        "different tokenizers": (contexts, [base, other], {}),
        "NaN or infinite for token 0 of the answer": (contexts, [broken], {}),
        "of another tokenizer": (alien, [base], {}),
        "token id 999, and": (beyond, [base], {}),
        "answers to 1 problem, and": (single, [base], {}),
        "--eval-top-k 500 is above the vocabulary of 264": (
            contexts,
            [base],
            {"eval_top_k": "500"},
        ),
        "--train-temperature 1e-06 is out of": (contexts, [base], {"train_temperature": "1e-6"}),
        "--eval-temperature inf is out of": (contexts, [base], {"eval_temperature": "inf"}),
        "--temperatures nan is out of": (contexts, [base], {"temperatures": "1,nan"}),
        "--train-top-p 0 is out of": (contexts, [base], {"train_top_p": "0"}),
        "--eval-top-p nan is out of": (contexts, [base], {"eval_top_p": "nan"}),
        "sample_index 'x' is not": (wrong["sample_index"], [base], {}),
        "row 1: output_token_ids is not": (wrong["output_token_ids"], [base], {}),
        "row 1: prompt_token_ids is not": (wrong["prompt_token_ids"], [base], {}),
        "--train-temperature nan is out of": (contexts, [base], {"train_temperature": "nan"}),
        "--eval-temperature -1 is out of": (contexts, [base], {"eval_temperature": "-1"}),
        "token id -1, and": (negative, [base], {}),
        "has a text and no output_token_ids": (bare, [base], {}),
        "empty": (empty, [base], {}),
        "torn.jsonl": (torn, [base], {}),
        "more than the 4,096": (long, [base], {}),
        "folder": (tmp_path / "folder", [base], {}),
        "twice": (doubled, [base], {}),
        "vocabulary of 270 tokens and": (contexts, [base, wider], {}),
        "use numbers with commas, ": (contexts, [base], {"temperatures": ""}),
        "use numbers with commas": (contexts, [base], {"temperatures": "a"}),
        "use float32 or bfloat16": (contexts, [base], {"dtype": "half"}),
        "no prompt_token_ids and output_token_ids": (texts, [base], {}),
        "does not exist": (missing, [base], {}),
        "missing' does not exist": (contexts, [missing], {}),
    }
    for number, (message, (where, models, options)) in enumerate(cases.items()):
        assert _probe(tmp_path / f"out{number}", where, *models, **options) == 2, message
        error = capsys.readouterr().err
        assert message in error, message
        assert "Traceback" not in error


def test_a_refused_probe_leaves_its_directory_to_other_choices(base: Path, tmp_path: Path) -> None:
    contexts = write_answers(tmp_path / "answers.jsonl", answers())
    out = tmp_path / "out"
    assert _probe(out, contexts, base, train_top_k="500") == 2
    assert _probe(out, contexts, base, train_top_k="20") == 0
