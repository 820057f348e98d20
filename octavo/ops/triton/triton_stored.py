"""Weights as they are stored: products, experts, rows; what TritonBackend has of them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.ops.prepared import PackedExperts, PackedHeads, PackedLinear, RowAdapters
from octavo.ops.specs import Gate
from octavo.ops.stored_rows import FLOATS, StoredRows
from octavo.ops.torch import TorchBackend
from octavo.ops.triton.grouping import Groups, grouped
from octavo.ops.triton.launching import cdiv, columns_of, together, warps_of
from octavo.ops.triton.product_kernels import weighted_sum_kernel
from octavo.ops.triton.rounding import quantize
from octavo.ops.triton.stored_weight import StoredWeight, multiply, multiply_gated, stored_weight, weight_of_floats
from octavo.ops.weight_kinds import WeightKind


class StoredLinear:
    """A weight in parts, each of one kind, whose outputs lie one after the other."""

    def __init__(self, parts: Sequence[StoredWeight]) -> None:
        self.parts, self.outputs = list(parts), sum(part.outputs for part in parts)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.empty(x.shape[0], self.outputs, dtype=x.dtype, device=x.device)
        first = 0
        for part in self.parts:
            end = first + part.outputs
            multiply(part, x, out[:, first:end], None if bias is None else bias[first:end])
            first = end
        return out

    def gated(self, x: Tensor, bias: Tensor | None, gate: Gate) -> Tensor | None:
        """`gate` of the two halves of the result, each rounded first; None where that is no operation of its own."""
        if len(self.parts) > 1:
            return None
        constants = (True, gate.activation, gate.threshold, gate.limit, float(gate.up_offset))
        return multiply_gated(self.parts[0], x, bias, constants)

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float = 1.0, first: int | None = None) -> Tensor:
        """See octavo.ops.prepared.PackedLinear."""
        begin = first or 0
        ids = ids.to(self.parts[0].data.device)
        out = self.parts[0].rows(ids, dtype, scale, begin)
        for part, before in zip(self.parts[1:], self.parts, strict=False):
            begin += before.outputs
            out += part.rows(ids, dtype, scale, begin)  # of what is another part's they are zeros
        return out


class StoredExperts:
    """Weights of experts that are alike in everything but their numbers."""

    def __init__(self, experts: Sequence[StoredLinear]) -> None:
        self.experts, self.outputs = list(experts), experts[0].outputs
        device = experts[0].parts[0].data.device

        def addresses(tensors: Sequence[Tensor]) -> Tensor:
            return torch.tensor([t.data_ptr() for t in tensors], device=device)

        by_part = list(zip(*(e.parts for e in experts), strict=True))
        self._weights = [addresses([p.data for p in parts]) for parts in by_part]
        orders = [[p.order for p in parts if p.order is not None] for parts in by_part]
        self._columns = [addresses(of) if of else None for of in orders]

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        results = chosen.numel()
        out = torch.empty(results, self.outputs, dtype=x.dtype, device=x.device)
        order, starts = grouped(chosen.flatten(), len(self.experts))
        first, shared = 0, results // max(1, x.shape[0])
        for part, weights, columns in zip(self.experts[0].parts, self._weights, self._columns, strict=True):
            groups = Groups(weights, columns, order, starts, max(1, shared))
            multiply(part, x, out[:, first : first + part.outputs], groups=groups)
            first += part.outputs
        return out


class StoredGroups:
    """Of one weight each group's outputs, as a weight of the group's own rows."""

    def __init__(self, groups: Sequence[StoredLinear]) -> None:
        self._groups = list(groups)

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.stack([group(x[:, g]).to(dtype) for g, group in enumerate(self._groups)], dim=1)


def _are_alike(experts: Sequence[StoredLinear]) -> bool:
    def shape(weight: StoredLinear) -> list[tuple[object, ...]]:
        return [
            (p.kind, p.outputs, p.width, p.data.dtype, p.first, p.all_outputs, p.order is None) for p in weight.parts
        ]

    return all(shape(expert) == shape(experts[0]) for expert in experts)


class TritonStored(TorchBackend):
    """Operations on weights as they are stored."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.capabilities = replace(self.capabilities, weight_kinds=frozenset(WeightKind), any_rows_meet_kinds=True)

    def stored_linear(self, parts: Sequence[StoredRows], fine: bool = False, apart: bool = False) -> PackedLinear:
        alike = list[list[StoredRows]]()
        for part in parts:
            if alike and part.lies_like(alike[-1][0]):
                alike[-1].append(part)
            else:
                alike.append([part])
        made = [stored_weight(rows, self.device) for rows in alike]
        if len(made) == 1 and made[0].kind in FLOATS.values() and made[0].order is None:
            return self.linear(made[0].data)
        return StoredLinear(made)

    def quantize(self, weight: Tensor, kind: WeightKind) -> StoredRows:
        return quantize(weight, kind, self.device)

    def experts(self, weights: Sequence[PackedLinear]) -> PackedExperts:
        stored = [of for of in map(as_stored, weights) if of is not None]
        if len(stored) < len(weights) or not _are_alike(stored):
            return super().experts(weights)
        return StoredExperts(stored)

    def gated_linear(
        self,
        gate_up: PackedLinear,
        x: Tensor,
        bias: Tensor | None,
        gate: Gate,
        adapters: RowAdapters | None = None,
    ) -> Tensor:
        stored = gate_up.gated(x, bias, gate) if isinstance(gate_up, StoredLinear) and adapters is None else None
        return super().gated_linear(gate_up, x, bias, gate, adapters) if stored is None else stored

    def weighted_sum(self, y: Tensor, weights: Tensor | None, terms: int) -> Tensor:
        y, rows = together(y), len(y) // terms
        out = torch.empty(rows, y.shape[1], dtype=y.dtype, device=y.device)
        if out.numel():
            columns = columns_of(y.shape[1])
            weighed = None if weights is None else weights.float().contiguous()
            weighted_sum_kernel[(rows, cdiv(y.shape[1], columns))](
                y, y.stride(0), weighed, terms, out, y.shape[1],
                IS_WEIGHTED=weights is not None, COLUMNS=columns, num_warps=warps_of(columns),
            )  # fmt: skip
        return out

    def group_linear(self, weight: PackedLinear, groups: int) -> PackedHeads:
        if not isinstance(weight, StoredLinear):
            return super().group_linear(weight, groups)
        each = weight.outputs // groups
        if len(weight.parts) == 1:
            return StoredGroups([StoredLinear([weight.parts[0].part(g * each, each)]) for g in range(groups)])
        rows = weight.rows(torch.arange(weight.outputs), torch.float32)
        return super().group_linear(self.linear(rows), groups)


def as_stored(weight: PackedLinear) -> StoredLinear | None:
    """A weight of floats as one that is multiplied with in groups; None for what is neither."""
    if isinstance(weight, StoredLinear):
        return weight
    data = getattr(weight, "weight", None)
    if not isinstance(data, Tensor) or data.dtype not in FLOATS or not data.is_contiguous():
        return None
    return StoredLinear([weight_of_floats(data)])
