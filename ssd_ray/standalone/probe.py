"""The command `probe`: models on the same positions, as tables, numbers and a page.

- The directory is an artifact: claimed first, sealed last, and resumed after a kill.
- A complete probe is not measured again; its numbers and its page are written again.

Reads models and contexts. Writes positions.parquet, answers.parquet, heads.parquet, tokens.parquet,
probe.json and probe.html.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ssd_ray import models
from ssd_ray.analysis import probe_tables
from ssd_ray.analysis.forward import BATCH_TOKENS, Context
from ssd_ray.analysis.measures import TEMPERATURES, Settings
from ssd_ray.analysis.operator import GREEDY, Setting
from ssd_ray.analysis.token_kinds import Pieces, kinds
from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.directory_lock import locked
from ssd_ray.artifacts.facts import RowFacts
from ssd_ray.artifacts.identity import Identity
from ssd_ray.artifacts.shards import row_group_tables, write_table
from ssd_ray.config import Decoding, ModelConfig
from ssd_ray.config.arms import decoding
from ssd_ray.errors import UserError
from ssd_ray.progress import Progress
from ssd_ray.reporting.numbers.json_bytes import canonical, plain, rounded_to_ten_digits
from ssd_ray.reporting.numbers.probe_numbers import ProbeNumbers, numbers
from ssd_ray.reporting.probe_page import probe_page
from ssd_ray.reporting.probe_programs import programs
from ssd_ray.reporting.words import counted
from ssd_ray.standalone import probe_contexts, probe_models
from ssd_ray.standalone.probe_contexts import Placed
from ssd_ray.standalone.probe_models import LoadedModels, Place, is_run, recipe_of
from ssd_ray.statistics.means import MIN_PROBLEMS

PAPER = Settings(
    training=Setting(temperature=1.6, top_k=20, top_p=0.8),
    evaluation=Setting(temperature=1.1, top_k=20, top_p=0.8),
)
"""The paper's setting for Qwen3-4B-Instruct, used without a run."""
TABLES_REVISION = 2
"""Raise it where columns of the tables change their meaning, such as the sums of `signals`."""
NUM_SHOWN = 6
LONGEST_SHOWN = 320
"""Answers shown as text, and their most tokens."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Decodings chosen on the command line; None takes that of the run, else the paper's."""

    train_temperature: float | None = None
    train_top_k: int | None = None
    train_top_p: float | None = None
    eval_temperature: float | None = None
    eval_top_k: int | None = None
    eval_top_p: float | None = None
    temperatures: tuple[float, ...] = TEMPERATURES


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """Choices of `ssd-ray probe`."""

    models: tuple[str, ...]
    contexts: tuple[str, ...]
    out: Path
    choices: Choices = Choices()
    limit: int | None = None
    """Most answers of each place; None takes all."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of the models; None is float32 on a CPU and bfloat16 on a GPU."""
    batch_tokens: int = BATCH_TOKENS


def probe(job: ProbeJob, progress: Progress) -> ProbeNumbers:
    """Probe the models of a job on its contexts, and return the contents of probe.json.

    Raises:
        UserError: models or contexts that cannot be compared, an output directory of another probe,
            or no room on the disk.
    """
    places = probe_models.resolve(job.models)
    tokenizer = probe_models.common_tokenizer(places)
    placed = probe_contexts.read(job.contexts, tokenizer, job.limit)
    problems = {each.context.problem_id for each in placed if each.context.num_positions}
    if len(problems) < MIN_PROBLEMS:
        answered = counted(len(problems), "problem")
        raise UserError(
            f"--contexts {' '.join(job.contexts)} has answers to {answered}, and an interval needs "
            f"{MIN_PROBLEMS}: give answers to more problems, or raise --limit"
        )
    settings = _settings(job, places)
    dtype = job.dtype or _usual_dtype()
    identity = Identity(
        stage="probe",
        revision=TABLES_REVISION,
        choices={
            "models": {place.name: _identify(place) for place in places},
            "contexts": _digest(placed),
            "settings": plain(settings),
            "dtype": dtype,
        },
    )
    # The claim comes first: a directory with a lock is not empty.
    manifests.claim(job.out, identity)
    with locked(job.out):
        # Asked again: another process may have completed the probe before the lock was free.
        if manifests.claim(job.out, identity) is None:
            files.check_disk(job.out)
            loaded = LoadedModels(places, dtype, progress)
            _check_limits(settings, loaded[0].vocabulary)
            work = _work(loaded, placed, settings, tokenizer)
            probe_tables.write(replace(work, budget=job.batch_tokens), job.out, progress)
            _write_texts(job.out, Pieces(tokenizer))
            rows = sum(context.num_positions for context in work.contexts) * len(places)
            manifests.seal(job.out, identity, RowFacts(rows=rows))
            shutil.rmtree(job.out / probe_tables.SHARDS, ignore_errors=True)
        progress.say("probe: numbers and page")
        names = [place.name for place in places]
        result = numbers(job.out, names, [place.step for place in places], settings)
        _write(job.out, result, tokenizer)
    return result


def _write(out: Path, result: ProbeNumbers, tokenizer: Any) -> None:
    files.write_atomic(out / "probe.json", canonical(rounded_to_ten_digits(plain(result))) + "\n")
    shown = programs(out, result, Pieces(tokenizer))
    files.write_atomic(out / "probe.html", probe_page(result, shown))


