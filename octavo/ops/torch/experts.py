"""Experts: each row is multiplied with the weights of those that were chosen for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.ops.prepared import PackedLinear


class EachExpert:
    """The reference: rows are grouped by expert, and an expert that nobody chose costs nothing."""

    def __init__(self, experts: Sequence[PackedLinear]) -> None:
        self.experts = experts

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        flat = chosen.flatten()
        choices_a_row = len(flat) // max(1, x.shape[0])
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=len(self.experts)).tolist()
        grouped, first = [], 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                grouped.append(expert(x[order[first : first + count] // choices_a_row]))
                first += count
        out = torch.empty(len(flat), grouped[0].shape[1], dtype=x.dtype, device=x.device)
        out[order] = torch.cat(grouped)
        return out


def weighted_sum(y: Tensor, weights: Tensor | None, terms: int) -> Tensor:
    """The sum of each row's terms in their order, so that it does not depend on the other rows.

    Args:
        y: [rows * terms, width]
        weights: [rows, terms] float32; None where all are 1
        terms: of each row

    Returns: [rows, width]
    """
    weighted = y.view(-1, terms, y.shape[-1]).float()
    if weights is not None:
        weighted = weighted * weights.unsqueeze(-1)
    total = weighted[:, 0]
    for k in range(1, terms):
        total = total + weighted[:, k]
    return total.to(y.dtype)
