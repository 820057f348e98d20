"""Who computes how many tokens in the next step. Pure Python over integers: no tensors, no text, no clock."""

import heapq
from dataclasses import dataclass

from octavo.engine.kv_cache import HashChain, KVCacheManager
from octavo.engine.sequence import Sequence, Status


@dataclass(slots=True)
class ScheduledSequence:
    """A sequence's part of a step."""

    sequence: Sequence
    num_tokens: int
    is_new: bool = False
    encodes: bool = False
    """Whether the rows of its features are computed in this step too."""


class Scheduler:
    """First come, first served (and by priority), under a budget of tokens a step.

    Sequences that decode come first, a token each; what is left of the budget goes to prompts, in chunks. When blocks
    run out, the sequence that would go last is preempted: it gives its blocks back and is computed anew later. The
    first in order can always take everything, so somebody always advances and everybody finishes.

    Args:
        cache: gives and takes blocks.
        max_sequences: most sequences that run at a time.
        max_tokens: most tokens in a step.
    """

    def __init__(self, cache: KVCacheManager, max_sequences: int, max_tokens: int) -> None:
        self.cache = cache
        self.max_tokens = max_tokens
        # A decoding sequence takes a token a step: more of them than the budget would only wait for each other.
        self.max_sequences = min(max_sequences, max_tokens)
        self.running: list[Sequence] = []
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self._num_waiting = 0
        self._free_rows = list(range(self.max_sequences))[::-1]
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    @property
    def has_work(self) -> bool:
        return bool(self.running) or self._num_waiting > 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new or preempted sequence."""
        sequence.status = Status.WAITING
        heapq.heappush(self._waiting, (sequence.order, sequence))
        self._num_waiting += 1

    def finish(self, sequence: Sequence) -> None:
        """The sequence is done or aborted: give back what it holds. Harmless if it already is."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._give_back(sequence)
        elif sequence.status is Status.WAITING:
            self._num_waiting -= 1  # its entry in the heap is skipped when it comes up
        sequence.status = Status.FINISHED
        if len(self._waiting) > 2 * self._num_waiting:
            # Never more dead entries than living ones: each is looked at twice at most before it goes.
            self._waiting = [entry for entry in self._waiting if entry[1].status is Status.WAITING]
            heapq.heapify(self._waiting)

    def schedule(self) -> list[ScheduledSequence]:
        """The next step. Entries are in the order in which their tokens lie in the batch."""
        scheduled: dict[int, ScheduledSequence] = {}
        budget, preempted = self._continue_running(scheduled)
        if not preempted:
            self._admit(scheduled, budget)
        for entry in scheduled.values():
            self._cache_blocks(entry)
        return list(scheduled.values())

    def _continue_running(self, scheduled: dict[int, ScheduledSequence]) -> tuple[int, bool]:
        """Entries of sequences that run already; what is left of the budget, and whether one had to be preempted."""
        budget, preempted = self.max_tokens, False
        decoding, prefilling = list[tuple[Sequence, int]](), list[tuple[Sequence, int]]()
        for sequence in self.running:
            remaining = len(sequence.tokens) - sequence.num_computed
            if remaining == 1:
                decoding.append((sequence, 1))
            elif remaining > 1:
                prefilling.append((sequence, remaining))
        for sequence, remaining in decoding + prefilling:
            if sequence.status is not Status.RUNNING:  # preempted earlier in this loop
                continue
            if budget < 1:
                break
            count = remaining if remaining < budget else budget
            while not self._extend(sequence, count):
                preempted = True
                victim = max(self.running, key=lambda s: s.order)
                if dropped := scheduled.pop(victim.seq_id, None):
                    budget += dropped.num_tokens
                self.preempt(victim)
                if victim is sequence:
                    break
            else:
                scheduled[sequence.seq_id] = ScheduledSequence(sequence, count)
                budget -= count
        return budget, preempted

    def _admit(self, scheduled: dict[int, ScheduledSequence], budget: int) -> None:
        """Start waiting sequences while there is room for them."""
        started = False
        while budget > 0 and self._free_rows and (sequence := self._peek()) is not None:
            blocks = self.cache.begin(sequence.chain)
            # Rows of features cannot be made in parts: one that is too long for the budget may start first in a step.
            encoded = 0 if blocks.has_cross_rows else blocks.num_cross_rows
            if started and encoded >= budget:
                return
            reads = sequence.read_prefix_cache
            cached = self.cache.find_prefix(blocks, sequence.chain, sequence.tokens) if reads else 0
            budget = max(1, budget - encoded)
            count = min(len(sequence.tokens) - cached, budget)
            sequence.blocks, sequence.num_computed = blocks, cached
            if not self._extend(sequence, count):
                self.cache.release(blocks)
                sequence.blocks, sequence.num_computed = None, 0
                return
            heapq.heappop(self._waiting)
            self._num_waiting -= 1
            if sequence.num_preemptions == 0:
                sequence.num_cached = cached
            sequence.status, sequence.row = Status.RUNNING, self._free_rows.pop()
            self.running.append(sequence)
            entry = scheduled[sequence.seq_id] = ScheduledSequence(sequence, count, is_new=True, encodes=encoded > 0)
            budget -= count
            started = True
            # What is computed in this step serves others that start in it: keys are written before any are read.
            self._cache_blocks(entry)
            if encoded:
                self.cache.cache_features(blocks, sequence.chain)

    def _peek(self) -> Sequence | None:
        while self._waiting:
            sequence = self._waiting[0][1]
            if sequence.status is Status.WAITING:
                return sequence
            heapq.heappop(self._waiting)
        return None

    def _extend(self, sequence: Sequence, count: int) -> bool:
        assert sequence.blocks is not None
        return self.cache.extend(sequence.blocks, sequence.num_computed, count)

    def _cache_blocks(self, entry: ScheduledSequence) -> None:
        sequence, blocks = entry.sequence, entry.sequence.blocks
        assert blocks is not None
        end = sequence.num_computed + entry.num_tokens
        if end // self.cache.block_size > blocks.num_cached_blocks:
            self.cache.cache_blocks(blocks, sequence.chain, sequence.tokens, end)

    def preempt(self, sequence: Sequence) -> None:
        """Take everything from a running sequence; it is queued again, and will be computed anew."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.add(sequence)

    def recompute_if_grown(self, sequence: Sequence) -> None:
        """A sequence whose keys are others from this length on gives back what it has, and is computed anew."""
        if sequence.recompute_beyond is None or len(sequence.tokens) <= sequence.recompute_beyond:
            return
        sequence.recompute_beyond = None
        sequence.chain = HashChain({**sequence.chain.fields, "grown": b"1"}, sequence.chain.features)
        if sequence.status is Status.RUNNING:
            self.preempt(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        assert sequence.blocks is not None
        self.cache.release(sequence.blocks)
        self._free_rows.append(sequence.row)
        sequence.blocks, sequence.row = None, -1
