"""The two kinds of failure for users, and the one-line text of any exception.

A `UserError` is a mistake in the input, an `InfrastructureError` a failure of a machine.
"""

from __future__ import annotations

_LONGEST_LINE = 400


class UserError(Exception):
    """A mistake in the user's input: one sentence with the field, the value and the remedy.

    The command line ends with exit code 2.
    """


class OutsideError(UserError):
    """A mistake outside of the recipe: storage, network, a secret, a node.

    It may be corrected without a trace in the recipe and its inputs, so each attempt examines it
    again.
    """


class LastingError(OutsideError):
    """A mistake outside of the recipe that lasts until a person corrects it.

    So a scheduler's next attempt would find it again: a missing secret, storage without locks, a
    damaged file to delete.
    """


class InfrastructureError(Exception):
    """A crash of an engine, worker or node after all retries.

    The command line ends with exit code 1, and the same command resumes the run.
    """


def kind_of_mistake(error: UserError) -> type[UserError]:
    """Return the class of a mistake; Ray wraps an error in a class that it derives from both."""
    kinds = (LastingError, OutsideError)
    return next((kind for kind in kinds if isinstance(error, kind)), UserError)


def single_line(text: object) -> str:
    """Return a text with every run of white space, line ends included, as one space."""
    return " ".join(str(text).split())


def system_reason(error: Exception) -> str:
    """Return the system's words for a failure, such as `Permission denied`, else its text."""
    return getattr(error, "strerror", None) or str(error)


def one_line(error: BaseException, longest: int = _LONGEST_LINE) -> str:
    """Return the type and the text of an exception as one line of at most `longest` characters.

    The type comes first: the text of a MemoryError is empty, the text of a KeyError a bare name.
    Errors of this package are sentences and have no type in front.
    """
    text = single_line(error)
    if not isinstance(error, UserError | InfrastructureError):
        name = type(error).__name__
        text = f"{name}: {text}" if text else name
    return text[:longest]


def first_line(error: BaseException) -> str:
    """Return the type and first line of an exception of Ray; the other lines are a traceback."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip()}".removesuffix(": ")[:_LONGEST_LINE]
