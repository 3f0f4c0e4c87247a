"""A probe of an answer, as its tables on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ssd_ray.schema import Completion

TEXTS = ("\n", " ", "<script>window.hostile=1</script>", "\u202e\x1b[31m", "\"'>&", "name")


def write_probe(out: Path, answer: Completion, domain: str, token_ids: list[int]) -> None:
    """Write the tables of a probe with one answer, whose tokens go through S of 1, 2, 3 and 20.

    The student has 0.1 nats more entropy at each further position.
    """
    out.mkdir(parents=True)
    keys = {"problem_id": answer.prompt_id, "sample_index": answer.sample_index, "domain": domain}
    rows = [
        {
            **keys,
            "model": model,
            "position": position,
            "token_id": token,
            "support_size": (1, 2, 3, 20)[position % 4],
            "entropy": 1.0 + (0.1 * position if model == "ssd" else 0.0),
            "log_probability": math.log(0.25),
            "top_ids": [token, *range(200, 205)],
            "top_log_probabilities": [math.log(0.25)] + [math.log(0.1)] * 5,
        }
        for model in ("base", "ssd")
        for position, token in enumerate(token_ids)
    ]
    ids = sorted({each for row in rows for each in row["top_ids"]})
    texts = [{"token_id": each, "text": TEXTS[each % len(TEXTS)]} for each in ids]
    answers = [{**keys, "model": model} for model in ("base", "ssd")]
    for name, table in (("positions", rows), ("answers", answers), ("tokens", texts)):
        pq.write_table(pa.Table.from_pylist(table), out / f"{name}.parquet")
    (out / "heads.parquet").touch()
    (out / "probe.html").write_text("<title>probe</title>")
    (out / "probe.json").write_text(json.dumps({"models": ["base", "ssd"]}))
