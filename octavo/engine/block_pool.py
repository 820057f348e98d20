"""Blocks of the KV cache: who holds them, and what they hold. Integers only."""

from collections import OrderedDict

from octavo.engine.pending_saves import PendingSaves
from octavo.executor.store_messages import StoredBlock

BlockKey = tuple[int, bytes]
"""A group of layers, and the hash of all tokens up to a block's end."""
NULL_BLOCK = 0
"""Stands in tables for a block that was given back; it is nobody's."""


class BlockPool:
    """Blocks 1 to `num_blocks`, counted by reference.

    A block that nobody holds keeps its contents until it is needed, least recently used first, so that a prompt with
    the same beginning may find it: in the step that computes them (the current one), and once that is done. Until then
    it may yet turn out that they are of no use, and other steps that are on their way must not build on them.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * (num_blocks + 1)
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks + 1))
        self._key_of: dict[int, BlockKey] = {}
        self._block_of: dict[BlockKey, int] = {}
        self._unsettled: dict[int, int] = {}
        """Findable blocks by the number of their step, which is not done; kept only where several are on their way."""
        self.current_step: int | None = None
        """Which step blocks are taken for; None where each is done before the next one begins."""
        self.saves: PendingSaves | None = None
        """Blocks to be saved outside of the cache; None where none are."""
        self.num_resets = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` blocks, each held once. The caller has checked `num_free`."""
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            if key := self._key_of.pop(block, None):
                del self._block_of[key]
                self._unsettled.pop(block, None)
                if self.saves is not None:
                    self.saves.taken(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def incref(self, block: int) -> None:
        """One more reference to a block, free or not."""
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """One reference less. The last one makes the block free: contents that can be found are reused last."""
        if self._references[block] < 1:
            raise AssertionError(f"block {block} is released more often than held")
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free[block] = None
            if block not in self._key_of:
                self._free.move_to_end(block, last=False)

    def find(self, key: BlockKey) -> int | None:
        """The block that holds what `key` names."""
        block = self._block_of.get(key)
        if self._unsettled and block is not None and self._unsettled.get(block, self.current_step) != self.current_step:
            return None
        return block

    def cache_block(self, block: int, key: BlockKey, depth: int = 0) -> None:
        """Make a full block's contents findable, unless another block has the same.

        `depth` is how many blocks of its sequence come before it.
        """
        if block not in self._key_of and key not in self._block_of:
            self._key_of[block] = key
            self._block_of[key] = block
            if self.current_step is not None:
                self._unsettled[block] = self.current_step
            if self.saves is not None:
                self.saves.add(block, StoredBlock(*key, depth))

    def cache_loaded(self, block: int, key: BlockKey) -> None:
        """Make what a held block was given from outside findable by everybody, unless another block has the same."""
        if key not in self._block_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def holds(self, block: int, key: BlockKey) -> bool:
        """Whether a block's contents are known as `key`."""
        return self._key_of.get(block) == key

    def is_held(self, block: int) -> bool:
        """Whether somebody holds a block."""
        return self._references[block] > 0

    def settle(self, step: int) -> None:
        """A step is done, and all before it: what they computed may be found by everybody."""
        if self.saves is not None:
            self.saves.settle(step)
        if self._unsettled:
            self._unsettled = {block: of for block, of in self._unsettled.items() if of > step}

    def reset(self) -> None:
        """Drop what is known of contents, as after a step that failed half way."""
        self._key_of.clear()
        self._block_of.clear()
        self._unsettled.clear()
        self.num_resets += 1
        if self.saves is not None:
            self.saves.clear()
