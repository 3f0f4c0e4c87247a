"""The layer of tokens belongs to the answer that was probed, and to no other."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.synthetic_run import Made
from tests.view.conftest import client_of
from tests.view.probed import write_probe

ADDRESS = "/answer?run=one&in=generations/ssd&id=builtin/00&n=1"


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Path:
    """A copy of the synthetic run."""
    return Path(shutil.copytree(made.path, tmp_path / "runs" / "one"))


def test_tokens_have_their_type_change_and_likely_tokens(made: Made, run: Path) -> None:
    answer = made.completions["ssd"][1]
    write_probe(run.parent / "one-probe", answer, "builtin", list(answer.output_token_ids))
    client = client_of(run.parent)
    page = client.get(ADDRESS).text
    assert f"{len(answer.output_token_ids)} tokens" in page
    body = page[page.index('class="tokens"') :]
    classes = re.findall(r'class="t (\S+(?: fork-\d)?) (\S*)"', body)
    assert len(classes) == len(answer.output_token_ids)
    assert [kind for kind, _ in classes[:5]] == [
        "lock",
        "two",
        "fork fork-1",
        "fork fork-5",
        "lock",
    ]
    assert [change for _, change in classes[:7]] == ["", *(f"up-{n}" for n in (1, 2, 3, 4, 5, 5))]
    document = html.unescape(re.search(r'data-tokens="([^"]*)"', page)[1])
    known = json.loads(document)
    size, there, views = known["tokens"][2]
    assert (size, known["models"]) == (3, ["base", "ssd"])
    assert views[1][:2] == [1.2, 25.0]
    assert views[0][2][0] == [there, 25.0, 1]
    assert [kept for _, _, kept in views[0][2]] == [1, 1, 1, 0, 0, 0]
    assert "\u202e" not in document
    assert "<script>window" not in page


@pytest.mark.parametrize("damage", ["ids", "arm", "texts"])
def test_an_answer_that_no_probe_has_names_the_command(made: Made, run: Path, damage: str) -> None:
    answer = made.completions["base" if damage == "arm" else "ssd"][1]
    ids = list(answer.output_token_ids)
    probe = run.parent / "one-probe"
    write_probe(probe, answer, "builtin", [*ids[:-1], 99] if damage == "ids" else ids)
    if damage == "texts":
        (probe / "tokens.parquet").unlink()
    page = client_of(run.parent).get(ADDRESS).text
    assert 'data-tokens="' not in page
    command = f"ssd-ray probe {run} --contexts {run}/generations/ssd --out {run}-probe"
    assert command in page


def test_a_damaged_probe_is_one_sentence(made: Made, run: Path) -> None:
    answer = made.completions["ssd"][1]
    write_probe(run.parent / "one-probe", answer, "builtin", list(answer.output_token_ids))
    positions = run.parent / "one-probe" / "positions.parquet"
    positions.write_bytes(positions.read_bytes()[:200])
    page = client_of(run.parent).get(ADDRESS)
    assert "the tables of the probe one-probe cannot be read" in page.text
    assert "Traceback" not in page.text
