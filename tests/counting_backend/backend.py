"""Every attribute of octavo.ops.Backend, by way of the reference."""

from collections import Counter
from typing import Any

import torch

from octavo.ops.torch import TorchBackend


class CountingBackend:
    """Named as a backend of its own; `calls` says how often each operation was asked for."""

    name = "counting"
    min_rows = TorchBackend.min_rows

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: Counter[str] = Counter()
        self._torch = TorchBackend(device)
        self.capabilities = self._torch.capabilities

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._torch, name)
        if not callable(operation):
            return operation

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return operation(*args, **kwargs)

        return counted
