"""Write and read scores.json.

- Equal scores give equal bytes: sorted keys, floats of ten significant digits.
- Keys that a reader does not know are ignored.
- A file without the numbers that a reader needs is refused, with the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from ssd_ray.artifacts import files
from ssd_ray.errors import UserError
from ssd_ray.reporting.numbers.json_bytes import canonical, plain, rounded_to_ten_digits
from ssd_ray.reporting.numbers.scores import FORMAT, Scores

T = TypeVar("T")


def scores_text(scores: Scores) -> str:
    """Return the text of scores.json."""
    return canonical(rounded_to_ten_digits(plain(scores))) + "\n"


def read_scores(path: Path) -> Scores:
    """Read all of a scores.json.

    Raises:
        UserError: the file is of another format, or cannot be read.
    """
    return read_part(path, Scores)


def read_part(path: Path, part: type[T]) -> T:
    """Read the fields of a dataclass from a scores.json, which may hold more.

    A file of an earlier format can be read if it has these fields.

    Raises:
        UserError: a field is missing or has another type, or the file is not JSON.
    """
    document = files.read_json(path)
    try:
        return TypeAdapter(part).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(key) for key in first["loc"])
        raise UserError(
            f"{path} has format {document.get('format')} and no readable {name} "
            f"({first['msg'].lower()}), and this version of ssd_ray reads format {FORMAT}: "
            f"delete {path.parent} and run `ssd-ray report`, which makes only the report again"
        ) from error
