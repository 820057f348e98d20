"""What a model makes rows of media with: a tower, and what brings its rows to the size of the text's."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from octavo.parts.batch import SpanBatch

MediaData = Mapping[str, Tensor]
"""What a family's processor made of one picture, film or sound, by its names."""


class MediaTower(nn.Module):
    """Makes rows of media. A family's says how.

    The rows of an item are the same whatever the other items are.
    """

    adds = False
    """Whether rows are added to the embeddings of the placeholder tokens; otherwise they replace them."""
    dtype = torch.float32
    """Of activations. Set when weights are loaded."""

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        """For each item of a kind (image, video, audio) its rows, `[rows, hidden_size]`, in the prompt's order."""
        raise NotImplementedError


def together(items: Sequence[Tensor], compute: Callable[[Tensor, SpanBatch], Tensor]) -> list[Tensor]:
    """`compute` over the rows of several inputs at once, each of which sees itself only.

    Args:
        items: `[rows, size]` each.
        compute: from all rows, one after the other, to as many rows.

    Returns: of each input, its rows of the result.
    """
    counts = [len(item) for item in items]
    runs, first = list[tuple[int, int]](), 0
    for count in counts:
        runs.append((first, count))
        first += count
    return list(torch.split(compute(torch.cat(list(items)), SpanBatch(runs)), counts))
