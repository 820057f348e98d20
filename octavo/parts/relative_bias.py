"""Relative position biases in buckets (Raffel et al. 2020), which the layers of a stack share."""

import math

import torch
from torch import Tensor, nn

from octavo.ops import DistanceBias

MOST_DISTANCE = 1 << 16
"""A damaged config may ask for a billion."""


class RelativeBias(nn.Module):
    """A learned number for each head and each bucket of distances, added to the scores of attention.

    Attention takes `of_heads`. The table is whole on every rank, and ranks take their heads of it.

    Args:
        num_buckets: in all.
        num_heads: of the layers.
        max_distance: from which on all distances are in one bucket.
        both_ways: whether half of the buckets are for keys after the query. Without, keys after it are as it itself.
    """

    def __init__(self, num_buckets: int, num_heads: int, max_distance: int, *, both_ways: bool) -> None:
        super().__init__()
        near = num_buckets // (4 if both_ways else 2)
        if near < 1 or not near < max_distance <= MOST_DISTANCE:
            raise ValueError(
                f"{num_buckets} buckets cannot hold distances up to {max_distance} (at most {MOST_DISTANCE})"
            )
        self.max_distance, self.both_ways = max_distance, both_ways
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads), requires_grad=False)

    def of_heads(self, first: int, end: int) -> DistanceBias:
        """What is added to the scores of heads `first` to `end`. The weight is loaded."""
        last = self.max_distance
        distance = torch.arange(-last, (last if self.both_ways else 0) + 1, device="cpu")
        buckets = self.buckets(distance).to(self.weight.device)
        return DistanceBias(self.weight.data[buckets, first:end].float().t().contiguous(), last)

    def buckets(self, distance: Tensor) -> Tensor:
        """The bucket of each of `distance`, key position minus query position, int64.

        Half of one side's buckets have a distance each; those of the rest grow logarithmically.
        """
        side = self.weight.shape[0] // (2 if self.both_ways else 1)
        near = side // 2
        apart = distance.abs() if self.both_ways else (-distance).clamp(min=0)
        ratio = torch.log(apart.clamp(min=near).float() / near) / math.log(self.max_distance / near)
        far = (near + (ratio * (side - near)).long()).clamp(max=side - 1)
        after = side * (distance > 0) if self.both_ways else 0
        return torch.where(apart < near, apart, far) + after
