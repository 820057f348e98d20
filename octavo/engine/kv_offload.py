"""Blocks that have left the KV cache, and come back before a sequence that needs them is scheduled. Integers only.

Before a sequence queues, it is asked which of its blocks are outside. If they make its known beginning longer, blocks
of the cache are taken for them and read, while others are computed. What was read is then findable as anything else in
the prefix cache, so that nothing but the wait is the sequence's own: it may still be computed where something fails.
"""

from dataclasses import dataclass, field

from octavo.engine.block_pool import BlockKey
from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.pending_saves import PendingSaves
from octavo.engine.sequence import Sequence
from octavo.executor.store_messages import StoredBlock, StoreNews, StoreTask, StoreWork

RESERVE = 4
"""Blocks that are left for each running sequence in each group: so far it may grow while others' are read."""


@dataclass(eq=False)
class _Waiting:
    """A sequence that waits for its blocks."""

    sequence: Sequence
    known: int
    """How many blocks of its beginning the cache had when it was asked for."""
    blocks: list[StoredBlock]
    """What was asked for."""
    reserve: int = RESERVE
    there: set[BlockKey] = field(default_factory=set)
    """What is outside."""


@dataclass(eq=False)
class _Load:
    """Blocks that are being read."""

    blocks: list[StoredBlock]
    places: list[int]
    held: list[int]
    """Others of the same beginning, which have to stay meanwhile."""
    num_resets: int
    """Of the pool, when this began: after one nothing of before is trusted."""
    followers: list[_Waiting]


