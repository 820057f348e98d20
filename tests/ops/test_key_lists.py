"""Keys that an indexer finds best, and attention to them: in float64, and bit for bit however they are cut."""

import pytest
import torch
from torch import Tensor

from octavo.ops import AttentionPlan, AttentionSpec, Backend, CacheSpec, KVCache, SequenceRun, plan_attention
from octavo.ops.paged_cache import INT4
from tests.ops.test_attention import as_cached

Runs = list[tuple[int, int, int]]
"""Of (table row, start, tokens)."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, INT4], ids=str)
SIZES = [(4, 16, 9), (3, 20, 7), (1, 8, 1), (64, 128, 33), (150, 40, 5)]
"""Index heads, head_dim, keys in a list."""


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Sequences:
    """Sequences whose keys are in a cache, in blocks dealt out at random."""

    def __init__(self, backend: Backend, keys: list[Tensor], block_size: int, dtype: torch.dtype) -> None:
        self.backend, self.keys, self.block_size = backend, [as_cached(k, dtype) for k in keys], block_size
        width = max(-(-len(k) // block_size) for k in keys)
        ids = torch.randperm(width * len(keys), generator=torch.Generator().manual_seed(5)) + 1
        self.table = ids.view(len(keys), width)
        self.cache: KVCache = backend.make_cache(CacheSpec(1, keys[0].shape[1], 0), len(ids) + 1, block_size, dtype)
        self.cache.keys.fill_(7)
        plan = self.plan([(row, 0, len(k)) for row, k in enumerate(keys)])
        backend.store(torch.cat(keys).unsqueeze(1), None, self.cache, plan)

    def plan(self, runs: Runs, window: int | None = None, sees: tuple[bool, int] = (False, 0)) -> AttentionPlan:
        made, first = [], 0
        for row, start, count in runs:
            made.append(SequenceRun(first, count, start, row, *sees))
            first += count
        return plan_attention(made, self.table, self.block_size, window, first)

    def select(self, query: list[Tensor], weights: list[Tensor], runs: Runs, top_k: int, **sees: object) -> Tensor:
        """Of the runs' own tokens, of sequences' queries and weights."""
        q, w = (torch.cat([x[row][start : start + count] for row, start, count in runs]) for x in (query, weights))
        plan = self.plan(runs, **sees)
        return self.backend.select_keys(q, w, self.cache, plan, top_k, len(q))


def listed(scores: Tensor, seen: Tensor, top_k: int) -> list[int]:
    """What a list must be, by `scores` `[keys]` and which of these are seen."""
    keys = [key for key in range(len(scores)) if seen[key]]
    best = sorted(keys, key=lambda key: (-float(scores[key]), key))[:top_k]
    return sorted(best) + [-1] * (top_k - len(best))


def scores_of(query: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """[tokens, keys] in float64."""
    products = torch.einsum("thd,kd->thk", query.double(), keys.double()).clamp(min=0)
    return torch.einsum("th,thk->tk", weights.double(), products)


def whole_numbers(*shape: int, seed: int) -> Tensor:
    """Sums of whose products are exact in every order and every number type, and often equal, or zero."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


