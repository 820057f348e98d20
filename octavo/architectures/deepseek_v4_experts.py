"""DeepSeek-V4's experts that a table chooses by the token, and logits weigh."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from octavo.architectures.deepseek import MoEWithShared
from octavo.errors import CheckpointError
from octavo.ops import Backend, RouterSpec
from octavo.parts import Batch, GatedMLP, Linear


class HashedMoE(MoEWithShared):
    """Experts that depend on a row's token alone.

    Args:
        router, experts, route, shared: as MoEWithShared has them.
        vocab_size: tokens of the table `[vocab_size, top_k]`.
    """

    def __init__(
        self, router: Linear, experts: Sequence[GatedMLP], route: RouterSpec, shared: GatedMLP, vocab_size: int
    ) -> None:
        super().__init__(router, experts, route, shared)
        self.experts_of = nn.Parameter(torch.empty(vocab_size, route.top_k), requires_grad=False)

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._table = self.experts_of.data.long()
        if len(self._table) and not (int(self._table.min()) >= 0 and int(self._table.max()) < len(self.experts)):
            raise CheckpointError(
                f"a table of experts by token (tid2eid) has numbers that are not of the {len(self.experts)} experts. "
                "Is the checkpoint damaged?"
            )
        del self.experts_of

    def choose(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        rows = batch.num_tokens
        logits = self._backend.floats(self.router(x, batch)[:rows])
        chosen = self._backend.table_rows(self._table, batch.tokens[:rows], 0)
        return self._backend.route(logits, self.route, chosen=chosen)
