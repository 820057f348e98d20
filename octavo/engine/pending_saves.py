"""Which blocks of the KV cache are still to be copied to where they outlive it. Integers only."""

from collections import OrderedDict

from octavo.executor.store_messages import StoredBlock

Save = tuple[int, StoredBlock]


class PendingSaves:
    """Findable blocks that were not saved yet, in the order in which they were filled.

    A block is offered once the step that computes it is done and was sound. If it is taken for something else before,
    it goes with the next step, which copies it before anything is written to it.
    """

    def __init__(self) -> None:
        self.current_step = 0
        """The step that blocks are now scheduled for."""
        self._settled = 0
        self._waiting: OrderedDict[int, tuple[StoredBlock, int]] = OrderedDict()
        """By block, what it holds, and the step that computes it."""
        self._leaving: list[Save] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._leaving)

    def add(self, block: int, held: StoredBlock) -> None:
        """A block is findable from the current step on."""
        self._waiting[block] = held, self.current_step

    def offer_again(self, block: int, held: StoredBlock) -> None:
        """There was no room for a block that still holds the same."""
        self._waiting[block] = held, self._settled

    def taken(self, block: int) -> None:
        """A block is taken for other tokens."""
        held = self._waiting.pop(block, None)
        if held is not None and held[1] <= self._settled:
            self._leaving.append((block, held[0]))

    def settle(self, step: int) -> None:
        """A step is done, and all before it."""
        self._settled = step

    def take(self, most: int) -> list[Save]:
        """Those that leave, and up to `most` others of settled steps, which count as saved now."""
        saves, self._leaving = self._leaving, []
        while self._waiting and most > 0:
            block = next(iter(self._waiting))
            held, step = self._waiting[block]
            if step > self._settled:
                break
            del self._waiting[block]
            saves.append((block, held))
            most -= 1
        return saves

    def clear(self) -> None:
        """Nothing is known of what blocks hold any more."""
        self._waiting.clear()
        self._leaving.clear()
