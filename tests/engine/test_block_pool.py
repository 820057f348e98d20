"""The block pool as a state machine: any order of calls keeps its books."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.engine.block_pool import BlockPool

SIZE = 6


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(SIZE)
        self.held: list[int] = []
        self.known: dict[tuple[int, bytes], int] = {}

    @precondition(lambda self: self.pool.num_free > 0)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        taken = self.pool.take(data.draw(st.integers(1, self.pool.num_free)))
        assert len(set(taken)) == len(taken)
        assert not set(taken) & set(self.held)
        self.held += taken
        self.known = {k: b for k, b in self.known.items() if b not in taken}

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.held.remove(block)
        self.pool.release(block)

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data(), name=st.integers(0, 4))
    def remember(self, data: st.DataObject, name: int) -> None:
        block, key = data.draw(st.sampled_from(self.held)), (0, bytes([name]))
        self.pool.cache_block(block, key)
        if key not in self.known and block not in self.known.values():
            self.known[key] = block

    @rule(name=st.integers(0, 4))
    def find_and_hold(self, name: int) -> None:
        block = self.pool.find((0, bytes([name])))
        assert block == self.known.get((0, bytes([name])))
        if block is not None:
            self.pool.incref(block)
            self.held.append(block)

    @rule()
    def forget(self) -> None:
        self.pool.reset()
        self.known = {}

    @invariant()
    def books_balance(self) -> None:
        for block in range(1, SIZE + 1):
            assert self.pool._references[block] == self.held.count(block)
        assert self.pool.num_free == SIZE - len(set(self.held))
        assert len(self.pool._block_of) == len(self.known)


PoolMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_least_recently_used_goes_first() -> None:
    pool = BlockPool(3)
    blocks = pool.take(3)
    for i, block in enumerate(blocks):
        pool.cache_block(block, (0, bytes([i])))
    for block in (blocks[1], blocks[0], blocks[2]):
        pool.release(block)
    pool.incref(blocks[1])  # used again
    pool.release(blocks[1])
    assert pool.take(2) == [blocks[0], blocks[2]]
    assert pool.find((0, bytes([1]))) == blocks[1]
