"""Mamba-2's mixer (Dao & Gu 2024): Mamba's recurrence with one decay a head, so that heads may have large states."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.ops import Backend, HeadScanInput
from octavo.parts.batch import Batch
from octavo.parts.causal_convolution import CausalConvolution
from octavo.parts.linear_layer import Linear
from octavo.parts.mlp import check_activation
from octavo.parts.norms import Norm, norm_rows
from octavo.parts.split import HeadSplit, Range, Split
from octavo.parts.state import Recurrent
from octavo.parts.weight_slots import Shard, shard_parameter


class GroupedRMSNorm(Norm):
    """A root mean square norm of each of several groups of columns, as large as each other.

    Args:
        size: of a row.
        groups: how many.
        eps: added to the mean square.
    """

    float32_parameters = True

    def __init__(self, size: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.bias = None
        self.group_size, self.eps = size // groups, eps

    def split_columns(self, own: Range) -> None:
        """Leave the columns of these numbers, which are whole groups."""
        shard_parameter(self, "weight", Shard(rows=(own,)))

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        self._ones = torch.ones(self.group_size, device=backend.device)
        self.compute = self._normed

    def _normed(self, x: Tensor, weight: Tensor | None, _: Tensor | None) -> Tensor:
        assert weight is not None
        normed = self._backend.rms_norm(x.reshape(-1, self.group_size), self._ones, self.eps)
        return self._backend.scale_columns(normed.view(x.shape), weight)


@dataclass(frozen=True)
class Mamba2Sizes:
    """The sizes of a Mamba2Mixer."""

    num_heads: int
    head_dim: int
    num_groups: int
    """Of heads that have their B and C in common; and of columns that the norm is of."""
    state_size: int
    kernel: int
    """Taps of the convolution."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_groups:
            raise ValueError(f"{self.num_heads} heads cannot be in {self.num_groups} groups")

    @property
    def channels(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def state(self) -> Recurrent:
        mixed = self.channels + 2 * self.num_groups * self.state_size
        ssm = (self.num_heads, self.state_size, self.head_dim)
        return Recurrent((("conv", (self.kernel - 1, mixed)), ("ssm", ssm)))


class Mamba2Mixer(nn.Module):
    """In place of attention in a Mamba-2 layer.

    Args:
        hidden_size: of the residual stream.
        sizes: of heads, groups and states.
        activation: of the convolution's output and of the gate.
        bias, conv_bias: biases of the in and out projections (or of each by itself), and of the convolution.
        dt_limit: the least and the largest time step.
        norm: of the scan's result; None for none.
        norm_first: whether the norm comes before the gate.
        factors: of the in projection's results, by the names of its segments (Falcon-H1).
    """

    float32_parameters = True  # a_log, dt_bias and d; the projections are Linears of their own

    def __init__(
        self,
        hidden_size: int,
        sizes: Mamba2Sizes,
        *,
        activation: str = "silu",
        bias: bool | tuple[bool, bool] = False,
        conv_bias: bool = True,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        norm: GroupedRMSNorm | None = None,
        norm_first: bool = False,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_activation(activation)
        in_bias, out_bias = bias if isinstance(bias, tuple) else (bias, bias)
        self.sizes, self.activation, self.dt_limit = sizes, activation, dt_limit
        shared = sizes.num_groups * sizes.state_size
        segments = {"gate": sizes.channels, "x": sizes.channels, "b": shared, "c": shared, "dt": sizes.num_heads}
        self.in_proj = Linear(hidden_size, segments, in_bias)
        self.conv = CausalConvolution(sizes.channels + 2 * shared, sizes.kernel, conv_bias, activation)
        self.out_proj = Linear(sizes.channels, hidden_size, out_bias)
        self.a_log, self.dt_bias, self.d = (
            nn.Parameter(torch.empty(sizes.num_heads), requires_grad=False) for _ in range(3)
        )
        self.norm, self.norm_first = norm, norm_first
        self.factors = factors
        self._factors: Tensor | None = None
        self._gathered: tuple[tuple[int, ...], Range] | None = None
        """All ranks' numbers of channels and this one's own, where the norm is of all of them."""
        self.state, self.state_index = sizes.state, -1
        self._a: Tensor | None = None

    def split(self, split: Split) -> None:
        """See octavo.parts.split: heads are divided, and with them the groups, or each group is several ranks'."""
        sizes = self.sizes
        heads = HeadSplit(split, sizes.num_heads, sizes.num_groups, sizes.head_dim)
        own = heads.values
        first, end = (group * sizes.state_size for group in heads.kv_heads)
        shared = sizes.num_groups * sizes.state_size
        self.in_proj.split_outputs({"gate": own, "x": own, "b": (first, end), "c": (first, end), "dt": heads.heads})
        b, c = sizes.channels, sizes.channels + shared
        self.conv.split_channels(own, (b + first, b + end), (c + first, c + end))
        self.out_proj.split_inputs(split, own)
        for name in ("a_log", "dt_bias", "d"):
            shard_parameter(self, name, Shard(rows=(heads.heads,)))
        if self.norm is not None and sizes.num_groups % split.size == 0:
            self.norm.split_columns(own)
        elif self.norm is not None:
            self._gathered = (sizes.channels // split.size,) * split.size, own
        groups = heads.kv_heads[1] - heads.kv_heads[0]
        self.sizes = Mamba2Sizes(sizes.num_heads // split.size, sizes.head_dim, groups, sizes.state_size, sizes.kernel)
        self.state = self.sizes.state

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        self._a = -torch.exp(self.a_log.data)
        if self.factors is not None:
            sizes = self.sizes
            shared = sizes.num_groups * sizes.state_size
            of = {"gate": sizes.channels, "x": sizes.channels, "b": shared, "c": shared, "dt": sizes.num_heads}
            self._factors = torch.cat([torch.full((size,), self.factors[name]) for name, size in of.items()])
            self._factors = self._factors.to(backend.device)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        view, sizes, backend = batch.recurrent(self.state_index), self.sizes, self._backend
        projected = self.in_proj(x, batch)
        if self._factors is not None:
            projected = backend.scale_columns(projected, self._factors)
        shared = sizes.num_groups * sizes.state_size
        gate, mixed, dt = projected.split([sizes.channels, sizes.channels + 2 * shared, sizes.num_heads], dim=-1)
        mixed = self.conv(mixed, view.tensors["conv"], batch, view.plan)
        inner, b, c = mixed.split([sizes.channels, shared, shared], dim=-1)
        assert self._a is not None
        own_gate = None if self.norm_first else gate
        d, groups, limit = self.d, sizes.num_groups, self.dt_limit
        scanned = HeadScanInput(inner, dt, self.dt_bias, limit, self._a, b, c, d, groups, own_gate, self.activation)
        y = backend.scan_heads(scanned, view.tensors["ssm"], view.plan)
        if self.norm is not None:
            y = self._normed(y, batch)
        if self.norm_first:
            y = backend.multiply(y, gate, self.activation)
        return self.out_proj(y, batch)  # type: ignore[no-any-return]

    def _normed(self, y: Tensor, batch: Batch) -> Tensor:
        """`y` normed, with the other ranks' channels where they are in its groups."""
        assert self.norm is not None
        if self._gathered is None:
            return norm_rows(self.norm, y, batch)
        widths, (first, end) = self._gathered
        return norm_rows(self.norm, self._backend.all_gather(y, widths), batch)[:, first:end]
