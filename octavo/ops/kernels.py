"""The operations that a model runs with: this reference in PyTorch, or the compiled core's.

Chosen once, when a model is loaded, and handed to its parts. The reference runs on any device, and says what each
operation means; octavo.ops.native.kernels has the same operations compiled for CPUs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops import attention, experts, norm, rotary, sampling, scan
from octavo.ops.activation import ACTIVATIONS
from octavo.ops.attention import AttentionPlan, BlockSparse
from octavo.ops.experts import ExpertKernel
from octavo.ops.linear import LinearKernel, TorchLinear
from octavo.ops.rotary import RotaryTable
from octavo.ops.sampling import DrawBy
from octavo.ops.scan import RecurrentPlan, ScanInput
from octavo.ops.weights import StoredRows


class NotRecordableError(Exception):
    """What a model computes depends on more than the step's rows."""


class Program(Protocol):
    """A recorded step."""

    whole: bool
    """Whether some of it is computed for all of the rows that were recorded, however few are asked for."""

    def run(self, rows: int) -> tuple[Tensor, ...]:
        """Compute the first `rows` rows of what was recorded. It is overwritten by the next run."""
        ...


class Kernels:
    """The reference.

    Args:
        device: where tensors are.
    """

    name = "torch"
    min_rows = 8
    """A batch is padded to so many rows: products of fewer would each be padded by themselves."""
    records = False
    """Whether operations can be recorded, and run again without a Python call for each."""
    bfloat16_pairs = False
    """Whether the processor multiplies pairs of bfloat16 faster than float32, and the operations make use of it."""
    kinds: frozenset[int] = frozenset()
    """Kinds of octavo.ops.weights that `stored_linear` takes; of others, the loader makes floats."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def set_threads(self, count: int) -> None:
        """Compute with so many threads."""
        torch.set_num_threads(count)

    def computing(self) -> AbstractContextManager[None]:
        """What a step is computed within."""
        return nullcontext()

    def record(self, function: Callable[[], tuple[Tensor, ...]], rows: int) -> Program | None:
        """The operations of `function`, which works on buffers of `rows` rows, to be run again for fewer or as many.

        None where they cannot be recorded.
        """
        return None

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def linear(self, weight: Tensor) -> LinearKernel:
        """The weight `[out, in]`, laid out for computing; the caller may drop its own."""
        return TorchLinear(weight)

    def stored_linear(self, parts: Sequence[StoredRows], fine: bool = False) -> LinearKernel:
        """One weight from parts as they are stored, whose outputs lie one after the other.

        Args:
            parts: the rows.
            fine: where a kind's products round activations, they are rounded to twice as many bits.
        """
        raise NotImplementedError("the reference computes with floats")

    def quantize(self, weight: Tensor, kind: int) -> StoredRows:
        """A weight `[out, in]` rounded to the nearest values of one of `kinds`."""
        raise NotImplementedError("the reference computes with floats")

    def table_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows `ids` `[count]` of `table` `[rows, width]`."""
        return functional.embedding(ids, table)

    def finite(self, x: Tensor) -> bool:
        """Whether all of `x` `[rows, width]` is; False also where numbers are so large that their sum is not."""
        return bool(torch.isfinite(x.sum()))

    def floats(self, x: Tensor) -> Tensor:
        """`x` `[rows, width]` in float32."""
        return x.float()

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        """`x + scale * y`."""
        return x + (y if scale == 1.0 else y * scale)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See octavo.ops.norm."""
        return norm.rms_norm(x, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """See octavo.ops.norm."""
        return norm.layer_norm(x, weight, bias, eps)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """`activation(x)`, by its name in ACTIVATIONS, computed in float32."""
        return ACTIVATIONS[activation](x.float()).to(x.dtype)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """`activation(gate) * up` of `gate_up` `[rows, 2 * width]`, whose first half is the gate (Shazeer 2020)."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return ACTIVATIONS[activation](gate).mul_(up).to(gate_up.dtype)

    def gated_linear(self, gate_up: LinearKernel, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """`gated(gate_up(x, bias), activation)`, which need not be rounded in between."""
        return self.gated(gate_up(x, bias), activation)

    def angles(self, table: RotaryTable, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See octavo.ops.rotary."""
        return rotary.angles(table, positions, lengths)

    def rotate_store(
        self,
        qkv: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        interleaved: bool,
        key_cache: Tensor,
        value_cache: Tensor,
        plan: AttentionPlan,
        paired: bool = False,
    ) -> Tensor:
        """See octavo.ops.attention. `paired`: the caches are laid out as `pairs` allows."""
        return attention.rotate_store(qkv, angles, interleaved, key_cache, value_cache, plan)

    def pairs(self, key_cache: Tensor, value_cache: Tensor) -> bool:
        """Whether a block of these caches may hold its tokens in an order of the kernels' own.

        Such caches are written by `rotate_store` and read by `paged_attention` alone, both with `paired` set.
        """
        return False

    def write_kv(self, cache: Tensor, values: Tensor, plan: AttentionPlan) -> None:
        """See octavo.ops.attention."""
        attention.write_kv(cache, values, plan)

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        plan: AttentionPlan,
        rows: int,
        dtype: torch.dtype,
        scale: float,
        softcap: float | None = None,
        alibi_slopes: Tensor | None = None,
        sparse: BlockSparse | None = None,
        paired: bool = False,
    ) -> Tensor:
        """`[rows, heads, value_dim]` in `dtype`; rows past the plan's tokens are zero. See octavo.ops.attention."""
        width = attention.cache_dim(value_cache)
        out = torch.zeros(rows, query.shape[1], width, dtype=dtype, device=query.device)
        of_tokens = out[: plan.num_tokens]
        attention.paged_attention(query, key_cache, value_cache, plan, of_tokens, scale, softcap, alibi_slopes, sparse)
        return out

    def experts(self, weights: Sequence[LinearKernel]) -> ExpertKernel:
        """Weights of experts, made by `linear` or `stored_linear` and alike in shape. See octavo.ops.experts."""
        return experts.EachExpert(weights)

    def weighted_sum(self, y: Tensor, weights: Tensor) -> Tensor:
        """See octavo.ops.experts."""
        return experts.weighted_sum(y, weights)

    def convolve(
        self, x: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None, activation: str, plan: RecurrentPlan
    ) -> Tensor:
        """See octavo.ops.scan."""
        return scan.convolve(x, history, weight, bias, activation, plan)

    def scan(self, of: ScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        """See octavo.ops.scan."""
        return scan.scan(of, state, plan)

    def choose(self, logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
        """See octavo.ops.sampling."""
        return sampling.choose(logits, by)


def choose_kernels(device: torch.device, preference: str = "auto") -> Kernels:
    """The fastest implementation for `device`; `preference="torch"` forces the reference."""
    if preference == "auto" and device.type == "cpu":
        from octavo.ops.native import load
        from octavo.ops.native.kernels import NativeKernels

        if (library := load()) is not None:
            return NativeKernels(library)
    return Kernels(device)
