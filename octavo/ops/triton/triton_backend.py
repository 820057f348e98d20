"""The operations as Triton kernels, and what the reference computes beside them."""

import logging

import torch

from octavo.ops.torch import TorchBackend
from octavo.ops.triton.attention_operations import TritonAttention
from octavo.ops.triton.interpreted import set_up
from octavo.ops.triton.launching import INTERPRETED
from octavo.ops.triton.triton_norms import TritonNorms
from octavo.ops.triton.triton_products import TritonProducts
from octavo.ops.triton.triton_recurrent import TritonRecurrent
from octavo.ops.triton.triton_stored import TritonStored

if INTERPRETED:
    set_up()

log = logging.getLogger("octavo")

RANKS = {"all_gather", "all_reduce", "join", "least", "leave", "receive", "send"}
PLANS = {"make_cache", "make_state", "plan_attention", "plan_recurrent", "block_bytes", "record_decode"}
MACHINE = {"cache_budget", "computing", "free_memory", "set_threads"}
PLAIN = {"add", "finite", "floats", "side_by_side", "table_rows"}
"""PyTorch's own kernels, of which one or two serve and rows do not depend on each other."""
NEED_NO_KERNEL = RANKS | PLANS | MACHINE | PLAIN


class TritonBackend(TritonAttention, TritonRecurrent, TritonProducts, TritonNorms, TritonStored, TorchBackend):
    """Kernels of octavo.ops.triton; operations that have none are the reference's.

    Args:
        device: a GPU, or the processor under Triton's interpreter.
    """

    name = "triton"
    min_rows = 1

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._factors, self._tables = {}, {}
        self.name = "triton (interpreted)" if INTERPRETED else "triton"
        if left := from_reference():
            log.info("no Triton kernel yet, computed by PyTorch: %s", ", ".join(left))


def from_reference() -> list[str]:
    """Operations that have no kernel here."""
    public = {name for name in dir(TorchBackend) if not name.startswith("_") and callable(getattr(TorchBackend, name))}
    own = {name for name in public if getattr(TritonBackend, name) is not getattr(TorchBackend, name)}
    return sorted(public - own - NEED_NO_KERNEL)
