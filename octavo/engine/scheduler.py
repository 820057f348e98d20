"""Who computes how many tokens in the next step. Pure Python over integers: no tensors, no text, no clock."""

import heapq
import itertools
import operator
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo.engine.feature_cache import FeatureCache
from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.kv_offload import BlockOffload
from octavo.engine.sequence import Sequence, Status
from octavo.engine.step_budget import StepBudget

MOST_OVERTAKES = 64
"""How many sequences may start before one whose adapter finds no room: then those that run are left to end."""
MOST_PASSED = 64
"""How many sequences without room for their adapters are passed over in a step, to find one that may start."""


@dataclass(slots=True)
class ScheduledSequence:
    """A sequence's part of a step."""

    sequence: Sequence
    num_tokens: int
    start: int
    """Position of the first of its tokens."""
    is_new: bool = False
    encodes: list[int] = field(default_factory=list)
    """Which of its features' rows are computed first, in this step."""
    drafts: list[int] = field(default_factory=list)
    """Guesses at the tokens that follow, which are computed too; they do not count in `num_tokens`."""

    @property
    def num_rows(self) -> int:
        """Tokens and guesses."""
        return self.num_tokens + len(self.drafts)


def num_right(drafts: list[int], token_ids: list[int]) -> int:
    """How many of the first drafts are the tokens that were chosen."""
    return sum(1 for _ in itertools.takewhile(bool, map(operator.eq, drafts, token_ids)))


