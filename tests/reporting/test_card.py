"""The card of a data set: valid for the hub, loadable as described, true to the manifest."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import recipes
from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.dataset_facts import ClassCount, DatasetFacts, SampleDecoding
from ssd_ray.artifacts.facts import AnswerFacts
from ssd_ray.artifacts.ledger import Failure
from ssd_ray.artifacts.shards import read_rows, shard_paths
from ssd_ray.errors import UserError
from ssd_ray.pipeline.run import Run
from ssd_ray.progress import LineProgress
from ssd_ray.reporting.card import provenance
from ssd_ray.schema import Completion, Example, Prompt
from tests.support.sample_rows import completion, write_samples

RECIPE = """
name: tiny
model: {{source: {model}, dtype: float32, max_model_len: 4096}}
prompts: {{limit: 12{prompts}}}
sample: {{temperature: 1.2, top_k: 20, top_p: 0.95, max_tokens: 96}}
prepare: {{policies: {{loop: mask}}}}
evaluate:
  {{benchmarks: [builtin], limit: 5, arms: {{base: {{model: base}}}}, samples_per_problem: 1,
   pass_at: [1]}}
"""
LOOP = (10, 11, 12) * 20


def _prepared(
    tmp_path: Path,
    model: Path,
    prompts: str = "",
    text: str = "see\n```python\nprint({})\n```",
    failed: int = 0,
) -> Path:
    """Run up to the data set, with samples written by hand.

    Facts name the first `failed` prompts as those that crashed the engine.
    """
    path, out = tmp_path / "tiny.yaml", tmp_path / "run"
    path.write_text(RECIPE.format(model=model, prompts=prompts))
    run = Run(recipes.load(path), out, LineProgress())
    run.make("render")
    failures = tuple(
        Failure(prompt_id=f"builtin/{number}", sample_index=0, reason="alone")
        for number in range(failed)
    )
    rows = [
        completion(
            row.prompt_id,
            prompt_token_ids=row.token_ids,
            output_token_ids=LOOP if number == 0 else (10 + number, 11, 2),
            text=text.format(number),
            finish_reason="length" if number == 0 else "stop",
        )
        for number, row in enumerate(read_rows(out / "prompts", Prompt))
    ]
    step = next(step for step, _ in run.states() if step.name == "samples")
    manifests.claim(out / "samples", step.identity)
    write_samples(out / "samples", rows)
    manifests.seal(out / "samples", step.identity, AnswerFacts(rows=len(rows), failed=failures))
    run.make("prepare")
    return out


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return _prepared(tmp_path_factory.mktemp("card"), tiny_llama)


@pytest.mark.usefixtures("blank_figures")
def test_other_settings_rewrite_only_the_pages_of_a_data_set(
    tmp_path: Path, tiny_llama: Path
) -> None:
    out = _prepared(tmp_path, tiny_llama)
    shards = {path: path.stat().st_mtime_ns for path in (out / "dataset").glob("*.parquet")}
    for name in ("benchmark", "contamination", "eval-prompts"):
        shutil.rmtree(out / name, ignore_errors=True)
    chosen = ["prompts.license=mit", "evaluate.benchmarks=[humaneval]"]
    Run(recipes.load(tmp_path / "tiny.yaml", chosen), out, LineProgress()).make("prepare")
    card = (out / "dataset" / "README.md").read_text()
    assert "license: mit" in card
    assert "with a problem of humaneval" in card
    assert {path: path.stat().st_mtime_ns for path in (out / "dataset").glob("*.parquet")} == shards


@pytest.mark.usefixtures("blank_figures")
def test_an_unreadable_shard_is_named_with_the_remedy(tmp_path: Path, tiny_llama: Path) -> None:
    out = _prepared(tmp_path, tiny_llama)
    shard = shard_paths(out / "samples")[0]
    data = bytearray(shard.read_bytes())
    data[4:40] = bytes(36)
    shard.write_bytes(data)
    shutil.rmtree(out / "dataset")
    with pytest.raises(
        UserError,
        match=rf"{shard} cannot be read \(.*\): delete that file and run the same command again",
    ):
        Run(recipes.load(tmp_path / "tiny.yaml"), out, LineProgress()).make("prepare")


def test_the_hubs_own_parser_reads_the_card(prepared: Path, tiny_llama: Path) -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(prepared / "dataset" / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["task_categories"] == ["text-generation"]
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "part-*.parquet"}]}
    ]
    assert "The answers are unverified." in card.text
    assert "{{" not in card.text
    assert "could not be drawn" not in card.text
    assert str(prepared.parent) not in card.text
    assert str(tiny_llama) not in (prepared / "dataset" / "health.html").read_text() + str(card)
    assert "\n\n\n" not in card.text


def test_the_shards_load_as_the_card_describes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    written = [
        (row.prompt_id, list(row.input_ids), row.masked)
        for row in read_rows(prepared / "dataset", Example)
    ]
    code = re.search(
        r"```python\n(.*?)```", (prepared / "dataset" / "README.md").read_text(), re.DOTALL
    )
    assert code is not None
    monkeypatch.chdir(prepared / "dataset")
    output: dict[str, Any] = {}
    exec(code[1], output)
    uploaded = load_dataset(str(prepared / "dataset"), split="train")
    for rows in (output["rows"], uploaded):
        assert [(row["prompt_id"], row["input_ids"], row["masked"]) for row in rows] == written
    assert (
        len(
            load_dataset(
                "parquet", data_files=str(prepared / "samples" / "*.parquet"), split="train"
            )
        )
        == 12
    )


def test_figures_of_the_card_equal_a_recount(prepared: Path) -> None:
    text = (prepared / "dataset" / "README.md").read_text()
    samples = list(read_rows(prepared / "samples", Completion))
    tokens = sum(len(row.output_token_ids) for row in samples)
    assert f"| sampled | {len(samples)} | {tokens} |" in text
    assert "| of them left out of the loss | 1 | 60 |" in text
    share = f"{100 * len(LOOP) / tokens:.1f}\u00a0%"
    assert re.search(rf"\| loop \| .* \| 1 \| 8.3\u00a0% \| {share} \| mask \|", text)
    assert (
        "0 of 12 prompts share a run of 13 words, or a shorter statement, with a problem of "
        "builtin (policy: refuse)"
    ) in text


def test_provenance_is_in_the_manifest_and_can_be_checked(prepared: Path, tiny_llama: Path) -> None:
    result = manifests.load_facts(prepared / "dataset", DatasetFacts).provenance
    digest = hashlib.sha256((tiny_llama / "tokenizer.json").read_bytes()).hexdigest()
    assert result.tokenizer_sha256["tokenizer.json"] == digest
    template = json.loads((tiny_llama / "tokenizer_config.json").read_text()).get("chat_template")
    template = template or (tiny_llama / "chat_template.jinja").read_text()
    assert result.chat_template_sha256 == hashlib.sha256(template.encode()).hexdigest()
    assert result.decoding == SampleDecoding(
        temperature=1.2, top_k=20, top_p=0.95, max_tokens=96, samples_per_prompt=1
    )
    assert result.seed == 0
    assert {"python", "torch", "transformers", "ray", "ssd-ray"} <= set(result.versions)
    assert result.fingerprints["samples"] == manifests.load(prepared / "samples").fingerprint
    text = (prepared / "dataset" / "README.md").read_text()
    assert digest in text
    assert result.chat_template_sha256 in text


def test_the_health_page_is_self_contained_and_shows_the_facts(prepared: Path) -> None:
    page = (prepared / "dataset" / "health.html").read_text()
    health = manifests.load_facts(prepared / "dataset", DatasetFacts).health
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)
    assert page.count("data:image/svg+xml;base64,") == 2
    for name, result in health.classes.items():
        row = re.search(rf'<tr><th scope="row">{name.replace("_", " ")} .*?</tr>', page)
        assert row is not None
        assert re.findall(r"<td[^>]*>([^<]*)</td>", row[0])[0] == str(result.rows)
    assert health.classes["loop"] == ClassCount(
        rows=1, tokens=60, policy="mask", dropped=0, masked=1
    )
    assert "11 of 12 answers end with an end token" in page


def test_text_of_a_model_is_escaped_on_the_page(tmp_path: Path, tiny_llama: Path) -> None:
    out = _prepared(tmp_path, tiny_llama, text="<script>alert({})</script>\nsecond line")
    page = (out / "dataset" / "health.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(0)" in page


@pytest.mark.usefixtures("blank_figures")
def test_a_missing_license_and_missing_answers_are_stated(tmp_path: Path, tiny_llama: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text(
        "".join(json.dumps({"question": f"Print {number}."}) + "\n" for number in range(3))
    )
    out = _prepared(tmp_path, tiny_llama, f", source: {source}", failed=2)
    text = (out / "dataset" / "README.md").read_text()
    assert "2 answers could not be drawn" in text
    assert "license: unknown" in text
    assert "find out before you publish" in text


@pytest.mark.parametrize(
    ("source", "commit", "output"),
    [
        ("builtin", None, "the problems that come with ssd_ray"),
        ("data/mine.jsonl", None, "files (mine.jsonl)"),
        (
            "rstar-coder",
            "abc",
            (
                "microsoft/rStar-Coder on the Hugging Face hub, configuration seed_sft, revision "
                "abc, split train"
            ),
        ),
        (
            "hub:o/n:cfg@rev#test",
            None,
            "o/n on the Hugging Face hub, configuration cfg, revision rev, split test",
        ),
        ("hub:o/n@rev", "abc", "o/n on the Hugging Face hub, revision abc, split train"),
    ],
)
def test_the_card_names_the_source_of_prompts(
    prepared: Path, tmp_path: Path, source: str, commit: str | None, output: str
) -> None:
    recipe = recipes.load(prepared / "recipe.yaml", [f"prompts.source={source}"])
    rendered = files.read_json(prepared / "prompts" / "manifest.json")
    rendered["facts"]["source_revision"] = commit
    files.write_atomic(tmp_path / "manifest.json", json.dumps(rendered))
    result = provenance(recipe, recipe.sample, tmp_path, prepared / "samples").prompts
    assert (result.source, result.revision) == (output, commit)


def test_samples_of_several_versions_list_all_of_them(prepared: Path, tmp_path: Path) -> None:
    recipe, drawn = (
        recipes.load(prepared / "recipe.yaml"),
        files.read_json(prepared / "samples" / "manifest.json"),
    )
    files.write_atomic(
        tmp_path / "manifest.json", json.dumps({**drawn, "versions": {"vllm": "2", "ray": "5"}})
    )
    timing = {
        "seconds": 1.0,
        "attempts": 2,
        "tokens": 3,
        "versions": [{"vllm": "1", "ray": "5"}, {"vllm": "2", "ray": "5"}],
    }
    files.write_atomic(tmp_path / "timing.json", json.dumps(timing))
    result = provenance(recipe, recipe.sample, prepared / "prompts", tmp_path)
    assert result.versions == {"vllm": "1 and 2", "ray": "5"}


@pytest.mark.usefixtures("blank_figures")
def test_skipped_and_cut_prompts_are_on_card_and_page(tmp_path: Path, tiny_llama: Path) -> None:
    source = tmp_path / "mine.jsonl"
    texts = ["Print 1.", "Print 1.", "Print 2.", "Print 3. " * 600]
    source.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    out = _prepared(tmp_path, tiny_llama, f", source: {source}, over_length: truncate-left")
    card, page = ((out / "dataset" / name).read_text() for name in ("README.md", "health.html"))
    assert (
        "Of 4 rows read, left out: 1 duplicate statement. Prompts cut from the left to fit "
        "the context: 1."
    ) in card
    assert '<th scope="row">Rows read</th><td class="n">4</td>' in page
    assert '<th scope="row">Left out</th><td class="n">1 duplicate statement</td>' in page
    assert (
        '<th scope="row">of them cut from the left to fit the context</th><td class="n">1</td>'
        in page
    )
