"""Griffin's recurrent block (De et al. 2024): a short convolution and a recurrence whose gates are block-diagonal."""

import torch
from torch import Tensor, nn

from octavo.ops import Backend, GatedRecurrenceInput
from octavo.parts.batch import Batch
from octavo.parts.causal_convolution import CausalConvolution
from octavo.parts.linear_layer import Linear
from octavo.parts.mlp import check_activation
from octavo.parts.split import Split
from octavo.parts.state import Recurrent
from octavo.parts.weight_slots import Shard, shard_parameter

DECAY = -8.0
"""Times softplus of a parameter: the least logarithm of a channel's decay."""


class RecurrentBlock(nn.Module):
    """`out(recurrence(convolution(x)) * activation(y))` of `x, y = xy(rows)`, in place of attention (RecurrentGemma).

    Args:
        hidden_size: of the residual stream.
        channels: of the recurrence.
        num_heads: blocks of channels that each gate multiplies by themselves.
        kernel: taps of the convolution.
        activation: of y.
    """

    float32_parameters = True  # of the gates and the decay; the projections are Linears of their own

    def __init__(self, hidden_size: int, channels: int, num_heads: int, kernel: int, activation: str) -> None:
        super().__init__()
        check_activation(activation)
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be in {num_heads} blocks")
        self.channels, self.num_heads, self.kernel, self.activation = channels, num_heads, kernel, activation
        size = channels // num_heads
        self.xy = Linear(hidden_size, {"x": channels, "y": channels}, bias=True)
        self.conv = CausalConvolution(channels, kernel, True, None)
        self.out = Linear(channels, hidden_size, bias=True)
        shapes = {"gate": (num_heads, size, size), "bias": (num_heads, size)}
        for of in ("input", "recurrent"):
            for name, shape in shapes.items():
                self.register_parameter(f"{of}_{name}", nn.Parameter(torch.empty(shape), requires_grad=False))
        self.decay = nn.Parameter(torch.empty(channels), requires_grad=False)
        self.state_index = -1

    @property
    def state(self) -> Recurrent:
        return Recurrent((("conv", (self.kernel - 1, self.channels)), ("lru", (self.channels,))))

    def split(self, split: Split) -> None:
        """See octavo.parts.split: blocks of channels are divided."""
        first, end = split.even(self.num_heads, "blocks of channels")
        size = self.channels // self.num_heads
        own = first * size, end * size
        self.xy.split_outputs({"x": own, "y": own})
        self.conv.split_channels(own)
        self.out.split_inputs(split, own)
        for name in ("input_gate", "input_bias", "recurrent_gate", "recurrent_bias"):
            shard_parameter(self, name, Shard(rows=((first, end),)))
        shard_parameter(self, "decay", Shard(rows=(own,)))
        self.num_heads, self.channels = end - first, own[1] - own[0]

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        self._a = DECAY * nn.functional.softplus(self.decay.data)
        weights = {of: self.get_parameter(f"{of}_gate").data for of in ("input", "recurrent")}
        self._gates = {of: backend.head_linear(weight.transpose(1, 2)) for of, weight in weights.items()}
        self._biases = {of: self.get_parameter(f"{of}_bias").data.flatten() for of in weights}

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        view, backend = batch.recurrent(self.state_index), self._backend
        x, y = self.xy(x, batch).chunk(2, dim=-1)
        x = self.conv(x, view.tensors["conv"], batch, view.plan)
        blocks = x.view(len(x), self.num_heads, -1)
        gates = {of: (gate(blocks, x.dtype).flatten(1), self._biases[of]) for of, gate in self._gates.items()}
        inputs = GatedRecurrenceInput(x, *gates["input"], *gates["recurrent"], self._a, batch.positions)
        h = backend.gated_recurrence(inputs, view.tensors["lru"], view.plan)
        return self.out(backend.multiply(h, y, self.activation), batch)  # type: ignore[no-any-return]
