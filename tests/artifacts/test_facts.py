"""Facts of each stage are written and read again, also those of later and earlier versions."""

import copy
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray import recipes
from ssd_ray.artifacts import facts, manifests, problem_facts
from ssd_ray.artifacts.dataset_facts import DatasetFacts, SequenceFacts, TokenizerFacts
from ssd_ray.artifacts.facts import Facts
from ssd_ray.artifacts.identity import Identity
from ssd_ray.errors import UserError
from ssd_ray.pipeline.run import Run
from ssd_ray.progress import LineProgress
from tests.support.staged import RECORDS

KINDS: dict[str, type[Facts]] = {
    "benchmark": problem_facts.BenchmarkFacts,
    "prompts": problem_facts.PromptFacts,
    "contamination": problem_facts.ContaminationFacts,
    "training-problems": problem_facts.TrainingProblemFacts,
    "eval-prompts": problem_facts.EvalPromptFacts,
    "samples": facts.AnswerFacts,
    "generations": facts.AnswerFacts,
    "sample-verdicts": facts.VerdictFacts,
    "dataset": DatasetFacts,
    "checkpoint": facts.CheckpointFacts,
    "verdicts": facts.VerdictFacts,
    "report": facts.ReportFacts,
    "grade/benchmark": problem_facts.ProblemFileFacts,
    "grade/completions": problem_facts.CompletionFileFacts,
    "grade/verdicts": facts.VerdictFacts,
}
"""Facts by stage of a run, and of a directory of `ssd-ray grade`."""
IDENTITY = Identity(stage="samples", choices={})
EARLIER = json.loads((Path(__file__).parents[1] / "golden" / "manifests.json").read_text())
"""A manifest of each stage by an earlier version of ssd_ray."""
NOT_RECORDED = {
    "prompts": {"template_date", "control_words"},
    "eval-prompts": {"chat_template", "template_date", "control_words"},
    "sample-verdicts": {"reasoning"},
    "verdicts": {"reasoning"},
    "grade/verdicts": {"reasoning"},
    "checkpoint": {"heldout_rows", "heldout_response_tokens"},
}
"""Facts that the earlier version did not record; they are read as None."""
GONE = {"thinking"}
"""Facts of the earlier version that this one does not know."""


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a type in facts."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        names = [item.name for item in dataclasses.fields(hint) if item.name != "shards"]
        return st.builds(hint, **{name: _values(hints[name]) for name in names})
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(_values(argument) for argument in arguments))
    if origin is tuple:
        return st.lists(_values(arguments[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=4), _values(arguments[1]), max_size=2)
    basic = {
        int: st.integers(0, 2**53),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=6),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return basic[hint]


@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("stage", sorted(KINDS))
@given(data=st.data())
def test_facts_of_every_stage_survive_their_manifest(
    tmp_path_factory: pytest.TempPathFactory, stage: str, data: st.DataObject
) -> None:
    counted = data.draw(_values(KINDS[stage]))
    out = tmp_path_factory.mktemp("artifact")
    manifests.seal(out, IDENTITY, counted)
    assert manifests.load_facts(out, KINDS[stage]) == counted
    assert manifests.read_manifest(out).facts == json.loads(json.dumps(counted.document()))


@pytest.mark.parametrize("stage", sorted(KINDS.keys() - {"report"}))
def test_facts_of_a_later_version_are_ignored(stage: str) -> None:
    document = EARLIER[stage]["facts"]
    later = copy.deepcopy(document) | {"later": {"any": [1]}}
    if stage == "dataset":
        later["health"]["later"] = later["health"]["lengths"]["later"] = 1
    assert KINDS[stage].parse(later, "") == KINDS[stage].parse(document, "")


def _required(kind: type[Facts]) -> list[str]:
    missing = dataclasses.MISSING
    return [
        item.name
        for item in dataclasses.fields(kind)
        if item.default is missing and item.default_factory is missing
    ]


@pytest.mark.parametrize("stage", sorted(KINDS.keys() - {"report"}))
def test_a_manifest_without_a_required_fact_is_refused(stage: str) -> None:
    document = EARLIER[stage]["facts"]
    for name in _required(KINDS[stage]):
        without = {key: value for key, value in document.items() if key != name}
        with pytest.raises(
            UserError, match=rf"^x/manifest.json has no readable fact `{name}` .* run again"
        ):
            KINDS[stage].parse(without, "x/manifest.json")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"rows": "many"}, r"fact `rows` \(input should be a valid integer"),
        ({"rows": None}, r"fact `rows`"),
        ({"rows": 1, "failed": [{"prompt_id": "p"}]}, r"fact `failed\.0\.sample_index`"),
        ({"rows": 1, "finish_reasons": [1]}, r"fact `finish_reasons`"),
    ],
)
def test_a_fact_of_another_type_is_named(document: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        facts.AnswerFacts.parse(document, "manifest.json")


@pytest.mark.parametrize("document", [{}, {"pass@1": {}, "pass@5": {}}, {"pass@1": 0.5}])
def test_a_report_without_one_metric_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"manifest\.json has .* run again"):
        facts.ReportFacts.parse(document, "manifest.json")