class Scheduler:
    """First come, first served (and by priority), under a budget of tokens a step.

    Sequences that decode come first, a token each; what is left of the budget goes to prompts, in chunks. When blocks
    run out, the sequence that would go last is preempted: it gives its blocks back and is computed anew later. The
    first in order can always take everything, so somebody always advances and everybody finishes.

    Several steps may be on their way at a time, where the model's layers are in several processes. They are computed in
    order, each process computing one after the other. So blocks, rows and features' rows that a sequence gives back
    while a step with it is on its way may be taken for a later step at once: whoever takes them writes later than that
    step reads. A sequence whose next token is still to come has nothing to compute and is left out; further chunks of a
    prompt follow at once.

    Args:
        cache: gives and takes blocks.
        max_sequences: most sequences that run at a time.
        max_tokens: most tokens in a step, and most rows of features.
        max_feature_rows: most rows of features that are kept.
        max_adapters: most adapters that the running sequences have among them.
        max_steps: most steps that are on their way at a time.
        step_budget: limits steps in which prompts and answers meet further; None for no such limit.
        recurrent: whether sequences have states of fixed size.
    """

    def __init__(
        self,
        cache: KVCacheManager,
        max_sequences: int,
        max_tokens: int,
        max_feature_rows: int = 1 << 62,
        max_adapters: int = 1,
        max_steps: int = 1,
        step_budget: StepBudget | None = None,
        recurrent: bool = False,
    ) -> None:
        self.cache = cache
        self.max_steps, self.recurrent = max_steps, recurrent
        self.in_flight: deque[tuple[int, list[ScheduledSequence]]] = deque()
        """Steps that are on their way, with their numbers."""
        self._last_step = 0
        self.max_tokens, self.step_budget = max_tokens, step_budget
        self.features = FeatureCache(max_feature_rows, max_tokens)
        # A decoding sequence takes a token a step: more of them than the budget would only wait for each other.
        self.max_sequences = min(max_sequences, max_tokens)
        self.running: list[Sequence] = []
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self._num_waiting = 0
        self._free_rows = list(range(self.max_sequences))[::-1]
        self.num_preemptions = 0
        self.max_adapters = max_adapters
        self.running_adapters: Counter[bytes] = Counter()
        """How many running sequences have each."""
        self._overtakes = 0
        """How many have started before the first in order, which waits for its adapter."""
        self.offload: BlockOffload | None = None
        """Brings blocks back that have left the cache, before a sequence queues; None where none do."""

    @property
    def num_waiting(self) -> int:
        return self._num_waiting + (self.offload.num_waiting if self.offload is not None else 0)

    @property
    def has_work(self) -> bool:
        return bool(self.running) or self.num_waiting > 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new or preempted sequence, once its blocks are there that are outside of the cache."""
        if self.offload is not None and self.offload.ask(sequence):
            sequence.status = Status.LOADING
        else:
            self._queue(sequence)

    def loaded(self, sequences: Iterable[Sequence]) -> None:
        """Sequences that wait no longer for blocks queue."""
        for sequence in sequences:
            self._queue(sequence)

    def _queue(self, sequence: Sequence) -> None:
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
        elif sequence.status is Status.LOADING and self.offload is not None:
            self.offload.forget(sequence)
        sequence.status = Status.FINISHED
        if len(self._waiting) > 2 * self._num_waiting:
            # Never more dead entries than living ones: each is looked at twice at most before it goes.
            self._waiting = [entry for entry in self._waiting if entry[1].status is Status.WAITING]
            heapq.heapify(self._waiting)

    def schedule(self) -> list[ScheduledSequence]:
        """The next step. Entries are in the order in which their tokens lie in the batch."""
        scheduled: dict[int, ScheduledSequence] = {}
        self._last_step += 1
        if self.max_steps > 1:
            self.cache.pool.current_step = self._last_step
        if self.cache.pool.saves is not None:
            self.cache.pool.saves.current_step = self._last_step
        self._has_chunk = False
        self.features.begin_step()
        budget, preempted = self._continue_running(scheduled)
        gave_way = preempted
        while gave_way and not (scheduled or self.in_flight):  # all whose turn it was, for some whose turn it is now
            gave_way = self._continue_running(scheduled)[1]
        if not preempted:
            self._admit(scheduled, budget)
        for entry in scheduled.values():
            self._cache_blocks(entry)
            if entry.sequence.held:
                features = entry.sequence.chain.features
                entry.encodes += [i for i in entry.sequence.held if self.features.compute(features[i])]
        return list(scheduled.values())

    def submitted(self, scheduled: list[ScheduledSequence]) -> None:
        """The step that was scheduled last is on its way."""
        self.in_flight.append((self._last_step, scheduled))
        if self.offload is not None:
            self.offload.num_running = len(self.running)
        for entry in scheduled:
            sequence = entry.sequence
            sequence.num_computed, sequence.rewinds = entry.start + entry.num_tokens, False
            sequence.num_in_flight += 1
            if not sequence.remaining:  # a token comes, which they may not follow
                sequence.drafts = []

    def collected(self) -> list[ScheduledSequence]:
        """The oldest step on its way is computed."""
        number, scheduled = self.in_flight.popleft()
        self.cache.pool.settle(number)
        for entry in scheduled:
            entry.sequence.num_in_flight -= 1
        return scheduled

    def _continue_running(self, scheduled: dict[int, ScheduledSequence]) -> tuple[int, bool]:
        """Entries of sequences that run already; what is left of the budget, and whether one had to be preempted."""
        preempted = False
        decoding, prefilling = list[tuple[Sequence, int]](), list[tuple[Sequence, int]]()
        for sequence in self.running:
            if sequence.held:
                self._release_passed(sequence)
            remaining = len(sequence.tokens) - sequence.num_computed
            if remaining == 1 or sequence.rewinds:
                decoding.append((sequence, remaining))
            elif remaining > 1:
                prefilling.append((sequence, remaining))
        if self.max_steps > 1:  # steps that are alike keep all processes at work
            decoding = decoding[: -(-len(self.running) // self.max_steps)]
        budget = self.max_tokens if self.step_budget is None else self.step_budget.tokens(len(decoding))
        for_drafts = budget - sum(remaining for _, remaining in decoding)
        for sequence, remaining in decoding + prefilling:
            if sequence.status is not Status.RUNNING:  # preempted earlier in this loop
                continue
            if budget < 1:
                break
            count = remaining if remaining < budget else budget
            if sequence.is_constrained and (count := self._fit(sequence, count)) < 1:
                continue
            while not self._extend(sequence, count):
                preempted = True
                victim = max(self.running, key=lambda s: s.order)
                if dropped := scheduled.pop(victim.seq_id, None):
                    budget += dropped.num_rows
                self.preempt(victim)
                if victim is sequence:
                    break
            else:
                entry = scheduled[sequence.seq_id] = ScheduledSequence(sequence, count, sequence.num_computed)
                budget -= count
                if sequence.drafts and count == remaining:
                    entry.drafts = self._drafts(sequence, count, for_drafts)
                    for_drafts -= len(entry.drafts)
                    budget -= len(entry.drafts)
        return budget, preempted

    def _drafts(self, sequence: Sequence, count: int, room: int) -> list[int]:
        """Those of a sequence's drafts that are computed with its next `count` tokens: nobody makes way for them."""
        drafts = sequence.drafts[: max(0, room)]
        return drafts if drafts and self._extend(sequence, count + len(drafts)) else []

    def look_ahead(self, entry: ScheduledSequence, count: int) -> bool:
        """Blocks for `count` tokens after those of a step, for the keys of who guesses them; False where there are too
        few, or a table is too short."""
        blocks, num_new = entry.sequence.blocks, entry.num_rows + count
        if blocks is None or entry.start + num_new > self.cache.most_tokens:
            return False
        return self.cache.extend(blocks, entry.start, num_new)

    def verified(self, entry: ScheduledSequence, token_ids: list[int]) -> None:
        """What a step gave, for a sequence that took part with drafts: how many of these it went on with.

        Keys of wrong drafts are written over; a state of fixed size has to be had again, and then all that came after
        it is computed anew.
        """
        sequence, right = entry.sequence, num_right(entry.drafts, token_ids)
        if sequence.status is not Status.RUNNING:
            return
        if right < len(entry.drafts) and self.recurrent:
            sequence.num_computed, sequence.rewinds = entry.start, True
        else:
            sequence.num_computed = entry.start + entry.num_tokens + right

    def _admit(self, scheduled: dict[int, ScheduledSequence], budget: int) -> None:
        """Start waiting sequences while there is room for them."""
        passed: list[tuple[tuple[int, int], Sequence]] = []
        self._admit_but(passed, scheduled, budget)
        for entry in passed:
            heapq.heappush(self._waiting, entry)

    def _admit_but(
        self,
        passed: list[tuple[tuple[int, int], Sequence]],
        scheduled: dict[int, ScheduledSequence],
        budget: int,
    ) -> None:
        """`_admit`; those for whose adapters there is no room are taken out of the queue into `passed`."""
        started = False
        while budget > 0 and self._free_rows and (sequence := self._next(passed)) is not None:
            blocks = self.cache.begin(sequence.chain)
            # Rows of features cannot be made in parts: one that is too long for the budget may start first in a step.
            encoded = 0 if blocks.has_cross_rows else blocks.num_cross_rows
            if started and encoded >= budget:
                return
            reads = sequence.read_prefix_cache
            cached = self.cache.find_prefix(blocks, sequence.chain, sequence.tokens) if reads else 0
            budget = max(1, budget - encoded)
            start = self.cache.first_computed(cached)
            count = min(len(sequence.tokens) - start, budget)
            if sequence.is_whole and count < len(sequence.tokens):
                # One that is longer than the budget is computed by itself.
                if scheduled:
                    self.cache.release(blocks)
                    return
                count = len(sequence.tokens)
            sequence.blocks, sequence.num_computed = blocks, start
            count = self._fit(sequence, count) if sequence.is_constrained else count
            if count < 1 or not self._extend(sequence, count):
                self.cache.release(blocks)
                self._release_features(sequence)
                sequence.blocks, sequence.num_computed = None, 0
                return
            heapq.heappop(self._waiting)
            self._num_waiting -= 1
            if self.offload is not None and self.offload.ask_again(sequence):
                self.cache.release(blocks)
                self._release_features(sequence)
                sequence.blocks, sequence.num_computed, sequence.status = None, 0, Status.LOADING
                continue
            self._overtakes = self._overtakes + 1 if passed else 0
            if sequence.num_preemptions == 0:
                sequence.num_cached = cached
            self._run(sequence)
            entry = scheduled[sequence.seq_id] = ScheduledSequence(sequence, count, start, is_new=True)
            budget -= count
            started = True
            # What is computed in this step serves others that start in it: keys are written before any are read.
            self._cache_blocks(entry)
            if encoded:
                entry.encodes = [i for i, f in enumerate(sequence.chain.features) if f.offset is None]
                self.cache.cache_features(blocks, sequence.chain)

    def _run(self, sequence: Sequence) -> None:
        sequence.status, sequence.row = Status.RUNNING, self._free_rows.pop()
        self.running.append(sequence)
        if sequence.adapter is not None:
            self.running_adapters[sequence.adapter] += 1

    def _next(self, passed: list[tuple[tuple[int, int], Sequence]]) -> Sequence | None:
        """The first in order for whose adapter there is room."""
        while (sequence := self._peek()) is not None:
            if sequence.num_in_flight:  # preempted while a step with it was on its way, which may give it a token
                return None
            running, own = self.running_adapters, sequence.adapter
            if own is None or own in running or len(running) < self.max_adapters:
                return sequence if not passed or self._overtakes < MOST_OVERTAKES else None
            if len(passed) == MOST_PASSED:
                return None
            passed.append(heapq.heappop(self._waiting))
        return None

    def _peek(self) -> Sequence | None:
        while self._waiting:
            sequence = self._waiting[0][1]
            if sequence.status is Status.WAITING:
                return sequence
            heapq.heappop(self._waiting)
        return None

    def _fit(self, sequence: Sequence, count: int) -> int:
        """How many of the next `count` tokens can be computed now: those whose features' rows are there or come in this
        step, and no part of a span that sees both ways.

        The first chunk of a step may be longer than asked for: such a span could never be computed otherwise.
        """
        start = sequence.num_computed
        end = self._outside_spans(sequence, start, start + count)
        for i, feature in enumerate(sequence.chain.features):
            if feature.offset is None or i in sequence.held:
                continue
            if feature.offset < end and start < feature.offset + feature.length:
                if not self.features.hold(feature):
                    end = self._outside_spans(sequence, start, max(start, feature.offset), cut=True)
                    break
                sequence.held.append(i)
        self._has_chunk = self._has_chunk or end - start > 1
        return end - start

    def _outside_spans(self, sequence: Sequence, start: int, end: int, cut: bool = False) -> int:
        """`end`, or where a span that sees both ways begins or ends, if it lies inside."""
        for first, after in sequence.chain.both_ways:
            if first < end < after:
                return max(start, first) if cut or self._has_chunk or first > start else after
        return end

    def _release_passed(self, sequence: Sequence) -> None:
        """Give back the rows of features whose tokens are all computed."""
        left = []
        for i in sequence.held:
            feature = sequence.chain.features[i]
            if (feature.offset or 0) + feature.length <= sequence.num_computed:
                self.features.release(feature)
            else:
                left.append(i)
        sequence.held = left

    def _release_features(self, sequence: Sequence) -> None:
        for i in sequence.held:
            self.features.release(sequence.chain.features[i])
        sequence.held = []

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
        sequence.num_computed, sequence.drafts, sequence.rewinds = 0, [], False
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.add(sequence)

    def recompute_if_grown(self, sequence: Sequence) -> None:
        """A sequence whose keys are others from this length on gives back what it has, and is computed anew."""
        if sequence.recompute_beyond is None or len(sequence.tokens) <= sequence.recompute_beyond:
            return
        sequence.recompute_beyond = None
        sequence.chain = sequence.chain.renamed(grown=b"1")
        if sequence.status is Status.RUNNING:
            self.preempt(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        assert sequence.blocks is not None
        self.cache.release(sequence.blocks)
        self._release_features(sequence)
        self._free_rows.append(sequence.row)
        sequence.blocks, sequence.row = None, -1
        if sequence.adapter is not None:
            self.running_adapters[sequence.adapter] -= 1
            if not self.running_adapters[sequence.adapter]:
                del self.running_adapters[sequence.adapter]
