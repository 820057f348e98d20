"""How a layer's pieces are wired around the residual stream `x` `[rows, width]`."""

from typing import Protocol

from torch import Tensor, nn

from octavo.parts.batch import Batch


class Inner(Protocol):
    """An attention, a feed-forward, a mixer: called with the normed stream and the batch."""

    def __call__(self, x: Tensor, batch: Batch) -> Tensor: ...


class Residual(nn.Module):
    """`x + post_norm(inner(norm(x)))`: pre-norm, or with `post_norm` Gemma 2's sandwich."""

    def __init__(self, norm: nn.Module, inner: nn.Module, post_norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm
        self.inner = inner
        self.post_norm = post_norm

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        y = self.inner(self.norm(x), batch)
        return x + (y if self.post_norm is None else self.post_norm(y))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Named pieces, one after the other: `Block(attention=Residual(...), mlp=Residual(...))`."""

    def __init__(self, **pieces: nn.Module) -> None:
        super().__init__()
        for name, piece in pieces.items():
            self.add_module(name, piece)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        for piece in self.children():
            x = piece(x, batch)
        return x
