"""Causal self-attention over a paged cache."""

import itertools
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from octavo.ops import AttentionSpec, Backend, BlockSparse, DistanceBias, SequenceRun
from octavo.parts.batch import Batch, PagedView
from octavo.parts.linear_layer import Linear
from octavo.parts.qk_transform import QKTransform
from octavo.parts.query_scale import QueryScale
from octavo.parts.rotary_embedding import RotaryEmbedding
from octavo.parts.split import HeadSplit, Range, Split
from octavo.parts.state import PagedKV
from octavo.parts.weight_slots import Ranges, Shard, shard_parameter
from octavo.token_windows import Window

HeadsBias = Callable[[int, int], DistanceBias]
"""The bias by distance of heads [first, end), once weights are there."""


class Attention(nn.Module):
    """Multi-head attention with grouped queries.

    Args:
        hidden_size: of the residual stream.
        num_heads, num_kv_heads: query heads, and key and value heads (a divisor of them).
        head_dim: values of a head.
        rope: rotates queries and keys; None where positions come otherwise.
        bias, out_bias: biases of q, k, v, or of which of these, and of the output.
        scale: of the scores; head_dim ** -0.5 if None.
        window: how many of the last tokens a query sees, or of which Chunk; None or 0 for all.
        softcap: of the scores (Gemma 2).
        alibi: [num_heads] slopes of a bias by distance (Press et al. 2022), in place of rope.
        position_bias: gives heads `first` to `end` their bias by distance: a RelativeBias's `of_heads`.
        qk_transform: changes queries, keys and values before positions are applied: a QKNorm, a Clip.
        sparse: which blocks of keys the heads see (Phi-3-small).
        query_scale: has queries grow with their positions (Llama 4, Ministral 3).
        value_dim: values of a head of values; head_dim if None.
        has_sinks: each head has a score of its own that takes its share of the softmax and gives no value (GPT-OSS).
    """

    float32_parameters = True

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        rope: RotaryEmbedding | None = None,
        bias: bool | Collection[str] = False,
        out_bias: bool = False,
        scale: float | None = None,
        window: Window | None = None,
        softcap: float | None = None,
        alibi: Tensor | None = None,
        position_bias: HeadsBias | None = None,
        qk_transform: QKTransform | None = None,
        sparse: BlockSparse | None = None,
        query_scale: QueryScale | None = None,
        value_dim: int | None = None,
        has_sinks: bool = False,
    ) -> None:
        super().__init__()
        if num_heads % num_kv_heads or head_dim < 1:
            raise ValueError(f"{num_heads} query heads of {head_dim} values cannot share {num_kv_heads} key heads")
        if rope is not None and rope.table.frequencies.shape[-1] * 2 > head_dim:
            pairs = rope.table.frequencies.shape[-1]
            raise ValueError(f"{pairs} rotary pairs are more than a head of {head_dim} values has")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.softcap = softcap
        self.rope = rope
        self.alibi = alibi
        self.position_bias, self.first_head = position_bias, 0
        self.qk_transform = qk_transform
        self.sparse = sparse
        self.query_scale = query_scale
        self.value_dim = head_dim if value_dim is None else value_dim
        self.qkv = Linear(hidden_size, self.segments(), bias)
        self.o = Linear(num_heads * self.value_dim, hidden_size, out_bias)
        self.sinks = nn.Parameter(torch.empty(num_heads), requires_grad=False) if has_sinks else None
        self.state = PagedKV(num_kv_heads, head_dim, self.value_dim, window or None)
        self.state_index = -1

    def segments(self) -> dict[str, int]:
        """Of what is computed of a row: queries, keys and values last, side by side."""
        num_heads, num_kv_heads, head_dim = self.num_heads, self.num_kv_heads, self.head_dim
        return {"q": num_heads * head_dim, "k": num_kv_heads * head_dim, "v": num_kv_heads * self.value_dim}

    def own_segments(self, own: HeadSplit) -> dict[str, Range | Ranges]:
        """What a rank has of each of `segments`."""
        values = replace(own, head_dim=self.value_dim)
        return {"q": own.values, "k": own.kv_values, "v": values.kv_values}

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = HeadSplit(split, self.num_heads, self.num_kv_heads, self.head_dim)
        if self.qk_transform is not None:
            self.qk_transform.split_heads(own)
        first, end = own.heads
        self.first_head = first
        if self.alibi is not None:
            self.alibi = self.alibi[first:end]
        if self.sparse is not None:
            self.sparse = replace(self.sparse, first_head=first)
        if self.sinks is not None:
            shard_parameter(self, "sinks", Shard(rows=(own.heads,)))
        self.qkv.split_outputs(self.own_segments(own))
        self.o.split_inputs(split, replace(own, head_dim=self.value_dim).values)
        self.num_heads, self.num_kv_heads = end - first, own.kv_heads[1] - own.kv_heads[0]
        self.state = replace(self.state, num_kv_heads=self.num_kv_heads)

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        first, end = self.first_head, self.first_head + self.num_heads
        self._spec = AttentionSpec(
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.scale,
            softcap=self.softcap,
            alibi_slopes=None if self.alibi is None else self.alibi.to(backend.device),
            distance_bias=None if self.position_bias is None else self.position_bias(first, end),
            interleaved=self.rope is not None and self.rope.interleaved,
            sparse=self.sparse,
            sinks=None if self.sinks is None else self.sinks.data,
            query_weights=None if self.qk_transform is None else self.qk_transform.query_weights(),
            transforms=() if self.qk_transform is None else self.qk_transform.specs(),
        )

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.o(self.attend(self.qkv(x, batch), batch), batch)  # type: ignore[no-any-return]

    def attend(self, qkv: Tensor, batch: Batch) -> Tensor:
        """`[rows, num_heads * value_dim]` of queries, keys and values side by side."""
        view = batch.paged(self.state_index)
        angles = None if self.rope is None else self.rope.angles(batch)
        factors = None if self.query_scale is None else self.query_scale.factors(batch)
        slots = set[int]() if self.qk_transform is None else self.qk_transform.adapted_slots
        if slots and batch.adapters is not None and not batch.only_tables:
            return self._attend_apart(qkv, view, angles, factors, slots, batch.adapters)
        return self._backend.attend(qkv, view.cache, view.plan, self._spec, angles, factors)

    def _attend_apart(
        self,
        qkv: Tensor,
        view: PagedView,
        angles: tuple[Tensor, Tensor] | None,
        factors: Tensor | None,
        slots: set[int],
        adapters: Tensor,
    ) -> Tensor:
        """`attend`, sequences with other norms of queries and keys by themselves."""
        groups: dict[int | None, list[SequenceRun]] = {}
        for run in view.plan.runs:
            own_slot = int(adapters[run.first_row])
            groups.setdefault(own_slot if own_slot in slots else None, []).append(run)
        out = qkv.new_zeros(qkv.shape[0], self.num_heads * self.value_dim)
        for slot, runs in groups.items():
            rows = torch.cat([torch.arange(r.first_row, r.first_row + r.num_tokens) for r in runs]).to(qkv.device)
            starts = itertools.accumulate((r.num_tokens for r in runs[:-1]), initial=0)
            own = [replace(run, first_row=first) for run, first in zip(runs, starts, strict=True)]
            plan = self._backend.plan_attention(
                own, view.plan.block_table, view.plan.block_size, view.plan.window, len(rows)
            )
            spec = self._spec
            if slot is not None and self.qk_transform is not None:
                own_transforms, weights = self.qk_transform.specs(slot), self.qk_transform.query_weights(slot)
                spec = replace(spec, transforms=own_transforms, query_weights=weights)
            turned = None if angles is None else (angles[0][rows], angles[1][rows])
            scaled = None if factors is None else factors[rows]
            out[rows] = self._backend.attend(qkv[rows], view.cache, plan, spec, turned, scaled)
        return out


def alibi_slopes(num_heads: int, bias_max: float = 8.0) -> Tensor:
    """[num_heads] slopes: a geometric row for a power of two, and every second of the next power's for the rest."""
    power = 1 << (num_heads.bit_length() - 1)
    ratio = torch.arange(1, power + 1, dtype=torch.float32, device="cpu") * (bias_max / power)
    slopes = 2.0**-ratio
    if power < num_heads:
        finer = torch.arange(1, 2 * power + 1, 2, dtype=torch.float32, device="cpu") * (bias_max / (2 * power))
        slopes = torch.cat([slopes, 2.0 ** -finer[: num_heads - power]])
    return slopes
