"""Artifacts are claimed, complete or stale, and never half-written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.artifacts import files, manifests, shards
from ssd_ray.artifacts.facts import Facts, RowFacts
from ssd_ray.artifacts.manifests import Identity
from ssd_ray.artifacts.shards import ShardFile
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.schema import Completion, Problem, Test, arrow_schema, from_table, to_table
from tests.support.sample_rows import completion

IDENTITY = Identity(
    stage="samples", choices={"temperature": 1.6, "top_k": 20}, inputs={"prompts": "abc"}
)


def test_an_artifact_is_missing_then_partial_then_complete(tmp_path: Path) -> None:
    out = tmp_path / "samples"
    assert manifests.state_of(out, IDENTITY) == "missing"
    assert manifests.claim(out, IDENTITY) is None
    assert manifests.state_of(out, IDENTITY) == "partial"
    sealed = manifests.seal(out, IDENTITY, RowFacts(rows=0))
    assert manifests.state_of(out, IDENTITY) == "complete"
    assert manifests.claim(out, IDENTITY) == sealed == manifests.load(out)


def test_a_complete_artifact_is_not_remade(tmp_path: Path) -> None:
    calls = []
    for _ in range(2):
        artifact = manifests.make(
            tmp_path / "a", IDENTITY, lambda out: calls.append(out) or RowFacts(rows=3)
        )
    assert len(calls) == 1
    assert manifests.load_facts(artifact.path, RowFacts) == RowFacts(rows=3)


def test_leftovers_of_a_killed_write_do_not_block_a_claim(
    tmp_path: Path,
) -> None:
    out = tmp_path / "samples"
    out.mkdir()
    (out / ".fingerprint.json.77.partial").write_text("{")
    assert manifests.claim(out, IDENTITY) is None
    assert manifests.state_of(out, IDENTITY) == "partial"


def test_a_shard_added_to_a_complete_artifact_is_refused(tmp_path: Path) -> None:
    def write(out: Path) -> RowFacts:
        shards.write_shard(out, "one", [completion("p")], Completion)
        return RowFacts(rows=1)

    manifests.make(tmp_path / "a", IDENTITY, write)
    shards.write_shard(tmp_path / "a", "two", [completion("q")], Completion)
    with pytest.raises(UserError, match=r"two\.parquet is not in the manifest"):
        manifests.load(tmp_path / "a")


def test_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    manifests.claim(tmp_path / "a", IDENTITY)
    shards.write_shard(tmp_path / "a", "one", [completion("p")], Completion)
    other = Identity(
        stage="samples", choices={"temperature": 1.1, "top_k": 20}, inputs={"prompts": "abc"}
    )
    assert manifests.state_of(tmp_path / "a", other) == "stale"
    with pytest.raises(UserError, match=r"temperature: 1\.6 there, 1\.1 here.*another --out"):
        manifests.claim(tmp_path / "a", other)


def test_an_attempt_that_made_nothing_leaves_no_claim(tmp_path: Path) -> None:
    manifests.claim(tmp_path / "a", IDENTITY)
    for name in (".engines", ".returned"):
        (tmp_path / "a" / name).mkdir()
    other = Identity(stage="samples", choices={"temperature": 1.1})
    assert manifests.claim(tmp_path / "a", other) is None
    assert manifests.state_of(tmp_path / "a", other) == "partial"


def test_a_shard_cut_in_half_is_named(tmp_path: Path) -> None:
    manifests.claim(tmp_path / "a", IDENTITY)
    path = shards.write_shard(tmp_path / "a", "one", [completion("p")], Completion)
    manifests.seal(tmp_path / "a", IDENTITY, Facts())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"one\.parquet is missing or was changed"):
        manifests.load(tmp_path / "a")


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not made by this program"):
        manifests.claim(tmp_path, IDENTITY)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_an_unwritable_directory_is_refused_in_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write"):
        manifests.claim(blocked / "run", IDENTITY)


def test_a_full_disk_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        shards.write_shard(tmp_path, "one", [completion("p")], Completion)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_names_every_shard_with_its_digest(tmp_path: Path) -> None:
    manifests.claim(tmp_path / "a", IDENTITY)
    shards.write_shard(tmp_path / "a", "one", [completion("p")], Completion)
    manifests.seal(tmp_path / "a", IDENTITY, Facts())
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert [shard["name"] for shard in manifest["shards"]] == ["one.parquet"]
    assert len(manifest["shards"][0]["sha256"]) == 64
    assert manifest["versions"]["python"]


def test_an_artifact_with_an_unknown_shard_is_not_complete(
    tmp_path: Path,
) -> None:
    """A lost engine may write one late. The manifest would list it, the counts would not."""
    out = tmp_path / "a"
    manifests.claim(out, IDENTITY)
    path = shards.write_shard(out, "one", [completion("p")], Completion)
    recorded = ShardFile(name=path.name, bytes=path.stat().st_size, sha256="as recorded")
    facts = RowFacts(rows=1, shards=(recorded,))
    shards.write_shard(out, "two", [completion("p")], Completion)
    with pytest.raises(InfrastructureError, match=r"two\.parquet appeared in .* run again"):
        manifests.seal(out, IDENTITY, facts)
    assert manifests.state_of(out, IDENTITY) == "partial"
    (out / "two.parquet").unlink()
    assert manifests.seal(out, IDENTITY, facts) == manifests.load(out)
    assert manifests.read_manifest(out).facts == {"rows": 1}
    assert json.loads((out / "manifest.json").read_text())["shards"][0]["sha256"] == "as recorded"


def test_equal_pids_on_two_machines_write_one_file_safely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asides: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda aside, path: (asides.append(aside.name), replace(aside, path))
    )
    for _ in range(2):
        files.write_atomic(tmp_path / "x", b"x")
    assert len(set(asides)) == 2


def test_the_fingerprint_follows_from_choices_and_inputs_alone() -> None:
    same = Identity(
        stage="samples", choices={"top_k": 20, "temperature": 1.6}, inputs={"prompts": "abc"}
    )
    assert same.fingerprint == IDENTITY.fingerprint
    for other in (
        Identity(stage="dataset", choices=IDENTITY.choices, inputs=IDENTITY.inputs),
        Identity(
            stage="samples", choices={**IDENTITY.choices, "top_k": 21}, inputs=IDENTITY.inputs
        ),
        Identity(stage="samples", choices=IDENTITY.choices, inputs={"prompts": "abd"}),
    ):
        assert other.fingerprint != IDENTITY.fingerprint


def test_a_revision_changes_the_fingerprint_of_its_stage_alone() -> None:
    revised = dataclasses.replace(IDENTITY, revision=1)
    assert IDENTITY.fingerprint == IDENTITY.recipe_digest == revised.recipe_digest
    assert revised.fingerprint != IDENTITY.fingerprint
    assert dataclasses.replace(IDENTITY, revision=2).fingerprint != revised.fingerprint


@pytest.mark.parametrize(
    ("there", "here", "version"), [(0, 1, "an earlier"), (1, 2, "an earlier"), (1, 0, "a later")]
)
def test_an_artifact_of_another_version_is_refused_as_such(
    tmp_path: Path, there: int, here: int, version: str
) -> None:
    manifests.claim(tmp_path / "a", dataclasses.replace(IDENTITY, revision=there))
    shards.write_shard(tmp_path / "a", "one", [completion("p")], Completion)
    with pytest.raises(
        UserError, match=rf"made by {version} version of ssd_ray .*another --out, or delete"
    ):
        manifests.claim(tmp_path / "a", dataclasses.replace(IDENTITY, revision=here))


def test_an_artifact_older_than_revisions_has_revision_0(tmp_path: Path) -> None:
    manifests.claim(tmp_path / "a", IDENTITY)
    record = files.read_json(tmp_path / "a" / "fingerprint.json")
    del record["revision"]
    (tmp_path / "a" / "fingerprint.json").write_text(json.dumps(record))
    shards.write_shard(tmp_path / "a", "one", [completion("p")], Completion)
    assert manifests.state_of(tmp_path / "a", IDENTITY) == "partial"
    with pytest.raises(UserError, match=r"an earlier version of ssd_ray \(revision 0, 1 here\)"):
        manifests.claim(tmp_path / "a", dataclasses.replace(IDENTITY, revision=1))


@given(
    ids=st.lists(st.integers(0, 2**31 - 1), max_size=20),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    index=st.integers(0, 99),
)
def test_rows_come_back_as_they_were_written(ids: list[int], text: str, index: int) -> None:
    row = Completion(
        prompt_id=text,
        sample_index=index,
        seed=2**63 - 1,
        source=text,
        difficulty="",
        prompt_token_ids=tuple(ids),
        output_token_ids=tuple(reversed(ids)),
        text=text,
        finish_reason="length",
    )
    assert list(from_table(to_table([row], Completion), Completion)) == [row]


def test_a_problem_with_tests_comes_back_as_it_was(tmp_path: Path) -> None:
    problem = Problem(
        problem_id="p", source="s", statement="x", tests=(Test(input="1\n", output="2\n"),)
    )
    shards.write_shard(tmp_path, "p", [problem], Problem)
    assert list(shards.read_rows(tmp_path, Problem)) == [problem]
    assert arrow_schema(Problem).field("tests").type.value_type.num_fields == 3


def test_columns_are_read_without_the_rest(tmp_path: Path) -> None:
    shards.write_shard(tmp_path, "b", [completion("q", sample_index=1)], Completion)
    shards.write_shard(tmp_path, "a", [completion("p")], Completion)
    assert list(shards.read_columns(tmp_path, "prompt_id", "sample_index")) == [("p", 0), ("q", 1)]


def test_a_leftover_of_a_crash_is_not_a_shard(tmp_path: Path) -> None:
    shards.write_shard(tmp_path, "a", [completion("p")], Completion)
    (tmp_path / ".b.parquet.1.partial").write_bytes(b"half")
    assert [path.name for path in shards.shard_paths(tmp_path)] == ["a.parquet"]


def test_a_half_written_line_is_read_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert files.read_json_lines(path) == []
    path.write_bytes(b'{"step": 1}\n{"step"')
    assert files.read_json_lines(path) == [{"step": 1}]
    with path.open("rb") as handle:
        assert files.read_complete_lines(handle) == [b'{"step": 1}']
        path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
        assert files.read_complete_lines(handle) == [b'{"step": 2}']
        assert files.read_complete_lines(handle) == []
