"""Mamba's mixer (Gu & Dao 2023): a causal convolution and a selective scan, with a state of fixed size."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from octavo.ops import Backend, ScanInput
from octavo.parts.batch import Batch
from octavo.parts.causal_convolution import CausalConvolution
from octavo.parts.linear_layer import Linear
from octavo.parts.mlp import check_activation
from octavo.parts.norms import norm_rows
from octavo.parts.split import Split
from octavo.parts.state import Recurrent
from octavo.parts.weight_slots import Shard, shard_parameter


class MambaMixer(nn.Module):
    """In place of attention in a Mamba layer.

    Args:
        hidden_size: of the residual stream.
        channels: inner size.
        state_size: values of state a channel.
        kernel: taps of the convolution.
        time_step_rank: inner size of the time step's projection.
        activation: of the convolution's output and of the gate.
        bias, conv_bias: biases of the in and out projections, and of the convolution.
        inner_norm: makes a norm of a given size for each of the time step, B and C (FalconMamba, Jamba).
    """

    float32_parameters = True  # a_log and d; the projections are Linears of their own

    def __init__(
        self,
        hidden_size: int,
        channels: int,
        state_size: int,
        kernel: int,
        time_step_rank: int,
        activation: str = "silu",
        bias: bool = False,
        conv_bias: bool = True,
        inner_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.channels, self.state_size, self.rank = channels, state_size, time_step_rank
        self.activation = activation
        self.in_proj = Linear(hidden_size, {"x": channels, "gate": channels}, bias)
        self.x_proj = Linear(channels, {"dt": time_step_rank, "b": state_size, "c": state_size})
        self.dt_proj = Linear(time_step_rank, channels, bias=True)
        self.out_proj = Linear(channels, hidden_size, bias)
        self.conv = CausalConvolution(channels, kernel, conv_bias, activation)
        self.a_log = nn.Parameter(torch.empty(channels, state_size), requires_grad=False)
        self.d = nn.Parameter(torch.empty(channels), requires_grad=False)
        self.state = self._state(kernel, channels)
        self.state_index = -1
        sizes = {"dt": time_step_rank, "b": state_size, "c": state_size}
        self.inner_norms = nn.ModuleDict({n: inner_norm(w) for n, w in sizes.items()} if inner_norm else {})
        self._a: Tensor | None = None

    def _state(self, kernel: int, channels: int) -> Recurrent:
        return Recurrent((("conv", (kernel - 1, channels)), ("ssm", (3, channels, self.state_size))))

    def split(self, split: Split) -> None:
        """See octavo.parts.split: channels are divided, and what the time step, B and C are made of is summed."""
        own = split.share(self.channels)
        self.in_proj.split_outputs({"x": own, "gate": own})
        self.x_proj.split_inputs(split, own)
        self.dt_proj.split_outputs(own)
        self.out_proj.split_inputs(split, own)
        self.state = self._state(self.conv.weight.shape[1], own[1] - own[0])
        self.conv.split_channels(own)
        for name in ("a_log", "d"):
            shard_parameter(self, name, Shard(rows=(own,)))
        self.channels = own[1] - own[0]

    def prepare(self, backend: Backend) -> None:
        self._a = -torch.exp(self.a_log.data)
        self._backend = backend

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        view, backend = batch.recurrent(self.state_index), self._backend
        inner, gate = self.in_proj(x, batch).chunk(2, dim=-1)
        mixed = self.conv(inner, view.tensors["conv"], batch, view.plan)
        dt, b, c = self.x_proj(mixed, batch).split([self.rank, self.state_size, self.state_size], dim=-1)
        if self.inner_norms:
            norms = [self.inner_norms[name] for name in ("dt", "b", "c")]
            dt, b, c = (norm_rows(norm, part, batch) for norm, part in zip(norms, (dt, b, c), strict=True))
        assert self._a is not None
        scanned = ScanInput(mixed, self.dt_proj(dt, batch), self._a, b, c, self.d, gate, self.activation)
        y = backend.scan(scanned, view.tensors["ssm"], view.plan)
        return self.out_proj(y, batch)  # type: ignore[no-any-return]
