"""Download models from the Hugging Face hub into its cache.

Talks to the hub; writes HF_HOME.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from ssd_ray.errors import LastingError, OutsideError, system_reason

# No *.bin and *.py: neither pickled weights nor code are ever loaded.
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
_FULL_WORDS = ("No space left on device", "Disk quota exceeded")
"""Words of the system in errors of Xet, the hub's storage; these errors have no errno."""


def download(source: str, revision: str | None) -> Path:
    """Return the directory of a model in the hub's cache, downloaded where files are missing.

    Raises:
        UserError: the cache has no room or cannot be written, or the model cannot be downloaded.
    """
    from huggingface_hub import constants, get_token, snapshot_download
    from huggingface_hub.errors import GatedRepoError, XetDownloadError

    try:
        return Path(
            snapshot_download(
                source, revision=revision, allow_patterns=_FILES, ignore_patterns=["*/*"]
            )
        )
    # Xet raises RuntimeError and XetDownloadError; other errors of the hub's client are OSErrors.
    except (OSError, RuntimeError, XetDownloadError) as error:
        cache = constants.HF_HUB_CACHE
        for cause in _causes(error):
            if _is_full(cause):
                raise OutsideError(
                    f"model.source {source!r} does not fit into {cache}, where the hub's client "
                    "keeps models: make room, or set HF_HOME to a directory with more"
                ) from error
            # Without a file name, the error may be of the network.
            if isinstance(cause, OSError) and cause.filename and cause.errno in _UNWRITABLE:
                raise OutsideError(
                    f"model.source {source!r} cannot be written into {cache} "
                    f"({system_reason(cause)}): set HF_HOME to a directory that can be written"
                ) from error
        if not isinstance(error, OSError):
            raise
        if isinstance(error, GatedRepoError):
            state = "is not accepted for it" if get_token() else "is missing (HF_TOKEN)"
            raise LastingError(
                f"model.source {source!r} is gated, and the hub's token {state}: accept the "
                "model's terms on its page, and set HF_TOKEN to a token of that account"
            ) from error
        raise OutsideError(
            f"model.source {source!r} is no directory here, is not in the cache {cache}, and could "
            f"not be downloaded ({type(error).__name__}): "
            "check the name, the network and HF_TOKEN, or give a directory"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    return number in _FULL or any(words in str(error) for words in _FULL_WORDS)
