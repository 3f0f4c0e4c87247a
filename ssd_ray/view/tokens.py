"""One answer token by token, where a probe measured it: lock, fork, change by training.

- A probe has an answer if its positions hold the answer's own token ids. Names alone are not
  enough: arms answer the same problems.
- Colors are classes of a style sheet: the policy of a page allows no style in it.

Reads answers.parquet, positions.parquet, tokens.parquet and probe.json of a probe.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.errors import UserError
from ssd_ray.view.answers import Answer
from ssd_ray.view.index import Index
from ssd_ray.view.parquet import Value, literal
from ssd_ray.view.rendering import printable
from ssd_ray.view.runs import read_document

MAX_TOKENS = 3000
"""Tokens of an answer on a page."""
_TABLES = ("answers.parquet", "positions.parquet", "tokens.parquet")
_FULL_CHANGE = 0.5
"""Change of the entropy in nats with the full color."""
_STEPS = 5
_FORKS = (20, 12, 8, 5, 3)
"""Least tokens in S of each strength of a fork's color."""
_MARKS = str.maketrans({"\n": "\u23ce", "\t": "\u21e5", " ": "\u2423"})


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token of an answer, with the classes of its two colors."""

    text: str
    kind: str
    """`lock`, `two`, or `fork` with its strength."""
    change: str
    """`up` or `down` with its strength, "" for none."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The tokens of an answer under the base and the last model of a probe."""

    probe: str
    models: tuple[str, ...]
    tokens: tuple[Token, ...]
    before: str
    """Text in front of the first position, which nothing predicts."""
    num_left_out: int
    details: str
    """JSON for the panel: texts, and for each token its S and both models' likely tokens."""

    @property
    def num_locks(self) -> int:
        """Number of positions with one token in S."""
        return sum(token.kind == "lock" for token in self.tokens)

    @property
    def num_forks(self) -> int:
        """Number of positions with three or more tokens in S."""
        return sum(token.kind.startswith("fork") for token in self.tokens)


def token_layer(index: Index, answer: Answer, probes: Mapping[str, Path]) -> Layer | None:
    """Return the answer as the first probe with it measured it, None without one.

    Raises:
        UserError: a table of a probe cannot be read.
    """
    import duckdb

    for name, page in probes.items():
        directory = page.parent
        tables = [directory / table for table in _TABLES]
        if not all(path.is_file() and not path.is_symlink() for path in tables):
            continue
        try:
            layer = _layer(index, answer, name, directory)
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0][:200]
            raise UserError(f"the tables of the probe {name} cannot be read ({reason})") from error
        if layer is not None:
            return layer
    return None


def command(answer: Answer) -> str:
    """Return the command of a probe with an answer, "" for one without token ids."""
    if not answer.token_ids:
        return ""
    run = _shown(answer.source.answers, len(answer.source.name.split("/")))
    source = f"{run}/{answer.source.name}"
    models = "MODEL" if answer.source.stage == "completions" else run
    words = ["ssd-ray", "probe", models, "--contexts", source, "--out", f"{run}-probe"]
    return shlex.join(words)


def _shown(path: Path, up: int) -> str:
    """Return the run of a directory of answers, from the working directory if it is below."""
    run = path.parents[up - 1]
    return str(run.relative_to(Path.cwd())) if run.is_relative_to(Path.cwd()) else str(run)


def _layer(index: Index, answer: Answer, name: str, directory: Path) -> Layer | None:
    key = [answer.row.prompt_id, answer.row.sample_index]
    where = "problem_id = ? AND sample_index = ?"
    # A probe has few answers and many positions: most answers are refused by the small table.
    if not _select(index, directory / "answers.parquet", "1 AS one", f"{where} LIMIT 1", key):
        return None
    models = read_document(directory / "probe.json").get("models")
    if not isinstance(models, list) or not models:
        return None
    shown = tuple(dict.fromkeys((str(models[0]), str(models[-1]))))
    rows = _select(
        index,
        directory / "positions.parquet",
        "domain, model, position, token_id, support_size, entropy, log_probability, top_ids, "
        "top_log_probabilities",
        f"{where} AND model IN (SELECT unnest(?)) ORDER BY position",
        [*key, list(shown)],
    )
    for domain in dict.fromkeys(row["domain"] for row in rows):
        by_model = [
            [row for row in rows if row["model"] == model and row["domain"] == domain]
            for model in shown
        ]
        if _is_of(answer, by_model):
            texts = _texts(index, directory, by_model, answer.token_ids[:1])
            return _built(answer, name, shown, by_model, texts)
    return None


