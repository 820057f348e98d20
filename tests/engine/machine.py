"""A stand-in for the executor: it stores for each cached token what a real one would have computed it from.

A key or value depends on all tokens before it. So the stand-in writes a digest of those tokens, and when a query reads
its blocks it checks every digest: a block that was lost, shared wrongly, or found for the wrong prompt shows at once.
"""

import random
from collections import deque
from dataclasses import dataclass, field

from octavo.engine.kv_cache import HashChain, KVCacheManager
from octavo.engine.kv_offload import BlockOffload
from octavo.engine.scheduler import ScheduledSequence, Scheduler
from octavo.engine.sequence import Sequence, Status
from octavo.executor.shape import CacheShape
from octavo.executor.store_messages import StoreNews, StoreWork
from octavo.features import ENCODER, Feature, encoder_feature
from octavo.token_windows import Chunk, Window, first_seen
from tests.engine.outside import Outside


def next_token(tokens: list[int]) -> int:
    """The stand-in model's answer: a function of everything before."""
    return hash(tuple(tokens)) % 7


def encoder_tokens(sequence: Sequence) -> tuple[int, ...]:
    """What the stand-in for an encoder reads for a sequence."""
    return tuple(t for feature in sequence.chain.features if feature.kind == ENCODER for t in feature.data)


def picture(offset: int, length: int, content: int) -> Feature:
    """A feature in the place of tokens."""
    return Feature("image", b"", length, bytes([content]) * 32, offset)


@dataclass
class Task:
    """A sequence's part of a step, as an executor is told of it."""

    sequence: Sequence
    row: int
    start: int
    end: int
    length: int
    encodes: list[int]
    is_new: bool
    new_blocks: list[tuple[int, list[int]]]
    drafts: list[int]
    rewinds: bool


