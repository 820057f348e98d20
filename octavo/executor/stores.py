"""The store that the engine's options ask for, of one rank."""

import hashlib
import json
import logging
from pathlib import Path

from octavo.config import EngineArgs
from octavo.executor.block_store import BlockStore, GroupBytes, NoStore
from octavo.executor.block_tiers import DiskTier, HostTier, Tier
from octavo.executor.caches import Caches
from octavo.loading.model import LoadedModel
from octavo.sizes import format_size

log = logging.getLogger("octavo")


def store_of(loaded: LoadedModel, args: EngineArgs, caches: Caches) -> BlockStore | NoStore | None:
    """A store for these caches; None where none is asked for, or a prefix cache could find nothing of it."""
    config, shape = args.offload, caches.shape
    if config is None or shape.recurrent or not shape.windows:
        return None
    if loaded.cache_state is None:
        log.warning("blocks are not kept outside of the KV cache: nothing tells when this model's code changes")
        return NoStore()
    groups = []
    for group in range(len(shape.windows)):
        own = [c for c, of in zip(caches.paged, caches.group_of, strict=True) if c is not None and of == group]
        groups.append(GroupBytes([tensor for cache in own for tensor in cache.block_bytes]))
    place = loaded.backend.place
    tiers = list[Tier]()
    if config.host_bytes:
        tiers.append(HostTier(config.host_bytes // place.size))
    if config.folder is not None:
        tiers.append(DiskTier(Path(config.folder), config.disk_bytes))
    if place.is_output:
        where = [format_size(config.host_bytes) + " of memory"] if config.host_bytes else []
        where += [f"{config.folder} ({format_size(config.disk_bytes)} at most)"] if config.folder is not None else []
        log.info("blocks that leave the KV cache go to %s", " and ".join(where))
    layout = [
        [(str(c.keys.dtype), list(c.keys.shape[1:]), list(c.values.shape[1:])) for c in caches.paged if c is not None],
        caches.group_of,
        [repr(window) for window in shape.windows],
        [shape.block_size, shape.encoder_group],
        [place.rank, place.size, place.tensor_size],
    ]
    text = json.dumps([loaded.cache_state, layout], sort_keys=True)
    return BlockStore(groups, hashlib.blake2b(text.encode(), digest_size=32).digest(), tiers)
