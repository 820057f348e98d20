"""Paged attention against a plain one in float64, and bit for bit against itself in other batches."""

import itertools
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from octavo.ops import (
    AttentionSpec,
    Backend,
    BlockSparse,
    CacheSpec,
    DistanceBias,
    HeadClip,
    HeadNorms,
    NormSpec,
    RankColumns,
    SequenceRun,
)
from octavo.ops.paged_cache import INT4
from octavo.ops.torch.rope import rotate
from octavo.token_windows import Chunk, Window, first_seen
from tests.ops.conftest import REFERENCE, assert_attended, rounds_queries


def as_cached(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What a cache keeps of values `[..., dim]`: int8 codes come with a scale for each row, int4 with more of them."""
    if dtype == INT4:
        return torch.cat([as_int4(group) for group in values.split(32, -1)], -1)
    if dtype != torch.int8:
        return values.to(dtype)
    peak = values.abs().amax(-1, keepdim=True)
    return torch.round(values * (127 / peak)) * (peak / 127)


def as_int4(group: Tensor) -> Tensor:
    """Codes 0 to 15 between the least and the largest, by a scale and a low in float16."""
    low = group.amin(-1, keepdim=True).half().float()
    scale = ((group.amax(-1, keepdim=True) - low) / 15).half().float()
    return torch.round((group - low) * (1 / scale)).clamp(0, 15) * scale + low


class Cache:
    """Blocks dealt out at random to a few sequences, filled with their keys and values."""

    def __init__(
        self,
        backend: Backend,
        lengths: list[int],
        kv_heads: int,
        dim: int,
        block_size: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        value_dim: int | None = None,
    ) -> None:
        value_dim = value_dim or dim
        self.backend, self.lengths, self.block_size = backend, lengths, block_size
        per_row = max(-(-n // block_size) for n in lengths)
        ids = torch.randperm(per_row * len(lengths), generator=generator) + 1
        self.table = ids.view(len(lengths), per_row)
        blocks = int(ids.max()) + 1
        self.cache = backend.make_cache(CacheSpec(kv_heads, dim, value_dim), blocks, block_size, dtype)
        # What no query sees may be anything finite.
        self.cache.keys.fill_(77 if dtype.is_floating_point else 7)
        self.cache.values.fill_(-55 if dtype.is_floating_point else 5)
        self.k = [as_cached(torch.randn(n, kv_heads, dim, generator=generator), dtype) for n in lengths]
        self.v = [as_cached(torch.randn(n, kv_heads, value_dim, generator=generator), dtype) for n in lengths]
        self.attend([(row, 0, k) for row, k in enumerate(self.k)], window=1)  # to be stored, whatever they see

    def attend(
        self,
        queries: list[tuple[int, int, Tensor]],
        window: Window | None = None,
        seeing: list[tuple[bool, int]] | None = None,
        **options: object,
    ) -> list[Tensor]:
        """Outputs for (row, start, queries [tokens, heads, dim]), seeing (whether all of them, from which key)."""
        runs, first = [], 0
        for (row, start, q), sees in zip(queries, seeing or [(False, 0)] * len(queries), strict=True):
            runs.append(SequenceRun(first, len(q), start, row, *sees))
            first += len(q)
        plan = self.backend.plan_attention(runs, self.table, self.block_size, window, first)
        rows = [
            torch.cat([x.flatten(1) for x in (q, *(own[row][start : start + len(q)] for own in (self.k, self.v)))], 1)
            for row, start, q in queries
        ]
        _, heads, dim = queries[0][2].shape
        spec = AttentionSpec(heads, self.k[0].shape[1], dim, 0.25, **options)
        out = self.backend.attend(torch.cat(rows), self.cache, plan, spec, None).view(first, heads, -1)
        return list(out.split([len(q) for *_, q in queries]))

    def reference(
        self,
        row: int,
        start: int,
        q: Tensor,
        window: Window | None = None,
        softcap: float | None = None,
        alibi_slopes: Tensor | None = None,
        distance_bias: DistanceBias | None = None,
        sparse: BlockSparse | None = None,
        sees_all: bool = False,
        first_key: int = 0,
        sinks: Tensor | None = None,
    ) -> Tensor:
        group = q.shape[1] // self.k[row].shape[1]
        k, v = (x[row].double().repeat_interleave(group, 1) for x in (self.k, self.v))
        scores = torch.einsum("qhd,khd->hqk", q.double(), k) * 0.25
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(len(k)) - (start + torch.arange(len(q)))[:, None]
        if alibi_slopes is not None:
            scores = scores + alibi_slopes.double().view(-1, 1, 1) * distance
        if distance_bias is not None:
            table = distance_bias.table
            at = (distance + distance_bias.origin).clamp(0, table.shape[1] - 1)
            scores = scores + table.double()[:, at]
        hidden = distance > 0
        if window:
            first = torch.tensor([first_seen(window, start + i) for i in range(len(q))])
            hidden |= torch.arange(len(k)) < first[:, None]
        if sees_all:
            hidden[:, start : start + len(q)] = False
        hidden[:, :first_key] = True
        hidden = hidden.expand(len(scores), -1, -1)
        if sparse is not None:
            key_block = torch.arange(len(k)) // sparse.block_size
            query_block = (start + torch.arange(len(q)))[:, None] // sparse.block_size
            of_head = torch.arange(len(scores)).view(-1, 1, 1) * sparse.head_step
            strided = (key_block + of_head + 1) % sparse.stride == 0
            hidden = hidden | ~((query_block - key_block < sparse.local_blocks) | strided)
        scores = scores.masked_fill(hidden, -torch.inf)
        if sinks is not None:
            more = sinks.double().view(-1, 1, 1).expand(-1, len(q), 1)
            scores, v = torch.cat([scores, more], -1), torch.cat([v, torch.zeros_like(v[:1])])
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def distances(heads: int, reach: int, generator: torch.Generator) -> DistanceBias:
    """Of `reach` tokens before, and a few after, where runs see both ways."""
    return DistanceBias(torch.randn(heads, reach + 12, generator=generator), reach)


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "window": {"window": 30},
    "chunk": {"window": Chunk(45)},
    "chunk of tiles": {"window": Chunk(128)},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": True},
    "distances": {"distance_bias": 40},
    "few distances": {"distance_bias": 3},
    "sparse": {"sparse": BlockSparse(block_size=16, local_blocks=2, stride=4, head_step=1)},
    "sparse-fine": {"sparse": BlockSparse(block_size=5, local_blocks=3, stride=8, head_step=0)},
    "sparse-coarse": {"sparse": BlockSparse(block_size=64, local_blocks=1, stride=3, head_step=2)},
}


def drawn(options: dict[str, object], heads: int, generator: torch.Generator, steepest: float = 1.0) -> dict[str, Any]:
    """The options, with numbers drawn for each head where these only say that there are some."""
    drawn = dict(options)
    if drawn.get("alibi_slopes"):
        drawn["alibi_slopes"] = torch.rand(heads, generator=generator) * steepest
    if reach := drawn.get("distance_bias"):
        drawn["distance_bias"] = distances(heads, cast(int, reach), generator)
    return drawn


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size"),
    [(4, 4, 16, 1), (9, 3, 64, 8), (9, 3, 64, 16), (8, 1, 24, 32), (5, 5, 80, 8), (2, 1, 256, 32)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, INT4])
def test_agrees_with_the_plain_formula(
    backend: Backend,
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    cache = Cache(backend, [1, 37, 300, 128], kv_heads, dim, block_size, generator, dtype)
    # One in decode, one whole prompt, one chunk in the middle, one last token.
    parts = [(0, 0, 1), (1, 0, 37), (2, 140, 100), (3, 127, 1)]
    queries = [(row, start, torch.randn(n, heads, dim, generator=generator)) for row, start, n in parts]
    for name, given in OPTIONS.items():
        options = drawn(given, heads, generator)
        for (row, start, q), got in zip(queries, cache.attend(queries, **options), strict=True):
            # A chunk may not look at keys after its end, though they are there.
            want = cache.reference(row, start, q, **options)
            assert_attended(got, want, backend, dtype, what=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, INT4])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "value_dim"), [(4, 2, 24, 16), (6, 1, 48, 32), (3, 3, 16, 40)])
@pytest.mark.parametrize("window", [None, 30, Chunk(41)])
def test_sinks_and_values_of_another_width(
    backend: Backend,
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    window: Window | None,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    cache = Cache(backend, [1, 37, 5000], kv_heads, dim, 16, generator, dtype, value_dim)
    parts = [(0, 0, 1), (1, 0, 37), (2, 4000, 130)]
    queries = [(row, start, torch.randn(n, heads, dim, generator=generator)) for row, start, n in parts]
    sinks = torch.tensor([-200.0, 3.0, 500.0, 0.0, -1.0, 8.0])[:heads]
    together = cache.attend(queries, window, sinks=sinks)
    for part, got in zip(queries, together, strict=True):
        want = cache.reference(*part, window, sinks=sinks)
        assert_attended(got, want, backend, dtype, exact=(1e-5, 1e-5))
        assert torch.equal(cache.attend([part], window, sinks=sinks)[0], got)
    row, start, q = queries[2]
    for size in (1, 7):
        chunks = [(row, start + i, q[i : i + size]) for i in range(0, len(q), size)]
        assert torch.equal(torch.cat(cache.attend(chunks, window, sinks=sinks)), together[2])
    assert torch.equal(cache.attend(queries, window)[1][:, 0], together[1][:, 0])  # a sink far below all scores
    assert not together[1][:, 2].any()  # and one far above


def test_some_of_the_heads_see_the_blocks_that_are_theirs(backend: Backend, generator: torch.Generator) -> None:
    sparse = BlockSparse(16, 2, 5, 2)
    cache = Cache(backend, [200], 1, 16, 8, generator)
    query = torch.randn(3, 6, 16, generator=generator)
    whole = cache.attend([(0, 190, query)], sparse=sparse)[0]
    some = cache.attend([(0, 190, query[:, 4:])], sparse=replace(sparse, first_head=4))[0]
    assert torch.equal(some, whole[:, 4:])
    assert not torch.equal(cache.attend([(0, 190, query[:, 4:])], sparse=sparse)[0], some)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, INT4])
@pytest.mark.parametrize("window", [None, 50, Chunk(50), "sparse", "distances"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 80), (16, 2, 24), (2, 2, 144)])
def test_same_bits_alone_together_and_in_chunks(
    backend: Backend,
    heads: int,
    kv_heads: int,
    dim: int,
    window: Window | str | None,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    lengths = [300, 45, 600, 1]  # a span of the core's has 512
    cache = Cache(backend, lengths, kv_heads, dim, 16, generator, dtype)
    bias = distances(heads, 77, generator) if window == "distances" else None
    sparse = BlockSparse(16, 2, 4, 1) if window == "sparse" else None
    window = None if isinstance(window, str) else window
    options = {"window": window, "sparse": sparse, "distance_bias": bias}
    whole = [(row, 0, torch.randn(n, heads, dim, generator=generator)) for row, n in enumerate(lengths)]
    together = cache.attend(whole, **options)
    for row, (_, _, q) in enumerate(whole):
        assert torch.equal(cache.attend([(row, 0, q)], **options)[0], together[row])
        for size in (1, 7, 130):
            chunks = [(row, i, q[i : i + size]) for i in range(0, len(q), size)]
            # Chunks of one sequence as if they were many: all in one step, and a few at a time.
            assert torch.equal(torch.cat(cache.attend(chunks, **options)), together[row])
            some = cache.attend([*chunks[-1:], *whole[:1]], **options)[0]
            assert torch.equal(some, together[row][-len(some) :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, INT4])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "value_dim"), [(8, 2, 64, 64), (3, 3, 96, 32), (4, 1, 32, 80)])
def test_how_tokens_lie_changes_no_bit(
    backend: Backend,
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    """Blocks of 16 tokens may have them in pairs, those of 8 have not."""
    lengths = [300, 37, 1]
    caches = [Cache(backend, lengths, kv_heads, dim, size, generator, dtype, value_dim) for size in (16, 8)]
    caches[1].k, caches[1].v = caches[0].k, caches[0].v
    whole = [(row, 0, torch.randn(n, heads, dim, generator=generator)) for row, n in enumerate(lengths)]
    # Token by token the second time, as answers come.
    apart = [(row, i, q[i : i + 1]) for row, _, q in whole for i in range(len(q))]
    paired, rows = caches[0].attend(whole), caches[1].attend(apart)
    assert torch.equal(torch.cat(paired), torch.cat(rows))


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "block_size"), [(9, 3, 64, 16), (8, 1, 24, 32), (5, 5, 80, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, INT4])
def test_runs_that_see_both_ways_or_not_from_the_first_key(
    backend: Backend,
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    cache = Cache(backend, [37, 500, 300], kv_heads, dim, block_size, generator, dtype)
    parts = [
        (0, 0, 37, True, 0),  # a prefix
        (1, 90, 20, False, 0),  # a picture among text: longer than a tile, and than a window
        (1, 110, 301, True, 0),
        (1, 411, 9, False, 0),
        (1, 420, 1, True, 0),
        (2, 200, 3, False, 150),  # not from the first key: in the middle of a tile, at its beginning, its own
        (2, 203, 70, True, 128),
        (2, 273, 1, False, 273),
        (2, 274, 20, True, 280),
    ]
    queries = [(row, start, torch.randn(n, heads, dim, generator=generator)) for row, start, n, *_ in parts]
    seeing = [(sees_all, first_key) for *_, sees_all, first_key in parts]
    for name in ("plain", "window", "chunk", "softcap", "alibi", "distances"):
        options = drawn(OPTIONS[name], heads, generator, steepest=1 / 16)
        together = cache.attend(queries, seeing=seeing, **options)
        for (row, start, q), (sees_all, first_key), got in zip(queries, seeing, together, strict=True):
            want = cache.reference(row, start, q, sees_all=sees_all, first_key=first_key, **options)
            assert_attended(got, want, backend, dtype, what=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, INT4])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 80), (16, 2, 24)])
def test_runs_that_see_both_ways_are_the_same_bits_whatever_is_beside_them(
    backend: Backend,
    heads: int,
    kv_heads: int,
    dim: int,
    window: Window | None,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    cache = Cache(backend, [700, 200, 5000], kv_heads, dim, 16, generator, dtype)
    # Text, a picture, text, a picture right after another, which see not all that is before.
    cuts, seeing = [0, 75, 310, 330, 470, 700], [(False, 0), (True, 0), (False, 0), (True, 70), (True, 333)]
    q = torch.randn(700, heads, dim, generator=generator)
    parts = [(0, first, q[first:last]) for first, last in itertools.pairwise(cuts)]
    others = [(1, 0, torch.randn(200, heads, dim, generator=generator))]
    others += [(2, 4090 + i, torch.randn(1, heads, dim, generator=generator)) for i in range(30)]
    together = cache.attend([*parts, *others], window, [*seeing, (True, 3), *[(False, i) for i in range(30)]])
    for part, sees, want in zip(parts, seeing, together[:5], strict=True):
        assert torch.equal(cache.attend([part], window, [sees])[0], want)
        if not sees[0]:
            row, start, rows = part
            for size in (1, 7, 64):
                chunks = [(row, start + i, rows[i : i + size]) for i in range(0, len(rows), size)]
                assert torch.equal(torch.cat(cache.attend(chunks, window)), want)
    long = (2, 4030, torch.randn(150, heads, dim, generator=generator))  # over a span's end
    alone = cache.attend([long], window, [(True, 100)])[0]
    assert torch.equal(
        cache.attend([parts[1], long, *others], window, [(True, 0), (True, 100)] + [(True, 0)] * 31)[1], alone
    )
    last = (2, 4179, long[2][-1:])  # sees the same keys
    if window is None:
        assert torch.equal(cache.attend([last], window, [(False, 100)])[0], alone[-1:])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [0, 5, 12])
def test_positions(
    backend: Backend, interleaved: bool, dtype: torch.dtype, pairs: int, generator: torch.Generator
) -> None:
    """Queries are turned, keys are turned in the cache, values are in the cache as they were."""
    tokens, heads, kv_heads, dim = 11, 4, 2, 24
    qkv = torch.randn(tokens + 3, heads + 2 * kv_heads, dim, generator=generator).to(dtype)  # 3 rows of padding
    angle = torch.randn(tokens + 3, pairs, generator=generator)
    table = torch.tensor([[3, 1, 2]])
    plan = backend.plan_attention([SequenceRun(0, tokens, 0, 0)], table, 4, None, tokens)
    spec = AttentionSpec(heads, kv_heads, dim, 0.25, interleaved=interleaved)
    turned = torch.cat([rotate(qkv[:, :-kv_heads], angle.cos(), angle.sin(), interleaved), qkv[:, -kv_heads:]], 1)
    cache, other = (backend.make_cache(CacheSpec(kv_heads, dim, dim), 4, 4, dtype) for _ in range(2))
    got = backend.attend(qkv.clone().flatten(1), cache, plan, spec, (angle.cos(), angle.sin()) if pairs else None)
    want = backend.attend(turned.flatten(1), other, plan, spec, None)
    torch.testing.assert_close(got.float(), want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
    held_keys = cache.keys[table[0]].transpose(1, 2).reshape(12, kv_heads, dim)[:tokens]
    held_values = cache.values[table[0]].transpose(1, 2).reshape(12, kv_heads, dim)[:tokens]
    torch.testing.assert_close(held_keys.float(), turned[:tokens, heads:-kv_heads], rtol=1e-2, atol=1e-6)
    assert torch.equal(held_values, qkv[:tokens, -kv_heads:])
    assert not cache.keys[0].any()
    assert not got[tokens:].any()


def test_queries_that_grow_with_their_positions(backend: Backend, generator: torch.Generator) -> None:
    tokens, heads, kv_heads, dim = 11, 4, 2, 24
    qkv = torch.randn(tokens + 3, heads + 2 * kv_heads, dim, generator=generator)  # 3 rows of padding
    factors = torch.randn(tokens + 3, generator=generator)
    plan = backend.plan_attention([SequenceRun(0, tokens, 0, 0)], torch.tensor([[3, 1, 2]]), 4, None, tokens)
    spec, caches = AttentionSpec(heads, kv_heads, dim, 0.25), [CacheSpec(kv_heads, dim, dim)] * 2
    cache, other = (backend.make_cache(each, 4, 4, torch.float32) for each in caches)
    got = backend.attend(qkv.clone().flatten(1), cache, plan, spec, None, factors)
    scaled = torch.cat([qkv[:, :heads] * factors[:, None, None], qkv[:, heads:]], 1)
    assert torch.equal(got, backend.attend(scaled.flatten(1), other, plan, spec, None))


def test_queries_with_weights(backend: Backend, generator: torch.Generator) -> None:
    tokens, heads, kv_heads, dim = 11, 4, 2, 24
    qkv = torch.randn(tokens + 3, heads + 2 * kv_heads, dim, generator=generator)  # 3 rows of padding
    weights = torch.randn(dim, generator=generator)
    plan = backend.plan_attention([SequenceRun(0, tokens, 0, 0)], torch.tensor([[3, 1, 2]]), 4, None, tokens)
    cache, other = (backend.make_cache(CacheSpec(kv_heads, dim, dim), 4, 4, torch.float32) for _ in range(2))
    spec = AttentionSpec(heads, kv_heads, dim, 0.25, query_weights=weights)
    got = backend.attend(qkv.clone().flatten(1), cache, plan, spec, None)
    weighted = torch.cat([qkv[:, :heads] * weights, qkv[:, heads:]], 1)
    plain = replace(spec, query_weights=None)
    assert torch.equal(got, backend.attend(weighted.flatten(1), other, plan, plain, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5000, Chunk(4500)])
def test_a_long_context_is_the_same_whoever_shares_it(
    backend: Backend, window: Window | None, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Of 9,000 keys, which the core sums in spans of 512: by threads that share a few queries, or each by one."""
    length, heads, dim = 9000, 6, 32
    cache = Cache(backend, [length], 2, dim, 16, generator, dtype)
    q = torch.randn(200, heads, dim, generator=generator)
    together = cache.attend([(0, length - 200, q)], window)[0]
    for first, last in ((199, 200), (0, 1), (40, 47)):
        alone = cache.attend([(0, length - 200 + first, q[first:last])], window)[0]
        assert torch.equal(alone, together[first:last])
    singles = [(0, length - 200 + i, q[i : i + 1]) for i in range(0, 200, 10)]
    assert torch.equal(torch.cat(cache.attend(singles, window)), together[::10])
    want = cache.reference(0, length - 200, q, window)
    assert_attended(together, want, backend, dtype, exact=(1e-5, 1e-5), rounded=(2e-2, 2e-2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, INT4])
def test_what_is_stored_apart_is_attended_alike(
    backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """As cross-attention and latent attention do it."""
    tokens, heads, kv_heads, dim, spec = 20, 4, 2, 24, AttentionSpec(4, 2, 24, 0.25)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=generator)
    plan = backend.plan_attention([SequenceRun(0, tokens, 0, 0)], torch.tensor([[1, 2]]), 16, None, tokens)
    cache, other = (backend.make_cache(CacheSpec(kv_heads, dim, dim), 3, 16, dtype) for _ in range(2))
    query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
    backend.store(key, value, other, plan)
    got = backend.attend_stored(query, other, plan, spec, tokens + 2, torch.float32)
    want = backend.attend(qkv.flatten(1), cache, plan, spec, None)
    assert torch.equal(got[:tokens].flatten(1), want)
    assert not got[tokens:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, INT4])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 17, 35, 39])
