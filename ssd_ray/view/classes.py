"""Health classes of the answers of an index, by the rules of `prepare`.

They need every text and token, so they are computed on request, in one thread. The class
`no_end_token` is left out: its rule needs the end tokens of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray.artifacts import shards
from ssd_ray.errors import LastingError, one_line
from ssd_ray.view.filters import CLASSES
from ssd_ray.view.index import Index
from ssd_ray.view.parquet import FILE_BITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AT_ONCE = 2_000
"""Most rows of a run that are classified while its first page waits."""
_ROWS = 2_048


def classify(index: Index) -> None:
    """Compute the classes of every answer and put them into the index."""
    import numpy as np
    import pyarrow as pa

    positions: list[NDArray[Any]] = []
    members: list[NDArray[Any]] = []
    for source in index.sources:
        seen: set[bytes] = set()
        for number, path in index.shards(source.answers):
            first = number << FILE_BITS
            try:
                for bits in _of_shard(path, seen):
                    positions.append(np.arange(first, first + len(bits), dtype=np.int64))
                    members.append(bits)
                    first += len(bits)
                    index.num_classified += len(bits)
            except LastingError as error:
                index.notes.append(f"{path.name} has no health: {one_line(error, 200)}")
    table = pa.table(
        {
            "position": np.concatenate([np.zeros(0, np.int64), *positions]),
            "classes": np.concatenate([np.zeros(0, np.uint8), *members]),
        }
    )
    index.set_health(table)


def _of_shard(path: Path, seen: set[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Yield the classes of the rows of a shard as bits."""
    import numpy as np
    import pyarrow as pa

    from ssd_ray.training.data import health

    columns = ["prompt_id", "prompt_token_ids", "output_token_ids", "text", "finish_reason"]
    places = [health.CLASSES.index(name) for name in CLASSES if name != "duplicate"]
    duplicate = CLASSES.index("duplicate")
    for batch in shards.batches(path, columns, _ROWS):
        measured = health.judge(pa.Table.from_batches([batch]), health.ParseOptions())
        bits = np.zeros(len(batch), np.uint8)
        for bit, place in enumerate(places):
            bits |= measured.classes[:, place].astype(np.uint8) << bit
        # A duplicate is a later answer with the ids of an earlier one, in the order on disk.
        for row, digest in enumerate(measured.digests.tolist()):
            if digest in seen:
                bits[row] |= 1 << duplicate
            seen.add(digest)
        yield bits


def begin(index: Index) -> None:
    """Start to classify in a thread, once."""
    with index.lock:
        if index.has_health or index.is_classifying:
            return
        index.is_classifying = True
    threading.Thread(target=classify, args=(index,), name="classes", daemon=True).start()
