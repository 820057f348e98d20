"""Encoders: they read a request's whole input at once, and cross-attention reads what they make of it."""

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor, nn

from octavo.ops import AttentionSpec, Backend, RankColumns
from octavo.parts.batch import Batch, CrossBatch, PagedView, SpanBatch
from octavo.parts.linear_layer import Linear
from octavo.parts.norms import Norm
from octavo.parts.qk_transform import QKNorm
from octavo.parts.self_attention import HeadsBias
from octavo.parts.split import HeadSplit, Split
from octavo.parts.state import PagedKV


class EncoderAttention(nn.Module):
    """Attention in which each token of an input sees all of its tokens, with rope where the batch has angles.

    Args:
        hidden_size: of the residual stream.
        num_heads: how many share it.
        head_dim: values of a head; None for an even share of `hidden_size`.
        bias: of queries, keys and values, or of which of these: q, k, v.
        out_bias: of the output; None for the same as `bias`.
        qk_norm: norms of queries and keys, before rope.
        interleaved: pairs of rope are neighbours (GPT-J) instead of halves (GPT-NeoX).
        scale: of the scores; head_dim ** -0.5 if None.
        position_bias: gives heads `first` to `end` their bias by distance: a RelativeBias's `of_heads`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        bias: bool | Collection[str] = False,
        out_bias: bool | None = None,
        qk_norm: QKNorm | None = None,
        interleaved: bool = False,
        scale: float | None = None,
        position_bias: HeadsBias | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None and hidden_size % num_heads:
            raise ValueError(f"{num_heads} heads cannot share {hidden_size} values")
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads if head_dim is None else head_dim
        size = self.num_heads * self.head_dim
        self.qkv = Linear(hidden_size, {"q": size, "k": size, "v": size}, bias)
        self.o = Linear(size, hidden_size, bool(bias) if out_bias is None else out_bias)
        self.qk_norm, self.interleaved = qk_norm, interleaved
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.position_bias, self.first_head = position_bias, 0

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = HeadSplit(split, self.num_heads, self.num_heads, self.head_dim)
        if self.qk_norm is not None:
            self.qk_norm.split_heads(own)
        self.qkv.split_outputs(dict.fromkeys("qkv", own.values))
        self.o.split_inputs(split, own.values)
        self.first_head, self.num_heads = own.heads[0], own.heads[1] - own.heads[0]

    def prepare(self, backend: Backend) -> None:
        end = self.first_head + self.num_heads
        self._bias = None if self.position_bias is None else self.position_bias(self.first_head, end)
        self._attention, self._join_rope = backend.full_attention, backend.join_rope

    def forward(self, x: Tensor, batch: SpanBatch) -> Tensor:
        query, key, value = self.qkv(x, batch).view(x.shape[0], 3, self.num_heads, self.head_dim).unbind(1)
        if self.qk_norm is not None:
            query = norm_heads(self.qk_norm, self.qk_norm.q, query, batch)
            key = norm_heads(self.qk_norm, self.qk_norm.k, key, batch)
        if batch.angles is not None:
            query, key = (self._join_rope(y[..., :0], y, batch.angles, self.interleaved) for y in (query, key))
        runs = [(*own, *seen) for own, seen in zip(batch.runs, batch.sees or batch.runs, strict=True)]
        out = self._attention(query.to(x.dtype), key.to(x.dtype), value, self.scale, runs, self._bias)
        return self.o(out.flatten(1), batch)  # type: ignore[no-any-return]


def norm_heads(norms: QKNorm, norm: Norm | None, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
    """`x` `[rows, heads, head_dim]` through its norm, which sees all heads side by side, or one at a time."""
    if norm is None:
        return x
    columns = norms.query_columns if norm is norms.q else norms.key_columns
    if columns is not None:
        return _norm_with_others(norms, norm, columns, x, batch)

    def flat(x: Tensor) -> Tensor:
        return (x.flatten(1) if norms.full_width else x.flatten(0, 1)).contiguous()

    y: Tensor = norm(flat(x)).view(x.shape)
    for slot in norm.adapted_slots:
        if (rows := batch.rows_of_slot(slot, x.shape[0])) is not None:
            y[rows] = norm.of_slot(flat(x[rows]), slot).view(len(rows), *x.shape[1:])
    return y


def _norm_with_others(norms: QKNorm, norm: Norm, columns: RankColumns, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
    """`x` `[rows, heads, head_dim]` through a norm that sees all ranks' heads side by side."""
    own = x.flatten(1)
    whole = norms.all_gather(own[:, : columns.given].contiguous(), columns.widths)
    y: Tensor = norm(whole)
    for slot in norm.adapted_slots:
        if (rows := batch.rows_of_slot(slot, x.shape[0])) is not None:
            y[rows] = norm.of_slot(whole[rows], slot)
    return y[:, columns.first : columns.first + own.shape[1]].reshape(x.shape)


