"""Where weights meet rows: Linear, and what stands beside it for experts and for heads.

Nobody else holds a weight that rows are multiplied with. Each product is told the batch that its rows are of.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from octavo.ops import Backend, Gate, PackedLinear
from octavo.parts.batch import Batch, SpanBatch
from octavo.parts.weight_slots import Role, WeightSlot


class Linear(nn.Module):
    """`x @ weight.T + bias` on `[rows, inputs]`.

    Args:
        inputs: values of a row.
        outputs: values of a result, or named segments of it: `{"q": 64, "k": 32, "v": 32}` merges three published
            layers into one product, and each segment is filled by its own name.
        bias: whether there is one, or the names of the segments that have one. It is held in float32.
        exact: the weight is never rounded to fewer bits than it is stored in (routers, heads of scores).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | Mapping[str, int],
        bias: bool | Collection[str] = False,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.segments = dict(outputs) if isinstance(outputs, Mapping) else {}
        self.inputs = inputs
        self.outputs = sum(self.segments.values()) if isinstance(outputs, Mapping) else outputs
        self.has_bias, self.exact = bool(bias), exact
        named = self.segments if isinstance(bias, bool) else bias
        self.biased = {name: size for name, size in self.segments.items() if name in named}
        """The segments that have a bias; the others' is zero."""
        self.bias: nn.Parameter | None = None
        self._packed: PackedLinear | None = None

    def weight_slots(self) -> dict[str, WeightSlot]:
        """The weight, packed, and the bias."""
        role = Role.EXACT if self.exact else Role.MULTIPLIED
        slots = {"weight": WeightSlot((self.outputs, self.inputs), role, self.load, self.segments)}
        if self.has_bias:
            size = sum(self.biased.values()) if self.biased else self.outputs
            slots["bias"] = WeightSlot((size,), Role.FLOAT32, self._load_bias, self.biased)
        return slots

    def load(self, weight: Tensor | PackedLinear) -> None:
        """Take the weight, packed."""
        assert not isinstance(weight, Tensor)
        self._packed = weight

    def _load_bias(self, bias: Tensor | PackedLinear) -> None:
        assert isinstance(bias, Tensor)
        if len(self.biased) < len(self.segments):
            given = iter(torch.split(bias, list(self.biased.values())))
            zeros = {name: bias.new_zeros(size) for name, size in self.segments.items()}
            bias = torch.cat([next(given) if name in self.biased else zeros[name] for name in self.segments])
        self.bias = nn.Parameter(bias, requires_grad=False)

    def prepare(self, backend: Backend) -> None:
        self._gated_linear = backend.gated_linear

    def forward(self, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
        """`x` `[rows, inputs]`, rows of `batch`, to `[rows, outputs]`."""
        assert self._packed is not None, "weights are loaded before anything is computed"
        return self._packed(x, self.bias)

    def gated(self, x: Tensor, batch: Batch | SpanBatch, gate: Gate) -> Tensor:
        """The result's halves, gate and up, made one by `gate`: `[rows, outputs / 2]`."""
        assert self._packed is not None, "weights are loaded before anything is computed"
        return self._gated_linear(self._packed, x, self.bias, gate)


class ExpertLinear:
    """One layer of all experts: each row is multiplied with the weights of those that were chosen for it.

    Args:
        experts: their Linears, loaded and alike in all but their weights.
        backend: what computes.
    """

    def __init__(self, experts: Sequence[Linear], backend: Backend) -> None:
        packed = [e._packed for e in experts if e._packed is not None]
        assert len(packed) == len(experts), "weights are loaded before what is made of them"
        self._packed = backend.experts(packed)
        biases = [e.bias for e in experts if e.bias is not None]
        self._bias = torch.stack([bias.data for bias in biases]) if biases else None
        """[experts, outputs]"""

    def __call__(self, x: Tensor, chosen: Tensor, batch: Batch) -> Tensor:
        """A result for each choice, `[rows * choices, outputs]`, in the order of `chosen`.

        Args:
            x: [rows, inputs], or [rows * choices, inputs] where each choice has a row of its own.
            chosen: [rows, choices] int64 numbers of experts.
            batch: what the rows are of.
        """
        y = self._packed(x, chosen)
        return y if self._bias is None else (y + self._bias[chosen.flatten()]).to(y.dtype)


class HeadLinear(nn.Module):
    """Each head's keys and values of one latent, used from both sides, head by head. It is held in float32.

    Args:
        rank: values of the latent.
        num_heads: how many.
        key_dim, value_dim: values of a head's key and value; the published weight has them in turn for each head.
    """

    float32_parameters = True

    def __init__(self, rank: int, num_heads: int, key_dim: int, value_dim: int) -> None:
        super().__init__()
        self.rank, self.num_heads, self.key_dim, self.value_dim = rank, num_heads, key_dim, value_dim
        self.weight = nn.Parameter(torch.empty(num_heads * (key_dim + value_dim), rank), requires_grad=False)

    def prepare(self, backend: Backend) -> None:
        by_head = self.weight.data.view(self.num_heads, self.key_dim + self.value_dim, self.rank)
        self._keys = backend.head_linear(by_head[:, : self.key_dim].transpose(1, 2))
        self._values = backend.head_linear(by_head[:, self.key_dim :])
        del self.weight

    def absorb_keys(self, query: Tensor, batch: Batch) -> Tensor:
        """What queries `[rows, heads, key_dim]` of keys are as queries of latents: `[rows, heads, rank]` in float32."""
        return self._keys(query, torch.float32)

    def values(self, latents: Tensor, dtype: torch.dtype, batch: Batch) -> Tensor:
        """Each head's values `[rows, heads, value_dim]` in `dtype` of its mixed latents `[rows, heads, rank]`."""
        return self._values(latents, dtype)
