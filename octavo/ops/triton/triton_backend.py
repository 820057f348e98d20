"""The operations as Triton kernels, and what the reference computes beside them."""

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from octavo.ops.plans import BlockTables, DecodeInputs
from octavo.ops.prepared import RecordedDecode
from octavo.ops.torch import TorchBackend
from octavo.ops.triton.attention_operations import TritonAttention
from octavo.ops.triton.graph_steps import CalledAgain, DeviceGraph, Graph, GraphSteps
from octavo.ops.triton.interpreted import set_up
from octavo.ops.triton.launching import INTERPRETED
from octavo.ops.triton.triton_adapters import TritonAdapters
from octavo.ops.triton.triton_logits import TritonLogits
from octavo.ops.triton.triton_norms import TritonNorms
from octavo.ops.triton.triton_pooled import TritonPooled
from octavo.ops.triton.triton_products import TritonProducts
from octavo.ops.triton.triton_recurrent import TritonRecurrent
from octavo.ops.triton.triton_rope import TritonRope
from octavo.ops.triton.triton_routing import TritonRouting
from octavo.ops.triton.triton_sampling import TritonSampling
from octavo.ops.triton.triton_stored import TritonStored
from octavo.ops.triton.triton_streams import TritonStreams

if INTERPRETED:
    set_up()

log = logging.getLogger("octavo")

RANKS = {"agree", "all_gather", "all_reduce", "apart", "await_ranks", "join", "least", "leave", "receive", "send"}
PLANS = {"make_cache", "make_state", "plan_attention", "plan_recurrent", "block_bytes", "record_decode"}
MACHINE = {"cache_budget", "computing", "free_memory", "measure_peak", "set_threads"}
PLAIN = {"add", "finite", "floats", "side_by_side", "table_rows"}
"""PyTorch's own kernels, of which one or two serve and rows do not depend on each other."""
LAYOUTS = {"packed_linear", "packed_rows", "beside_threads"}
"""Of weights that are laid out ahead for a processor: here each weight lies as kernels read it."""
NEED_NO_KERNEL = RANKS | PLANS | MACHINE | PLAIN | LAYOUTS


class TritonBackend(
    TritonStored,
    TritonAdapters,
    TritonAttention,
    TritonRecurrent,
    TritonRouting,
    TritonLogits,
    TritonPooled,
    TritonSampling,
    TritonStreams,
    TritonRope,
    TritonProducts,
    TritonNorms,
    TorchBackend,
):
    """Kernels of octavo.ops.triton; operations that have none are the reference's.

    Args:
        device: a GPU, or the processor under Triton's interpreter.
    """

    name = "triton"
    min_rows = 1

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._factors, self._tables, self._by_period = {}, {}, {}
        self.name = "triton (interpreted)" if INTERPRETED else "triton"
        self._graph_pool: Any = None
        self._graph_steps = WeakSet[GraphSteps]()
        if left := from_reference():
            log.info("no Triton kernel yet, computed by PyTorch: %s", ", ".join(left))

    def record_decode(
        self,
        function: Callable[[DecodeInputs], tuple[Tensor, ...]],
        tables: BlockTables,
        max_rows: int,
        adapters: bool = False,
    ) -> RecordedDecode | None:
        ranks = self if self.place.size > 1 else None
        steps = GraphSteps(self._graph, self.device, function, tables, max_rows, adapters, ranks)
        self._graph_steps.add(steps)
        return steps

    def leave(self) -> None:
        for steps in self._graph_steps:  # NCCL waits for graphs that it is in
            steps.forget()
        super().leave()

    def _graph(self) -> Graph:
        if self.device.type == "cpu":
            return CalledAgain()
        if self._graph_pool is None:
            self._graph_pool = torch.cuda.graph_pool_handle()
        return DeviceGraph(self.device, self._graph_pool)


def from_reference() -> list[str]:
    """Operations that have no kernel here."""
    public = {name for name in dir(TorchBackend) if not name.startswith("_") and callable(getattr(TorchBackend, name))}
    own = {name for name in public if getattr(TritonBackend, name) is not getattr(TorchBackend, name)}
    return sorted(public - own - NEED_NO_KERNEL)
