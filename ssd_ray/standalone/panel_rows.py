"""Forward passes of a panel, kept row by row: a killed panel resumes where it was.

    base, checkpoint/, token ids ─> PANEL/rows/<digest>.jsonl: {"row": 3, "values": [1, 1, 0.98]}

- The digest covers the weights, the precision, the token ids and the measure. So other weights or
  questions have another file, and nothing is ever invalid.
- A batch is written as soon as it is measured. A line torn by a kill is measured again.
- Weights are loaded for the first row that lacks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssd_ray import models
from ssd_ray.analysis.forward import ScoredModel
from ssd_ray.analysis.likelihood import Choices, Ids, batches, choose, divergences
from ssd_ray.artifacts import files, ledger
from ssd_ray.config import ModelConfig
from ssd_ray.models import loading
from ssd_ray.progress import Progress
from ssd_ray.standalone.probe_models import LoadedModels, resolve

REVISION = 1
"""Raised with any change of a measure, so that earlier rows are measured again."""
BASE, STUDENT = 0, 1

Measure = Callable[[list[int]], list[list[float]]]


class Pair:
    """Base and student of a run, loaded when a row lacks, and the rows of both.

    Attributes:
        tokenizer: the base's.
    """

    def __init__(self, run: Path, rows: Path, progress: Progress) -> None:
        self._places = resolve((str(run),))
        self._dtype: Literal["float32", "bfloat16"] = "bfloat16" if _has_gpu() else "float32"
        self._models = LoadedModels(self._places, self._dtype, progress)
        self._weights = [
            dict(models.identify(ModelConfig(source=str(place.directory))))
            for place in self._places
        ]
        self._rows = rows
        self._progress = progress
        self.tokenizer = loading.load_tokenizer(self._places[BASE].directory)

    def choices(
        self, name: str, which: int, prompts: Sequence[Ids], labels: Sequence[Ids]
    ) -> Choices:
        """Choose a label for each prompt; see `likelihood.choose`."""

        def measure(rows: list[int]) -> list[list[float]]:
            result = choose(
                self._model(which), [prompts[row] for row in rows], [labels[row] for row in rows]
            )
            columns = (result.chosen, result.in_format, result.mass)
            return [[float(value) for value in row] for row in zip(*columns, strict=True)]

        key = ["choices", self._weights[which], prompts, labels]
        values = self._complete(f"{name}: {self._places[which].name}", key, prompts, measure)
        return Choices(
            chosen=values[:, 0].astype(np.int64), in_format=values[:, 1] > 0, mass=values[:, 2]
        )

    def divergences(
        self, name: str, texts: Sequence[Ids]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the sums of KL of student to base over each text, and its positions."""

        def measure(rows: list[int]) -> list[list[float]]:
            own = [texts[row] for row in rows]
            sums, sizes = divergences(self._model(BASE), self._model(STUDENT), own)
            return [[float(value) for value in row] for row in zip(sums, sizes, strict=True)]

        values = self._complete(name, ["kl", *self._weights, texts], texts, measure)
        return values[:, 0], values[:, 1]

    def _model(self, which: int) -> ScoredModel:
        return self._models[which]

    def _complete(
        self, label: str, key: list[Any], sequences: Sequence[Ids], measure: Measure
    ) -> NDArray[np.float64]:
        """Measure the rows that lack, and return the values of all rows."""
        content = json.dumps([REVISION, self._dtype, *key]).encode()
        path = self._rows / f"{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
        kept = read_rows(path)
        lacking = [row for row in range(len(sequences)) if row not in kept]
        if lacking:
            self._measure(label, path, kept, sequences, lacking, measure)
        return np.array([kept[row] for row in range(len(sequences))], dtype=np.float64)

    def _measure(
        self,
        label: str,
        path: Path,
        kept: dict[int, list[float]],
        sequences: Sequence[Ids],
        lacking: list[int],
        measure: Measure,
    ) -> None:
        with self._progress.task(f"panel {label}", len(sequences), "rows", len(kept)) as task:
            for places in batches([sequences[row] for row in lacking]):
                rows = [lacking[place] for place in places]
                values = dict(zip(rows, measure(rows), strict=True))
                lines = [json.dumps({"row": row, "values": values[row]}) for row in rows]
                ledger.append_line(path, "\n".join(lines).encode())
                kept.update(values)
                task.update(len(kept))


def read_rows(path: Path) -> dict[int, list[float]]:
    """Return the kept rows of a file, after its torn last line is cut off."""
    if not path.exists():
        return {}
    with path.open("r+b") as handle:
        rows = [json.loads(line) for line in files.read_complete_lines(handle)]
        # The next row would be written on to the torn line.
        handle.truncate()
    return {row["row"]: row["values"] for row in rows}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
