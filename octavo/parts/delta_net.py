"""Gated delta nets (Yang et al. 2024): memories of fixed size that are corrected by keys, in place of attention."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from octavo.ops import Backend, DeltaInput, DeltaSpec
from octavo.parts.batch import Batch
from octavo.parts.causal_convolution import CausalConvolution
from octavo.parts.linear_layer import Linear
from octavo.parts.mlp import check_activation
from octavo.parts.norms import RMSNorm
from octavo.parts.split import HeadsInTurn, HeadSplit, Range, Split
from octavo.parts.state import Recurrent
from octavo.parts.weight_slots import Shard, shard_parameter

APART = ("q", "k", "v", "z", "b", "a")
"""What is made of a row: queries, keys and values, the gate of the result, beta and the decay."""


class GatedRMSNorm(RMSNorm):
    """A root mean square norm of each head, times the activation of a gate.

    Args:
        size: of a head.
        eps: added to the mean square.
        activation: of the gate.
    """

    def __init__(self, size: int, eps: float, activation: str) -> None:
        super().__init__(size, eps)
        check_activation(activation)
        self.activation = activation

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._gated = backend.rms_norm_gated

    def gated(self, x: Tensor, gate: Tensor, batch: Batch) -> Tensor:
        """`x` and `gate` `[rows, heads * size]`, rows of `batch`, whose adapters may have other norms."""
        assert self.weight is not None
        y = self._gated(x, gate, self.weight, self.eps, self.activation)
        for slot, change in self._changes.items():
            if (rows := batch.rows_of_slot(slot, len(x))) is not None and change.weight is not None:
                y[rows] = self._gated(x[rows], gate[rows], change.weight, self.eps, self.activation)
        return y


@dataclass(frozen=True)
class DeltaSizes:
    """The sizes of a DeltaNet."""

    num_heads: int
    """Of values, each with a memory."""
    num_key_heads: int
    """Of queries and keys, each of several heads of values."""
    key_dim: int
    value_dim: int
    kernel: int
    """Taps of the convolution."""
    in_turn: bool = False
    """Whether heads have the key heads in turn; else as many heads one after the other share one."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_key_heads:
            raise ValueError(f"{self.num_heads} heads cannot share {self.num_key_heads} key heads")

    @property
    def keys(self) -> int:
        return self.num_key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.num_heads * self.value_dim

    def of_rank(self, split: Split) -> HeadSplit:
        """Which heads a rank has. Raises ValueError where they cannot be divided."""
        kind = HeadsInTurn if self.in_turn else HeadSplit
        return kind(split, self.num_heads, self.num_key_heads, self.value_dim)

    @property
    def state(self) -> Recurrent:
        memory = (self.num_heads, self.key_dim, self.value_dim)
        return Recurrent((("conv", (self.kernel - 1, 2 * self.keys + self.values)), ("memory", memory)))