@dataclass
class Machine:
    """A scheduler, and memory of (position, digest) for each group, block and offset."""

    num_blocks: int
    block_size: int = 4
    windows: tuple[Window | None, ...] = (None,)
    max_sequences: int = 4
    max_tokens: int = 16
    prefix_caching: bool = True
    encoder_group: int | None = None
    max_feature_rows: int = 1 << 62
    max_adapters: int = 1
    max_steps: int = 1
    recurrent: bool = False
    """Whether sequences have a state of fixed size too, which goes on with every token."""
    guesses: random.Random | None = None
    """Makes drafts, some of them wrong; None for none."""
    states: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By row, the tokens that its state has gone on with."""
    kept: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """What that was before the row's last step with drafts."""
    num_right: int = 0
    num_wrong: int = 0
    tables: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    memory: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    wanted: dict[int, int] = field(default_factory=dict)
    finished: list[Sequence] = field(default_factory=list)
    last_seq_id: int = 0
    num_encoded: int = 0
    rows: dict[bytes, int] = field(default_factory=dict)
    """How many rows of features in the place of tokens are kept, by digest."""
    steps: deque[tuple[list[Task], list[bytes], StoreWork | None]] = field(default_factory=deque)
    """What was submitted, with the features to drop first: computed when it is collected."""
    outside: Outside | None = None
    """Where blocks are kept too, if anywhere."""
    offload: BlockOffload | None = None

    def __post_init__(self) -> None:
        shape = CacheShape(
            self.num_blocks, self.block_size, self.windows, self.encoder_group, self.recurrent, self.max_sequences
        )
        self.cache = KVCacheManager(shape, self.prefix_caching)
        self.scheduler = Scheduler(
            self.cache,
            self.max_sequences,
            self.max_tokens,
            self.max_feature_rows,
            self.max_adapters,
            self.max_steps,
            recurrent=self.recurrent,
        )
        if self.outside is not None and self.prefix_caching:
            self.outside.block_size = self.block_size
            self.offload = self.scheduler.offload = BlockOffload(self.cache, most_saves=3)

    def add(
        self,
        prompt: list[int],
        answer: int,
        priority: int = 0,
        features: tuple[int, ...] = (),
        pictures: list[Feature] | None = None,
        both_ways: list[tuple[int, int]] | None = None,
        adapter: bytes | None = None,
    ) -> Sequence:
        self.last_seq_id += 1
        encoder = [encoder_feature(features)] if features else []
        fields = {} if adapter is None else {"adapter": adapter}
        chain = HashChain(fields, encoder + (pictures or []), both_ways or [])
        sequence = Sequence(self.last_seq_id, list(prompt), priority, True, chain, adapter)
        self.wanted[sequence.seq_id] = len(prompt) + answer
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[ScheduledSequence]:
        """Submit steps as long as there is room on the way for them, and compute the oldest."""
        while len(self.steps) < self.max_steps and self.submit():
            pass
        return self.collect() if self.steps else []

    def submit(self) -> list[ScheduledSequence]:
        """Schedule a step and send it on its way; empty where there is nothing to compute."""
        scheduled = self.scheduler.schedule()
        if not scheduled and (self.steps or not self.waits_outside):
            return scheduled
        spans = [s.num_tokens for s in scheduled if s.sequence.chain.both_ways and s.num_tokens > 1]
        assert sum(s.num_tokens + len(s.drafts) for s in scheduled) <= self.max_tokens + max(spans, default=0)
        cross = [s for s in scheduled if any(s.sequence.chain.features[i].kind == ENCODER for i in s.encodes)]
        encoders = [len(encoder_tokens(s.sequence)) for s in cross]
        assert sum(encoders) <= max(self.max_tokens, *encoders, 0)  # one may be longer than the budget
        assert len({s.sequence.row for s in scheduled}) == len(scheduled)
        assert len({s.adapter for s in self.scheduler.running} - {None}) <= self.max_adapters
        tasks = []
        for entry in scheduled:
            s, new_blocks = entry.sequence, self.cache.take_new_blocks(entry.sequence.blocks)
            assert entry.start == s.num_computed
            end = entry.start + entry.num_tokens
            assert not entry.drafts or end == len(s.tokens)
            told = (entry.encodes, entry.is_new, new_blocks, entry.drafts, s.rewinds)
            tasks.append(Task(s, s.row, entry.start, end, len(s.tokens), *told))
        work = None if self.offload is None else self.offload.take_work()
        self.steps.append((tasks, self.scheduler.features.take_dropped(), work))
        self.scheduler.submitted(scheduled)
        self.check_references()
        return scheduled

    def collect(self) -> list[ScheduledSequence]:
        """Compute the oldest step that is on its way."""
        tasks, dropped, work = self.steps.popleft()
        news = StoreNews()
        if work is not None and self.outside is not None:
            news = self.outside.begin(work, self.memory)
        self._compute_rows(tasks, dropped)
        for task in tasks:
            self._learn(task)
        for task in tasks if self.recurrent else ():
            self._go_on(task)
        for task in tasks:  # like the real one: all keys of a step are written before any is read
            self._write(task)
        for task in tasks:
            self._read(task)
        scheduled = self.scheduler.collected()
        if self.outside is not None and self.offload is not None:
            self.scheduler.loaded(self.offload.take(self.outside.news(news, self.memory, not tasks)))
        for task, entry in zip(tasks, scheduled, strict=True):
            self._advance(task, entry)
        self.check_references()
        return scheduled

    def _compute_rows(self, tasks: list[Task], dropped: list[bytes]) -> None:
        """Rows of features as the executor keeps them: there when they are read, and never too many."""
        for digest in dropped:
            del self.rows[digest]
        made, needed = [], set()
        for entry in tasks:
            s, start, end = entry.sequence, entry.start, entry.end
            assert not any(first < end < after for first, after in s.chain.both_ways)
            for i in entry.encodes:
                feature = s.chain.features[i]
                if feature.offset is not None:
                    assert feature.digest not in self.rows
                    self.rows[feature.digest] = feature.length
                    made.append(feature.length)
            needed |= {
                f.digest
                for f in s.chain.features
                if f.offset is not None and f.offset < end and start < f.offset + f.length
            }
        assert needed <= set(self.rows)
        assert sum(made) <= max(self.max_tokens, *made, 0)
        if sum(self.rows.values()) > self.max_feature_rows:
            assert len(self.rows) == 1

    def _learn(self, entry: Task) -> None:
        for group, (at, blocks) in enumerate(entry.new_blocks):
            table = self.tables.setdefault((entry.row, group), [])
            table[at : at + len(blocks)] = blocks

    def _go_on(self, entry: Task) -> None:
        """The state of a row takes in the tokens of a step."""
        if entry.is_new:
            self.states[entry.row] = ()
        if entry.rewinds:
            self.states[entry.row] = self.kept[entry.row]
        state, tokens = self.states[entry.row], entry.sequence.tokens
        assert state == tuple(tokens[: entry.start])
        if entry.drafts:
            self.kept[entry.row] = state
        self.states[entry.row] = (*tokens[: entry.end], *entry.drafts)

    def _digest(self, sequence: Sequence, position: int, drafts: tuple[int, ...] = ()) -> int:
        seen = self._seen(sequence, position)
        pictures = [(f.offset, f.digest) for f in sequence.chain.features if f.offset is not None and f.offset < seen]
        tokens = (*sequence.tokens, *drafts)[:seen]
        return hash((encoder_tokens(sequence), tokens, tuple(pictures), sequence.adapter))

    @staticmethod
    def _seen(sequence: Sequence, position: int) -> int:
        """How many tokens the one at `position` sees."""
        ends = [end for first, end in sequence.chain.both_ways if first <= position < end]
        return max([position + 1, *ends])

    def _encoder_cells(self, entry: Task) -> list[tuple[tuple[int, int, int], tuple[int, int]]]:
        """Where each of the encoder's tokens lies, and what must be there."""
        group, whole = self.encoder_group, hash(encoder_tokens(entry.sequence))
        cells = []
        for position in range(len(encoder_tokens(entry.sequence))):
            block = self.tables[entry.row, group][position // self.block_size]
            assert block != 0
            cells.append(((group, block, position % self.block_size), (position, whole)))
        return cells

    def _write(self, entry: Task) -> None:
        s = entry.sequence
        if any(s.chain.features[i].kind == ENCODER for i in entry.encodes):
            assert entry.is_new
            self.num_encoded += 1
            self.memory.update(self._encoder_cells(entry))
        for position in range(entry.start, entry.end + len(entry.drafts)):
            for group in range(len(self.windows)):
                if group == self.encoder_group:
                    continue
                block = self.tables[entry.row, group][position // self.block_size]
                assert block != 0
                assert self.outside is None or (group, block) not in self.outside.busy
                digest = self._digest(s, position, tuple(entry.drafts))
                self.memory[group, block, position % self.block_size] = (position, digest)

    def _read(self, entry: Task) -> None:
        s = entry.sequence
        for query in range(entry.start, entry.end):
            for cell, stored in self._encoder_cells(entry):
                assert self.memory[cell] == stored
            for group, window in enumerate(self.windows):
                if group == self.encoder_group:
                    continue
                for position in range(first_seen(window, query), self._seen(s, query)):
                    block = self.tables[entry.row, group][position // self.block_size]
                    assert self.memory[group, block, position % self.block_size] == (
                        position,
                        self._digest(s, position),
                    )

    def _advance(self, entry: Task, scheduled: ScheduledSequence) -> None:
        s = entry.sequence
        if entry.end < entry.length or s.status is Status.FINISHED:
            return
        assert len(s.tokens) == entry.length  # nobody chooses a token twice
        chosen = list[int]()
        for draft in [*entry.drafts, None]:
            chosen.append(next_token(s.tokens))
            s.tokens.append(chosen[-1])
            if len(s.tokens) >= self.wanted[s.seq_id] or chosen[-1] != draft:
                break
        if len(s.tokens) >= self.wanted[s.seq_id]:
            self.scheduler.finish(s)
            self.finished.append(s)
        if entry.drafts:
            self.scheduler.verified(scheduled, chosen)
            self.num_right += len(chosen) - 1
            self.num_wrong += len(entry.drafts) >= len(chosen)
        if self.guesses is not None and s.status is Status.RUNNING:
            s.drafts = self._guess(s, self.guesses)

    @staticmethod
    def _guess(sequence: Sequence, rng: random.Random) -> list[int]:
        """Up to five tokens that follow, now and then a wrong one."""
        tokens, count = list(sequence.tokens), rng.randrange(6)
        for _ in range(count):
            tokens.append(next_token(tokens) if rng.random() < 0.7 else rng.randrange(7))
        return tokens[len(sequence.tokens) :]

    def check_references(self) -> None:
        """Every block is held exactly as often as it stands in the tables of running sequences."""
        held = dict.fromkeys(range(1, self.num_blocks + 1), 0)
        for s in self.scheduler.running:
            assert s.status is Status.RUNNING
            for table in s.blocks.tables:
                for block in table:
                    if block:
                        held[block] += 1
        for load in self.offload._loads.values() if self.offload is not None else ():
            for block in load.held + load.places:
                held[block] += 1
        pool = self.cache.pool
        assert all(pool._references[b] == n for b, n in held.items())
        assert pool.num_free == sum(n == 0 for n in held.values())

    @property
    def waits_outside(self) -> bool:
        """Whether something is to be read from outside of the cache, or to go there."""
        offload = self.offload
        return offload is not None and bool(offload._waiting or offload._loads or offload.num_unsaved)

    def run(self, limit: int = 10_000) -> None:
        for _ in range(limit):
            if not self.scheduler.has_work and not self.waits_outside:
                return
            waits, asked = self.waits_outside, 0 if self.offload is None else self.offload._last_ticket
            is_told = self.step() or waits or (self.offload is not None and self.offload._last_ticket > asked)
            assert is_told, "there is work, but nothing was scheduled, and nothing asked for"
        raise AssertionError("the machine does not finish")


def random_machine(seed: int, max_steps: int = 1, outside: Outside | None = None) -> tuple[Machine, random.Random]:
    """A machine of random shape, small enough to run out of everything."""
    rng = random.Random(seed)
    without = [(None,), (None,), (None, 5), (9,), (None, 3, 10), (None, Chunk(6)), (Chunk(12),), (Chunk(8), 5)]
    kinds = [*((w, None) for w in without), ((None, None), 1), ((None, 4, None), 0)]
    windows, encoder = rng.choice(kinds)
    block_size = rng.choice([1, 2, 4, 8])
    # Enough for one sequence of 60 tokens in every group, and often for little more.
    needed = len(windows) * (-(-60 // block_size) + 1)
    machine = Machine(
        num_blocks=needed + rng.randrange(0, 2 * needed),
        block_size=block_size,
        windows=windows,
        encoder_group=encoder,
        max_sequences=rng.randint(1, 6),
        max_tokens=rng.choice([1, 3, 7, 16, 64]),
        prefix_caching=rng.random() < 0.7,
        max_feature_rows=rng.choice([1, 10, 40]),
        max_adapters=rng.randint(1, 3),
        max_steps=max_steps,
        outside=outside,
    )
    return machine, rng
