"""Feed-forward parts."""

import math

import torch
from torch import Tensor, nn

from octavo.ops import ACTIVATIONS, Backend, Gate
from octavo.parts.batch import Batch, SpanBatch
from octavo.parts.linear_layer import Linear
from octavo.parts.split import Split


def check_activation(name: str) -> None:
    """Raises ValueError for a name that is not in octavo.ops.ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is unknown; there are {', '.join(ACTIVATIONS)}")


class MLP(nn.Module):
    """`down(activation(up(x)))`.

    Args:
        hidden_size: of the rows.
        intermediate_size: values of up.
        activation: a name in octavo.ops.ACTIVATIONS.
        bias: of both.
        output_size: of the result; None for `hidden_size`.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        bias: bool = False,
        output_size: int | None = None,
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.up = Linear(hidden_size, intermediate_size, bias)
        self.down = Linear(intermediate_size, hidden_size if output_size is None else output_size, bias)
        self.activation = activation

    @property
    def first(self) -> Linear:
        """The product of the rows themselves."""
        return self.up

    def inner(self, y: Tensor, backend: Backend) -> Tensor:
        """What `down` takes of the first product's results."""
        return backend.activate(y, self.activation)

    def split(self, split: Split, is_summed: bool = True) -> None:
        """See octavo.parts.split; `is_summed` as in Linear.split_inputs."""
        own = split.share(self.up.outputs)
        self.up.split_outputs(own)
        self.down.split_inputs(split, own, is_summed)

    def prepare(self, backend: Backend) -> None:
        self._activate = backend.activate

    def forward(self, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
        return self.down(self._activate(self.up(x, batch), self.activation), batch)  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    """`down(activation(gate(x)) * up(x))` (Shazeer 2020).

    Args:
        hidden_size: of the residual stream.
        intermediate_size: values of gate and of up.
        activation: a name in octavo.ops.ACTIVATIONS, or all of how gate and up become one.
        bias: of all three.
        output_size: of the result; None for `hidden_size`.
        down_bias: of the last product; None for the same as `bias`.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str | Gate,
        bias: bool = False,
        output_size: int | None = None,
        down_bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.gate = activation if isinstance(activation, Gate) else Gate(activation)
        if self.gate.activation is not None:
            check_activation(self.gate.activation)
        self.gate_up = Linear(hidden_size, {"gate": intermediate_size, "up": intermediate_size}, bias)
        width = hidden_size if output_size is None else output_size
        self.down = Linear(intermediate_size, width, bias if down_bias is None else down_bias)

    @property
    def first(self) -> Linear:
        """The product of the rows themselves."""
        return self.gate_up

    def inner(self, y: Tensor, backend: Backend) -> Tensor:
        """What `down` takes of the first product's results."""
        return backend.gated(y, self.gate)

    def split(self, split: Split, is_summed: bool = True) -> None:
        """See octavo.parts.split; `is_summed` as in Linear.split_inputs."""
        own = split.share(self.down.inputs)
        self.gate_up.split_outputs({"gate": own, "up": own})
        self.down.split_inputs(split, own, is_summed)

    def forward(self, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
        return self.down(self.gate_up.gated(x, batch, self.gate), batch)  # type: ignore[no-any-return]


def _deviations(share: float) -> float:
    """Above the mean, where so much of a normal distribution is below: in float32, as it is published."""
    below = torch.tensor(share, dtype=torch.float32, device="cpu")
    return float(torch.erfinv(2 * below - 1) * math.sqrt(2))


class SparseGatedMLP(GatedMLP):
    """`down(activation(max(gate(x) - cutoff, 0)) * up(x))`, with a cutoff for each row that few of its gates are above.

    As many as would be if they were distributed normally (Gemma 3n). Ranks that share it gather gates for that.

    Args:
        hidden_size, intermediate_size, activation: as GatedMLP has them.
        sparsity: the share of gates that are below the cutoff, between 0 and 1.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, sparsity: float) -> None:
        super().__init__(hidden_size, intermediate_size, activation)
        if not 0 < sparsity < 1:
            raise ValueError(f"no share of gates is {sparsity}")
        self.activation, self.deviations = activation, _deviations(sparsity)
        self._widths: tuple[int, ...] = ()
        """Gates that each rank has, where several have some."""

    def split(self, split: Split, is_summed: bool = True) -> None:
        self._widths = split.widths(self.down.inputs)
        super().split(split, is_summed)

    def prepare(self, backend: Backend) -> None:
        self._backend = backend

    def forward(self, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
        gate_up = self.gate_up(x, batch)
        gates = gate_up[:, : gate_up.shape[1] // 2]
        every = self._backend.all_gather(gates, self._widths) if self._widths else gates
        cutoffs = self._backend.row_cutoffs(every, self.deviations)
        return self.down(self._backend.gated_above(gate_up, cutoffs, self.activation), batch)  # type: ignore[no-any-return]
