"""Contexts of a probe by their places: answers of a run, of a file, or reference solutions.

- Answers keep their exact token ids. A file without ids is refused.
- Reference solutions are tokenized once, after the prompt of their problem.

| place | contexts |
|---|---|
| RUN | the held-out samples of its training |
| RUN/dataset-NAME, RUN/dataset/NAME | the held-out samples of a control, or of a sweep's data set |
| RUN:accepted, RUN:rejected | the base's answers to the benchmarks, by verdict |
| RUN/verdicts/ARM:accepted, :rejected | the answers of one arm, by verdict |
| RUN/samples, RUN/generations/ARM, a file | completions |
| builtin, humaneval, a problem file | reference solutions |

Reads artifacts and files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssd_ray.analysis.forward import Context
from ssd_ray.artifacts.shards import read_columns, read_rows, shard_paths
from ssd_ray.config import PromptsConfig
from ssd_ray.config.arms import baseline
from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.problems import sources
from ssd_ray.problems.benchmarks import read_problems
from ssd_ray.problems.benchmarks.files import RowError
from ssd_ray.problems.benchmarks.files import list_files as list_problem_files
from ssd_ray.problems.benchmarks.files import read_rows as read_file_rows
from ssd_ray.problems.references import reference_ids
from ssd_ray.problems.rendering import renderer
from ssd_ray.schema import Completion, Problem, Verdict
from ssd_ray.standalone.probe_models import base_of, is_run, recipe_of

_VERDICTS = ("accepted", "rejected")
_COMPARED = 8
"""Answers whose ids are compared with their text."""
_IDS = {"prompt_token_ids", "output_token_ids"}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A context and the domain that it belongs to."""

    context: Context
    domain: str


def read(wheres: Iterable[str], tokenizer: Any, limit: int | None = None) -> list[Placed]:
    """Return the contexts of all places, at most `limit` of each.

    Raises:
        UserError: a place holds no contexts, or their ids are of another tokenizer.
    """
    placed = [
        each for where in wheres for each in itertools.islice(_contexts(where, tokenizer), limit)
    ]
    keys = [(each.domain, each.context.problem_id, each.context.sample_index) for each in placed]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(
            f"--contexts hold the answer {twice[1]}/{twice[2]} of {twice[0]} twice: "
            "give each place once"
        )
    return placed


def _contexts(where: str, tokenizer: Any) -> Iterator[Placed]:
    if where == "builtin":
        return _references(sources.builtin("all"), tokenizer)
    if where == "humaneval":
        return _references(sources.humaneval(), tokenizer)
    place, _, verdict = where.rpartition(":")
    path = Path(place if verdict in _VERDICTS else where).expanduser()
    if not path.exists():
        raise UserError(
            f"--contexts {where}: {path} does not exist; give a run, a directory or file of "
            "completions, a problem file, builtin or humaneval"
        )
    if verdict in _VERDICTS:
        return _judged(path, verdict, tokenizer)
    if is_run(path):
        return _held_out(path, path / "dataset", tokenizer)
    run = next((parent for parent in list(path.parents)[:2] if is_run(parent)), None)
    if run is not None and path.relative_to(run).parts[0].startswith("dataset"):
        return _held_out(run, path, tokenizer)
    if path.is_dir() and shard_paths(path) and (path / "manifest.json").exists():
        return _completions(read_rows(path, Completion), where, tokenizer)
    return _of_files(path, where, tokenizer)


def _held_out(run: Path, dataset: Path, tokenizer: Any) -> Iterator[Placed]:
    """Yield the held-out samples of a data set of a run, with ids as trained on."""
    from ssd_ray.training.data.examples import Examples
    from ssd_ray.training.observe import heldout

    recipe = recipe_of(run)
    if not recipe.train.heldout_samples:
        raise UserError(
            f"{run} holds no samples out of its training (train.heldout_samples is 0): "
            f"give {run / 'samples'}"
        )
    _require_tokenizer(base_of(run), run, tokenizer)
    if not (dataset / "manifest.json").exists():
        raise UserError(
            f"--contexts {dataset}: it holds no complete data set; give the directory of a run, "
            "or that of one data set of a sweep"
        )
    _, held_out = heldout.split(Examples(dataset), recipe.train.heldout_samples, recipe.seed)
    # Training sequences have no source; the samples behind them do.
    own = run / dataset.relative_to(run).as_posix().replace("dataset", "samples", 1)
    # A control that selects among the run's samples has none of its own.
    samples = own if own.is_dir() else run / "samples"
    domains = dict(read_columns(samples, "prompt_id", "source"))
    if held_out is None:
        return
    for row, problem in enumerate(held_out.prompt_ids()):
        ids = tuple(held_out.row(row).tolist())
        prompt = int(held_out.num_prompt_tokens[row])
        yield Placed(
            context=Context(
                problem_id=problem,
                sample_index=int(held_out.name(row).rpartition("/")[2]),
                prompt_token_ids=ids[:prompt],
                output_token_ids=ids[prompt:],
            ),
            domain=str(domains.get(problem, "held-out")),
        )


