"""Layers behind pooling, one after the other (Reimers & Gurevych 2019): products, norms and lengths."""

from torch import Tensor, nn
from torch.nn import functional

from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.linear_layer import Linear
from octavo.parts.mlp import check_activation
from octavo.parts.norms import LayerNorm, norm_rows


class PooledDense(nn.Module):
    """`activation(dense(x))`, plus `x` or another product of it.

    Args:
        inputs, outputs: values of a row, before and after.
        bias: of the product.
        activation: a name in octavo.ops.ACTIVATIONS; None for none.
        has_residual: whether `x` is added, by a product without a bias where the sizes differ.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, activation: str | None, has_residual: bool) -> None:
        super().__init__()
        if activation is not None:
            check_activation(activation)
        self.linear = Linear(inputs, outputs, bias, exact=True)
        self.activation, self.has_residual = activation, has_residual
        self.residual = Linear(inputs, outputs, exact=True) if has_residual and inputs != outputs else None

    def prepare(self, backend: Backend) -> None:
        self._activate = backend.activate

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        y: Tensor = self.linear(x, batch)
        y = y if self.activation is None else self._activate(y, self.activation)
        if not self.has_residual:
            return y
        return y + (x if self.residual is None else self.residual(x, batch))


class PooledNorm(nn.Module):
    """A layer norm of pooled rows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = LayerNorm(size, 1e-5)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return norm_rows(self.norm, x, batch)


class UnitLength(nn.Module):
    """Rows of length one."""

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return functional.normalize(x, dim=-1)


class PooledLayers(nn.Module):
    """Layers, each of which takes what the one before it gives."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        for layer in self.layers:
            x = layer(x, batch)
        return x