@DTYPES
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_best_keys(backend: Backend, sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    """All scores that are equal included, of which the earlier key's counts more."""
    heads, dim, top_k = sizes
    keys = whole_numbers(90, dim, seed=1)
    keys[:, 0] = 2.0  # so that int8 rounds nothing: its codes are multiples of 2 / 127
    keys = torch.where(keys.abs() == 1, 0.0, keys) if dtype == torch.int8 else keys
    if dtype == INT4:  # so that the scale of every 32 is 1
        keys[:, ::32], keys[:, 1::32] = 8.0, -7.0
    query, weights = whole_numbers(90, heads, dim, seed=2), whole_numbers(90, heads, seed=3)
    sequences = Sequences(backend, [keys], 16, dtype)
    found = sequences.select([query], [weights], [(0, 0, 90)], top_k)
    scores = scores_of(query, weights, keys)
    assert found.dtype == torch.int32
    for token in range(90):
        assert found[token].tolist() == listed(scores[token], torch.arange(90) <= token, top_k), token


def test_zeros_of_both_signs_are_equal(backend: Backend) -> None:
    """Where nothing is above zero, the first keys are taken, whatever the signs of weights make of zero."""
    keys = -rand(40, 16, seed=1).abs()
    query, weights = rand(40, 4, 16, seed=2).abs(), rand(40, 4, seed=3)
    found = Sequences(backend, [keys], 8, torch.float32).select([query], [weights], [(0, 39, 1)], 9)
    assert found[0].tolist() == list(range(9))


@pytest.mark.parametrize("sees", [(True, 0), (False, 20), (True, 13)], ids=str)
def test_which_keys_a_run_sees(backend: Backend, sees: tuple[bool, int]) -> None:
    keys, query, weights = rand(60, 16, seed=1), rand(60, 4, 16, seed=2), rand(60, 4, seed=3)
    found = Sequences(backend, [keys], 8, torch.float32).select([query], [weights], [(0, 30, 30)], 11, sees=sees)
    key, scores = torch.arange(60), scores_of(query, weights, keys)
    for i, token in enumerate(range(30, 60)):
        seen = (key >= sees[1]) & ((key <= token) | (sees[0] and key >= 30))
        assert found[i].tolist() == listed(scores[token], seen, 11)


@DTYPES
def test_bits_do_not_depend_on_the_batch(backend: Backend, dtype: torch.dtype) -> None:
    """Alone, in chunks, in other blocks, beside others: the same lists, and the same values by them."""
    lengths = [5, 150, 77]
    latents = [rand(n, 40, seed=n) for n in lengths]
    queries = [rand(n, 6, 40, seed=n + 1) for n in lengths]
    keys = [rand(n, 24, seed=n + 2) for n in lengths]
    indexed, weights = [rand(n, 3, 24, seed=n + 3) for n in lengths], [rand(n, 3, seed=n + 4) for n in lengths]
    spec = AttentionSpec(6, 1, 40, 0.2)

    def computed(runs: Runs, block_size: int) -> list[tuple[Tensor, Tensor]]:
        lists = Sequences(backend, keys, block_size, dtype).select(indexed, weights, runs, 13)
        values = Sequences(backend, latents, block_size, dtype)
        q = torch.cat([queries[row][start : start + count] for row, start, count in runs])
        out = backend.attend_stored(q, values.cache, values.plan(runs), spec, len(q), torch.float32, lists)
        counts = [count for *_, count in runs]
        return list(zip(lists.split(counts), out.split(counts), strict=True))

    whole = computed([(row, 0, n) for row, n in enumerate(lengths)], 16)
    for runs, block_size in (
        ([(1, 0, 150)], 16),
        ([(1, 149, 1)], 16),
        ([(2, 40, 37), (0, 0, 5), (1, 64, 86), (1, 0, 64)], 8),
        ([(1, start, 7) for start in range(0, 147, 7)], 32),
        ([(2, 76, 1), (0, 4, 1), (1, 120, 1)], 1),
    ):
        for (row, start, count), (lists, values) in zip(runs, computed(runs, block_size), strict=True):
            assert torch.equal(lists, whole[row][0][start : start + count])
            assert torch.equal(values, whole[row][1][start : start + count])


@pytest.mark.parametrize("top_k", [5, 64, 4500])
@pytest.mark.parametrize("heads", [1, 3, 130])
def test_attention_to_listed_keys(backend: Backend, heads: int, top_k: int) -> None:
    """Of one token among several thousand keys, and of a few more; values are the first part of keys."""
    length, dim = (5000, 24) if top_k > 64 else (300, 40)
    keys = rand(length, dim, seed=1)
    sequences = Sequences(backend, [keys], 16, torch.float32)
    query = rand(3, heads, dim, seed=2)
    lists = torch.full((3, top_k), -1, dtype=torch.int32)
    for i, token in enumerate(range(length - 3, length)):
        count = top_k - i * (top_k // 4)
        chosen = torch.randperm(token, generator=torch.Generator().manual_seed(i))[:count].sort().values
        lists[i, : len(chosen)] = chosen.int()
    plan = sequences.plan([(0, length - 3, 3)])
    out = backend.attend_stored(
        query, sequences.cache, plan, AttentionSpec(heads, 1, dim, 0.3), 3, torch.float32, lists
    )
    for i in range(3):
        seen = keys[lists[i][lists[i] >= 0].long()].double()
        share = torch.softmax(query[i].double() @ seen.T * 0.3, -1)
        torch.testing.assert_close(out[i].double(), share @ seen, atol=2e-5, rtol=1e-4)


def test_many_keys_are_shared_out(backend: Backend) -> None:
    """One token's scores in pieces, and those of many tokens in turn, are those of each by itself."""
    keys, query, weights = rand(3000, 16, seed=1), rand(3000, 2, 16, seed=2), rand(3000, 2, seed=3)
    sequences = Sequences(backend, [keys], 64, torch.float32)
    together = sequences.select([query], [weights], [(0, 2900, 100)], 50)
    scores = scores_of(query, weights, keys)
    for i in (0, 57, 99):
        assert torch.equal(sequences.select([query], [weights], [(0, 2900 + i, 1)], 50)[0], together[i])
        exact = listed(scores[2900 + i], torch.arange(3000) <= 2900 + i, 50)
        assert len(set(exact) & set(together[i].tolist())) >= 49  # two nearly equal scores may change places


def test_padding_has_lists_of_its_own(backend: Backend) -> None:
    """Rows past the tokens are there, and read no key that does not exist."""
    keys, query, weights = rand(20, 16, seed=1), rand(20, 2, 16, seed=2), rand(20, 2, seed=3)
    sequences = Sequences(backend, [keys], 8, torch.float32)
    plan = sequences.plan([(0, 18, 2)])
    lists = backend.select_keys(query[18:], weights[18:], sequences.cache, plan, 4, 8)
    assert lists.shape == (8, 4)
    out = backend.attend_stored(
        query[18:], sequences.cache, plan, AttentionSpec(2, 1, 16, 1.0), 8, torch.float32, lists
    )
    assert not out[2:].any()
    assert out[:2].all()
