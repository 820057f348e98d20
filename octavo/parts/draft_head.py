"""Heads that guess the tokens after the next one from what the model has made of those before: MTP layers, EAGLE."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.linear_layer import Linear
from octavo.parts.names import Into, Names
from octavo.parts.norms import norm_rows
from octavo.parts.split import Split, split_parts


class DraftHead(nn.Module):
    """`layer(project([embed_norm(e), hidden_norm(h)]))` of a token's embedding and the hidden row of the one before it.

    A multi-token prediction layer (DeepSeek-AI 2024, section 2.2). What it makes of a row, normed, goes through the
    model's own head, which gives the token that follows; and it stands for the hidden row of its token, which is not
    computed yet, where further tokens are guessed. Its keys lie where those of the model's layers do, at the place of
    the row's token: they depend on no token after it.

    EAGLE's head (Li et al. 2024) is such a layer without norms.

    Args:
        hidden_size: of both rows.
        layer: the family's own decoder layer.
        embed_norm, hidden_norm: of the two rows; None for none.
        norm: before the head; None for none.
        carries_norm: whether the next row is guessed from the normed result.
        bias: whether the projection has one.
    """

    reads: tuple[int, ...] = ()
    """Before which of the model's layers rows are read, side by side; empty for those after its last norm."""

    def __init__(
        self,
        hidden_size: int,
        layer: nn.Module,
        *,
        embed_norm: nn.Module | None,
        hidden_norm: nn.Module | None,
        norm: nn.Module | None,
        carries_norm: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.embed_norm, self.hidden_norm = embed_norm, hidden_norm
        self.project: Linear | None = Linear(2 * hidden_size, hidden_size, bias)
        self.layer, self.norm = layer, norm
        self.carries_norm = carries_norm

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        split_parts(self.layer, split)
        if self.project is not None:
            self.project.split_gathered(split)

    def prepare(self, backend: Backend) -> None:
        self._side_by_side = backend.side_by_side

    def forward(self, embedded: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rows for `logits`, and in place of hidden rows: `[rows, hidden_size]` each.

        Args:
            embedded: `[rows, hidden_size]` of the batch's tokens.
            hidden: `[rows, hidden_size]` of the tokens before them, as `combined` gives them.
            batch: the rows' places.
        """
        e = embedded if self.embed_norm is None else norm_rows(self.embed_norm, embedded, batch)
        h = hidden if self.hidden_norm is None else norm_rows(self.hidden_norm, hidden, batch)
        assert self.project is not None
        x: Tensor = self.layer(self.project(self._side_by_side(e, h), batch), batch)
        normed = x if self.norm is None else norm_rows(self.norm, x, batch)
        return normed, normed if self.carries_norm else x

    def combined(self, hidden: Tensor, batch: Batch) -> Tensor:
        """`[rows, hidden_size]` of rows that the model has made."""
        return hidden

    def logits(self, normed: Tensor, batch: Batch) -> Tensor | None:
        """`[rows, vocab]` in float32 of its rows, where the head has a vocabulary of its own; None for the model's."""
        return None


class LayerChain(nn.Module):
    """Layers, one after the other."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        for layer in self.layers:
            x = layer(x, batch)
        return x


@dataclass(frozen=True)
class Predictor:
    """The head that a family's checkpoints have beside the model, which is made only where it is asked for."""

    make: Callable[[], DraftHead]
    table: Mapping[str, str | Into]
    """Published names of its tensors to paths in the model, where it is `draft_head`."""
    begins: str
    """How the published names of its tensors begin."""
    ignored: tuple[str, ...] = ()
    """Those of them that it has from the model: the token table, the head."""
    like: Mapping[str, str] = field(default_factory=dict)
    """Of the layer's own tensors, the name that the model's layers have for the same, with `{i}`."""

    def names(self, names: Names) -> Names:
        """A model's table with the head's tensors."""
        return names.taking(self.table, self.begins, self.ignored)