def _is_of(answer: Answer, by_model: Sequence[Sequence[dict[str, Value]]]) -> bool:
    """Return True if each model has the positions of this answer."""
    first = by_model[0][0]["position"] if by_model[0] else 0
    ids = answer.token_ids[first:]
    return bool(ids) and all(tuple(row["token_id"] for row in rows) == ids for rows in by_model)


def _texts(
    index: Index,
    directory: Path,
    by_model: Sequence[Sequence[dict[str, Value]]],
    more: Sequence[int],
) -> dict[int, str]:
    wanted = set(more)
    for rows in by_model:
        for row in rows[:MAX_TOKENS]:
            wanted |= {row["token_id"], *row["top_ids"]}
    table = directory / "tokens.parquet"
    where = "token_id IN (SELECT unnest(?))"
    selected = _select(index, table, "token_id, text", where, [list(wanted)])
    return {row["token_id"]: printable(row["text"]) for row in selected}


def _built(
    answer: Answer,
    name: str,
    models: tuple[str, ...],
    by_model: Sequence[Sequence[dict[str, Value]]],
    texts: Mapping[int, str],
) -> Layer:
    places: dict[int, int] = {}
    tokens, details = [], []
    for rows in list(zip(*by_model, strict=True))[:MAX_TOKENS]:
        base, last = rows[0], rows[-1]
        tokens.append(
            Token(
                text=texts.get(base["token_id"], ""),
                kind=_kind(base["support_size"]),
                change=_change(last["entropy"] - base["entropy"]),
            )
        )
        views = [list(_view(row, base, places)) for row in rows]
        details.append(
            [base["support_size"], places.setdefault(base["token_id"], len(places)), views]
        )
    document = {
        "models": [printable(model) for model in models],
        "texts": [texts.get(token, "").translate(_MARKS) or "\u2205" for token in places],
        "tokens": details,
    }
    first = by_model[0][0]["position"]
    return Layer(
        probe=name,
        models=models,
        tokens=tuple(tokens),
        before="".join(texts.get(token, "") for token in answer.token_ids[:first]),
        num_left_out=max(0, len(by_model[0]) - MAX_TOKENS),
        details=json.dumps(document, separators=(",", ":")),
    )


def _view(
    row: dict[str, Value], base: dict[str, Value], places: dict[int, int]
) -> Iterator[object]:
    """Yield entropy, probability of the token there in percent, and the likely tokens."""
    yield round(row["entropy"], 2)
    yield _percent(row["log_probability"])
    # S is a prefix of the base's likely tokens.
    kept = set(base["top_ids"][: base["support_size"]])
    yield [
        [places.setdefault(token, len(places)), _percent(value), int(token in kept)]
        for token, value in zip(row["top_ids"], row["top_log_probabilities"], strict=True)
    ]


def _percent(log_probability: float) -> float:
    return round(100 * math.exp(log_probability), 1)


def _kind(size: int) -> str:
    if size < 3:
        return "lock" if size == 1 else "two"
    strength = next(place for place, least in enumerate(_FORKS) if size >= least)
    return f"fork fork-{_STEPS - strength}"


def _change(rise: float) -> str:
    strength = min(_STEPS, round(abs(rise) / _FULL_CHANGE * _STEPS))
    return f"{'up' if rise > 0 else 'down'}-{strength}" if strength else ""


def _select(
    index: Index, path: Path, columns: str, where: str, values: Sequence[Value]
) -> list[dict[str, Value]]:
    with index.cursor() as cursor:
        cursor.execute(
            f"SELECT {columns} FROM read_parquet(?, hive_partitioning=false) WHERE {where}",
            [[literal(path)], *values],
        )
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