def test_what_is_not_finite_is_not_made_finite(
    backend: Backend, place: int, bad: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """By the codes of a cache: a sequence that has overflowed is found by its hidden states, the others go on."""
    plan = backend.plan_attention([SequenceRun(0, 3, 0, 0)], torch.tensor([[1]]), 4, None, 3)
    key = torch.randn(3, 1, 40, generator=generator)
    value = key.clone()
    value[2, 0, place] = bad
    cache, spec = backend.make_cache(CacheSpec(1, 40, 40), 2, 4, dtype), AttentionSpec(1, 1, 40, 0.25)
    backend.store(key, value, cache, plan)
    got = backend.attend_stored(key, cache, plan, spec, 3, torch.float32)
    assert not got[2, 0, place].isfinite()


def test_what_float16_has_not_is_its_largest(backend: Backend) -> None:
    """Of a group of 4-bit codes, whose scale and low are float16: large numbers, and all the same, stay finite."""
    plan = backend.plan_attention([SequenceRun(0, 1, 0, 0)], torch.tensor([[1]]), 4, None, 1)
    value = torch.zeros(1, 1, 100)
    value[0, 0, :32], value[0, 0, 32:64], value[0, 0, 64:96], value[0, 0, 96:] = 3e38, 3.5, -1e30, 0.0
    value[0, 0, 5] = -3e38
    cache, spec = backend.make_cache(CacheSpec(1, 100, 100), 2, 4, INT4), AttentionSpec(1, 1, 100, 0.25)
    backend.store(torch.zeros(1, 1, 100), value, cache, plan)
    got = backend.attend_stored(torch.zeros(1, 1, 100), cache, plan, spec, 1, torch.float32)[0, 0]
    assert got.isfinite().all()
    rounded = 1 / 256 if rounds_queries(backend, INT4) else 0.0
    assert got[5] == pytest.approx(-65504, rel=rounded)
    assert got[6] == pytest.approx(14 * 65504, rel=rounded)
    assert (got[32:64] == 3.5).all()
    assert got[64:96].numpy() == pytest.approx(-65504, rel=rounded)
    assert not got[96:].any()


@pytest.mark.parametrize("dim", [1, 3, 16, 32, 33, 80])
def test_codes_are_those_of_the_reference(backend: Backend, dim: int, generator: torch.Generator) -> None:
    """Bytes that one backend has stored could be another's."""
    plan = backend.plan_attention([SequenceRun(0, 4, 0, 0)], torch.tensor([[1]]), 4, None, 4)
    key = torch.randn(4, 2, dim, generator=generator) * torch.tensor([1e-9, 0.1, 7.0, 3e4]).view(4, 1, 1)
    held = []
    for made in (backend, REFERENCE):
        cache = made.make_cache(CacheSpec(2, dim, dim), 2, 4, INT4)
        made.store(key, key, cache, plan)
        held.append(cache)
    assert torch.equal(held[0].keys, held[1].keys)
    assert held[0].keys[1].any()


def test_tokens_of_no_run_attend_to_nothing(backend: Backend, generator: torch.Generator) -> None:
    """As in cross-attention, of text before the first picture."""
    cache, spec = backend.make_cache(CacheSpec(2, 8, 8), 2, 16, torch.float32), AttentionSpec(4, 2, 8, 0.25)
    table, runs = torch.tensor([[1]]), [SequenceRun(5, 3, 0, 0)]
    key = torch.randn(3, 2, 8, generator=generator)
    backend.store(key, key, cache, backend.plan_attention([SequenceRun(0, 3, 0, 0)], table, 16, None, 3))
    for _ in range(4):  # memory that was used before is what comes back where nothing writes to it
        torch.full((8, 4, 8), torch.nan)
        query = torch.randn(8, 4, 8, generator=generator)
        got = backend.attend_stored(
            query, cache, backend.plan_attention(runs, table, 16, None, 8), spec, 8, torch.float32
        )
        assert not got[:5].any()
        assert got[5:].all()


NORMS = {
    "rms": lambda size: NormSpec("rms", torch.rand(size), None, 1e-5),
    "layer": lambda size: NormSpec("layer", torch.rand(size), torch.rand(size), 1e-5),
    "bare": lambda size: NormSpec("layer", None, None, 1e-5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*NORMS, "each head", "full width"])
@pytest.mark.parametrize("order", ["norm", "clip", "norm, clip", "clip, norm"])
def test_norms_and_clips_of_heads(
    backend: Backend, order: str, kind: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """As if they had been applied before, one row at a time."""
    tokens, heads, kv_heads, dim = 9, 4, 2, 24

    def norms(count: int) -> NormSpec:
        if kind == "each head":
            return NormSpec("layer", torch.rand(count, dim, generator=generator), None, 1e-5)
        return NORMS["layer" if kind == "full width" else kind](count * dim if kind == "full width" else dim)

    both = {"norm": HeadNorms(norms(heads), norms(kv_heads), kind == "full width"), "clip": HeadClip(0.7)}
    transforms = tuple(both[name] for name in order.split(", "))
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=generator).to(dtype)
    changed = qkv
    for transform in transforms:
        if isinstance(transform, HeadClip):
            changed = changed.clamp(-0.7, 0.7)
            continue
        parts = []
        query, key, value = changed.split([heads, kv_heads, kv_heads], 1)
        for norm, part in ((transform.query, query), (transform.key, key)):
            x = part.double().flatten(1) if transform.full_width else part.double()
            x = x if norm.kind == "rms" else x - x.mean(-1, keepdim=True)
            x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            x = x * (1 if norm.weight is None else norm.weight) + (0 if norm.bias is None else norm.bias)
            parts.append(x.view(part.shape).to(dtype))
        changed = torch.cat([*parts, value], 1)
    plan = backend.plan_attention([SequenceRun(0, tokens, 0, 0)], torch.tensor([[1, 2, 3]]), 4, None, tokens)
    found = []
    for rows, spec in (
        (qkv, AttentionSpec(heads, kv_heads, dim, 0.25, transforms=transforms)),
        (changed, AttentionSpec(heads, kv_heads, dim, 0.25)),
    ):
        cache = backend.make_cache(CacheSpec(kv_heads, dim, dim), 4, 4, torch.float32)
        found.append(backend.attend(rows.clone().flatten(1), cache, plan, spec, None))
        found.append(cache.keys)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found[0], found[2], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found[1], found[3], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_heads_that_several_ranks_have(
    backend: Backend, dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two ranks, which share a key head: the bits of what one rank alone gives for its heads."""
    tokens, heads, dim = 9, 4, 24
    norms = NORMS["rms"](heads * dim), NORMS["layer"](dim)
    qkv = torch.randn(tokens, (heads + 2) * dim, generator=generator).to(dtype)
    query, key, value = (part.clone() for part in qkv.split([heads * dim, dim, dim], 1))
    plan = backend.plan_attention([SequenceRun(0, tokens, 0, 0)], torch.tensor([[1, 2, 3]]), 4, None, tokens)

    def attend(rows: Tensor, heads: int, transform: HeadNorms) -> Tensor:
        cache = backend.make_cache(CacheSpec(1, dim, dim), 4, 4, torch.float32)
        spec = AttentionSpec(heads, 1, dim, 0.25, transforms=(transform,))
        return backend.attend(rows.clone(), cache, plan, spec, None)

    whole = attend(qkv, heads, HeadNorms(*norms, full_width=True))
    gathered = iter([query, key])

    def all_gather(x: Tensor, widths: tuple[int, ...]) -> Tensor:
        given = next(gathered)
        assert given.shape[1] == sum(widths)
        assert torch.equal(x, given[:, given.shape[1] - widths[1] :])
        return given

    monkeypatch.setattr(backend, "all_gather", all_gather)
    half = heads // 2 * dim
    columns = RankColumns((half, half), half, half), RankColumns((dim, 0), 0, 0)
    some = attend(torch.cat([query[:, half:], key, value], 1), heads // 2, HeadNorms(*norms, True, *columns))
    assert torch.equal(some, whole[:, half:])
