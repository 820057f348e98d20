"""Linear layers, merged ones included."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from octavo.ops import Backend, PackedLinear, StoredRows


class Linear(nn.Module):
    """`x @ weight.T + bias` on `[rows, in]`.

    Args:
        inputs: values of a row.
        outputs: values of a result, or named segments of it: `{"q": 64, "k": 32, "v": 32}` merges three published
            layers into one product, and each segment is filled by its own name.
        bias: whether there is one. It is held in float32.
        exact: the weight stays as it is stored where others are rounded to fewer bits (routers, heads of scores).
    """

    def __init__(
        self, inputs: int, outputs: int | Mapping[str, int], bias: bool = False, *, exact: bool = False
    ) -> None:
        super().__init__()
        self.segments = dict(outputs) if isinstance(outputs, Mapping) else {}
        self.inputs = inputs
        self.outputs = sum(self.segments.values()) if isinstance(outputs, Mapping) else outputs
        self.exact = exact
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(self.outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(self.outputs), requires_grad=False) if bias else None
        self.stored: dict[str | None, StoredRows] = {}
        """Segments (None: the whole) that are computed with as their file has them, until they are laid out."""
        self.kernel: PackedLinear | None = None

    def segment(self, name: str) -> slice:
        """Rows of the weight that the segment `name` fills."""
        start = 0
        for other, size in self.segments.items():
            if other == name:
                return slice(start, start + size)
            start += size
        raise KeyError(name)

    def prepare(self, backend: Backend, round_to: int | None = None, fine: bool = False) -> None:
        """Lay the filled weight out for computing, and drop the plain one.

        Args:
            backend: what computes.
            round_to: a kind of octavo.ops.stored_rows that the weight is rounded to.
            fine: products with a quantized weight round rows to twice as many bits as others do.
        """
        if self.stored:
            # A file may have what is made of segments as one tensor.
            parts = [self.stored[name] for name in ([None] if None in self.stored else self.segments)]
            self.stored = {}
            self.kernel = backend.stored_linear(parts, fine)
        else:
            assert self.weight is not None
            weight = self.weight.data
            if round_to is None or self.exact:
                self.kernel = backend.linear(weight)
            else:
                self.kernel = backend.stored_linear([backend.quantize(weight, round_to)], fine)
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.kernel is not None, "prepare() comes before the first forward()"
        return self.kernel(x, self.bias)
