"""What a backend is: the operations that models are computed with, over plain tensors.

Chosen once, when a model is loaded (octavo.ops.select_backend), and handed to its parts. octavo.ops.torch is the
reference, which says what each operation means; octavo.ops.native has the same operations compiled for CPUs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from octavo.ops.plans import AttentionPlan, BlockSparse, DrawBy, RecurrentPlan, RotaryTable, ScanInput
from octavo.ops.stored_rows import StoredRows


class NotRecordableError(Exception):
    """What a model computes depends on more than the step's rows."""


class PackedLinear(Protocol):
    """A weight `[out, in]`, ready to be multiplied with."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x` `[rows, in]` to `[rows, out]`; `bias` `[out]` is float32."""
        ...

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Rows `ids` `[count]` of the weight, times `scale`: `[count, in]` (what a tied token table is read by)."""
        ...


class PackedExperts(Protocol):
    """Weights of experts, `[out, in]` each, ready to be multiplied with."""

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        """A result for each choice, in the order of `chosen`.

        Args:
            x: [rows, in], or [rows * choices, in] where each choice has a row of its own.
            chosen: [rows, choices] int64 numbers of experts.

        Returns: [rows * choices, out]
        """
        ...


class Program(Protocol):
    """A recorded step."""

    fixed_rows: bool
    """Whether some of it is computed for all of the rows that were recorded, however few are asked for."""

    def run(self, rows: int) -> tuple[Tensor, ...]:
        """Compute the first `rows` rows of what was recorded. It is overwritten by the next run."""
        ...


class Backend(Protocol):
    """The operations, and what they work on."""

    name: str
    device: torch.device
    """Where tensors are."""
    min_rows: int
    """A batch is padded to so many rows: products of fewer would each be padded by themselves."""
    records: bool
    """Whether operations can be recorded, and run again without a Python call for each."""
    bfloat16_pairs: bool
    """Whether the processor multiplies pairs of bfloat16 faster than float32, and the operations make use of it."""
    kinds: frozenset[int]
    """Kinds of octavo.ops.stored_rows that `stored_linear` takes; of others, the loader makes floats."""

    @property
    def threads(self) -> int: ...

    def set_threads(self, count: int) -> None:
        """Compute with so many threads."""
        ...

    def computing(self) -> AbstractContextManager[None]:
        """What a step is computed within."""
        ...

    def record(self, function: Callable[[], tuple[Tensor, ...]], rows: int) -> Program | None:
        """The operations of `function`, which works on buffers of `rows` rows, to be run again for fewer or as many.

        None where they cannot be recorded.
        """
        ...

    def linear(self, weight: Tensor) -> PackedLinear:
        """The weight `[out, in]`, laid out for computing; the caller may drop its own."""
        ...

    def stored_linear(self, parts: Sequence[StoredRows], fine: bool = False) -> PackedLinear:
        """One weight from parts as they are stored, whose outputs lie one after the other.

        Args:
            parts: the rows.
            fine: where a kind's products round activations, they are rounded to twice as many bits.
        """
        ...

    def quantize(self, weight: Tensor, kind: int) -> StoredRows:
        """A weight `[out, in]` rounded to the nearest values of one of `kinds`."""
        ...

    def experts(self, weights: Sequence[PackedLinear]) -> PackedExperts:
        """Weights of experts, made by `linear` or `stored_linear` and alike in shape."""
        ...

    def table_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows `ids` `[count]` of `table` `[rows, width]`."""
        ...

    def finite(self, x: Tensor) -> bool:
        """Whether all of `x` `[rows, width]` is; False also where numbers are so large that their sum is not."""
        ...

    def floats(self, x: Tensor) -> Tensor:
        """`x` `[rows, width]` in float32."""
        ...

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        """`x + scale * y`."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See octavo.ops.torch.norms."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """See octavo.ops.torch.norms."""
        ...

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """`activation(x)`, by its name in ACTIVATIONS, computed in float32."""
        ...

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """`activation(gate) * up` of `gate_up` `[rows, 2 * width]`, whose first half is the gate (Shazeer 2020)."""
        ...

    def gated_linear(self, gate_up: PackedLinear, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """`gated(gate_up(x, bias), activation)`, which need not be rounded in between."""
        ...

    def angles(self, table: RotaryTable, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See octavo.ops.torch.rope."""
        ...

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
        """See octavo.ops.torch.paged_attention. `paired`: the caches are laid out as `pairs` allows."""
        ...

    def pairs(self, key_cache: Tensor, value_cache: Tensor) -> bool:
        """Whether a block of these caches may hold its tokens in an order of the backend's own.

        Such caches are written by `rotate_store` and read by `paged_attention` alone, both with `paired` set.
        """
        ...

    def write_kv(self, cache: Tensor, values: Tensor, plan: AttentionPlan) -> None:
        """See octavo.ops.torch.paged_attention."""
        ...

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
        """`[rows, heads, value_dim]` in `dtype`; rows past the plan's tokens are zero."""
        ...

    def weighted_sum(self, y: Tensor, weights: Tensor) -> Tensor:
        """See octavo.ops.torch.experts."""
        ...

    def convolve(
        self, x: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None, activation: str, plan: RecurrentPlan
    ) -> Tensor:
        """See octavo.ops.torch.selective_scan."""
        ...

    def scan(self, inputs: ScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        """See octavo.ops.torch.selective_scan."""
        ...

    def sample(self, logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
        """See octavo.ops.torch.sampling."""
        ...
