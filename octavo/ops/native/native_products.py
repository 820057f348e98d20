"""Weights as the core multiplies with them: plain, one for each expert, one for each head."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.ops.host_memory import read_as_asked
from octavo.ops.native.library import Library
from octavo.ops.native.packed_weight import DTYPES, PackedWeight


class NativeLinear:
    """A weight in packed parts, whose outputs lie one after the other."""

    def __init__(self, parts: Sequence[PackedWeight], fine: bool = False) -> None:
        self.parts, self.fine = parts, fine
        self.outputs = sum(p.outputs for p in parts)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.empty(x.shape[0], self.outputs, dtype=x.dtype)
        first = 0
        for part in self.parts:
            part.multiply(x, out, first, bias, fine=self.fine)
            first += part.outputs
        return out

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float = 1.0, first: int | None = None) -> Tensor:
        begin = first or 0
        if len(self.parts) == 1:
            return self.parts[0].rows(ids, dtype, scale, begin)
        out = torch.zeros(len(ids), self.parts[0].width, dtype=dtype)
        for part in self.parts:
            here = (ids >= begin) & (ids < begin + part.outputs)
            out[here] = part.rows(ids[here], dtype, scale, begin)
            begin += part.outputs
        return out


class NativeExperts:
    """Packed weights of experts that are alike in everything but their numbers."""

    def __init__(self, library: Library, experts: Sequence[NativeLinear]) -> None:
        self.library, self.experts = library, experts
        self.outputs = experts[0].outputs
        by_part = zip(*(e.parts for e in experts), strict=True)
        self._tables = [
            torch.tensor([[p.data.data_ptr() for p in parts], [p.order_address or 0 for p in parts]])
            for parts in by_part
        ]
        """Of each part, where the experts' weights are, and their orders."""
        for part in (p for e in experts for p in e.parts if p.on_disk):
            read_as_asked(part.data)

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        if x.stride(1) != 1:
            x = x.contiguous()
        chosen = chosen.contiguous()
        out = torch.empty(chosen.numel(), self.outputs, dtype=x.dtype)
        self.multiply(x, chosen.data_ptr(), out)
        return out

    def multiply(self, x: Tensor, chosen: int, out: Tensor) -> None:
        """Fill `out` `[choices, outputs]`; `chosen` is the address of the choices."""
        first = 0
        for part, table in zip(self.experts[0].parts, self._tables, strict=True):
            self.library.core.expert_linear(
                rows=out.shape[0],
                x=x.data_ptr(),
                x_dtype=DTYPES[x.dtype],
                x_stride=x.stride(0),
                inputs=part.width,
                kind=part.kind,
                top_k=out.shape[0] // max(1, x.shape[0]),
                experts=chosen,
                num_experts=len(self.experts),
                weights=table[0].data_ptr(),
                orders=table[1].data_ptr(),
                outputs=part.outputs,
                out=out.data_ptr() + first * out.element_size(),
                out_dtype=DTYPES[out.dtype],
                out_stride=out.stride(0),
                bytes_on_disk=part.data.nbytes if part.on_disk else 0,
            )
            first += part.outputs


class NativeHeads:
    """Each head's packed weight: experts of which each head has its own."""

    def __init__(self, heads: NativeExperts) -> None:
        self._heads, self._count = heads, len(heads.experts)
        self._numbers: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        """Of the heads, over and over: each longer than the ones before, which recordings may still read."""

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        rows = x.shape[0]
        if x.stride(2) != 1 or x.stride(0) != self._count * x.stride(1):
            x = x.contiguous()
        if not self._numbers or len(self._numbers[-1]) < rows * self._count:
            self._numbers.append(np.tile(np.arange(self._count), 1 << (rows - 1).bit_length()))
        out = torch.empty(rows, self._count, self._heads.outputs, dtype=dtype)
        self._heads.multiply(x.flatten(0, 1), self._numbers[-1].ctypes.data, out.view(-1, self._heads.outputs))
        return out
