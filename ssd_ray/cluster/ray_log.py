"""Write Ray's messages to the run's logs, and leave the screen to this package's own lines.

Ray prints a paragraph for each ended worker, and Ray Data logs and warns during its work. All of
it goes to `logs/ray.log`, for readers who need more than the reason on the screen.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

from ssd_ray.cluster import ray_internals

Message: TypeAlias = dict[str, Any]
"""A message of another process, as Ray sends it."""
NAME = "ray.log"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def kept_in(logs: Path | None) -> Iterator[None]:
    """Send Ray's messages, log records and warnings of this process to a file of `logs`.

    Without `logs`, Ray prints them.
    """
    if logs is None:
        yield
        return
    handler = _LogFile(logs / NAME)
    logger = logging.getLogger("ray")
    consoles = _take_consoles(logger)
    logger.addHandler(handler)
    try:
        with (
            ray_internals.messages_sent_to(handler.write_message),
            mock.patch.object(warnings, "showwarning", handler.or_else(warnings.showwarning)),
        ):
            yield
    finally:
        logger.removeHandler(handler)
        for console in consoles:
            logger.addHandler(console)
        handler.close()


def leave_to_ray(name: str) -> None:
    """Send warnings of a logger with its own handlers to the handlers of `ray`."""
    logger = logging.getLogger(name)
    # Formatting its debug records in every step of a data set costs time.
    logger.setLevel(logging.WARNING)
    _take_consoles(logger)
    logger.propagate = True


def _take_consoles(logger: logging.Logger) -> list[logging.Handler]:
    consoles = [handler for handler in logger.handlers if ray_internals.is_console(handler)]
    for console in consoles:
        logger.removeHandler(console)
    return consoles


class _LogFile(logging.FileHandler):
    """A log file of warnings and errors, made with its first record."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter(_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; the first one makes the directory."""
        if self.stream is None:
            os.makedirs(os.path.dirname(self.baseFilename), exist_ok=True)
        super().emit(record)

    def write(self, name: str, text: str) -> None:
        """Write a text as a record of a warning."""
        self.handle(logging.LogRecord(name, logging.WARNING, "", 0, text, None, None))

    def write_message(self, data: Message, *_: Any, **__: Any) -> None:
        """Write a message of another process, in the form in which Ray prints it."""
        self.write(str(data["pid"]), "\n".join(data["lines"]))

    def or_else(self, show: Any) -> Any:
        """Return a `warnings.showwarning` to write Ray's warnings and show all others."""

        def show_or_write(
            message: Any, category: Any, filename: str, lineno: int, *rest: Any
        ) -> None:
            if f"{os.sep}ray{os.sep}" in filename:
                self.write("ray", f"{filename}:{lineno}: {category.__name__}: {message}")
            else:
                show(message, category, filename, lineno, *rest)

        return show_or_write