def _judged(path: Path, verdict: str, tokenizer: Any) -> Iterator[Placed]:
    """Yield the answers of a run with a verdict."""
    if is_run(path):
        path = path / "verdicts" / baseline(recipe_of(path))
    run = path.parent.parent
    answers = run / "generations" / path.name
    if path.name == "sample-verdicts":
        run, answers = path.parent, path.parent / "samples"
    if not (path / "manifest.json").exists() or not answers.is_dir():
        raise UserError(
            f"--contexts {path}:{verdict}: it holds no complete verdicts of a run; "
            "give RUN or RUN/verdicts/ARM"
        )
    # An answer without a verdict on itself is neither accepted nor rejected.
    keys = {
        (row.prompt_id, row.sample_index)
        for row in read_rows(path, Verdict)
        if (row.outcome == "accepted") == (verdict == "accepted")
        and row.outcome != "infrastructure_error"
    }
    rows = (
        row for row in read_rows(answers, Completion) if (row.prompt_id, row.sample_index) in keys
    )
    return _completions(rows, str(path), tokenizer)


def _completions(rows: Iterable[Completion], where: str, tokenizer: Any) -> Iterator[Placed]:
    different = compared = 0
    for row in rows:
        if row.text.strip() and not row.output_token_ids:
            raise UserError(
                f"--contexts {where}: the answer to {row.prompt_id} has a text and no "
                "output_token_ids: give completions with the ids that were drawn"
            )
        if compared < _COMPARED and row.text.strip():
            compared += 1
            different += not _fits(row.text, row.output_token_ids, tokenizer)
            # One answer may hold bytes that no text has.
            if compared == _COMPARED and different == compared:
                raise _other_tokenizer(where, row.prompt_id)
        yield Placed(
            context=Context(
                problem_id=row.prompt_id,
                sample_index=row.sample_index,
                prompt_token_ids=tuple(row.prompt_token_ids),
                output_token_ids=tuple(row.output_token_ids),
            ),
            domain=row.source or "answers",
        )
    if compared and different == compared:
        raise _other_tokenizer(where, "the last one")


def _fits(text: str, ids: tuple[int, ...], tokenizer: Any) -> bool:
    """Return True if ids decode to a text, up to white space and special tokens."""
    try:
        decoded: str = tokenizer.decode(ids, skip_special_tokens=True)
    except (IndexError, OverflowError, TypeError):
        return False
    return "".join(decoded.split()) == "".join(text.split())


def _other_tokenizer(where: str, name: str) -> UserError:
    return UserError(
        f"--contexts {where}: the ids of its answers (such as that to {name}) do not decode to "
        "their text, so they are of another tokenizer: give answers of these models"
    )


def _require_tokenizer(directory: Path, run: Path, tokenizer: Any) -> None:
    if loading.load_tokenizer(directory).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"--contexts {run}: its answers are of another tokenizer than the models: "
            "give a run of these models"
        )


def _of_files(path: Path, where: str, tokenizer: Any) -> Iterator[Placed]:
    """Yield completions of files with ids, or the reference solutions of problem files."""
    files = list_problem_files(path, "--contexts")
    _, first = next(iter(read_file_rows(files[0])), (0, {}))
    if isinstance(first, RowError):
        raise UserError(f"{files[0]}: {first}")
    if _IDS & first.keys():
        return _completions(_rows_with_ids(files), where, tokenizer)
    if {"text", "completion", "code"} & first.keys() and "prompt" not in first:
        raise UserError(
            f"--contexts {where}: its rows have no prompt_token_ids and output_token_ids; "
            "give answers with their exact ids, as in RUN/generations"
        )
    return _references(iter(read_problems(path)), tokenizer)


def _rows_with_ids(files: Iterable[Path]) -> Iterator[Completion]:
    for file in files:
        for number, row in read_file_rows(file):
            if isinstance(row, RowError):
                raise UserError(f"{file}, row {number}: {row}")
            prompt, output = (_ids(row.get(name)) for name in sorted(_IDS, reverse=True))
            index = row.get("sample_index", row.get("index")) or 0
            if type(index) is not int:
                raise UserError(
                    f"{file}, row {number}: sample_index {index!r} is not a whole number: correct "
                    "it, or leave it out"
                )
            if prompt is None or output is None:
                name = "prompt_token_ids" if prompt is None else "output_token_ids"
                raise UserError(
                    f"{file}, row {number}: {name} is not a list of token ids: give both columns "
                    "as lists of whole numbers"
                )
            yield Completion(
                prompt_id=str(row.get("prompt_id", row.get("problem_id", number))),
                sample_index=index,
                seed=0,
                source=str(row.get("source") or ""),
                difficulty="",
                prompt_token_ids=prompt,
                output_token_ids=output,
                text=str(row.get("text") or ""),
                finish_reason="stop",
            )


def _ids(value: object) -> tuple[int, ...] | None:
    """Return token ids, or None if a value is no list of them."""
    if isinstance(value, list) and all(type(each) is int for each in value):
        return tuple(value)
    return None


def _references(problems: Iterator[Problem], tokenizer: Any) -> Iterator[Placed]:
    """Yield the reference solutions as answers, after the prompts of their problems."""
    choices = PromptsConfig()
    mode: Literal["paper", "release"] = "paper" if tokenizer.chat_template else "release"
    render = renderer(tokenizer, mode, choices.system_message, {}, field="--contexts")
    number = 0
    for problem in problems:
        answer = reference_ids(problem, tokenizer)
        if answer is None:
            continue
        number += 1
        _, prompt = render(problem)
        yield Placed(
            context=Context(
                problem_id=problem.problem_id,
                prompt_token_ids=prompt,
                output_token_ids=answer,
            ),
            domain=f"{problem.source} references",
        )
    if not number:
        raise UserError(
            "--contexts: none of the problems has a reference solution: give answers instead"
        )
