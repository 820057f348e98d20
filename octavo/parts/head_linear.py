"""Where weights of heads meet latents: each head's own part of one weight."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.ops import Backend, PackedHeads, PackedLinear
from octavo.parts.batch import Batch
from octavo.parts.split import Range
from octavo.parts.weight_adapter import AdapterOptions, ChangedBySlot, WeightAdapter
from octavo.parts.weight_slots import Shard, shard_parameter


@dataclass(frozen=True, eq=False)
class HeadChange:
    """What an adapter makes of a HeadLinear, from both sides."""

    keys: tuple[tuple[PackedHeads, PackedLinear], ...]
    """Of a head's query to its inner values, and of these to a latent."""
    values: tuple[tuple[PackedLinear, PackedHeads], ...]
    """Of a latent to the inner values, and of these to a head's value."""


class HeadLinear(ChangedBySlot[HeadChange]):
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

    def split_heads(self, heads: Range) -> None:
        """Leave the heads of these numbers."""
        size = self.key_dim + self.value_dim
        shard_parameter(self, "weight", Shard(rows=((heads[0] * size, heads[1] * size),)))
        self.num_heads = heads[1] - heads[0]

    def prepare(self, backend: Backend) -> None:
        by_head = self.weight.data.view(self.num_heads, self.key_dim + self.value_dim, self.rank)
        self._keys = backend.head_linear(by_head[:, : self.key_dim].transpose(1, 2))
        self._values = backend.head_linear(by_head[:, self.key_dim :])
        del self.weight

    def absorb_keys(self, query: Tensor, batch: Batch) -> Tensor:
        """What queries `[rows, heads, key_dim]` of keys are as queries of latents: `[rows, heads, rank]` in float32."""
        latents = self._keys(query, torch.float32)
        for slot, change in self._changes.items():
            if (rows := batch.rows_of_slot(slot, len(query))) is not None:
                for keys, to_latent in change.keys:
                    inner = keys(query[rows].float(), torch.float32)
                    latents[rows] += to_latent(inner.flatten(0, 1)).view(len(rows), self.num_heads, self.rank)
        return latents

    def values(self, latents: Tensor, dtype: torch.dtype, batch: Batch) -> Tensor:
        """Each head's values `[rows, heads, value_dim]` in `dtype` of its mixed latents `[rows, heads, rank]`."""
        values = self._values(latents, dtype)
        for slot, change in self._changes.items():
            if (rows := batch.rows_of_slot(slot, len(latents))) is not None:
                for of_latent, by_head in change.values:
                    inner = of_latent(latents[rows].flatten(0, 1).float()).view(len(rows), self.num_heads, -1)
                    values[rows] += by_head(inner, torch.float32).to(dtype)
        return values

    def adapter_change(self, adapter: WeightAdapter, options: AdapterOptions) -> HeadChange:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        if any(x is not None for x in (adapter.lengths, adapter.weight, adapter.bias, adapter.added_bias)):
            raise ValueError("more than matrices of low rank, for keys and values that are made of a latent")
        keys, values, backend = [], [], options.backend
        for part in adapter.low_rank:
            if part.first or len(part.b) != self.num_heads * (self.key_dim + self.value_dim):
                raise ValueError("a part of the heads")
            a, b = part.a.to(backend.device), part.b.to(backend.device)
            by_head = b.view(self.num_heads, self.key_dim + self.value_dim, -1)
            of_keys, of_values = by_head[:, : self.key_dim], by_head[:, self.key_dim :]
            keys.append((backend.head_linear(of_keys.transpose(1, 2)), backend.linear(a.t().contiguous())))
            values.append((backend.linear(a.contiguous()), backend.head_linear(of_values)))
        return HeadChange(tuple(keys), tuple(values))
