"""Zamba2's layer: a Mamba-2 mixer, before which a block may be called that other layers call as well."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from octavo.ops import Backend, Gate
from octavo.parts import Attention, Batch, Linear, RMSNorm
from octavo.parts.norms import norm_rows
from octavo.parts.split import HeadSplit, Split


class Pair(nn.Module):
    """Two products, the rank between them."""

    def __init__(self, inputs: int, rank: int, outputs: int | Mapping[str, int]) -> None:
        super().__init__()
        self.a, self.b = Linear(inputs, rank), Linear(rank, outputs)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.b(self.a(x, batch), batch)  # type: ignore[no-any-return]


class SharedBlock(nn.Module):
    """The weights of a block of attention and a feed-forward that several layers call."""

    def __init__(self, sizes: dict[str, Any], hidden_size: int, intermediate_size: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.heads = sizes["num_heads"], sizes["num_kv_heads"], sizes["head_dim"]
        counts = dict(zip("qkv", (self.heads[0], self.heads[1], self.heads[1]), strict=True))
        self.qkv = Linear(sizes["hidden_size"], {name: count * self.heads[2] for name, count in counts.items()})
        self.o = Linear(self.heads[0] * self.heads[2], hidden_size)
        self.gate_up = Linear(hidden_size, {"gate": intermediate_size, "up": intermediate_size}, bias)
        self.down = Linear(intermediate_size, hidden_size, bias)
        self.attn_norm, self.mlp_norm = RMSNorm(sizes["hidden_size"], eps), RMSNorm(hidden_size, eps)

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own, inner = HeadSplit(split, *self.heads), split.share(self.down.inputs)
        self.qkv.split_outputs({"q": own.values, "k": own.kv_values, "v": own.kv_values})
        self.o.split_inputs(split, own.values)
        self.gate_up.split_outputs({"gate": inner, "up": inner})
        self.down.split_inputs(split, inner)


class BlockAttention(Attention):
    """A call's attention: the block's products, changed by pairs of the call's own, and a cache of its own."""

    def __init__(self, block: SharedBlock, rank: int, **sizes: Any) -> None:
        super().__init__(**sizes)
        inputs, outputs = block.qkv.inputs, block.qkv.segments
        del self.qkv, self.o
        self._block = (block,)  # which is no part of this one
        self.adapters = nn.ModuleDict({n: Pair(inputs, rank, size) for n, size in outputs.items()} if rank else {})

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = HeadSplit(split, self.num_heads, self.num_kv_heads, self.head_dim)
        values = {"q": own.values, "k": own.kv_values, "v": own.kv_values}
        for name, pair in self.adapters.items():
            pair.b.split_outputs(values[name])  # type: ignore[operator, union-attr]
        self.num_heads, self.num_kv_heads = (end - first for first, end in (own.heads, own.kv_heads))
        self.state = replace(self.state, num_kv_heads=self.num_kv_heads)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        (block,) = self._block
        qkv = block.qkv(x, batch)
        if self.adapters:
            q, k, v = (pair(x, batch) for pair in self.adapters.values())
            qkv = self._backend.add(qkv, self._backend.side_by_side(self._backend.side_by_side(q, k), v))
        return block.o(self.attend(qkv, batch), batch)  # type: ignore[no-any-return]


class BlockMLP(nn.Module):
    """A call's feed-forward: the block's products, the first changed by a pair of the call's own."""

    def __init__(self, block: SharedBlock, rank: int, activation: str) -> None:
        super().__init__()
        self.gate = Gate(activation)
        self.adapter = Pair(block.gate_up.inputs, rank, block.gate_up.segments)
        self._block = (block,)  # which is no part of this one

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = split.share(self._block[0].down.inputs)
        self.adapter.b.split_outputs({"gate": own, "up": own})

    def prepare(self, backend: Backend) -> None:
        self._backend = backend

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        (block,) = self._block
        y = self._backend.add(block.gate_up(x, batch), self.adapter(x, batch))
        return block.down(self._backend.gated(y, self.gate), batch)  # type: ignore[no-any-return]


class BlockCall(nn.Module):
    """A layer's call of a block, and what brings its result to the mixer."""

    def __init__(self, block: SharedBlock, attn: BlockAttention, mlp: BlockMLP, size: int) -> None:
        super().__init__()
        self.attn, self.mlp, self.linear = attn, mlp, Linear(size, size)
        self._block = (block,)  # which is no part of this one

    def split(self, split: Split) -> None:
        """See octavo.parts.split; the last product's results are gathered."""
        self.attn.split(split)
        self.mlp.split(split)
        size = self.linear.outputs
        self.linear.split_outputs(split.share(size), split.widths(size))

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        (block,) = self._block
        y = self.attn(norm_rows(block.attn_norm, x, batch), batch)
        y = self.mlp(norm_rows(block.mlp_norm, y, batch), batch)
        return self.linear(y, batch)  # type: ignore[no-any-return]


class Zamba2Layer(nn.Module):
    """`x + mixer(norm(x + call([x, tokens' embeddings])))`; without a call of a block, `x + mixer(norm(x))`."""

    def __init__(self, is_first: bool, mixer: nn.Module, mixer_norm: nn.Module, call: BlockCall | None = None) -> None:
        super().__init__()
        self.mixer, self.mixer_norm, self.call = mixer, mixer_norm, call
        self.keeps = ("embeddings",) if is_first else ()
        self.mixes = ("embeddings",) if call else ()

    def prepare(self, backend: Backend) -> None:
        self._add, self._join = backend.add, backend.side_by_side

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        first, inputs = batch.kept.setdefault("embeddings", x), x
        if self.call is not None:
            inputs = self._add(x, self.call(self._join(x, first), batch))
        return self._add(x, self.mixer(norm_rows(self.mixer_norm, inputs, batch), batch))
