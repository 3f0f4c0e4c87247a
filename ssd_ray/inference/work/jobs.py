"""Jobs of a pool of engines, as files in `jobs/` of its control directory.

- The driver opens a job by writing its file: input, output, decoding, positions on record.
- The queue hands out the missing positions, of the jobs in the order of their opening.
- The queue marks a job as drained once all its positions are on record.
- The driver closes a job by removing its files. Engines then write nothing for it.
- The driver marks the pool as closed once it will open no further job.

Reads and writes `jobs/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ssd_ray.artifacts import files
from ssd_ray.artifacts.ledger import Span
from ssd_ray.config import Decoding
from ssd_ray.config.section import AdaptiveDecoding

Coverage = Mapping[str, list[tuple[int, int]]]
"""Positions on record by source shard, as `Audit.coverage` returns them."""
_CLOSED = "closed"


@dataclass(frozen=True, order=True)
class JobSpan:
    """Positions of one job; `job` is the key of the job."""

    job: str
    span: Span

    def overlaps(self, other: JobSpan) -> bool:
        """Return True if the two have a position in common."""
        return self.job == other.job and self.span.overlaps(other.span)

    @classmethod
    def parse(cls, record: files.Json) -> JobSpan:
        """Return a span from its JSON."""
        return cls(job=record["job"], span=Span(**record["span"]))


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """Answers to draw to each prompt of a directory, with a seed and a decoding."""

    stage: str
    """Name of the artifact, for the screen."""
    key: str
    """Unique name of the job; the same in all attempts at its artifact."""
    prompts: Path
    out: Path
    samples: int
    """Answers to each prompt."""
    seed: int
    decoding: Decoding
    max_tokens: int
    """Longest answer."""
    shard_rows: int
    """Answers in a shard, at most."""


@dataclass(frozen=True, kw_only=True)
class OpenJob:
    """A job as read from its file; one with lost shards is opened again with another number."""

    number: int
    spec: JobSpec
    covered: Coverage

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.spec.key}.{self.number:06}.json"


def key_of(stage: str, out: Path) -> str:
    """Return the key of a job: its stage, and the claim of its artifact.

    An artifact made again has another claim, so earlier crashes do not count against it.
    """
    path = out / "fingerprint.json"
    claim = files.read_json(path).get("claim", "") if path.exists() else ""
    return f"{stage.replace('/', '+')}.{claim}"


def begin(control: Path) -> None:
    """Prepare the directory of jobs, and forget those of earlier attempts."""
    directory = control / "jobs"
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        path.unlink(missing_ok=True)
    reopen(control)


def open_job(control: Path, job: OpenJob) -> None:
    """Write the file of a job; the queue hands out its missing positions from here on."""
    spec = asdict(job.spec) | {
        "prompts": str(job.spec.prompts),
        "out": str(job.spec.out),
        "decoding": _decoding_record(job.spec.decoding),
    }
    record = {"number": job.number, "spec": spec, "covered": job.covered}
    files.write_atomic(control / "jobs" / job.name, json.dumps(record))


def _decoding_record(decoding: Decoding) -> dict[str, object]:
    """Return a decoding as JSON, without further fields of its class, such as the model."""
    kind = AdaptiveDecoding if isinstance(decoding, AdaptiveDecoding) else Decoding
    return {name: getattr(decoding, name) for name in kind.model_fields}


def _decoding(record: files.Json) -> Decoding:
    """Return a decoding from its JSON, of the class that it was written from."""
    kind = AdaptiveDecoding if "entropy_theta" in record else Decoding
    return kind(**record)


def close_job(control: Path, key: str) -> None:
    """Remove the files of a job."""
    for path in _paths(control, key):
        path.unlink(missing_ok=True)


def names(control: Path) -> list[str]:
    """Return the names of the open jobs' files, in the order of their opening."""
    listed = files.names(control / "jobs")
    return sorted(
        (name for name in listed if name.endswith(".json") and not name.startswith(".")),
        key=lambda name: name.rsplit(".", 2)[1],
    )


def read(control: Path, name: str) -> OpenJob:
    """Read the file of a job.

    Raises:
        FileNotFoundError: the job is closed.
    """
    record = json.loads((control / "jobs" / name).read_text())
    spec = record["spec"]
    return OpenJob(
        number=record["number"],
        spec=JobSpec(
            **{
                **spec,
                "prompts": Path(spec["prompts"]),
                "out": Path(spec["out"]),
                "decoding": _decoding(spec["decoding"]),
            }
        ),
        covered={
            source: [(start, stop) for start, stop in runs]
            for source, runs in record["covered"].items()
        },
    )


def specs(control: Path) -> list[JobSpec]:
    """Return the specifications of the open jobs."""
    result = []
    for name in names(control):
        try:
            result.append(read(control, name).spec)
        except FileNotFoundError:
            # Closed since its name was listed.
            continue
    return result


def is_open(control: Path, key: str) -> bool:
    """Return True if answers may be written for a job."""
    return any(path.suffix == ".json" for path in _paths(control, key))


def mark_drained(control: Path, name: str) -> None:
    """Mark all positions of a job as on record."""
    (control / "jobs" / name).with_suffix(".drained").touch()


def is_drained(control: Path, name: str) -> bool:
    """Return True if all positions of a job are on record."""
    return (control / "jobs" / name).with_suffix(".drained").exists()


def close(control: Path) -> None:
    """Mark the pool as closed: it ends once all its jobs are drained."""
    (control / _CLOSED).touch()


def reopen(control: Path) -> None:
    """Remove the mark of a closed pool."""
    (control / _CLOSED).unlink(missing_ok=True)


def is_closed(control: Path) -> bool:
    """Return True if no further job will be opened."""
    return (control / _CLOSED).exists()


def _paths(control: Path, key: str) -> list[Path]:
    directory = control / "jobs"
    return [directory / name for name in files.names(directory) if name.rsplit(".", 2)[0] == key]
