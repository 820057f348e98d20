"""How a layer's pieces are wired around the residual stream `x` `[rows, hidden_size]`.

Whatever the wiring, a piece and its norm lie flat beside each other: `attn_norm, attn, mlp_norm, mlp`. So the wiring
does not show in the names of parameters, and families share tables of published names.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.norms import norm_rows


class Wiring(nn.Module):
    """A layer of named pieces, in their order.

    `batch` is whatever the pieces take: a Batch, or an EncoderBatch in an encoder.

    Args:
        norm: makes the norm of a piece.
        scale: factor of what a piece adds to the stream.
        pieces: by name; None for one that this layer lacks. The norm of the piece `attn` is `attn_norm`.
    """

    def __init__(self, norm: Callable[[], nn.Module], *, scale: float = 1.0, **pieces: nn.Module | None) -> None:
        super().__init__()
        self.pieces = tuple(name for name, piece in pieces.items() if piece is not None)
        self.scale = scale
        for name in self.pieces:
            self.add_norms(name, norm)
            self.add_module(name, pieces[name])

    def add_norms(self, name: str, norm: Callable[[], nn.Module]) -> None:
        """Make what norms the piece `name` has."""
        self.add_module(f"{name}_norm", norm())

    def prepare(self, backend: Backend) -> None:
        self._add = backend.add

    def norm(self, name: str, x: Tensor, batch: Any) -> Tensor:
        """`x` through the norm of the piece `name`."""
        return norm_rows(getattr(self, f"{name}_norm"), x, batch)

    def piece(self, name: str, x: Tensor, batch: Any) -> Tensor:
        """What the piece `name` makes of `x`."""
        return getattr(self, name)(x, batch)  # type: ignore[no-any-return]

    def branch(self, name: str, x: Tensor, batch: Any) -> Tensor:
        """What the piece `name` makes of the normed `x`."""
        return self.piece(name, self.norm(name, x, batch), batch)


class PreNorm(Wiring):
    """`x + scale * piece(norm(x))`, one piece after the other."""

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        for name in self.pieces:
            x = self._add(x, self.branch(name, x, batch), self.scale)
        return x


class GatedPreNorm(PreNorm):
    """`x + tanh(piece_gate) * piece(norm(x))`, with a learned number, `attn_gate` for the piece `attn` (Flamingo)."""

    def __init__(self, norm: Callable[[], nn.Module], **pieces: nn.Module) -> None:
        super().__init__(norm, scale=1.0, **pieces)
        for name in self.pieces:
            self.register_parameter(f"{name}_gate", nn.Parameter(torch.empty(1), requires_grad=False))

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._gates = {name: float(getattr(self, f"{name}_gate").float().tanh()) for name in self.pieces}

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        for name in self.pieces:
            x = self._add(x, self.branch(name, x, batch), self._gates[name])
        return x


class SandwichNorm(PreNorm):
    """`x + post_norm(piece(norm(x)))`, one piece after the other (Gemma 2); `attn_post_norm` is beside `attn`."""

    def add_norms(self, name: str, norm: Callable[[], nn.Module]) -> None:
        super().add_norms(name, norm)
        super().add_norms(f"{name}_post", norm)

    def branch(self, name: str, x: Tensor, batch: Any) -> Tensor:
        return self.norm(f"{name}_post", super().branch(name, x, batch), batch)


class BranchNorm(Wiring):
    """`x + scale * norm(piece(x))`, one piece after the other (EVA2-CLIP in CogVLM and GLM-4V)."""

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        for name in self.pieces:
            x = self._add(x, self.norm(name, self.piece(name, x, batch), batch), self.scale)
        return x


class PostNorm(Wiring):
    """`norm(x + piece(x))`, one piece after the other (OPT-350M, BART)."""

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        for name in self.pieces:
            x = self.norm(name, self._add(x, self.piece(name, x, batch), self.scale), batch)
        return x


class FromNormed(Wiring):
    """`y + piece(y)` with `y = norm(x)`: the stream goes on from the norm (some of BLOOM and ChatGLM)."""

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        for name in self.pieces:
            x = self.norm(name, x, batch)
            x = self._add(x, self.piece(name, x, batch), self.scale)
        return x


class SideBySide(Wiring):
    """`x + a(a_norm(x)) + b(b_norm(x))`: pieces that all read the same stream (GPT-NeoX)."""

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        total = x
        for name in self.pieces:
            total = self._add(total, self.branch(name, x, batch), self.scale)
        return total


class SharedNorm(Wiring):
    """`x + a(norm(x)) + b(norm(x))`: pieces side by side behind the first one's norm (GPT-J, Phi, Command-R)."""

    def add_norms(self, name: str, norm: Callable[[], nn.Module]) -> None:
        if name == self.pieces[0]:
            super().add_norms(name, norm)

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        normed, total = self.norm(self.pieces[0], x, batch), x
        for name in self.pieces:
            total = self._add(total, self.piece(name, normed, batch), self.scale)
        return total