class BlockOffload:
    """What is saved and what is read, and who waits for it.

    Args:
        cache: the KV cache; its pool notes from now on what is to be saved.
        most_saves: blocks that are saved with one step, beside those that are about to be overwritten.
    """

    def __init__(self, cache: KVCacheManager, most_saves: int) -> None:
        self._cache, self._pool, self._most_saves = cache, cache.pool, most_saves
        self._saves = self._pool.saves = PendingSaves()
        self._asked: dict[int, _Waiting] = {}
        """By ticket."""
        self._loads: dict[int, _Load] = {}
        """By ticket."""
        self._pending: dict[BlockKey, _Load] = {}
        self._waiting: dict[int, _Waiting] = {}
        """By sequence, whoever waits."""
        self._tasks: list[StoreTask] = []
        self._last_ticket = 0
        self.num_running = 0
        self.queries = self.hits = self.stored_bytes = self.loaded_bytes = 0
        """Tokens of prompts that were asked for, and found, outside of the cache; bytes that went out and came back."""

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for blocks."""
        return len(self._waiting)

    @property
    def num_unsaved(self) -> int:
        """Blocks that are still to be saved."""
        return len(self._saves)

    def ask(self, sequence: Sequence, reserve: int = RESERVE) -> bool:
        """Whether a sequence has to wait: for the answer to what there is of it, and maybe for its blocks."""
        cache, chain = self._cache, sequence.chain
        if not sequence.read_prefix_cache:
            return False
        usable, cross = cache.num_usable(chain, sequence.tokens), cache.cross_blocks(chain)
        blocks = cross + cache.all_blocks(chain, usable)
        if not blocks:
            return False
        known = sequence.num_found = cache.longest(chain, usable, self._is_cached)
        if known == usable and all(self._is_cached((block.group, block.key)) for block in cross):
            self._tasks.append(StoreTask(0, blocks))  # so that they count as used there too
            return False
        waiting = self._waiting[sequence.seq_id] = _Waiting(sequence, known, blocks, reserve)
        self._asked[self._ticket()] = waiting
        self._tasks.append(StoreTask(self._last_ticket, blocks))
        self.queries += (usable - known) * cache.block_size
        return True

    def ask_again(self, sequence: Sequence) -> bool:
        """`ask` for a sequence whose turn it is, if blocks that it had found when it queued have gone meanwhile.

        So it is with those of a preempted one: the sequences that took its place write over them. There is room for it
        now, which it would take by computing them.
        """
        if not sequence.num_found:
            return False
        chain, usable = sequence.chain, self._cache.num_usable(sequence.chain, sequence.tokens)
        return self._cache.longest(chain, usable, self._is_cached) < sequence.num_found and self.ask(sequence, 0)

    def forget(self, sequence: Sequence) -> None:
        """A sequence waits no longer. What is being read for it is read to its end."""
        self._waiting.pop(sequence.seq_id, None)

    def take_work(self) -> StoreWork | None:
        """What the next step has to do."""
        saves, tasks, self._tasks = self._saves.take(self._most_saves), self._tasks, []
        return StoreWork(saves, tasks) if saves or tasks else None

    def lost(self, work: StoreWork | None) -> list[Sequence]:
        """Nobody has heard of this work; the sequences that need not wait for it."""
        tasks = () if work is None else work.tasks
        return self.take(StoreNews([(task.ticket, bytes(len(task.blocks))) for task in tasks]))

    def take(self, news: StoreNews) -> list[Sequence]:
        """What has become of earlier work; the sequences that may queue now."""
        self.stored_bytes += news.stored_bytes
        self.loaded_bytes += news.loaded_bytes
        for block, held in news.unsaved:
            if self._pool.holds(block, (held.group, held.key)):
                self._saves.offer_again(block, held)
        ready = list[Sequence]()
        for ticket, flags in news.answers:
            if (waiting := self._asked.pop(ticket, None)) is not None:
                ready += self._found(waiting, flags)
            elif (load := self._loads.pop(ticket, None)) is not None:
                ready += self._loaded(load, flags)
        return ready

    def _found(self, waiting: _Waiting, flags: bytes) -> list[Sequence]:
        """What is outside of a sequence's blocks."""
        if self._waiting.get(waiting.sequence.seq_id) is not waiting:
            return []
        waiting.there = {(b.group, b.key) for b, flag in zip(waiting.blocks, flags, strict=True) if flag}
        return self._go_on(waiting)

    def _loaded(self, load: _Load, flags: bytes) -> list[Sequence]:
        """Blocks were read, as far as they were sound."""
        failed = set[BlockKey]()
        for block, place, flag in zip(load.blocks, load.places, flags, strict=True):
            key = block.group, block.key
            self._pending.pop(key, None)
            if not flag:
                failed.add(key)
            elif load.num_resets == self._pool.num_resets:
                self._pool.cache_loaded(place, key)
        for place in reversed(load.held + load.places):
            self._pool.release(place)
        ready = list[Sequence]()
        for waiting in load.followers:
            waiting.there -= failed
            if load.num_resets != self._pool.num_resets:
                waiting.there.clear()
            if self._waiting.get(waiting.sequence.seq_id) is waiting:
                ready += self._go_on(waiting)
        return ready

    def _go_on(self, waiting: _Waiting) -> list[Sequence]:
        """Have blocks read that make a sequence's beginning longer; the sequence itself if it waits for none.

        Blocks that others wait for are waited for with them.
        """
        load = self._plan(waiting)
        if isinstance(load, _Load):
            load.followers.append(waiting)
            return []
        sequence = waiting.sequence
        del self._waiting[sequence.seq_id]
        usable = self._cache.num_usable(sequence.chain, sequence.tokens)
        length = sequence.num_found = self._cache.longest(sequence.chain, usable, self._is_cached)
        self.hits += max(0, length - waiting.known) * self._cache.block_size
        return [sequence]

    def _plan(self, waiting: _Waiting) -> _Load | None:
        """What is read for a sequence, as much as there is room for; None for nothing."""
        cache, chain = self._cache, waiting.sequence.chain
        usable = cache.num_usable(chain, waiting.sequence.tokens)
        cross = cache.cross_blocks(chain)
        if not all(self._is_there((block.group, block.key), waiting) for block in cross):
            cross = []
        while True:
            length = cache.longest(chain, usable, lambda key: self._is_there(key, waiting))
            needed = cross + list(cache.needed(chain, length))
            missing = [block for block in needed if not self._is_cached((block.group, block.key))]
            if not missing:
                return None
            for block in missing:
                if (pending := self._pending.get((block.group, block.key))) is not None:
                    return pending
            held = [b for block in needed if (b := self._pool.find((block.group, block.key))) is not None]
            idle = sum(not self._pool.is_held(block) for block in held)
            less = len(missing) + idle + waiting.reserve * self.num_running * len(cache.windows) - self._pool.num_free
            if less <= 0:
                return self._begin(missing, held)
            if not length:
                return None
            usable = max(0, length - -(-less // max(1, cache.num_growing)))

    def _begin(self, missing: list[StoredBlock], held: list[int]) -> _Load:
        for block in held:
            self._pool.incref(block)
        places = self._pool.take(len(missing))
        load = self._loads[self._ticket()] = _Load(missing, places, held, self._pool.num_resets, [])
        self._pending |= {(block.group, block.key): load for block in missing}
        self._tasks.append(StoreTask(self._last_ticket, missing, places))
        return load

    def _ticket(self) -> int:
        self._last_ticket += 1
        return self._last_ticket

    def _is_cached(self, key: BlockKey) -> bool:
        return self._pool.find(key) is not None

    def _is_there(self, key: BlockKey, waiting: _Waiting) -> bool:
        return key in waiting.there or self._is_cached(key)
