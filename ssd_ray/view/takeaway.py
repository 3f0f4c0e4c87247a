"""The rows under filters as JSONL or Parquet, with texts, programs and details.

One shard of answers is in memory at a time. Reads shards; writes one temporary file for Parquet.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray.view.filters import Filters
from ssd_ray.view.index import Index
from ssd_ray.view.parquet import FILE_BITS, Value, literal
from ssd_ray.view.queries import condition

if TYPE_CHECKING:
    import pyarrow as pa

_MASK = (1 << FILE_BITS) - 1


def batches(index: Index, filters: Filters) -> Iterator[pa.RecordBatch]:
    """Yield the rows in the order on disk."""
    chosen = condition(index, filters)
    with index.cursor() as cursor:
        numbers = cursor.execute(
            f"SELECT DISTINCT position >> {FILE_BITS} FROM answers WHERE {chosen.sql} ORDER BY 1",
            chosen.values,
        ).fetchall()
        for (number,) in numbers:
            yield from _of_file(index, number, chosen.sql, chosen.values)


def _of_file(
    index: Index, number: int, where: str, values: list[Value]
) -> Iterator[pa.RecordBatch]:
    with index.cursor() as cursor:
        # A shard at a time: a join of all texts would not fit into the bound of memory.
        cursor.execute(
            "CREATE OR REPLACE TEMP TABLE taken AS SELECT * FROM answers "
            f"WHERE position >> {FILE_BITS} = {number} AND {where}",
            values,
        )
        places = cursor.execute(
            f"SELECT DISTINCT verdict >> {FILE_BITS} FROM taken WHERE verdict IS NOT NULL"
        ).fetchall()
        verdicts = [index.files[place] for (place,) in places]
        programs = "SELECT NULL::VARCHAR code, NULL::VARCHAR detail, NULL::BIGINT verdict"
        parameters: list[Value] = [[literal(index.files[number])]]
        if verdicts:
            programs = f"""SELECT code, detail,
              (f.number::BIGINT << {FILE_BITS}) | p.file_row_number AS verdict
              FROM read_parquet(?, filename=true, file_row_number=true, union_by_name=true,
                hive_partitioning=false) p JOIN files f ON f.path = p.filename"""
            parameters.append([literal(path) for path in verdicts])
        reader: pa.RecordBatchReader = cursor.sql(
            f"""SELECT t.stage, t.arm, t.prompt_id, t.sample_index, t.benchmark, t.difficulty,
              t.outcome, t.num_passed, t.num_tests, t.finish AS finish_reason, t.tokens, t.time_s,
              t.peak_bytes, a.seed, a.text, v.code, v.detail
            FROM taken t
            JOIN read_parquet(?, file_row_number=true, hive_partitioning=false) a
              ON a.file_row_number = t.position & {_MASK}
            LEFT JOIN ({programs}) v ON v.verdict = t.verdict ORDER BY t.position""",
            params=parameters,
        ).to_arrow_reader(2048)
        yield from reader


def json_lines(index: Index, filters: Filters) -> Iterator[bytes]:
    """Yield the rows as lines of JSON."""
    for batch in batches(index, filters):
        rows = (json.dumps(row, ensure_ascii=False) for row in batch.to_pylist())
        yield "".join(f"{row}\n" for row in rows).encode("utf-8", "replace")


def parquet_file(index: Index, filters: Filters) -> Path:
    """Return a temporary Parquet file of the rows, to be deleted by the caller."""
    import pyarrow.parquet as pq

    with tempfile.NamedTemporaryFile(suffix=".parquet", delete=False) as handle:
        writer: pq.ParquetWriter | None = None
        for batch in batches(index, filters):
            writer = writer or pq.ParquetWriter(handle, batch.schema, compression="zstd")
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
    return Path(handle.name)
