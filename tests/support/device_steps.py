"""Operations of a step on a device, counted on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DeviceSteps(TorchDispatchMode):
    """Count operations, and refuse those that wait for a value of the device."""

    READS = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.is_nonzero",
        "aten.equal",
        "aten.masked_select",
        "aten._unique",
        "aten.unique",
        "aten.bincount",
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        assert not str(function).startswith(self.READS), function
        if str(function).startswith(("aten.index.", "aten.index_put")):
            indices = [index for index in args[1] if index is not None]
            assert not any(index.dtype == torch.bool for index in indices), function
        return function(*args, **(kwargs or {}))
