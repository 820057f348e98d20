"""Between a model's logits and its tokens: what requests ask of logits, and what they are told of tokens.

Logits are `[rows, vocab]` in float32 and are changed in place, each row by itself. Nothing here waits for a device, but
where a result is said to be a list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.ops.plans import DrawBy


@dataclass(frozen=True, slots=True, eq=False)
class TokenChanges:
    """What changes single tokens of a row, in this order. Ids are within the vocabulary; tensors are the device's."""

    row: int
    forbidden: Tensor | None = None
    """[vocab] bool: tokens that may not come."""
    banned: tuple[Tensor, ...] = ()
    """Ids of tokens that may not come, int64."""
    bias: tuple[Tensor, Tensor] | None = None
    """Ids, each once, and what is added to their logits, float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Penalties:
    """What a row's tokens pay for having come before, by vLLM's rules."""

    row: int
    counts: Tensor
    """[vocab] float32: how often each token was generated before `new`, which are counted in."""
    in_prompt: Tensor
    """[vocab] bool"""
    new: Sequence[int]
    """Tokens that have come since."""
    repetition: float
    """What logits of tokens that came, or are in the prompt, are divided by, or multiplied with below 0."""
    frequency: float
    """Taken off for each time that a token was generated."""
    presence: float
    """Taken off once for tokens that were generated."""


@dataclass(frozen=True, slots=True, eq=False)
class Likeliest:
    """Rows' chosen tokens, and their likeliest."""

    own: Tensor
    """[rows]: scores of the chosen tokens; -inf for one that is outside of the vocabulary."""
    ranks: Tensor
    """[rows] int64: 1 for those that no other is above."""
    values: Tensor
    """[rows, most], descending."""
    ids: Tensor
    """[rows, most] int64; of equals, any come first."""


class LogitChanges(Protocol):
    """Operations of a backend."""

    def mask_tokens(self, logits: Tensor, rows: Sequence[int], masks: Tensor) -> None:
        """Set logits to -inf where masks have no bit.

        Args:
            rows: those that have a mask.
            masks: on the host, `[len(rows), ceil(vocab / 8)]` uint8: the first token's bit is the first byte's lowest.
        """
        ...

    def change_tokens(self, logits: Tensor, changes: Sequence[TokenChanges]) -> None:
        """Change single tokens of some rows, each of which comes once."""
        ...

    def penalize(self, logits: Tensor, penalties: Sequence[Penalties]) -> None:
        """Have tokens of some rows, each of which comes once, pay; and count those that are new."""
        ...

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Log-probabilities `[rows, vocab]`, a new tensor."""
        ...

    def likeliest(self, scores: Tensor, chosen: Tensor, most: int) -> Likeliest:
        """The `chosen` tokens `[rows]` and the `most` likeliest of each row of `scores` `[rows, vocab]`."""
        ...

    def left_to_draw(self, logits: Tensor, by: Sequence[DrawBy], chosen: Tensor) -> Tensor:
        """`logits` as tokens are drawn by them. See octavo.ops.torch.sampling."""
        ...


def sent(values: Sequence[int] | Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of host values on a device, without waiting for what that is computing."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def rows_of(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of `x`: a new tensor, but `x` itself where they are all, in their order."""
    if len(rows) == len(x) and all(row == place for place, row in enumerate(rows)):
        return x
    return x.index_select(0, sent(rows, torch.int64, x.device))
