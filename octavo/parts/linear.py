"""Linear layers, merged ones included."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from octavo.ops import Kernels, LinearKernel


class Linear(nn.Module):
    """`x @ weight.T + bias` on `[rows, in]`.

    Args:
        inputs: width of a row.
        outputs: width of a result, or named segments of it: `{"q": 64, "k": 32, "v": 32}` merges three published
            layers into one product, and each segment is filled by its own name.
        bias: whether there is one.
    """

    def __init__(self, inputs: int, outputs: int | Mapping[str, int], bias: bool = False) -> None:
        super().__init__()
        self.segments = dict(outputs) if isinstance(outputs, Mapping) else {}
        self.inputs = inputs
        self.outputs = sum(self.segments.values()) if isinstance(outputs, Mapping) else outputs
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(self.outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(self.outputs), requires_grad=False) if bias else None
        self._kernel: LinearKernel | None = None

    def segment(self, name: str) -> slice:
        """Rows of the weight that the segment `name` fills."""
        start = 0
        for other, size in self.segments.items():
            if other == name:
                return slice(start, start + size)
            start += size
        raise KeyError(name)

    def prepare(self, kernels: Kernels) -> None:
        """Lay the filled weight out for computing, and drop the plain one."""
        assert self.weight is not None
        weight, self.weight = self.weight.data, None
        self._kernel = kernels.linear(weight)

    def forward(self, x: Tensor) -> Tensor:
        assert self._kernel is not None, "prepare() comes before the first forward()"
        return self._kernel(x, self.bias)
