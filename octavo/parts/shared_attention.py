"""Attention whose keys and values other layers read too (cross-layer sharing; Brandon et al. 2024)."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.linear_layer import Linear
from octavo.parts.norms import norm_each
from octavo.parts.qk_transform import QKNorm
from octavo.parts.self_attention import Attention
from octavo.parts.split import HeadSplit, Range
from octavo.parts.stage import KeptRows
from octavo.parts.weight_slots import Ranges


class SharedAttention(Attention):
    """Attention that stores keys and values for later layers, or that reads those of an earlier one (Gemma 3n, 4).

    The state of all that share is one, which the first of them declares and writes. Where the first of a later stage
    only reads, it stores there what comes with the stream: normed keys and values, before positions are applied.

    Args:
        hidden_size, num_heads, num_kv_heads, head_dim: as Attention has them.
        name: what the layers that share call their keys and values; empty for one that shares with none.
        reads: whether it has queries alone, and an earlier layer of that name has the keys and values.
        values_are_keys: the product that makes keys makes the values too, before the norm of either.
        options: more of Attention's arguments.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        name: str = "",
        reads: bool = False,
        values_are_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(hidden_size, num_heads, num_kv_heads, head_dim, **options)
        self.reads, self.values_are_keys = reads, values_are_keys
        self.state = replace(self.state, shared_as=name)
        self.is_first = True
        """Whether no layer of this stage comes before it among those that share; set by the model, as is_sent."""
        self.is_sent = False
        """Whether later stages need its keys and values."""
        self.keeps = (name,) if name and not reads else ()
        self.mixes = (name,) if reads else ()
        made = "q" if reads else "qk" if values_are_keys else "qkv"
        self.qkv = Linear(hidden_size, {n: self.qkv.segments[n] for n in made}, bool(self.qkv.has_bias))

    def own_segments(self, own: HeadSplit) -> dict[str, Range | Ranges]:
        every = super().own_segments(own)
        return {name: every[name] for name in self.qkv.segments}

    @property
    def kept_rows(self) -> dict[str, KeptRows]:
        """How rows of what goes on to later stages look."""
        return dict.fromkeys(self.keeps, KeptRows(2 * self.num_kv_heads * self.head_dim))

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._spec = replace(self._spec, stores=self.is_first or not self.reads)

    def attend(self, qkv: Tensor, batch: Batch) -> Tensor:
        first = self.num_heads * self.head_dim
        if self.reads and self.is_first:
            qkv = self._backend.side_by_side(qkv, batch.kept[self.state.shared_as])
        elif self.values_are_keys and not self.reads:
            qkv = self._backend.side_by_side(qkv, qkv[:, first:])
        if self.is_sent and not self.reads:
            batch.kept[self.state.shared_as] = self._normed(qkv[:, first:], batch)
        return super().attend(qkv, batch)

    def _normed(self, keys_values: Tensor, batch: Batch) -> Tensor:
        """Keys and values side by side, `[rows, 2 * num_kv_heads * head_dim]`, as they are before positions."""
        assert isinstance(self.qk_transform, QKNorm)
        size, norms = self.num_kv_heads * self.head_dim, (self.qk_transform.k, self.qk_transform.v)
        parts = (keys_values[:, :size], keys_values[:, size:])
        keys, values = (x if norm is None else norm_each(norm, x, batch) for norm, x in zip(norms, parts, strict=True))
        return self._backend.side_by_side(keys, values)