class CrossAttention(nn.Module):
    """Attention of a decoder's tokens over an encoder's or a tower's rows: keys and values are made once a request.

    Args:
        hidden_size: of the residual stream, and of the rows.
        num_heads: query heads.
        num_kv_heads: key and value heads; None for as many.
        bias: of all products, or of which of queries, keys and values (q, k, v), and of the output.
        qk_norm: norms of each head's queries and keys.
        head_dim: values of a head; None for an even share of `hidden_size`.
        scale: of the scores; head_dim ** -0.5 if None.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        bias: bool | Collection[str] = False,
        qk_norm: QKNorm | None = None,
        head_dim: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if (head_dim is None and hidden_size % num_heads) or num_heads % kv_heads:
            raise ValueError(f"{num_heads} heads cannot share {hidden_size} values, or {kv_heads} heads of keys")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, kv_heads, head_dim or hidden_size // num_heads
        self.scale = self.head_dim**-0.5 if scale is None else scale
        inner, size = num_heads * self.head_dim, kv_heads * self.head_dim
        self.q = Linear(hidden_size, inner, bias if isinstance(bias, bool) else "q" in bias)
        self.kv = Linear(hidden_size, {"k": size, "v": size}, bias)
        self.o = Linear(inner, hidden_size, bool(bias))
        self.qk_norm = qk_norm
        self.state = PagedKV(kv_heads, self.head_dim, self.head_dim, of_encoder=True)
        self.state_index = -1

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = HeadSplit(split, self.num_heads, self.num_kv_heads, self.head_dim)
        if self.qk_norm is not None:
            self.qk_norm.split_heads(own)
        self.q.split_outputs(own.values)
        self.kv.split_outputs({"k": own.kv_values, "v": own.kv_values})
        self.o.split_inputs(split, own.values)
        self.num_heads, self.num_kv_heads = own.heads[1] - own.heads[0], own.kv_heads[1] - own.kv_heads[0]
        self.state = replace(self.state, num_kv_heads=self.num_kv_heads)

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        self._spec = AttentionSpec(self.num_heads, self.num_kv_heads, self.head_dim, self.scale)

    def write_cross_kv(self, encoded: Tensor, batch: CrossBatch) -> None:
        """Store the keys and values of `encoded` `[rows, hidden_size]`."""
        view = batch.cross_kv[self.state_index]
        assert isinstance(view, PagedView)
        tokens = view.plan.num_tokens
        key, value = self.kv(encoded, batch)[:tokens].view(tokens, 2, self.num_kv_heads, -1).unbind(1)
        key = key if self.qk_norm is None else norm_heads(self.qk_norm, self.qk_norm.k, key, batch)
        self._backend.store(key, value, view.cache, view.plan)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        view = batch.paged(self.state_index)
        query = self.q(x, batch)[: batch.num_tokens].view(batch.num_tokens, self.num_heads, -1)
        query = query if self.qk_norm is None else norm_heads(self.qk_norm, self.qk_norm.q, query, batch)
        query = self._backend.floats(query.flatten(1)).view(query.shape)
        out = self._backend.attend_stored(query, view.cache, view.plan, self._spec, x.shape[0], x.dtype)
        return self.o(out.flatten(1), batch)  # type: ignore[no-any-return]
