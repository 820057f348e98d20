"""Which blocks each sequence has, in each group of layers, and which of them a prefix cache may serve again."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from octavo.engine.block_pool import NULL_BLOCK, BlockKey, BlockPool
from octavo.errors import InvalidRequestError
from octavo.executor.shape import CacheShape
from octavo.executor.store_messages import StoredBlock
from octavo.features import Feature
from octavo.text.checked_prompt import CheckedPrompt
from octavo.token_windows import Window, first_seen, most_seen

HASH_BYTES = 32
"""Nobody finds two inputs of one hash of this length, though attackers may choose both."""


@dataclass(slots=True)
class SequenceBlocks:
    """A sequence's block tables."""

    tables: list[list[int]]
    """For each group the blocks in order; NULL_BLOCK where one was given back."""
    first_held: list[int]
    """For each group the first index that was not given back."""
    sent: list[int]
    """For each group how many entries the executor knows."""
    num_slots: int = 0
    """How many of the sequence's tokens there are blocks for."""
    has_new_blocks: bool = False
    """Whether there are blocks that the executor does not know."""
    num_cross_rows: int = 0
    """How many rows the table of the cross-attention's group holds."""
    has_cross_rows: bool = False
    """Whether these were computed for another sequence."""
    num_cached_blocks: int = 0
    """How many full blocks are findable (or were tried)."""


@dataclass
class HashChain:
    """Hashes of a sequence's full blocks, each over all tokens before its end and over what else decides their keys.

    The chain begins with a hash of the named `fields`, each with its name and its own length, so that no value of one
    can stand for another's; and this root is never taken for a block's hash, whatever a client chooses.
    """

    fields: dict[str, bytes] = field(default_factory=dict)
    """What all keys depend on, such as the client's salt: only sequences with equal fields share blocks."""
    features: Sequence[Feature] = ()
    """Those that all layers attend to decide all keys; one in place of tokens, those from its block on."""
    both_ways: Sequence[tuple[int, int]] = ()
    """First token and end of spans whose tokens see all of the span: the whole of it decides its first token's keys."""
    hashes: list[bytes] = field(default_factory=list)

    def copy(self) -> "HashChain":
        """One that grows by itself."""
        return HashChain(self.fields, self.features, self.both_ways, self.hashes.copy())

    def renamed(self, **fields: bytes) -> "HashChain":
        """One of the same sequence, whose keys are others than before."""
        return HashChain({**self.fields, **fields}, self.features, self.both_ways)

    def extend(self, tokens: list[int], block_size: int) -> None:
        """Hash the full blocks of `tokens` that are not hashed yet."""
        for first in range(len(self.hashes) * block_size, len(tokens) - block_size + 1, block_size):
            parent = self.hashes[-1] if self.hashes else self.root
            digest = hashlib.blake2b(parent, digest_size=HASH_BYTES, person=b"octavo block")
            digest.update(array("q", tokens[first : first + block_size]).tobytes())
            self._add_features(digest, first, first, first + block_size)
            for start, end in self.both_ways:
                if first <= start < first + block_size:
                    digest.update(array("q", [start - first, end - first, *tokens[start:end]]).tobytes())
                    self._add_features(digest, first, start, end)
            self.hashes.append(digest.digest())

    def _add_features(self, digest: "hashlib.blake2b", first: int, start: int, end: int) -> None:
        """Add to the hash of the block at `first` the features whose places begin from `start` to before `end`."""
        for feature in self.features:
            if feature.offset is not None and start <= feature.offset < end:
                digest.update((feature.offset - first).to_bytes(8, "little") + feature.digest)

    @property
    def root(self) -> bytes:
        """A hash of the fields, and of the features that all layers attend to."""
        digest = hashlib.blake2b(digest_size=HASH_BYTES, person=b"octavo root")
        features = b"".join(f.digest for f in self.features if f.offset is None)
        for name, value in [*sorted(self.fields.items()), ("", features)]:
            for part in (name.encode(), value):
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
        return digest.digest()


def prompt_chain(checked: CheckedPrompt, long_rope_threshold: int | None) -> HashChain:
    """The chain of a prompt, of which nothing is hashed yet.

    Args:
        checked: the prompt.
        long_rope_threshold: as ModelInfo has it.
    """
    fields = {"salt": checked.cache_salt.encode("utf-8", "surrogatepass")}
    if checked.adapter is not None:
        fields["adapter"] = checked.adapter.digest
    if long_rope_threshold is not None and len(checked.token_ids) > long_rope_threshold:
        fields["grown"] = b"1"
    return HashChain(fields, checked.features, checked.both_ways)


