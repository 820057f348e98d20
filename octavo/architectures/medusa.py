"""Medusa's heads (Cai et al. 2024): each guesses one of the tokens after the next from the same hidden row."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from octavo.architectures.model_config import Config
from octavo.errors import CheckpointError
from octavo.ops import Backend
from octavo.parts import Batch, Into, Linear, Names, parameter
from octavo.parts.split import Split

BLOCK, HEAD = "draft_head.blocks.{i}.{j}", "draft_head.heads.{i}"
MOST_HEADS = 64
"""A damaged config may ask for a billion."""


class MedusaHeads(nn.Module):
    """`head(x + silu(layer(x)))`, one such residual layer after the other, for each place.

    Args:
        hidden_size: of the model's rows.
        vocab_size, own_size: tokens of the model, and of a head, which may have fewer, as `token_map` says then.
        num_heads, num_layers: heads, and residual layers of each.
        bias: whether these have one.
        has_one_head: whether one product to the vocabulary serves all.
    """

    float32_parameters = True

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        own_size: int,
        *,
        num_heads: int,
        num_layers: int,
        bias: bool,
        has_one_head: bool,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.blocks = nn.ModuleList(
            [
                nn.ModuleList([Linear(hidden_size, hidden_size, bias) for _ in range(num_layers)])
                for _ in range(num_heads)
            ]
        )
        self.heads = nn.ModuleList([Linear(hidden_size, own_size) for _ in range(1 if has_one_head else num_heads)])
        has_map = own_size != vocab_size
        self.token_map = nn.Parameter(torch.empty(own_size), requires_grad=False) if has_map else None

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.split_gathered(split)

    def prepare(self, backend: Backend) -> None:
        self._add, self._activate, self._floats = backend.add, backend.activate, backend.floats
        self._tokens = None if self.token_map is None else self.token_map.long()
        if self._tokens is not None and not bool(((self._tokens >= 0) & (self._tokens < self.vocab_size)).all()):
            raise CheckpointError(f"token_map has tokens beyond the model's vocabulary of {self.vocab_size:,}.")

    def forward(self, hidden: Tensor, place: int, batch: Batch) -> Tensor:
        """`[rows, vocab_size]` in float32: logits of the token `place + 2` after that of a hidden row."""
        x, block = hidden, self.blocks[place]
        assert isinstance(block, nn.ModuleList)
        for layer in block:
            x = self._add(x, self._activate(layer(x, batch), "silu"))
        own = self._floats(self.heads[min(place, len(self.heads) - 1)](x, batch))
        if self._tokens is None:
            return own
        whole = own.new_full((len(own), self.vocab_size), -torch.inf)
        whole[:, self._tokens] = own
        return whole


def medusa(c: Config, stored: Collection[str], hidden_size: int, vocab_size: int) -> tuple[MedusaHeads, Names]:
    """The heads of a checkpoint, and its names: vLLM's (`blocks.0.layers.0`), or the authors' (`0.0.linear`).

    Args:
        stored: names of the checkpoint's tensors.
        hidden_size, vocab_size: of the model.
    """
    num_heads = c.first("num_heads", "medusa_num_heads")
    num_layers = c.stated("medusa_num_layers") or c.stated("num_hidden_layers") or 1
    if num_heads is None or not 1 <= num_heads <= MOST_HEADS or num_layers > MOST_HEADS:
        raise CheckpointError(
            f"config.json: num_heads (medusa_num_heads) is {num_heads} and num_hidden_layers (medusa_num_layers) "
            f"{num_layers}: from 1 to {MOST_HEADS} are read."
        )
    table: dict[str, str | Into] = {
        "blocks.{i}.layers.{j}": BLOCK,
        "{i}.{j}.linear": BLOCK,
        "lm_heads.{i}": HEAD,
        f"{{i}}.{num_layers}": HEAD,
        "token_map": parameter("draft_head.token_map"),
    }
    heads = MedusaHeads(
        hidden_size,
        vocab_size,
        c.get("truncated_vocab_size", vocab_size),
        num_heads=num_heads,
        num_layers=num_layers,
        bias=any(name.endswith(".bias") for name in stored),
        has_one_head=c.get("original_lm_head", False),
    )
    return heads, Names(table, spellings={"medusa_heads.": "", "medusa_head.": ""})