class DeltaNet(nn.Module):
    """In place of attention in a layer of a gated delta net.

    Args:
        hidden_size: of the residual stream.
        sizes: of heads and of the convolution.
        activation: of the convolution's output.
        norm: of the result, with a gate.
        joined: which of APART are published as one weight, in their order: their segments of `in_proj`.
        beta_scale: of beta: 2 where memories may be turned over (OLMo hybrid).
    """

    float32_parameters = True  # a_log and dt_bias; the projections are Linears of their own

    def __init__(
        self,
        hidden_size: int,
        sizes: DeltaSizes,
        *,
        activation: str,
        norm: GatedRMSNorm,
        joined: tuple[str, ...] = APART,
        beta_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.hidden_size, self.sizes, self.joined, self.beta_scale = hidden_size, sizes, joined, beta_scale
        of = self.widths(sizes)
        self.in_proj = Linear(hidden_size, {name: sum(of[each] for each in name) for name in joined})
        channels = {name: of[name] for name in "qkv"}
        self.conv = CausalConvolution(channels, sizes.kernel, bias=False, activation=activation)
        self.a_log = nn.Parameter(torch.empty(sizes.num_heads), requires_grad=False)
        self.dt_bias = nn.Parameter(torch.empty(self.decays(sizes)), requires_grad=False)
        self.norm = norm
        self.out_proj = Linear(sizes.values, hidden_size)
        self.state, self.state_index = sizes.state, -1
        self._rate: Tensor | None = None

    def widths(self, sizes: DeltaSizes) -> dict[str, int]:
        """How many values of a row each of what `in_proj` makes has."""
        keys, values, heads = sizes.keys, sizes.values, sizes.num_heads
        return {"q": keys, "k": keys, "v": values, "z": values, "b": heads, "a": heads}

    def decays(self, sizes: DeltaSizes) -> int:
        """How many decays a row has."""
        return sizes.num_heads

    def own_widths(self, own: HeadSplit) -> dict[str, Range]:
        """What a rank has of each of `widths`."""
        dim = self.sizes.key_dim
        keys, heads = (own.kv_heads[0] * dim, own.kv_heads[1] * dim), own.heads
        return {"q": keys, "k": keys, "v": own.values, "z": own.values, "b": heads, "a": heads}

    def split(self, split: Split) -> None:
        """See octavo.parts.split: heads are divided."""
        sizes = self.sizes
        own = sizes.of_rank(split)
        of, ranges = self.widths(sizes), self.own_widths(own)
        self.in_proj.split_outputs({name: _placed(name, of, ranges) for name in self.joined})
        self.conv.split_channels(*_placed("qkv", of, ranges))
        self.out_proj.split_inputs(split, own.values)
        shard_parameter(self, "a_log", Shard(rows=(own.heads,)))
        each = self.decays(sizes) // sizes.num_heads
        shard_parameter(self, "dt_bias", Shard(rows=((own.heads[0] * each, own.heads[1] * each),)))
        key_heads = own.kv_heads[1] - own.kv_heads[0]
        self.sizes = replace(sizes, num_heads=sizes.num_heads // split.size, num_key_heads=key_heads)
        self.state = self.sizes.state

    def prepare(self, backend: Backend) -> None:
        self._backend, sizes = backend, self.sizes
        self._rate = -torch.exp(self.a_log.data)
        heads, dims = (sizes.num_heads, sizes.num_key_heads), (sizes.key_dim, sizes.value_dim)
        self._spec = DeltaSpec(*heads, *dims, sizes.key_dim**-0.5, 1e-6, self.beta_scale, sizes.in_turn)

    def gate_and_decay(self, parts: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """The result's gate `[rows, heads * value_dim]`, and the decays `[rows, decays]`, of what `in_proj` makes."""
        return parts["z"], parts["a"]

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        view, sizes = batch.recurrent(self.state_index), self.sizes
        of = self.widths(sizes)
        projected = self.in_proj(x, batch)
        columns = torch.split(projected, [of[each] for each in "".join(self.joined)], dim=-1)
        parts = dict(zip("".join(self.joined), columns, strict=True))
        mixed = projected[:, : 2 * sizes.keys + sizes.values]
        mixed = self.conv(mixed, view.tensors["conv"], batch, view.plan)
        query, key, value = mixed.split([sizes.keys, sizes.keys, sizes.values], dim=-1)
        gate, decay = self.gate_and_decay(parts, batch)
        assert self._rate is not None
        inputs = DeltaInput(query, key, value, decay, parts["b"], self._rate, self.dt_bias)
        y = self._backend.delta_rule(inputs, view.tensors["memory"], view.plan, self._spec)
        return self.out_proj(self.norm.gated(y, gate, batch), batch)  # type: ignore[no-any-return]


def _placed(names: str, of: Mapping[str, int], ranges: Mapping[str, Range]) -> tuple[Range, ...]:
    """Ranges of widths that lie one after the other."""
    placed, first = [], 0
    for name in names:
        placed.append((first + ranges[name][0], first + ranges[name][1]))
        first += of[name]
    return tuple(placed)


class KimiDelta(DeltaNet):
    """Kimi delta attention (Kimi Team 2025): a decay for each value of a key; it and the gate are of low rank."""

    def __init__(self, hidden_size: int, sizes: DeltaSizes, *, activation: str, norm: GatedRMSNorm) -> None:
        super().__init__(hidden_size, sizes, activation=activation, norm=norm, joined=("q", "k", "v", "b", "f", "g"))
        rank = sizes.key_dim
        self.decay, self.gate = Linear(rank, self.decays(sizes)), Linear(rank, sizes.values)

    def widths(self, sizes: DeltaSizes) -> dict[str, int]:
        return {**super().widths(sizes), "f": sizes.key_dim, "g": sizes.key_dim}

    def decays(self, sizes: DeltaSizes) -> int:
        return sizes.num_heads * sizes.key_dim

    def own_widths(self, own: HeadSplit) -> dict[str, Range]:
        rank = (0, self.sizes.key_dim)
        return {**super().own_widths(own), "f": rank, "g": rank}

    def split(self, split: Split) -> None:
        sizes = self.sizes
        super().split(split)
        first, end = split.even(sizes.num_heads, "heads")
        self.decay.split_outputs((first * sizes.key_dim, end * sizes.key_dim))
        self.gate.split_outputs((first * sizes.value_dim, end * sizes.value_dim))

    def gate_and_decay(self, parts: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        return self.gate(parts["g"], batch), self.decay(parts["f"], batch)
