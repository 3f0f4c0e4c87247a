"""Training sequences from samples, tokens exactly as drawn.

- `input_ids` is the prompt's ids followed by the output's, as reported by the engine. Nothing is
  decoded and encoded again.
- Nothing is appended. An answer that stopped by itself ends with its end token; an answer cut at
  `max_tokens` does not.
- A first pass selects rows (`selection.py`).
- A second pass writes the kept rows, sorted by (prompt, sample), in shards of bounded size.
- Shards are a function of samples and choices, so a rerun keeps those on disk.
- Reads Completion shards, and Verdict shards for `prepare.select` "accepted".
- Writes Example shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ssd_ray.artifacts.dataset_facts import (
    DatasetFacts,
    Excerpt,
    Health,
    LengthHistogram,
    Masked,
)
from ssd_ray.artifacts.shards import read_table_of, shard_paths, write_shard
from ssd_ray.config import PrepareConfig
from ssd_ray.progress import Progress
from ssd_ray.schema import Completion, Example, from_table
from ssd_ray.training.data import health
from ssd_ray.training.data.health import CLASSES, Ints, ParseOptions
from ssd_ray.training.data.selection import Judged, select

SHARD_TOKENS = 2_000_000
NUM_EXAMPLES, EXCERPT = 2, 400


def prepare(
    samples: Path,
    choices: PrepareConfig,
    reading: ParseOptions,
    *,
    verdicts: Path | None = None,
    out: Path,
    progress: Progress | None = None,
) -> DatasetFacts:
    """Write the training sequences of `samples` to `out` and return the facts.

    - Provenance is not among the facts yet.
    - `finish_reasons` are those of the sequences as trained. An answer cut by
      `over_length=truncate` has lost its end token and counts as "length".
    - `length_histogram` has four bins for each doubling of the length.
    - `health` is that of the samples as drawn.

    Raises:
        UserError: nothing is left to train on, or `choices.select` is "accepted" and a sample has
            no verdict.
    """
    judged = select(samples, choices, reading, verdicts=verdicts, progress=progress)
    _write(samples, judged, out)
    counts = health.count(judged.answers, judged.kept, judged.masked, choices.policies, reading)
    examples = _class_examples(samples, judged)
    return _facts(judged, Health(**vars(counts), examples=examples))


def _facts(judged: Judged, counts: Health) -> DatasetFacts:
    kept = judged.kept
    response = judged.tokens[kept]
    stopped = (judged.answers.stopped & ~judged.truncated)[kept]
    total = int(response.sum())
    edges = health.length_edges(response)
    masked = Masked(
        rows=int(judged.masked.sum()), response_tokens=int(judged.tokens[judged.masked].sum())
    )
    histogram = LengthHistogram(
        edges=tuple(edges), counts=tuple(np.histogram(response, bins=edges)[0].tolist())
    )
    return DatasetFacts(
        rows=int(kept.sum()),
        read=len(judged.dropped),
        dropped=judged.num_dropped,
        masked=masked,
        truncated=int(judged.truncated[kept].sum()),
        prompt_tokens=int(judged.answers.num_prompt_tokens[kept].sum()),
        response_tokens=total,
        finish_reasons={"stop": int(stopped.sum()), "length": int((~stopped).sum())},
        token_share={
            "stop": int(response[stopped].sum()) / total,
            "length": int(response[~stopped].sum()) / total,
        },
        length_histogram=histogram,
        health=counts,
    )


def _class_examples(samples: Path, judged: Judged) -> dict[str, tuple[Excerpt, ...]]:
    """Return the first samples of each class by key, with beginning and end of their texts."""
    first = {
        name: np.flatnonzero(judged.answers.classes[:, place])[:NUM_EXAMPLES]
        for place, name in enumerate(CLASSES)
    }
    rows = dict(_completions(samples, judged, np.unique(np.concatenate(list(first.values())))))
    return {
        name: tuple(_excerpt(rows[place]) for place in places.tolist())
        for name, places in first.items()
    }


def _excerpt(row: Completion) -> Excerpt:
    text = row.text
    if len(text) > 2 * EXCERPT:
        text = f"{text[:EXCERPT]}\n[… {len(text) - 2 * EXCERPT:,} characters …]\n{text[-EXCERPT:]}"
    return Excerpt(
        prompt_id=row.prompt_id,
        sample_index=row.sample_index,
        tokens=len(row.output_token_ids),
        finish_reason=row.finish_reason,
        text=text,
    )


def _write(samples: Path, judged: Judged, out: Path) -> None:
    for number, places in enumerate(_shards(judged)):
        name = f"part-{number:05}"
        if not (out / f"{name}.parquet").exists():
            write_shard(out, name, _examples(samples, judged, places), Example)


def _shards(judged: Judged) -> Iterator[Ints]:
    """Yield runs of kept rows with at most `SHARD_TOKENS` tokens, or a single longer row."""
    kept = np.flatnonzero(judged.kept)
    lengths = (judged.answers.num_prompt_tokens + judged.tokens)[kept]
    begin = 0
    tokens = 0
    for end, length in enumerate(lengths.tolist()):
        if end > begin and tokens + length > SHARD_TOKENS:
            yield kept[begin:end]
            begin = end
            tokens = 0
        tokens += length
    yield kept[begin:]


def _completions(samples: Path, judged: Judged, places: Ints) -> Iterator[tuple[int, Completion]]:
    """Yield the samples at `places` in the order of their shards, one shard in memory at a time."""
    paths = shard_paths(samples)
    for shard in np.unique(judged.shards[places]).tolist():
        members = places[judged.shards[places] == shard]
        members = members[np.argsort(judged.rows[members])]
        table = read_table_of(paths[shard], Completion).take(judged.rows[members])
        yield from zip(members.tolist(), from_table(table, Completion), strict=True)


def _examples(samples: Path, judged: Judged, places: Ints) -> Iterator[Example]:
    # Samples come in the order of their shards, examples go out in the order of their keys.
    examples = {
        place: _example(row, judged, place) for place, row in _completions(samples, judged, places)
    }
    return (examples[place] for place in places.tolist())


def _example(completion: Completion, judged: Judged, place: int) -> Example:
    return Example(
        prompt_id=completion.prompt_id,
        sample_index=completion.sample_index,
        input_ids=completion.prompt_token_ids
        + completion.output_token_ids[: int(judged.tokens[place])],
        num_prompt_tokens=len(completion.prompt_token_ids),
        masked=bool(judged.masked[place]),
    )
