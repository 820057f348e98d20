"""How much memory there is, and the model's caches in it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.executor.shape import CacheShape
from octavo.ops import cache_row, large_pages
from octavo.parts import PagedKV, Recurrent, StateSpec
from octavo.sizes import format_size

log = logging.getLogger("octavo")

Group = tuple[int | None, bool]
"""What parts must have in common to share block tables: PagedKV.group."""
SHARE_OF_FREE = 0.6
"""Of a CPU's free memory, what the caches take by default at most. Pages are touched only as they fill."""


def available_memory(device: torch.device) -> int:
    """Bytes that are free on `device`; on a CPU also within this process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such control group, or no limit ("max")
            continue
    return max(0, free)


@dataclass
class Caches:
    """The tensors of every state, and their shape in the scheduler's terms."""

    shape: CacheShape
    paged: list[tuple[Tensor, Tensor] | None]
    """Key and value cache for each state of the model; None for recurrent ones."""
    recurrent: list[dict[str, Tensor] | None]
    group_of: list[int]
    """Which group of block tables each paged state uses; -1 for recurrent ones."""


def allocate_caches(
    states: Sequence[StateSpec], args: EngineArgs, dtype: torch.dtype, device: torch.device, max_model_len: int
) -> Caches:
    """Room for the states of a model, as much as asked for or as the machine has and the model can use.

    Raises ConfigError where the memory asked for is not there, or does not hold one block.
    """
    paged = [s for s in states if isinstance(s, PagedKV)]
    groups = list(dict.fromkeys(s.group for s in paged))
    slabs = _slabs(paged, groups)
    row = {s: cache_row(s.key_dim, dtype) + cache_row(s.value_dim, dtype) for s in slabs}
    block_bytes = sum(s.num_kv_heads * row[s] for s in slabs) * args.block_size * dtype.itemsize
    slot_bytes = sum(s.bytes_per_request() for s in states if isinstance(s, Recurrent))
    free, asked = available_memory(device), args.kv_cache_bytes
    if asked is not None and asked > free:
        raise ConfigError(
            f"kv_cache_memory={format_size(asked)} is more than the {format_size(free)} that are free; ask for less."
        )
    budget = asked if asked is not None else _default_budget(free, args, device)
    blocks_a_request = -(-max_model_len // args.block_size) * len(groups)
    sequences, useful = _sequences(args, slot_bytes, budget), 0
    if paged:
        useful = blocks_a_request * args.max_num_seqs
        budget -= slot_bytes * sequences
        num_blocks = min(useful, budget // block_bytes)
        if num_blocks < len(groups):
            raise ConfigError(
                f"the KV cache has {format_size(max(0, budget))}, which does not hold one block "
                f"({format_size(block_bytes)}). Set kv_cache_memory to more, or free memory."
            )
    else:
        num_blocks = 0
    windows = tuple(window for window, _ in groups)
    encoder = next((i for i, (_, of_encoder) in enumerate(groups) if of_encoder), None)
    shape = CacheShape(num_blocks, args.block_size, windows, encoder, slot_bytes > 0, sequences)
    _report(shape, block_bytes, slot_bytes, max_model_len)
    return _create(states, shape, slabs, groups, dtype, device)


def _default_budget(free: int, args: EngineArgs, device: torch.device) -> int:
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        return max(0, int(free - total * (1 - args.gpu_memory_utilization)))
    return int(free * SHARE_OF_FREE)


def _sequences(args: EngineArgs, slot_bytes: int, budget: int) -> int:
    """How many sequences may run at a time."""
    if not slot_bytes:
        return args.max_num_seqs
    fit = budget // slot_bytes - 1
    if fit < 1:
        raise ConfigError(
            f"one request's state takes {format_size(slot_bytes)}, and there are {format_size(budget)}. Set "
            "kv_cache_memory to more, or free memory."
        )
    return int(min(args.max_num_seqs, fit))


def _slabs(paged: Sequence[PagedKV], groups: Sequence[Group]) -> list[PagedKV]:
    """The caches to create. Groups share them where the shapes agree: a block belongs to one group at a time."""
    members = [[s for s in paged if s.group == group] for group in groups]
    shapes = {(s.num_kv_heads, s.key_dim, s.value_dim) for s in paged}
    return max(members, key=len) if len(shapes) == 1 and members else list(paged)


def _report(shape: CacheShape, block_bytes: int, slot_bytes: int, max_model_len: int) -> None:
    parts = []
    if shape.num_blocks:
        tokens = shape.num_blocks // len(shape.windows) * shape.block_size
        size = format_size(shape.num_blocks * block_bytes)
        requests = tokens / max_model_len
        parts.append(
            f"KV cache: {size}, {shape.num_blocks} blocks of {shape.block_size} tokens, {tokens} tokens, "
            f"{requests:.1f} requests of {max_model_len} tokens"
        )
    if slot_bytes:
        parts.append(f"states: {format_size(slot_bytes)} a request, {shape.max_sequences} requests")
    log.info("; ".join(parts))


def _create(
    states: Sequence[StateSpec],
    shape: CacheShape,
    slabs: list[PagedKV],
    groups: Sequence[Group],
    dtype: torch.dtype,
    device: torch.device,
) -> Caches:
    arena = large_pages.Arena()

    def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return arena.zeros(shape, dtype) if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)

    blocks = shape.num_blocks + 1  # block 0 is nobody's: what tables hold for blocks given back
    tensors = [
        tuple(
            zeros((blocks, s.num_kv_heads, shape.block_size, cache_row(dim, dtype)), dtype)
            for dim in (s.key_dim, s.value_dim)
        )
        for s in slabs
    ]
    shared = len(tensors) < sum(isinstance(s, PagedKV) for s in states)
    seen = dict.fromkeys(range(len(shape.windows)), 0)
    caches = Caches(shape, [], [], [])
    paged_index = 0
    for spec in states:
        if isinstance(spec, PagedKV):
            group = groups.index(spec.group)
            key, value = tensors[seen[group] if shared else paged_index]
            seen[group] += 1
            paged_index += 1
            caches.paged.append((key, value))
            caches.recurrent.append(None)
            caches.group_of.append(group)
        else:
            named = {n: zeros((shape.max_sequences, *s), torch.float32) for n, s in spec.tensors}
            caches.paged.append(None)
            caches.recurrent.append(named)
            caches.group_of.append(-1)
    return caches