@pytest.mark.parametrize("stage", sorted(KINDS))
def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path, stage: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(EARLIER[stage]))
    manifest = manifests.read_manifest(tmp_path)
    read = KINDS[stage].parse(manifest.facts, stage)
    assert _includes(json.loads(json.dumps(read.document())), manifest.facts)
    for name in NOT_RECORDED.get(stage, ()):
        assert name not in manifest.facts
        assert getattr(read, name) is None
    assert manifest.finished_at == EARLIER[stage]["finished_at"]
    assert manifest.versions["python"]


def _includes(later: Any, earlier: Any) -> bool:
    """Return True if every earlier value that this version knows is among the later ones."""
    if not isinstance(earlier, dict):
        return bool(later == earlier)
    known = earlier.keys() - GONE
    return all(name in later and _includes(later[name], earlier[name]) for name in known)


def test_an_earlier_data_set_has_no_counts_of_reasoning() -> None:
    document = EARLIER["dataset"]["facts"]
    read = DatasetFacts.parse(document, "")
    assert (read.health.reasoning, read.health.other_language) == (None, None)
    assert read.provenance is not None
    assert read.provenance.template_date is None


def test_readers_need_only_the_facts_that_they_declare() -> None:
    document = EARLIER["dataset"]["facts"]
    few = {name: document[name] for name in _required(SequenceFacts)}
    assert SequenceFacts.parse(few, "").rows == document["rows"]
    assert TokenizerFacts.parse({}, "").provenance.tokenizer_sha256 is None
    digests = {"tokenizer.json": "abc"}
    origin = TokenizerFacts.parse({"provenance": {"tokenizer_sha256": digests}}, "").provenance
    assert origin.tokenizer_sha256 == digests


def test_an_official_grader_is_recorded_only_if_followed() -> None:
    counts = {"rows": 1, "infrastructure_errors": 0}
    assert "official_grader" not in facts.VerdictFacts(**counts).document()
    followed = facts.VerdictFacts(**counts, official_grader={"commit": "abc"})
    assert followed.document()["official_grader"] == {"commit": "abc"}


def _of_format(out: Path, form: int, **changes: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").write_text(json.dumps(EARLIER["samples"] | {"format": form} | changes))


@pytest.mark.parametrize("form", [0, 2, "1.5", None])
def test_a_manifest_of_another_format_is_refused(tmp_path: Path, form: Any) -> None:
    _of_format(tmp_path, form, versions={"ssd-ray": "9.1"}, shards="none")
    with pytest.raises(UserError) as raised:
        manifests.load_facts(tmp_path, facts.AnswerFacts)
    assert str(raised.value) == (
        f"{tmp_path / 'manifest.json'} has format {form}, and this version of ssd_ray reads "
        "format 1: use ssd_ray 9.1, or choose another --out"
    )


def test_a_manifest_without_a_format_counts_as_the_first(tmp_path: Path) -> None:
    document = {name: value for name, value in EARLIER["samples"].items() if name != "format"}
    (tmp_path / "manifest.json").write_text(json.dumps(document | {"shards": []}))
    assert manifests.load_facts(tmp_path, facts.AnswerFacts).rows == 5


def test_a_run_of_another_format_is_refused_untouched(tmp_path: Path) -> None:
    _of_format(tmp_path / "samples", 2)
    run = Run(recipes.load("quickstart"), tmp_path, LineProgress())
    with pytest.raises(UserError, match=r"samples/manifest\.json has format 2, and this version"):
        run.make("render")
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {"manifest.json", *RECORDS}