class KVCacheManager:
    """Gives sequences their blocks and takes them back.

    Args:
        shape: the groups and blocks there are.
        prefix_caching: whether full blocks are findable by later sequences.
    """

    def __init__(self, shape: CacheShape, prefix_caching: bool) -> None:
        self.block_size = shape.block_size
        self.windows = shape.windows
        self._has_windows = any(window is not None for window in shape.windows)
        self.encoder_group, self.max_cross_rows = shape.encoder_group, shape.max_cross_rows
        self.prefix_caching = prefix_caching and bool(shape.windows)
        self.most_tokens = 1 << 62
        """Of a sequence, for which its tables have room."""
        self.num_reread = 0
        """How many of a cached prefix's last tokens are computed again, since a head reads what is made of them."""
        self.pool = BlockPool(shape.num_blocks)

    def longest_sequence(self, max_step: int) -> int:
        """Most tokens that one sequence alone can have, when steps compute at most `max_step` of them."""
        if not self.windows:
            return 1 << 62
        fixed, unbounded = 0, 0
        for window in self.windows:
            if window is None:
                unbounded += 1
            else:
                fixed += -(-(most_seen(window) + max_step) // self.block_size) + 1
        if unbounded:
            return max(0, (self.pool.num_blocks - fixed) // unbounded * self.block_size)
        return 1 << 62 if fixed <= self.pool.num_blocks else self.pool.num_blocks // len(self.windows) * self.block_size

    def check_cross_rows(self, chain: HashChain, num_tokens: int) -> None:
        """Raises InvalidRequestError where a prompt could never have blocks for what it sees in cross-attention."""
        rows = sum(f.length for f in chain.features if f.offset is None)
        left = self.pool.num_blocks - len(self._growing) * -(-(num_tokens + 1) // self.block_size)
        most = min(left * self.block_size, self.max_cross_rows)
        if rows > most:
            raise InvalidRequestError(
                f"the prompt's media take {rows:,} rows of the KV cache, which has room for {max(0, most):,} beside "
                "its tokens. Send fewer or smaller ones, or start the engine with a larger kv_cache_memory."
            )

    def begin(self, chain: HashChain) -> SequenceBlocks:
        """Empty tables, but for features that all layers attend to and that are there already, held for the caller."""
        count = len(self.windows)
        rows = sum(f.length for f in chain.features if f.offset is None)
        blocks = SequenceBlocks([[] for _ in range(count)], [0] * count, [0] * count, num_cross_rows=rows)
        if rows and self.prefix_caching:
            found = [self.pool.find(key) for key in self._cross_keys(blocks.num_cross_rows, chain)]
            held = [block for block in found if block is not None]
            if len(held) == len(found):
                for block in held:
                    self.pool.incref(block)
                blocks.tables[self._cross_group] = held
                blocks.has_cross_rows = True
        return blocks

    @property
    def _cross_group(self) -> int:
        assert self.encoder_group is not None
        return self.encoder_group

    def _cross_keys(self, num_rows: int, chain: HashChain) -> list[BlockKey]:
        root, count = chain.root, -(-num_rows // self.block_size)
        return [(self._cross_group, root + i.to_bytes(8, "little")) for i in range(count)]

    def cache_features(self, blocks: SequenceBlocks, chain: HashChain) -> None:
        """Make the rows of features findable that this step computes."""
        if self.prefix_caching:
            keys = self._cross_keys(blocks.num_cross_rows, chain)
            for block, key in zip(blocks.tables[self._cross_group], keys, strict=True):
                self.pool.cache_block(block, key)

    def find_prefix(self, blocks: SequenceBlocks, chain: HashChain, tokens: list[int]) -> int:
        """Enter blocks of the longest beginning of `tokens` that is cached, held for the caller; its length in tokens.

        At least one token is left to compute. Groups with a window need only the blocks that the next token can see.
        """
        if not self.prefix_caching:
            return 0
        usable = self.num_usable(chain, tokens)
        length = self.longest(chain, usable, lambda key: self.pool.find(key) is not None)
        for group, window in self._growing:
            first = self._first_needed(window, length)
            for i in range(length):
                block = self.pool.find((group, chain.hashes[i])) if i >= first else NULL_BLOCK
                assert block is not None
                if block != NULL_BLOCK:
                    self.pool.incref(block)
                blocks.tables[group].append(block)
            blocks.first_held[group] = first
        blocks.num_cached_blocks = length
        return length * self.block_size

    def num_usable(self, chain: HashChain, tokens: list[int]) -> int:
        """How many full blocks of `tokens` may come from a cache, one token at least being left; they are hashed."""
        chain.extend(tokens, self.block_size)
        return min(len(chain.hashes), (len(tokens) - 1) // self.block_size)

    def longest(self, chain: HashChain, usable: int, is_there: Callable[[BlockKey], bool]) -> int:
        """Of the first `usable` blocks, how many there is all of that the token after them sees."""
        windows = dict(self._growing)
        runs, length = dict.fromkeys(windows, 0), 0
        for i in range(usable):
            for group, window in windows.items():
                found = is_there((group, chain.hashes[i]))
                runs[group] = runs[group] + 1 if found else 0
                if window is None and not found:
                    break
            else:
                if self._cuts_span(chain, (i + 1) * self.block_size):
                    continue
                if all(i + 1 - runs[group] <= self._first_needed(w, i + 1) for group, w in windows.items()):
                    length = i + 1
                continue
            break
        return length

    def needed(self, chain: HashChain, length: int) -> Iterator[StoredBlock]:
        """What the token after the first `length` blocks sees, group by group."""
        for group, window in self._growing:
            for i in range(self._first_needed(window, length), length):
                yield StoredBlock(group, chain.hashes[i], i)

    def all_blocks(self, chain: HashChain, length: int) -> list[StoredBlock]:
        """The first `length` blocks of all groups."""
        return [StoredBlock(group, chain.hashes[i], i) for group, _ in self._growing for i in range(length)]

    def cross_blocks(self, chain: HashChain) -> list[StoredBlock]:
        """The blocks of features that all layers attend to."""
        rows = sum(f.length for f in chain.features if f.offset is None)
        return [StoredBlock(*key) for key in self._cross_keys(rows, chain)] if rows else []

    def _first_needed(self, window: Window | None, count: int) -> int:
        """The first of `count` full blocks that the token after them sees anything of; `count` if it sees nothing."""
        return first_seen(window, max(0, count * self.block_size - self.num_reread)) // self.block_size

    def _cuts_span(self, chain: HashChain, length: int) -> bool:
        """Whether what is left after `length` tokens begins in a span whose beginning a window would hide."""
        return self._has_windows and any(first < length < end for first, end in chain.both_ways)

    @property
    def num_growing(self) -> int:
        """How many groups have tables that grow with a sequence."""
        return len(self._growing)

    @property
    def _growing(self) -> list[tuple[int, Window | None]]:
        """Groups whose tables grow with a sequence, and their windows."""
        return [(g, w) for g, w in enumerate(self.windows) if g != self.encoder_group]

    def first_computed(self, cached: int) -> int:
        """Where a sequence begins to be computed whose first `cached` tokens are cached."""
        return max(0, cached - self.num_reread)

    def extend(self, blocks: SequenceBlocks, num_computed: int, num_new: int) -> bool:
        """Blocks for `num_new` more tokens after `num_computed`; False, and nothing taken, where there are too few."""
        if self._has_windows:
            self._give_back_unseen(blocks, num_computed)
        if num_computed + num_new <= blocks.num_slots:
            return True
        missing = []
        for group, table in enumerate(blocks.tables):
            tokens = blocks.num_cross_rows if group == self.encoder_group else num_computed + num_new
            missing.append(max(0, -(-tokens // self.block_size) - len(table)))
        if sum(missing) > self.pool.num_free:
            return False
        for table, count in zip(blocks.tables, missing, strict=True):
            table += self.pool.take(count)
        blocks.num_slots = -(-(num_computed + num_new) // self.block_size) * self.block_size
        blocks.has_new_blocks = True
        return True

    def _give_back_unseen(self, blocks: SequenceBlocks, num_computed: int) -> None:
        """Release blocks whose tokens lie before the window of the next token."""
        for group, window in enumerate(self.windows):
            if window is None:
                continue
            table, past = blocks.tables[group], first_seen(window, num_computed) // self.block_size
            for i in range(blocks.first_held[group], min(past, len(table))):
                self.pool.release(table[i])
                table[i] = NULL_BLOCK
            blocks.first_held[group] = max(blocks.first_held[group], min(past, len(table)))

    def cache_blocks(self, blocks: SequenceBlocks, chain: HashChain, tokens: list[int], num_computed: int) -> None:
        """Make the blocks that `num_computed` tokens fill findable."""
        full = num_computed // self.block_size
        if not self.prefix_caching or full <= blocks.num_cached_blocks:
            return
        chain.extend(tokens, self.block_size)
        for group, _ in self._growing:
            table = blocks.tables[group]
            for i in range(max(blocks.num_cached_blocks, blocks.first_held[group]), full):
                self.pool.cache_block(table[i], (group, chain.hashes[i]), i)
        blocks.num_cached_blocks = full

    def take_new_blocks(self, blocks: SequenceBlocks) -> list[tuple[int, list[int]]]:
        """What the executor does not know yet of each table, and where it goes; empty where it knows all."""
        out: list[tuple[int, list[int]]] = []
        if not blocks.has_new_blocks:
            return out
        blocks.has_new_blocks = False
        for group, table in enumerate(blocks.tables):
            out.append((blocks.sent[group], table[blocks.sent[group] :]))
            blocks.sent[group] = len(table)
        return out

    def release(self, blocks: SequenceBlocks) -> None:
        """Give everything back, last blocks first, so that beginnings stay cached longest."""
        for table in blocks.tables:
            for block in reversed(table):
                if block != NULL_BLOCK:
                    self.pool.release(block)
