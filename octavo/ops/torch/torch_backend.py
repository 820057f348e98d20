"""The operations in PyTorch: they run on any device, and say what each operation means."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops.backend import PackedExperts, PackedLinear, Program
from octavo.ops.plans import AttentionPlan, BlockSparse, DrawBy, RecurrentPlan, RotaryTable, ScanInput, cache_dim
from octavo.ops.stored_rows import StoredRows
from octavo.ops.torch import experts, norms, paged_attention, rope, sampling, selective_scan
from octavo.ops.torch.activations import ACTIVATIONS
from octavo.ops.torch.products import TorchLinear


class TorchBackend:
    """The reference.

    Args:
        device: where tensors are.
    """

    name = "torch"
    min_rows = 8
    records = False
    bfloat16_pairs = False
    kinds: frozenset[int] = frozenset()

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def set_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    def computing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, function: Callable[[], tuple[Tensor, ...]], rows: int) -> Program | None:
        return None

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def linear(self, weight: Tensor) -> PackedLinear:
        return TorchLinear(weight)

    def stored_linear(self, parts: Sequence[StoredRows], fine: bool = False) -> PackedLinear:
        raise NotImplementedError("the reference computes with floats")

    def quantize(self, weight: Tensor, kind: int) -> StoredRows:
        raise NotImplementedError("the reference computes with floats")

    def table_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        return functional.embedding(ids, table)

    def finite(self, x: Tensor) -> bool:
        return bool(torch.isfinite(x.sum()))

    def floats(self, x: Tensor) -> Tensor:
        return x.float()

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return x + (y if scale == 1.0 else y * scale)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norms.rms_norm(x, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return norms.layer_norm(x, weight, bias, eps)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        return ACTIVATIONS[activation](x.float()).to(x.dtype)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return ACTIVATIONS[activation](gate).mul_(up).to(gate_up.dtype)

    def gated_linear(self, gate_up: PackedLinear, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return self.gated(gate_up(x, bias), activation)

    def angles(self, table: RotaryTable, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return rope.angles(table, positions, lengths)

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
        return paged_attention.rotate_store(qkv, angles, interleaved, key_cache, value_cache, plan)

    def pairs(self, key_cache: Tensor, value_cache: Tensor) -> bool:
        return False

    def write_kv(self, cache: Tensor, values: Tensor, plan: AttentionPlan) -> None:
        paged_attention.write_kv(cache, values, plan)

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
        width = cache_dim(value_cache)
        out = torch.zeros(rows, query.shape[1], width, dtype=dtype, device=query.device)
        filled = out[: plan.num_tokens]
        paged_attention.paged_attention(
            query, key_cache, value_cache, plan, filled, scale, softcap, alibi_slopes, sparse
        )
        return out

    def experts(self, weights: Sequence[PackedLinear]) -> PackedExperts:
        return experts.EachExpert(weights)

    def weighted_sum(self, y: Tensor, weights: Tensor) -> Tensor:
        return experts.weighted_sum(y, weights)

    def convolve(
        self, x: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None, activation: str, plan: RecurrentPlan
    ) -> Tensor:
        return selective_scan.convolve(x, history, weight, bias, activation, plan)

    def scan(self, inputs: ScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        return selective_scan.scan(inputs, state, plan)

    def sample(self, logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
        return sampling.sample(logits, by)
