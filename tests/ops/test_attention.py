"""Paged attention against a plain one in float64, and bit for bit against itself in other batches."""

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, BlockSparse, SequenceRun, cache_row, plan_attention
from octavo.ops.torch.rope import rotate


def as_cached(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What a cache keeps of values `[..., dim]`: int8 codes come with a scale for each row."""
    if dtype != torch.int8:
        return values.to(dtype)
    peak = values.abs().amax(-1, keepdim=True)
    return torch.round(values * (127 / peak)) * (peak / 127)


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
    ) -> None:
        self.backend, self.lengths, self.block_size = backend, lengths, block_size
        per_row = max(-(-n // block_size) for n in lengths)
        ids = torch.randperm(per_row * len(lengths), generator=generator) + 1
        self.table = ids.view(len(lengths), per_row)
        blocks = int(ids.max()) + 1
        # What no query sees may be anything finite.
        row = cache_row(dim, dtype)
        finite = (77.0, -55.0) if dtype != torch.int8 else (7, 5)
        self.keys = torch.full((blocks, kv_heads, block_size, row), finite[0], dtype=dtype)
        self.values = torch.full((blocks, kv_heads, block_size, row), finite[1], dtype=dtype)
        self.k = [as_cached(torch.randn(n, kv_heads, dim, generator=generator), dtype) for n in lengths]
        self.v = [as_cached(torch.randn(n, kv_heads, dim, generator=generator), dtype) for n in lengths]
        self.paired = backend.pairs(self.keys, self.values)
        for row, length in enumerate(lengths):
            plan = plan_attention([SequenceRun(0, length, 0, row)], self.table, block_size, None, length)
            qkv = torch.cat([self.k[row], self.k[row], self.v[row]], 1)
            backend.rotate_store(qkv, None, False, self.keys, self.values, plan, self.paired)

    def attend(
        self, queries: list[tuple[int, int, Tensor]], window: int | None = None, **options: object
    ) -> list[Tensor]:
        """Outputs for (row, start, queries [tokens, heads, dim])."""
        runs, first = [], 0
        for row, start, q in queries:
            runs.append(SequenceRun(first, len(q), start, row))
            first += len(q)
        plan = plan_attention(runs, self.table, self.block_size, window, first)
        query = torch.cat([q for *_, q in queries])
        out = self.backend.paged_attention(
            query, self.keys, self.values, plan, first, torch.float32, 0.25, paired=self.paired, **options
        )
        return list(out.split([len(q) for *_, q in queries]))

    def reference(
        self,
        row: int,
        start: int,
        q: Tensor,
        window: int | None = None,
        softcap: float | None = None,
        alibi_slopes: Tensor | None = None,
        sparse: BlockSparse | None = None,
    ) -> Tensor:
        group = q.shape[1] // self.k[row].shape[1]
        k, v = (x[row].double().repeat_interleave(group, 1) for x in (self.k, self.v))
        scores = torch.einsum("qhd,khd->hqk", q.double(), k) * 0.25
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(len(k)) - (start + torch.arange(len(q)))[:, None]
        if alibi_slopes is not None:
            scores = scores + alibi_slopes.double().view(-1, 1, 1) * distance
        hidden = distance > 0
        if window:
            hidden |= distance <= -window
        hidden = hidden.expand(len(scores), -1, -1)
        if sparse is not None:
            key_block = torch.arange(len(k)) // sparse.block_size
            query_block = (start + torch.arange(len(q)))[:, None] // sparse.block_size
            of_head = torch.arange(len(scores)).view(-1, 1, 1) * sparse.head_step
            strided = (key_block + of_head + 1) % sparse.stride == 0
            hidden = hidden | ~((query_block - key_block < sparse.local_blocks) | strided)
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "window": {"window": 30},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": True},
    "sparse": {"sparse": BlockSparse(block_size=16, local_blocks=2, stride=4, head_step=1)},
    "sparse-fine": {"sparse": BlockSparse(block_size=5, local_blocks=3, stride=8, head_step=0)},
    "sparse-coarse": {"sparse": BlockSparse(block_size=64, local_blocks=1, stride=3, head_step=2)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size"),
    [(4, 4, 16, 1), (9, 3, 64, 8), (9, 3, 64, 16), (8, 1, 24, 32), (5, 5, 80, 8), (2, 1, 256, 32)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_agrees_with_the_plain_formula(
    backend: Backend,
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
    options: dict[str, object],
    generator: torch.Generator,
) -> None:
    options = dict(options)
    if options.get("alibi_slopes"):
        options["alibi_slopes"] = torch.rand(heads, generator=generator)
    cache = Cache(backend, [1, 37, 300, 128], kv_heads, dim, block_size, generator, dtype)
    # One in decode, one whole prompt, one chunk in the middle, one last token.
    parts = [(0, 0, 1), (1, 0, 37), (2, 140, 100), (3, 127, 1)]
    queries = [(row, start, torch.randn(n, heads, dim, generator=generator)) for row, start, n in parts]
    for (row, start, q), got in zip(queries, cache.attend(queries, **options), strict=True):
        # A chunk may not look at keys after its end, though they are there.
        want = cache.reference(row, start, q, **options)
        if dtype == torch.bfloat16 and backend.bfloat16_pairs:
            # The processor's product of bfloat16 pairs: queries and weights are rounded too, to 8 bits. A score of
            # 10, which widths of 256 reach here, is off by 10 / 512, so that a weight is by 2%.
            torch.testing.assert_close(got.double(), want, rtol=4e-2, atol=4e-2)
        else:
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("window", [None, 50, "sparse"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 80), (16, 2, 24), (2, 2, 144)])
def test_same_bits_alone_together_and_in_chunks(
    backend: Backend,
    heads: int,
    kv_heads: int,
    dim: int,
    window: int | str | None,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    lengths = [300, 45, 1100, 1]
    cache = Cache(backend, lengths, kv_heads, dim, 16, generator, dtype)
    window, sparse = (None, BlockSparse(16, 2, 4, 1)) if window == "sparse" else (window, None)
    whole = [(row, 0, torch.randn(n, heads, dim, generator=generator)) for row, n in enumerate(lengths)]
    together = cache.attend(whole, window, sparse=sparse)
    for row, (_, _, q) in enumerate(whole):
        assert torch.equal(cache.attend([(row, 0, q)], window, sparse=sparse)[0], together[row])
        for size in (1, 7, 130):
            chunks = [(row, i, q[i : i + size]) for i in range(0, len(q), size)]
            # Chunks of one sequence as if they were many: all in one step, and a few at a time.
            assert torch.equal(torch.cat(cache.attend(chunks, window, sparse=sparse)), together[row])
            some = cache.attend([*chunks[-1:], *whole[:1]], window, sparse=sparse)[0]
            assert torch.equal(some, together[row][-len(some) :])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [0, 5, 12])
def test_rotate_store(
    backend: Backend, interleaved: bool, dtype: torch.dtype, pairs: int, generator: torch.Generator
) -> None:
    """Queries come back turned, keys are turned in the cache, values are in the cache as they were."""
    tokens, heads, kv_heads, dim = 11, 4, 2, 24
    qkv = torch.randn(tokens + 3, heads + 2 * kv_heads, dim, generator=generator).to(dtype)  # 3 rows of padding
    angle = torch.randn(tokens + 3, pairs, generator=generator)
    table = torch.tensor([[3, 1, 2]])
    keys, values = torch.zeros(4, kv_heads, 4, dim, dtype=dtype), torch.zeros(4, kv_heads, 4, dim, dtype=dtype)
    plan = plan_attention([SequenceRun(0, tokens, 0, 0)], table, 4, None, tokens)
    angles = (angle.cos(), angle.sin()) if pairs else None
    query = backend.rotate_store(qkv, angles, interleaved, keys, values, plan)
    turned = rotate(qkv, angle.cos(), angle.sin(), interleaved)[:tokens]
    torch.testing.assert_close(query, turned[:, :heads])
    held_keys = keys[table[0]].transpose(1, 2).reshape(12, kv_heads, dim)[:tokens]
    held_values = values[table[0]].transpose(1, 2).reshape(12, kv_heads, dim)[:tokens]
    torch.testing.assert_close(held_keys.float(), turned[:, heads : heads + kv_heads], rtol=1e-2, atol=1e-6)
    assert torch.equal(held_values, qkv[:tokens, heads + kv_heads :])
    assert not keys[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5000])
def test_a_long_context_is_the_same_whoever_shares_it(
    backend: Backend, window: int | None, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Of 9,000 keys, which the core sums in three spans: by threads that share a few queries, or each by one."""
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
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5  # bfloat16: see above
    torch.testing.assert_close(together.double(), want, rtol=tolerance, atol=tolerance)
