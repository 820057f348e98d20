"""Rotary position embedding: each pair's angle per position, and its scalings for long contexts."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from octavo.ops import Backend, RotaryTable
from octavo.parts.batch import Batch


def frequencies(dim: int, base: float) -> Tensor:
    """[dim / 2] angles per position (Su et al. 2021)."""
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)


def llama3_frequencies(
    dim: int, base: float, factor: float, low_freq_factor: float, high_freq_factor: float, original_length: int
) -> Tensor:
    """Llama 3.1: slow pairs are slowed further by `factor`, fast ones kept, those between interpolated."""
    plain = frequencies(dim, base)
    wavelength = 2 * math.pi / plain
    smooth = (original_length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = (1 - smooth) * plain / factor + smooth * plain
    slow = wavelength > original_length / low_freq_factor
    fast = wavelength < original_length / high_freq_factor
    return torch.where(slow, plain / factor, torch.where(fast, plain, between))


def yarn_frequencies(
    dim: int,
    base: float,
    factor: float,
    original_length: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool = True,
) -> Tensor:
    """YaRN (Peng et al. 2023): slow pairs are slowed further by `factor`, fast ones are kept."""

    def pair_of(rotations: float) -> float:
        return dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_of(beta_fast), pair_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    plain = frequencies(dim, base)
    return plain / factor * ramp + plain * (1 - ramp)


class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by their positions.

    Args:
        frequencies: [pairs] angles per position; a head's first 2 * pairs values are rotated.
        scale: factor of cos and sin (YaRN's attention factor).
        interleaved: pairs are neighbours (GPT-J) instead of halves (GPT-NeoX).
    """

    def __init__(self, frequencies: Tensor, scale: float = 1.0, interleaved: bool = False) -> None:
        super().__init__()
        # A plain attribute: the table is computed, not loaded, and must not be moved to the meta device.
        self.table = RotaryTable(frequencies.float().unsqueeze(0), (scale,))
        self.interleaved = interleaved

    def prepare(self, backend: Backend) -> None:
        self._backend = backend

    def angles(self, batch: Batch, offset: int = 0) -> tuple[Tensor, Tensor]:
        """cos and sin of the batch's positions plus `offset`, [rows, pairs] float32 each; computed once a step."""
        positions, lengths = batch.positions, batch.lengths
        assert positions.dim() == 1, "only AxialRotaryEmbedding reads positions on several axes"
        return batch.once((id(self), offset), lambda: self._backend.angles(self.table, positions, lengths, offset))


class AxialRotaryEmbedding(RotaryEmbedding):
    """Positions on several axes, such as time, row and column: each pair is rotated by one of them (Wang et al. 2024).

    Where a step's positions are alike on all axes, as those of text are, it is as RotaryEmbedding.

    Args:
        frequencies: [pairs] angles per position.
        sections: how many pairs, in their order, are rotated by each axis.
        scale, interleaved: as RotaryEmbedding has them.
    """

    def __init__(
        self, frequencies: Tensor, sections: Sequence[int], scale: float = 1.0, interleaved: bool = False
    ) -> None:
        super().__init__(frequencies, scale, interleaved)
        self.sections = list(sections)

    def angles(self, batch: Batch, offset: int = 0) -> tuple[Tensor, Tensor]:
        if batch.positions.dim() == 1:
            return super().angles(batch, offset)

        def compute() -> tuple[Tensor, Tensor]:
            every = [self._backend.angles(self.table, each, batch.lengths, offset) for each in batch.positions]
            cos, sin = (
                [torch.split(axis[part], self.sections, dim=1)[i] for i, axis in enumerate(every)] for part in (0, 1)
            )
            return torch.cat(cos, dim=1), torch.cat(sin, dim=1)

        return batch.once((id(self), offset), compute)


def grid_angles(tables: Sequence[Tensor], positions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """cos and sin for places on several axes, the pairs of one axis after those of another.

    Args:
        tables: of each axis the angles per position, `[pairs]` float32.
        positions: of each axis `[rows]` int64.

    Returns: `[rows, all pairs]` float32 each.
    """
    turned = torch.cat([p.float().unsqueeze(1) * t.to(p.device) for p, t in zip(positions, tables, strict=True)], 1)
    return turned.cos(), turned.sin()


class LongRotaryEmbedding(RotaryEmbedding):
    """LongRoPE (Ding et al. 2024): two tables, of which a sequence's whole length chooses one.

    The engine computes a sequence that grows past `long_rope_threshold` again from its start, with the other table.

    Args:
        short, long: [pairs] angles per position up to and beyond the threshold.
        short_scale, long_scale: factors of cos and sin.
        long_rope_threshold: the longest sequence that `short` serves.
    """

    def __init__(
        self,
        short: Tensor,
        long: Tensor,
        short_scale: float,
        long_scale: float,
        long_rope_threshold: int,
        interleaved: bool,
    ) -> None:
        super().__init__(short, short_scale, interleaved)
        self.long_rope_threshold = long_rope_threshold
        self.table = RotaryTable(torch.stack([short, long]), (short_scale, long_scale), long_rope_threshold)
