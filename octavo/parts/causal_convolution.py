"""Short causal convolutions, whose last inputs are a state: of Mamba and its like, and a mixer by itself (LFM2)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.ops import Backend, RecurrentPlan
from octavo.parts.batch import Batch
from octavo.parts.linear_layer import Linear
from octavo.parts.split import Range, Split
from octavo.parts.state import Recurrent
from octavo.parts.weight_adapter import AdapterOptions, ChangedBySlot, WeightAdapter
from octavo.parts.weight_slots import Shard, shard_parameter


@dataclass(frozen=True, eq=False)
class ConvolutionChange:
    """What an adapter makes of a CausalConvolution."""

    weight: Tensor
    bias: Tensor | None


class CausalConvolution(ChangedBySlot[ConvolutionChange]):
    """Of each channel by itself, over its last values, with an activation behind it.

    Args:
        channels: how many, or named segments of them, each of which is filled by its own name.
        kernel: taps.
        bias: whether there is one.
        activation: by its name; None for none.
    """

    float32_parameters = True

    def __init__(self, channels: int | Mapping[str, int], kernel: int, bias: bool, activation: str | None) -> None:
        super().__init__()
        self.activation = activation
        self.parameter_segments: dict[str, Mapping[str, int]] = {}
        if not isinstance(channels, int):
            self.parameter_segments["weight"] = channels
            channels = sum(channels.values())
        self.weight = nn.Parameter(torch.empty(channels, kernel), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(channels), requires_grad=False) if bias else None

    def split_channels(self, *own: Range) -> None:
        """Leave the channels of these numbers."""
        shard_parameter(self, "weight", Shard(rows=own))
        if self.bias is not None:
            shard_parameter(self, "bias", Shard(rows=own))

    def prepare(self, backend: Backend) -> None:
        self._convolve = backend.convolve

    def forward(self, x: Tensor, history: Tensor, batch: Batch, plan: RecurrentPlan) -> Tensor:
        """`[rows, channels]` of `x`, rows of `batch`; histories `[slots, kernel - 1, channels]` go on in place."""
        rows_of = {slot: rows for slot in self._changes if (rows := batch.rows_of_slot(slot, len(x))) is not None}
        before = history.clone() if rows_of else history
        y = self._convolve(x, history, self.weight, self.bias, self.activation, plan)
        for slot, rows in rows_of.items():
            change = self._changes[slot]
            own = self._convolve(x, before.clone(), change.weight, change.bias, self.activation, plan)
            y[rows] = own[rows]
        return y

    def adapter_change(self, adapter: WeightAdapter, options: AdapterOptions) -> ConvolutionChange:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        if adapter.low_rank or adapter.lengths is not None or adapter.added_bias is not None:
            raise ValueError("matrices of low rank, of a convolution")
        weight, bias = self.weight.data if adapter.weight is None else adapter.weight, adapter.bias
        if bias is None:
            bias = None if self.bias is None else self.bias.data
        return ConvolutionChange(weight.to(self.weight), None if bias is None else bias.to(self.weight))


class ShortConvolution(nn.Module):
    """`out(c * convolution(b * x))` of `b, c, x = in(rows)`, in place of attention (LFM2, Liquid AI 2025).

    Args:
        hidden_size: of the residual stream.
        kernel: taps of the convolution.
        bias: of the projections and the convolution.
    """

    def __init__(self, hidden_size: int, kernel: int, bias: bool = False) -> None:
        super().__init__()
        self.in_proj = Linear(hidden_size, dict.fromkeys("bcx", hidden_size), bias)
        self.conv = CausalConvolution(hidden_size, kernel, bias, None)
        self.out_proj = Linear(hidden_size, hidden_size, bias)
        self.state = Recurrent((("conv", (kernel - 1, hidden_size)),))
        self.state_index = -1

    def split(self, split: Split) -> None:
        """See octavo.parts.split: channels are divided."""
        own = split.share(self.out_proj.inputs)
        self.in_proj.split_outputs(dict.fromkeys("bcx", own))
        self.out_proj.split_inputs(split, own)
        self.state = Recurrent((("conv", (self.conv.weight.shape[1] - 1, own[1] - own[0])),))
        self.conv.split_channels(own)

    def prepare(self, backend: Backend) -> None:
        self._multiply = backend.multiply

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        view = batch.recurrent(self.state_index)
        b, c, x = self.in_proj(x, batch).chunk(3, dim=-1)
        mixed = self.conv(self._multiply(b, x), view.tensors["conv"], batch, view.plan)
        return self.out_proj(self._multiply(mixed, c), batch)  # type: ignore[no-any-return]
