"""Values of options of the command line, written as in YAML. Does no I/O."""

from __future__ import annotations

import math
import shlex
from typing import Any

import yaml

from ssd_ray.errors import UserError, single_line

_LONGEST = 60
"""Most characters of a value in a sentence."""


def parsed(option: str, name: str, text: str) -> Any:
    """Return the value of `NAME=TEXT` after an option, such as `--set seed=3`.

    Raises:
        UserError: the text is no value of YAML.
    """
    try:
        return yaml.safe_load(text)
    # To PyYAML, 2024-13-01 is a date and 0x_ a number.
    except ValueError as error:
        reason = "looks like a date or a number and is none: correct it"
        raise UserError(_sentence(option, name, text, reason)) from error
    # The last two come from wrong tags, such as `!!bool x` and `!!timestamp x`.
    except (yaml.YAMLError, RecursionError, LookupError, AttributeError) as error:
        reason = "is not a YAML value: close its brackets and quotes"
        raise UserError(_sentence(option, name, text, reason)) from error


def _sentence(option: str, name: str, text: str, reason: str) -> str:
    shown = single_line(text)[:_LONGEST]
    short = text if len(text) <= _LONGEST else "TEXT"
    quoted = yaml.safe_dump(short, default_style='"', width=math.inf, allow_unicode=True).strip()
    command = f"{option} {shlex.quote(f'{name}={quoted}')}"
    return f"{option} {name}: {shown!r} {reason}, or give it as text with {command}"
