"""Attention whose result is gated by the row that it was computed for (Qiu et al. 2025)."""

from typing import Any

import torch
from torch import Tensor

from octavo.parts.batch import Batch
from octavo.parts.names import Into
from octavo.parts.self_attention import Attention
from octavo.parts.split import HeadSplit, Range
from octavo.parts.weight_slots import Ranges


class GatedAttention(Attention):
    """`o(attention * sigmoid(gate(x)))`, a gate for each value of each head.

    Args:
        joined: queries and gates are published as one weight: their segment of `qkv` is `gate_q` then, gates first
            (octavo.parts.gates_first), otherwise they are `gate` and `q`.
        sizes, options: as of Attention.
    """

    def __init__(self, *sizes: int, joined: bool = False, **options: Any) -> None:
        self._joined = joined
        super().__init__(*sizes, **options)

    def segments(self) -> dict[str, int]:
        plain, gates = super().segments(), self.num_heads * self.value_dim
        if not self._joined:
            return {"gate": gates, **plain}
        return {"gate_q": gates + plain.pop("q"), **plain}

    def own_segments(self, own: HeadSplit) -> dict[str, Range | Ranges]:
        (first, end), plain = own.heads, super().own_segments(own)
        gates = first * self.value_dim, end * self.value_dim
        if not self._joined:
            return {"gate": gates, **plain}
        after = self.num_heads * self.value_dim
        del plain["q"]
        return {"gate_q": (gates, (after + own.values[0], after + own.values[1])), **plain}

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        y, gates = self.qkv(x, batch), self.num_heads * self.value_dim
        out = self._backend.multiply(self.attend(y[:, gates:], batch), y[:, :gates], "sigmoid")
        return self.o(out, batch)  # type: ignore[no-any-return]


def gates_first(path: str, num_heads: int) -> Into:
    """For queries and gates published as one weight, by head its queries and then its gates (Qwen3-Next)."""

    def regroup(weight: Tensor) -> Tensor:
        query, gate = weight.reshape(num_heads, 2, -1, *weight.shape[1:]).unbind(1)
        return torch.cat([gate, query]).reshape(weight.shape)

    return Into(path, regroup)