def _write_texts(out: Path, pieces: Pieces) -> None:
    """Write the text of each token id of the tables: `ssd-ray view` has no tokenizer."""
    import pyarrow as pa
    import pyarrow.compute as pc

    seen: set[int] = set()
    for table in row_group_tables(out / "positions.parquet", columns=["token_id", "top_ids"]):
        for ids in (table["token_id"], pc.list_flatten(table["top_ids"])):
            seen.update(pc.unique(ids).to_pylist())
    listed = sorted(seen)
    texts = pa.table({"token_id": pa.array(listed, pa.int32()), "text": pieces.of(listed)})
    write_table(out, "tokens", texts)


def _usual_dtype() -> Literal["float32", "bfloat16"]:
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def _identify(place: Place) -> Mapping[str, str]:
    return models.identify(ModelConfig(source=str(place.directory)))


def _digest(placed: Sequence[Placed]) -> str:
    """Return a digest of all ids, in their order."""
    sha = hashlib.sha256()
    for each in placed:
        sha.update(repr((each.domain, asdict(each.context))).encode())
    return sha.hexdigest()[:16]


def _settings(job: ProbeJob, places: Sequence[Place]) -> Settings:
    """Return the decodings: those chosen, else of the first run, else the paper's.

    Raises:
        UserError: a number is out of its range.
    """
    own = PAPER
    runs = [place.run for place in places if place.run]
    runs += [path for path in map(Path, job.contexts) if is_run(path)]
    if runs:
        recipe = recipe_of(runs[0])
        served = decoding(recipe, "ssd")
        own = Settings(
            training=_setting(recipe.sample),
            evaluation=_setting(served) if served else PAPER.evaluation,
        )
    chosen = job.choices
    _check_ranges(chosen)
    train = (chosen.train_temperature, chosen.train_top_k, chosen.train_top_p)
    evaluate = (chosen.eval_temperature, chosen.eval_top_k, chosen.eval_top_p)
    return Settings(
        training=_changed(own.training, *train),
        evaluation=_changed(own.evaluation, *evaluate),
        temperatures=chosen.temperatures,
    )


def _check_ranges(chosen: Choices) -> None:
    temperatures = [
        *(("--temperatures", value) for value in chosen.temperatures),
        ("--train-temperature", chosen.train_temperature),
        ("--eval-temperature", chosen.eval_temperature),
    ]
    for option, value in temperatures:
        if value is not None and not GREEDY <= value < math.inf:
            raise UserError(
                f"{option} {value:g} is out of range: give a finite number of {GREEDY:g} or more "
                "(below it, decoding is greedy)"
            )
    for option, value in (
        ("--train-top-p", chosen.train_top_p),
        ("--eval-top-p", chosen.eval_top_p),
    ):
        if value is not None and not 0 < value <= 1:
            raise UserError(
                f"{option} {value:g} is out of range: give a mass above 0 and up to 1, where 1 "
                "keeps all tokens"
            )


def _setting(choice: Decoding) -> Setting:
    return Setting(
        temperature=max(choice.temperature, GREEDY), top_k=choice.top_k, top_p=choice.top_p
    )


def _changed(
    setting: Setting, temperature: float | None, top_k: int | None, top_p: float | None
) -> Setting:
    """Return a setting with the numbers given; a top-k of 0 keeps all tokens."""
    limit = setting.top_k if top_k is None else (top_k or None)
    return Setting(
        temperature=setting.temperature if temperature is None else temperature,
        top_k=limit,
        top_p=setting.top_p if top_p is None else top_p,
    )


def _check_limits(settings: Settings, vocabulary: int) -> None:
    for option, top_k in (
        ("--train-top-k", settings.training.top_k),
        ("--eval-top-k", settings.evaluation.top_k),
    ):
        if top_k is not None and top_k > vocabulary:
            raise UserError(
                f"{option} {top_k} is above the vocabulary of {vocabulary:,} tokens: "
                "give a smaller one, or 0 for all tokens"
            )


def _work(
    loaded: LoadedModels, placed: Sequence[Placed], settings: Settings, tokenizer: Any
) -> probe_tables.Job:
    pieces = Pieces(tokenizer)

    def kinds_of(context: Context) -> Sequence[str]:
        return kinds(pieces.of(context.output_token_ids))

    return probe_tables.Job(
        models=loaded,
        together=loaded.together,
        contexts=tuple(each.context for each in placed),
        domains=tuple(each.domain for each in placed),
        shown=frozenset(_shown(placed)),
        kinds=kinds_of,
        settings=settings,
    )


def _shown(placed: Sequence[Placed]) -> list[int]:
    """Return the numbers of the answers to show: the first of each domain in turn, not too long."""
    queues: dict[str, list[int]] = {}
    for row, each in enumerate(placed):
        if 8 <= each.context.num_positions <= LONGEST_SHOWN:
            queues.setdefault(each.domain, []).append(row)
    chosen: list[int] = []
    # In turns, so that each domain is seen.
    while any(queues.values()) and len(chosen) < NUM_SHOWN:
        for queue in queues.values():
            if queue and len(chosen) < NUM_SHOWN:
                chosen.append(queue.pop(0))
    return chosen
