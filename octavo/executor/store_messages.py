"""What is said of blocks that leave the KV cache and come back: plain data, a part of steps and of their results."""

import msgspec


class StoredBlock(msgspec.Struct, frozen=True, array_like=True):
    """What a full block holds, wherever it is."""

    group: int
    key: bytes
    """The hash of all tokens up to its end, and of what else decides its keys (the prefix cache's chain)."""
    depth: int = 0
    """How many blocks of its prompt come before it: the last ones of a prompt are forgotten first."""


class StoreTask(msgspec.Struct, array_like=True):
    """Something about several blocks, of which a StoreNews tells what came of it."""

    ticket: int
    """Its number; 0 where no answer is wanted."""
    blocks: list[StoredBlock]
    places: list[int] = []
    """Where in the cache to write each of them; empty to say only whether they are there."""


class StoreWork(msgspec.Struct):
    """What a step has to do with the store, before it computes anything."""

    saves: list[tuple[int, StoredBlock]] = []
    """Blocks of the cache, and what they hold: they are copied before the step may write to them."""
    tasks: list[StoreTask] = []
    """Begun after that, and done beside the steps. Nobody else uses their places meanwhile."""


class StoreNews(msgspec.Struct):
    """What became of earlier steps' work."""

    answers: list[tuple[int, bytes]] = []
    """Tickets that are done, with a byte for each of their blocks: 1 where it is there, or has been written."""
    unsaved: list[tuple[int, StoredBlock]] = []
    """Blocks that were not taken, since others wait to be written: to be offered again."""
    stored_bytes: int = 0
    """Written since the last news."""
    loaded_bytes: int = 0
    """Likewise, read."""
