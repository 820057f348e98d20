"""Points in grids that some of GGUF's kinds have numbers of, from the tables of the `gguf` package."""

from functools import cache

import torch
from torch import Tensor

from octavo.ops.weight_kinds import WeightKind

POINTS = frozenset(kind for kind in WeightKind if kind.name.startswith(("IQ1", "IQ2", "IQ3")))
"""Kinds with such numbers, which the package calls by the same names."""


@cache
def codes_of_points(kind: WeightKind) -> Tensor | None:
    """[points, columns] uint8: which of the grid's values, the least first, each column has; None for other kinds."""
    if kind not in POINTS:
        return None
    from gguf import quants

    of = getattr(quants, kind.name)
    of.init_grid()
    values, grid = torch.tensor(of.grid_map, dtype=torch.float32), torch.from_numpy(of.grid).view(of.grid_shape)
    return torch.searchsorted(values, grid).to(torch.uint8)
