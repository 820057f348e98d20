"""How a layer's pieces are wired around the residual stream `x` `[rows, hidden_size]`."""

from typing import Any, cast

from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.batch import Batch


class _Adding(nn.Module):
    """A wiring that adds to the stream."""

    def prepare(self, backend: Backend) -> None:
        self._add = backend.add


class Residual(_Adding):
    """`x + scale * post_norm(inner(norm(x)))`: pre-norm, or with `post_norm` Gemma 2's sandwich."""

    def __init__(
        self, norm: nn.Module, inner: nn.Module, post_norm: nn.Module | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.norm = norm
        self.inner = inner
        self.post_norm = post_norm
        self.scale = scale

    def branch(self, x: Tensor, batch: Batch) -> Tensor:
        """What is added to the stream, `scale` times."""
        y: Tensor = self.inner(self.norm(x), batch)
        return y if self.post_norm is None else self.post_norm(y)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self._add(x, self.branch(x, batch), self.scale)


class PostNorm(_Adding):
    """`norm(x + inner(x))` (OPT-350M, BART)."""

    def __init__(self, norm: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        return self.norm(self._add(x, self.inner(x, batch)))  # type: ignore[no-any-return]


class FromNormed(_Adding):
    """`y + inner(y)` with `y = norm(x)`: the stream goes on from the norm (some of BLOOM and ChatGLM)."""

    def __init__(self, norm: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        y = self.norm(x)
        return self._add(y, self.inner(y, batch))


class SideBySide(_Adding):
    """Residuals that all read the same stream: `x + a(x) + b(x)` (GPT-NeoX, with a norm each)."""

    def __init__(self, **pieces: Residual) -> None:
        super().__init__()
        for name, piece in pieces.items():
            self.add_module(name, piece)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        total = x
        for piece in self.children():
            residual = cast(Residual, piece)
            total = self._add(total, residual.branch(x, batch), residual.scale)
        return total


class SharedNorm(_Adding):
    """`x + a(norm(x)) + b(norm(x))`: pieces side by side behind one norm (GPT-J, Phi, Command-R)."""

    def __init__(self, norm: nn.Module, **pieces: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.pieces = list(pieces)
        for name, piece in pieces.items():
            self.add_module(name, piece)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        normed, total = self.norm(x), x
        for name in self.pieces:
            total = self._add(total, getattr(self, name)(normed, batch))
        return total


class Block(nn.Module):
    """Named pieces, one after the other: `Block(attention=Residual(...), mlp=Residual(...))`.

    `batch` is whatever the pieces take: a Batch, or an EncoderBatch in an encoder.
    """

    def __init__(self, **pieces: nn.Module) -> None:
        super().__init__()
        for name, piece in pieces.items():
            self.add_module(name, piece)

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        for piece in self.children():
            x = piece(x, batch)
        return x
