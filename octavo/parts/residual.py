"""How a layer's pieces are wired around the residual stream `x` `[rows, width]`."""

from typing import Any, cast

from torch import Tensor, nn

from octavo.parts.batch import Batch


class Residual(nn.Module):
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
        """What is added to the stream."""
        y = self.inner(self.norm(x), batch)
        if self.post_norm is not None:
            y = self.post_norm(y)
        return y if self.scale == 1.0 else y * self.scale  # type: ignore[no-any-return]

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return x + self.branch(x, batch)


class PostNorm(nn.Module):
    """`norm(x + inner(x))` (OPT-350M, BART)."""

    def __init__(self, norm: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        return self.norm(x + self.inner(x, batch))  # type: ignore[no-any-return]


class FromNormed(nn.Module):
    """`y + inner(y)` with `y = norm(x)`: the stream goes on from the norm (BLOOM and ChatGLM, where asked)."""

    def __init__(self, norm: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        y = self.norm(x)
        return y + self.inner(y, batch)  # type: ignore[no-any-return]


class SideBySide(nn.Module):
    """Residuals that all read the same stream: `x + a(x) + b(x)` (GPT-NeoX, with a norm each)."""

    def __init__(self, **pieces: Residual) -> None:
        super().__init__()
        for name, piece in pieces.items():
            self.add_module(name, piece)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        total = x
        for piece in self.children():
            total = total + cast(Residual, piece).branch(x, batch)
        return total


class SharedNorm(nn.Module):
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
            total = total + getattr(self, name)(normed, batch)
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
