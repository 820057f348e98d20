"""Feed-forward parts."""

from torch import Tensor, nn

from octavo.ops import ACTIVATIONS, Backend
from octavo.parts.batch import Batch
from octavo.parts.linear_layer import Linear


def check_activation(name: str) -> None:
    """Raises ValueError for a name that is not in octavo.ops.ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is unknown; there are {', '.join(ACTIVATIONS)}")


class MLP(nn.Module):
    """`down(activation(up(x)))`; `activation` is a name in octavo.ops.ACTIVATIONS."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool = False) -> None:
        super().__init__()
        check_activation(activation)
        self.up = Linear(hidden_size, intermediate_size, bias)
        self.down = Linear(intermediate_size, hidden_size, bias)
        self.activation = activation

    def prepare(self, backend: Backend) -> None:
        self._activate = backend.activate

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.down(self._activate(self.up(x, batch), self.activation), batch)  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """`down(combine(gate_up(x)))`: what gated feed-forwards have alike, and what experts must be (Shazeer 2020)."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, {"gate": intermediate_size, "up": intermediate_size}, bias)
        self.down = Linear(intermediate_size, hidden_size, bias)

    def combine(self, gate_up: Tensor) -> Tensor:
        """What goes down, `[rows, intermediate_size]`, of gate and up side by side."""
        raise NotImplementedError

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.down(self.combine(self.gate_up(x, batch)), batch)  # type: ignore[no-any-return]


class GatedMLP(GatedFeedForward):
    """`down(activation(gate(x)) * up(x))`; `activation` is a name in octavo.ops.ACTIVATIONS."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool = False) -> None:
        super().__init__(hidden_size, intermediate_size, bias)
        check_activation(activation)
        self.activation = activation

    def prepare(self, backend: Backend) -> None:
        self._gated = backend.gated

    def combine(self, gate_up: Tensor) -> Tensor:
        return self._gated(gate_up, self.activation)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.down(self.gate_up.gated(x, batch, self.activation), batch)  # type: ignore[no-any-return]


class ClampedGatedMLP(GatedFeedForward):
    """`down(quick_gelu(gate(x)) * (up(x) + 1))`, gate below `limit` and up between -limit and limit (Phi-3-small)."""

    def __init__(self, hidden_size: int, intermediate_size: int, limit: float, bias: bool = False) -> None:
        super().__init__(hidden_size, intermediate_size, bias)
        self.limit = limit

    def combine(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        gated = ACTIVATIONS["quick_gelu"](gate.clamp(max=self.limit))
        return (gated * (up.clamp(-self.limit, self.limit) + 1)).to(gate_up.dtype)
