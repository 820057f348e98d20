"""How much memory there is, and the model's caches in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.executor.shape import CacheShape
from octavo.ops import Backend, CacheSpec, KVCache
from octavo.parts import PagedKV, Recurrent, StateSpec
from octavo.sizes import format_size
from octavo.token_windows import Window

Group = tuple[Window | None, bool]
"""What parts must have in common to share block tables: PagedKV.group."""


@dataclass
class Caches:
    """The tensors of every state, and their shape in the scheduler's terms."""

    shape: CacheShape
    paged: list[KVCache | None]
    """For each state of the model; None for recurrent ones."""
    recurrent: list[dict[str, Tensor] | None]
    group_of: list[int]
    """Which group of block tables each paged state uses; -1 for recurrent ones."""
    summary: str = ""
    """How much memory they take, and for what."""


def allocate_caches(
    states: Sequence[StateSpec],
    args: EngineArgs,
    dtype: torch.dtype,
    backend: Backend,
    max_model_len: int,
    all_states: Sequence[StateSpec] | None = None,
    reserve: int = 0,
) -> Caches:
    """Room for the states of a model, as much as asked for or as the machine has and the model can use.

    Of several ranks, each has an equal share of the memory, and all have as many blocks as the one with fewest, and
    the same groups of block tables.

    Args:
        states: those that this rank has.
        all_states: those of all stages; None where there is one.
        reserve: bytes that steps take, and caches leave, where no size is asked for.

    Raises ConfigError where the memory asked for is not there, or does not hold one block.
    """
    paged = [s for s in states if isinstance(s, PagedKV)]
    all_states = states if all_states is None else all_states
    groups = list(dict.fromkeys(s.group for s in all_states if isinstance(s, PagedKV)))
    slabs = _slabs(paged, groups)
    block_bytes = sum(backend.block_bytes(cache_spec(s), args.block_size, dtype) for s in slabs)
    slot_bytes = sum(s.bytes_per_request() for s in states if isinstance(s, Recurrent))
    backend.least([0])  # all have loaded: what is free now is for caches
    free, asked = backend.free_memory(), args.kv_cache_bytes
    if asked is not None and asked > free:
        raise ConfigError(
            f"kv_cache_memory={format_size(asked)} is more than the {format_size(free)} that are free; ask for less."
        )
    if asked is None:
        asked = max(0, backend.cache_budget(args.gpu_memory_utilization) - reserve)
    budget = asked // backend.memory_sharers
    blocks_a_request = -(-max_model_len // args.block_size) * len(groups)
    sequences, useful = _sequences(args, slot_bytes, budget, reserve), 0
    if groups:
        useful = blocks_a_request * args.max_num_seqs
        budget -= slot_bytes * sequences
        num_blocks = min(useful, budget // block_bytes) if block_bytes else useful
        if num_blocks < len(groups):
            raise ConfigError(
                f"the KV cache has {format_size(max(0, budget))}, which does not hold one block "
                f"({format_size(block_bytes)}). {_remedy(reserve)}"
            )
    else:
        num_blocks = 0
    num_blocks, sequences = backend.least([num_blocks, sequences])
    has_slots = any(isinstance(s, Recurrent) for s in all_states)
    windows = tuple(window for window, _ in groups)
    encoder = next((i for i, (_, of_encoder) in enumerate(groups) if of_encoder), None)
    shape = CacheShape(num_blocks, args.block_size, windows, encoder, has_slots, sequences)
    made = _create(states, shape, slabs, groups, dtype, backend)
    return replace(made, summary=_summary(shape, block_bytes, slot_bytes, max_model_len))


def cache_spec(state: PagedKV) -> CacheSpec:
    """What a backend makes of a state."""
    return CacheSpec(state.num_kv_heads, state.key_dim, state.value_dim, state.tokens_per_row, state.is_exact)


def _remedy(reserve: int) -> str:
    if not reserve:
        return "Set kv_cache_memory to more, or free memory."
    return (
        f"Steps take {format_size(reserve)} beside it: lower max_num_batched_tokens, max_num_seqs or max_model_len, "
        "raise gpu_memory_utilization, or load the weights in fewer bits."
    )


def _sequences(args: EngineArgs, slot_bytes: int, budget: int, reserve: int) -> int:
    """How many sequences may run at a time."""
    if not slot_bytes:
        return args.max_num_seqs
    fit = budget // slot_bytes - 1
    if fit < 1:
        raise ConfigError(
            f"one request's state takes {format_size(slot_bytes)}, and there are {format_size(budget)}. "
            f"{_remedy(reserve)}"
        )
    return int(min(args.max_num_seqs, fit))


def _slabs(paged: Sequence[PagedKV], groups: Sequence[Group]) -> list[PagedKV]:
    """The caches to create. Groups share them where the shapes agree: a block belongs to one group at a time."""
    members = [[s for s in paged if s.group == group] for group in groups]
    shapes = {cache_spec(s) for s in paged}
    return max(members, key=len) if len(shapes) == 1 and members else list(paged)


def _summary(shape: CacheShape, block_bytes: int, slot_bytes: int, max_model_len: int) -> str:
    parts = []
    if shape.num_blocks:
        tokens = shape.num_blocks // len(shape.windows) * shape.block_size
        size = format_size(shape.num_blocks * block_bytes)
        requests = tokens / max_model_len
        parts.append(
            f"KV cache: memory is taken as texts need it, for {tokens} tokens at most ({size} in {shape.num_blocks} "
            f"blocks of {shape.block_size} tokens; {requests:.1f} requests of {max_model_len} tokens)"
        )
    if slot_bytes:
        parts.append(f"states: {format_size(slot_bytes)} a request, {shape.max_sequences} requests")
    return "; ".join(parts)


def _create(
    states: Sequence[StateSpec],
    shape: CacheShape,
    slabs: list[PagedKV],
    groups: Sequence[Group],
    dtype: torch.dtype,
    backend: Backend,
) -> Caches:
    blocks = shape.num_blocks + 1  # block 0 is nobody's: what tables hold for blocks given back
    made = [backend.make_cache(cache_spec(s), blocks, shape.block_size, dtype) for s in slabs]
    shared = len(made) < sum(isinstance(s, PagedKV) for s in states)
    seen = dict.fromkeys(range(len(shape.windows)), 0)
    caches = Caches(shape, [], [], [])
    paged_index = 0
    for spec in states:
        if isinstance(spec, PagedKV):
            group = groups.index(spec.group)
            caches.paged.append(made[seen[group] if shared else paged_index])
            seen[group] += 1
            paged_index += 1
            caches.recurrent.append(None)
            caches.group_of.append(group)
        else:
            named = {n: backend.make_state((shape.max_sequences, *s)) for n, s in spec.tensors}
            caches.paged.append(None)
            caches.recurrent.append(named)
            caches.group_of.append(-1)
    return caches
