"""A stand-in for where blocks are kept outside of the cache: slow, forgetful, and it may fail at anything."""

import random
from dataclasses import dataclass, field

from octavo.executor.store_messages import StoredBlock, StoreNews, StoreTask, StoreWork

Cell = tuple[int, int]
Memory = dict[tuple[int, int, int], Cell]
GARBAGE = (-1, -1)


@dataclass
class Outside:
    """Blocks by what they are known by, with the cells that they had when they were saved."""

    rng: random.Random
    block_size: int = 0
    """The machine's."""
    is_sound: bool = False
    """Whether nothing of it fails."""
    blocks: dict[tuple[int, bytes], list[Cell | None]] = field(default_factory=dict)
    tasks: list[StoreTask] = field(default_factory=list)
    """Begun, and not answered."""
    num_loaded: int = 0

    def restarted(self) -> "Outside":
        """For another machine, which is asked for nothing yet."""
        return Outside(self.rng, is_sound=self.is_sound, blocks=self.blocks)

    @property
    def busy(self) -> set[tuple[int, int]]:
        """Groups and blocks of the cache that are being written to."""
        return {(b.group, place) for task in self.tasks for b, place in zip(task.blocks, task.places, strict=False)}

    def begin(self, work: StoreWork, memory: Memory) -> StoreNews:
        """A step begins."""
        news = StoreNews()
        for place, block in work.saves:
            if self._fails(0.1):
                news.unsaved.append((place, block))
            else:
                cells = [memory.get((block.group, place, i)) for i in range(self.block_size)]
                self.blocks[block.group, block.key] = cells
        for task in work.tasks:
            for block, place in zip(task.blocks, task.places, strict=False):
                for i in range(self.block_size):  # whatever was there is written over from now on
                    memory[block.group, place, i] = GARBAGE
        self.tasks += work.tasks
        return news

    def news(self, news: StoreNews, memory: Memory, patient: bool) -> StoreNews:
        """A step ends; some tasks are done with it, at least one if it is `patient`."""
        while self.tasks and (patient or self.rng.random() < 0.4):
            patient = False
            task = self.tasks.pop(self.rng.randrange(len(self.tasks)))
            if self.blocks and self._fails(0.2):
                del self.blocks[self.rng.choice(list(self.blocks))]
            flags = bytes(self._is_done(task, i, memory) for i in range(len(task.blocks)))
            if task.ticket:
                news.answers.append((task.ticket, flags))
        return news

    def _fails(self, likely: float) -> bool:
        return not self.is_sound and self.rng.random() < likely

    def _is_done(self, task: StoreTask, i: int, memory: Memory) -> bool:
        block: StoredBlock = task.blocks[i]
        cells = self.blocks.get((block.group, block.key))
        if cells is None or self._fails(0.03):
            return False
        if task.places:
            self.num_loaded += 1
            for at, cell in enumerate(cells):
                if cell is not None:
                    memory[block.group, task.places[i], at] = cell
        return True
