"""Decide whether a failed engine start is a mistake of the user or a failure of the machine.

The cause decides, not the place: vLLM raises the same kinds of exception for both.

- A mistake ends the run with exit code 2: another start of the same engine fails the same way.
- A failure ends the process, and Ray starts the engine again: a device still in use, an
  unresponsive network file system, memory.

Reads headers and index of the model again, as they are seen from the engine's machine.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from ssd_ray.errors import InfrastructureError, OutsideError, UserError, one_line
from ssd_ray.models import weights
from ssd_ray.models.loading import CUSTOM_CODE
from ssd_ray.models.weights import FaultError

CONFIRM_S = 3.0
"""Pause before a file is looked at again: a network file system shows new files late."""
_NOT_YET_FREE = ("Free memory on device", "Error in memory profiling")
"""Messages of vLLM if another process, such as a predecessor, still holds a GPU's memory."""
_TOO_LARGE_CACHE = "Decrease --kv-cache-memory-bytes"
"""Advice of vLLM if the memory of a CPU has no room for the KV cache."""
_MISTAKES = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    ImportError,
    SyntaxError,
)
_MISTAKEN_TYPES = (
    "StrictDataclassFieldValidationError",
    "StrictDataclassClassValidationError",
    "SafetensorError",
)
"""Exceptions for malformed configurations or weights. By name, to import no library."""
_NOT_THERE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
_FULL = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "choose a place that can be written",
}


def explain(error: BaseException, directory: Path) -> UserError | InfrastructureError:
    """Return the error for a failed start: UserError for a mistake, else InfrastructureError."""
    error = _cause(error)
    # Our own errors are classified where they are raised.
    if isinstance(error, UserError | InfrastructureError):
        return error
    text = one_line(error)
    # A predecessor may still be about to free the device.
    if any(beginning in text for beginning in _NOT_YET_FREE):
        return InfrastructureError(text)
    if fault := _confirmed_fault(directory):
        return OutsideError(f"the model at {directory}: {fault}")
    if "trust_remote_code" in text or "trust-remote-code" in text:
        return UserError(f"the model at {directory}: {CUSTOM_CODE}")
    if _TOO_LARGE_CACHE in text:
        return OutsideError(
            f"lower engine.kv_cache_gib, or free memory on the engine's node: {text}"
        )
    if isinstance(error, OSError):
        return _of_storage(error, text)
    if isinstance(error, _MISTAKES) or type(error).__name__ in _MISTAKEN_TYPES:
        return UserError(f"vLLM does not take this model or its arguments: {text}")
    return InfrastructureError(text)


def _cause(error: BaseException) -> BaseException:
    """Return the original exception if Ray has wrapped it, as it does for vLLM's workers."""
    is_from_worker = type(error).__name__.startswith("RayTaskError")
    return getattr(error, "cause", None) or error if is_from_worker else error


def _confirmed_fault(directory: Path) -> str:
    """Return the fault still present in the model's files after a pause; empty if none."""
    for pause in (0.0, CONFIRM_S):
        time.sleep(pause)
        try:
            weights.check(directory)
        except FaultError as fault:
            text = f"{fault}: {fault.remedy or 'see that this machine has the complete model'}"
        except OSError:
            return ""
        else:
            return ""
    return text


def _of_storage(error: OSError, text: str) -> UserError | InfrastructureError:
    if remedy := _FULL.get(error.errno or 0):
        return OutsideError(f"an engine cannot write what it needs ({text}): {remedy}")
    if error.errno in _NOT_THERE and (error.filename is None or _is_refused(error.filename)):
        return OutsideError(f"an engine cannot open a file that it needs to start ({text})")
    # transformers raises a plain OSError for a missing file of a model. Errors of a network have an
    # errno or a type of their own.
    if type(error) is OSError and error.errno is None and "connect" not in text:
        return UserError(f"vLLM does not take this model or its arguments: {text}")
    return InfrastructureError(text)


def _is_refused(filename: str | bytes) -> bool:
    """Return True if a file still cannot be opened after a pause."""
    time.sleep(CONFIRM_S)
    try:
        os.close(os.open(filename, os.O_RDONLY))
    except OSError as error:
        return error.errno in _NOT_THERE
    return False
