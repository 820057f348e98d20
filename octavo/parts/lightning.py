"""Lightning attention (Qin et al. 2024): linear attention, whose memories decay by head."""

import torch
from torch import Tensor, nn

from octavo.ops import Backend, DeltaInput, DeltaSpec
from octavo.parts.batch import Batch
from octavo.parts.linear_layer import Linear
from octavo.parts.mlp import check_activation
from octavo.parts.norms import RMSNorm, norm_rows
from octavo.parts.split import HeadSplit, Range, Split
from octavo.parts.state import Recurrent


class LightningAttention(nn.Module):
    """`out(norm(memory read by queries) * sigmoid(gate(x)))`, queries, keys and values activated.

    Args:
        hidden_size: of the residual stream.
        num_heads: each with a memory.
        head_dim: of queries, keys and values.
        activation: of all three.
        slopes: [num_heads] float32: a token lets the memories decay by `exp(-slope)`.
        eps: of the norm, which is of all heads at once.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, head_dim: int, activation: str, slopes: Tensor, eps: float
    ) -> None:
        super().__init__()
        check_activation(activation)
        size = num_heads * head_dim
        self.num_heads, self.head_dim, self.activation = num_heads, head_dim, activation
        self.slopes = slopes
        self.in_proj = Linear(hidden_size, {"qkv": 3 * size, "gate": size})
        self.norm = RMSNorm(size, eps)
        self.o = Linear(size, hidden_size)
        self.state, self.state_index = self._state(), -1
        self._gathered: tuple[tuple[int, ...], Range] | None = None
        """All ranks' numbers of values and this one's own."""

    def _state(self) -> Recurrent:
        return Recurrent((("memory", (self.num_heads, self.head_dim, self.head_dim)),))

    def split(self, split: Split) -> None:
        """See octavo.parts.split: heads are divided, and the norm's rows gathered."""
        own = HeadSplit(split, self.num_heads, self.num_heads, self.head_dim)
        (first, end), size = own.values, self.num_heads * self.head_dim
        qkv = tuple((i * size + first, i * size + end) for i in range(3))
        self.in_proj.split_outputs({"qkv": qkv, "gate": own.values})
        self.o.split_inputs(split, own.values)
        self.slopes = self.slopes[slice(*own.heads)]
        self.num_heads //= split.size
        self.state = self._state()
        self._gathered = (self.num_heads * self.head_dim,) * split.size, own.values

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        self._rate = -self.slopes.to(backend.device)
        self._spec = DeltaSpec(self.num_heads, self.num_heads, self.head_dim, self.head_dim, scale=1.0)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        view, size, backend = batch.recurrent(self.state_index), self.num_heads * self.head_dim, self._backend
        projected = self.in_proj(x, batch)
        qkv = backend.activate(projected[:, : 3 * size], self.activation)
        query, key, value = torch.split(qkv, [size, size, size], dim=-1)
        inputs = DeltaInput(query, key, value, None, None, self._rate, None)
        y = backend.delta_rule(inputs, view.tensors["memory"], view.plan, self._spec)
        if self._gathered is None:
            y = norm_rows(self.norm, y, batch)
        else:
            widths, (first, end) = self._gathered
            y = norm_rows(self.norm, backend.all_gather(y, widths), batch)[:, first:end]
        return self.o(backend.multiply(y, projected[:, 3 * size :], "sigmoid"), batch)  # type: ignore[no-any-return]


def lightning_slopes(num_heads: int, layer: int, layers: int) -> Tensor:
    """[num_heads] slopes of a layer of so many: those of ALiBi, which fall to 0 towards the last layer."""
    heads = torch.arange(1, num_heads + 1, dtype=torch.float32, device="cpu")
    share: float = 1 - layer / (layers - 1 + 1e-5) + 1e-5
    return (1 / 2 ** (8 / num_heads)) ** heads * share
