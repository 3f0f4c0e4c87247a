"""Forward passes of a panel are kept: a killed panel repeats no finished batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ssd_ray.analysis import likelihood
from ssd_ray.progress import LineProgress
from ssd_ray.standalone import panel_rows
from ssd_ray.standalone.panel_rows import BASE, STUDENT, Pair, read_rows

VOCABULARY = 40
PROMPTS = [tuple(range(length)) for length in (900, 3, 1500, 2000, 40, 8)]
PROMPTS = [tuple(token % VOCABULARY for token in prompt) for prompt in PROMPTS]
LABELS = [(5, 9, 20), (1, 2), (7, 8), (3, 4), (39, 0), (8, 30)]


class Killed(BaseException):
    """The end of a process."""


class Table:
    """A model of one table of logits, with a count of its scored rows."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
        self.scored = 0
        self.killed_after: int | None = None

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        if self.killed_after is not None and self.scored >= self.killed_after:
            raise Killed
        self.scored += len(ids)
        return torch.nn.functional.one_hot(ids, VOCABULARY).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.table


class Models(Sequence[Any]):
    """Base and student, with a count of loads."""

    def __init__(self) -> None:
        self.tables = [Table(0), Table(1)]
        self.loads = 0

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: Any) -> Any:
        self.loads += 1
        return self.tables[place]


class Scene:
    """Pairs over the same rows, with weights by name."""

    def __init__(self, rows: Path, patch: pytest.MonkeyPatch) -> None:
        self.rows = rows
        self.models = Models()
        self.weights = "first"
        places = [SimpleNamespace(name=name, directory=Path(name)) for name in ("base", "ssd")]
        patch.setattr(panel_rows, "resolve", lambda sources: places)
        patch.setattr(panel_rows, "LoadedModels", lambda *args: self.models)
        patch.setattr(panel_rows.loading, "load_tokenizer", lambda directory: None)
        patch.setattr(panel_rows.models, "identify", lambda model: {model.source: self.weights})

    def pair(self) -> Pair:
        return Pair(Path("run"), self.rows, LineProgress())


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path / "rows", monkeypatch)


def test_a_killed_panel_resumes_after_its_last_batch(scene: Scene) -> None:
    student = scene.models.tables[STUDENT]
    student.killed_after = 3
    with pytest.raises(Killed):
        scene.pair().choices("code", STUDENT, PROMPTS, LABELS)
    (path,) = scene.rows.glob("*.jsonl")
    finished = len(read_rows(path))
    assert 3 <= finished < len(PROMPTS), "the kill came in the middle"
    with path.open("a") as handle:
        handle.write('{"row": 5, "val')
    student.killed_after, student.scored = None, 0
    result = scene.pair().choices("code", STUDENT, PROMPTS, LABELS)
    assert student.scored == len(PROMPTS) - finished
    plain: Any = Table(1)
    expected = likelihood.choose(plain, PROMPTS, LABELS)
    assert result.chosen.tolist() == expected.chosen.tolist()
    assert result.in_format.tolist() == expected.in_format.tolist()
    assert result.mass.tolist() == expected.mass.tolist()
    assert sorted(read_rows(path)) == list(range(len(PROMPTS)))


def test_a_finished_panel_loads_no_model(scene: Scene) -> None:
    def measured() -> list[np.ndarray]:
        pair = scene.pair()
        choices = [pair.choices("code", which, PROMPTS, LABELS).mass for which in (BASE, STUDENT)]
        return [*choices, *pair.divergences("text", PROMPTS)]

    first = measured()
    assert not np.array_equal(first[0], first[1]), "each model has rows of its own"
    scene.models.loads = 0
    for before, after in zip(first, measured(), strict=True):
        assert before.tolist() == after.tolist()
    assert scene.models.loads == 0


def test_other_weights_or_questions_are_measured(scene: Scene) -> None:
    scene.pair().choices("code", BASE, PROMPTS, LABELS)
    base = scene.models.tables[BASE]
    base.scored = 0
    scene.pair().choices("code", BASE, PROMPTS[:2], LABELS[:2])
    assert base.scored == 2
    scene.weights, base.scored = "second", 0
    scene.pair().choices("code", BASE, PROMPTS, LABELS)
    assert base.scored == len(PROMPTS)
