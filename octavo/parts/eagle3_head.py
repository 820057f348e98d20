"""EAGLE-3's head (Li et al. 2025): rows of several depths, a token beside them, a vocabulary of its own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import CheckpointError
from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.draft_head import DraftHead, LayerChain
from octavo.parts.linear_layer import Linear
from octavo.parts.norms import norm_rows
from octavo.parts.self_attention import Attention
from octavo.parts.split import Split


class WideAttention(Attention):
    """Attention of rows that are twice as wide as what it gives: of a token, and of what the model has made."""

    def __init__(self, hidden_size: int, *sizes: int, out_bias: bool = False, **options: Any) -> None:
        super().__init__(2 * hidden_size, *sizes, **options)
        self.o = Linear(self.num_heads * self.value_dim, hidden_size, out_bias)


class WideLayer(nn.Module):
    """EAGLE-3's first layer: attention reads a token's embedding and the hidden row side by side, each normed.

    Args:
        norm: makes a norm of rows.
        carries_norm: whether the stream goes on from the normed hidden row.
    """

    def __init__(self, norm: Callable[[], nn.Module], attn: nn.Module, mlp: nn.Module, carries_norm: bool) -> None:
        super().__init__()
        self.attn_norm, self.hidden_norm, self.mlp_norm = norm(), norm(), norm()
        self.attn, self.mlp, self.carries_norm = attn, mlp, carries_norm

    def prepare(self, backend: Backend) -> None:
        self._add, self._side_by_side = backend.add, backend.side_by_side

    def forward(self, embedded: Tensor, hidden: Tensor, batch: Batch) -> Tensor:
        h = norm_rows(self.hidden_norm, hidden, batch)
        both = self._side_by_side(norm_rows(self.attn_norm, embedded, batch), h)
        x = self._add(h if self.carries_norm else hidden, self.attn(both, batch))
        return self._add(x, self.mlp(norm_rows(self.mlp_norm, x, batch), batch))


class DraftVocabulary(nn.Module):
    """Which of the model's tokens a head has: token `i` of its own is `i + d2t[i]`."""

    float32_parameters = True

    def __init__(self, count: int) -> None:
        super().__init__()
        self.d2t = nn.Parameter(torch.empty(count), requires_grad=False)

    def tokens(self) -> Tensor:
        """[count] int64."""
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t.long()


class Eagle3Head(DraftHead):
    """A head that reads rows of three depths, and has a vocabulary of its own (EAGLE-3).

    Args:
        hidden_size: of its rows, and of the model's.
        layers: the first of which is a WideLayer.
        norm: before its head.
        reads: before which of the model's layers; empty for the rows after its last norm.
        vocab_size: tokens that it chooses from.
        model_vocab_size: tokens of the model.
    """

    def __init__(
        self,
        hidden_size: int,
        layers: list[nn.Module],
        norm: nn.Module,
        reads: tuple[int, ...],
        *,
        vocab_size: int,
        model_vocab_size: int,
        has_map: bool,
        has_head: bool,
    ) -> None:
        super().__init__(
            hidden_size, LayerChain(layers), embed_norm=None, hidden_norm=None, norm=norm, carries_norm=False
        )
        self.reads, self.model_vocab_size = reads, model_vocab_size
        self.project = Linear(len(reads) * hidden_size, hidden_size) if reads else None
        self.head = Linear(hidden_size, vocab_size) if has_head else None
        self.vocabulary = DraftVocabulary(vocab_size) if has_map else None

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        super().split(split)
        if self.head is not None:
            self.head.split_gathered(split)

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._floats = backend.floats
        self._tokens = None if self.vocabulary is None else self.vocabulary.tokens()
        if self._tokens is not None and not bool(((self._tokens >= 0) & (self._tokens < self.model_vocab_size)).all()):
            raise CheckpointError(f"d2t has tokens beyond the model's vocabulary of {self.model_vocab_size:,}.")

    def combined(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden if self.project is None else self.project(hidden, batch)

    def forward(self, embedded: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See DraftHead."""
        assert isinstance(self.layer, LayerChain)
        assert self.norm is not None
        first, *others = self.layer.layers
        x: Tensor = first(embedded, hidden, batch)
        for layer in others:
            x = layer(x, batch)
        return norm_rows(self.norm, x, batch), x

    def logits(self, normed: Tensor, batch: Batch) -> Tensor | None:
        """See DraftHead. Tokens that it has not are -inf."""
        if self.head is None:
            return None
        own = self._floats(self.head(normed, batch))
        if self._tokens is None:
            return own
        whole = own.new_full((len(own), self.model_vocab_size), -torch.inf)
        whole[:, self._tokens] = own
        return whole
