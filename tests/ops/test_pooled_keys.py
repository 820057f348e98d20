"""Keys of several tokens each: against plain ones in float64, and bit for bit whatever else is in the step."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from octavo.ops import AttentionPlan, AttentionSpec, Backend, CacheSpec, KVCache, PooledKeys, PoolSpec, SequenceRun
from octavo.ops.paged_cache import INT4
from tests.ops.conftest import assert_attended, rounds_queries, rounds_to_words
from tests.ops.test_attention import as_cached

LENGTHS = [1, 37, 90]
RATIOS = [(1, 16), (3, 4), (4, 16), (10, 8), (128, 16), (16, 32)]
"""Tokens of an entry, and of a block."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@dataclass
class Sequences:
    """Some sequences, whose blocks lie anywhere."""

    backend: Backend
    block_size: int
    lengths: list[int]

    def __post_init__(self) -> None:
        each = -(-max(self.lengths) // self.block_size)
        order = torch.randperm(each * len(self.lengths), generator=torch.Generator().manual_seed(7)) + 1
        self.table, self.blocks = order.view(len(self.lengths), each), len(order) + 1

    def cache(self, dim: int, dtype: torch.dtype = torch.float32, ratio: int = 1) -> KVCache:
        made = self.backend.make_cache(CacheSpec(1, dim, 0, ratio), self.blocks, self.block_size, dtype)
        made.keys.fill_(77)  # what nobody sees may be anything finite
        return made

    def plan(self, parts: list[tuple[int, int, int]], window: int | None = None) -> AttentionPlan:
        """Of `parts`: a sequence, its first token, and how many."""
        runs, rows = [], 0
        for row, start, count in parts:
            runs.append(SequenceRun(rows, count, start, row))
            rows += count
        return self.backend.plan_attention(runs, self.table, self.block_size, window, rows)

    def whole(self, window: int | None = None) -> AttentionPlan:
        return self.plan([(row, 0, n) for row, n in enumerate(self.lengths)], window)

    def store(self, values: list[Tensor], cache: KVCache, ratio: int = 1) -> None:
        """`[entries, dim]` of each sequence."""
        for row, of in enumerate(values):
            for number, value in enumerate(of):
                last = (number + 1) * ratio - 1
                plan = self.plan([(row, last, 1)])
                if ratio == 1:
                    self.backend.store(value.view(1, 1, -1), None, cache, plan)
                else:
                    self.backend.store_pooled(value.view(1, -1), cache, plan, ratio)


def cuts(lengths: list[int]) -> list[list[tuple[int, int, int]]]:
    """The sequences in steps: each by itself in pieces of 5, and one token of each beside what is left of another."""
    alone = [[(row, start, min(5, n - start))] for row, n in enumerate(lengths) for start in range(0, n, 5)]
    return [*alone, [(row, n - 1, 1) for row, n in enumerate(lengths)]]


@pytest.mark.parametrize(("ratio", "block_size"), RATIOS[1:])
@pytest.mark.parametrize("overlaps", [False, True])
def test_an_entry_is_the_weighted_mean_of_its_tokens(
    backend: Backend, ratio: int, block_size: int, overlaps: bool
) -> None:
    dim, lengths = 24, [*LENGTHS[:2], 260]
    width = dim * (2 if overlaps else 1)
    sequences, bias = Sequences(backend, block_size, lengths), random(ratio, width)
    rows = [random(n, 2 * width, seed=n) for n in lengths]
    cache, spec = sequences.cache(2 * width), PoolSpec(ratio, overlaps, bias)
    plan = sequences.whole()
    backend.store(torch.cat(rows).unsqueeze(1), None, cache, plan)
    got = backend.pool_keys(cache, plan, spec)
    first = 0
    for of in rows:
        values, gates = of.double().split(width, dim=1)
        gates = gates + bias.double().repeat(-(-len(of) // ratio), 1)[: len(of)]
        for at in range(len(of)):
            want = torch.zeros(dim, dtype=torch.float64)
            if (at + 1) % ratio == 0:
                own = slice(at + 1 - ratio, at + 1)
                seen, by = values[own, width - dim :], gates[own, width - dim :]
                if overlaps and at + 1 > ratio:
                    before = slice(at + 1 - 2 * ratio, at + 1 - ratio)
                    seen, by = torch.cat([values[before, :dim], seen]), torch.cat([gates[before, :dim], by])
                want = (seen * torch.softmax(by, 0)).sum(0)
            torch.testing.assert_close(got[first + at].double(), want, atol=2e-6, rtol=2e-6)
        first += len(of)
    starts = [0, lengths[0], sum(lengths[:2])]
    for parts in cuts(lengths):
        part = backend.pool_keys(cache, sequences.plan(parts), spec)
        wanted = torch.cat([got[starts[row] + start : starts[row] + start + n] for row, start, n in parts])
        assert torch.equal(part, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, INT4])
@pytest.mark.parametrize(("ratio", "block_size"), RATIOS)
def test_the_best_keys_are_found_in_order(backend: Backend, ratio: int, block_size: int, dtype: torch.dtype) -> None:
    heads, dim, top_k = 5, 20, 4
    lengths = [1, 37, 90 if ratio < 16 else 700]
    sequences = Sequences(backend, block_size, lengths)
    keys, cache = [random(n // ratio, dim, seed=n) for n in lengths], sequences.cache(dim, dtype, ratio)
    sequences.store(keys, cache, ratio)
    plan, tokens = sequences.whole(), sum(lengths)
    query, weights = random(tokens, heads, dim), random(tokens, heads)
    got = backend.select_keys(query, weights, cache, plan, top_k, tokens + 3, ratio)
    assert got.dtype == torch.int32
    assert got.shape == (tokens + 3, top_k)
    row = 0
    for n, of in zip(lengths, keys, strict=True):
        for at in range(n):
            count = (at + 1) // ratio
            found = [k for k in got[row].tolist() if k >= 0]
            assert got[row].tolist() == sorted(found) + [-1] * (top_k - len(found))
            assert len(found) == min(count, top_k)
            assert all(k < count for k in found)
            held = as_cached(of[:count], dtype).double()
            products = torch.einsum("hd,kd->hk", query[row].double(), held).clamp(min=0)
            scores = (products * weights[row].double().unsqueeze(1)).sum(0)
            left = [float(scores[k]) for k in range(count) if k not in found]
            slack = 0.4 if rounds_queries(backend, dtype) else 1e-3 if rounds_to_words(backend, dtype) else 1e-4
            assert not left or max(left) <= min(float(scores[k]) for k in found) + slack
            row += 1
    starts = [0, lengths[0], sum(lengths[:2])]
    for parts in cuts(lengths):
        rows = torch.cat([torch.arange(starts[r] + start, starts[r] + start + n) for r, start, n in parts])
        part = backend.select_keys(query[rows], weights[rows], cache, sequences.plan(parts), top_k, len(rows), ratio)
        assert torch.equal(part, got[rows])


def test_of_equal_scores_the_earlier_key_is_taken(backend: Backend) -> None:
    sequences = Sequences(backend, 16, [200])
    cache = sequences.cache(8)
    sequences.store([torch.ones(200, 8)], cache)
    plan = sequences.plan([(0, 199, 1)])
    got = backend.select_keys(torch.ones(1, 2, 8), torch.ones(1, 2), cache, plan, 70, 1)
    assert got[0].tolist() == list(range(70))


def attended(query: Tensor, keys: Tensor, scale: float, sinks: Tensor | None) -> Tensor:
    """`[heads, dim]` of one token's `[heads, dim]`, in float64."""
    scores = query.double() @ keys.double().t() * scale
    if sinks is not None:
        scores = torch.cat([scores, sinks.double().unsqueeze(1)], dim=1)
        keys = torch.cat([keys, torch.zeros(1, keys.shape[1])])
    return torch.softmax(scores, 1) @ keys.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, INT4])
@pytest.mark.parametrize(("ratio", "block_size"), RATIOS)
@pytest.mark.parametrize("kind", ["window", "all", "selected"])
def test_attention_is_over_the_window_and_entries(
    backend: Backend, ratio: int, block_size: int, dtype: torch.dtype, kind: str
) -> None:
    heads, dim, window, top_k = 6, 40, 12, 5
    lengths = [1, 37, 90 if ratio < 16 else 300]
    sequences, tokens = Sequences(backend, block_size, lengths), sum(lengths)
    keys, entries = ([random(n // r, dim, seed=n + r) for n in lengths] for r in (1, ratio))
    near, far = sequences.cache(dim, dtype), sequences.cache(dim, dtype, ratio)
    sequences.store(keys, near)
    sequences.store(entries, far, ratio)
    query, sinks = random(tokens, heads, dim), random(heads)
    spec = AttentionSpec(heads, 1, dim, dim**-0.5, sinks=sinks)
    selected = torch.full((tokens + 2, top_k), -1, dtype=torch.int32)
    row = 0
    for n in lengths:
        for at in range(n):
            chosen = sorted(torch.randperm((at + 1) // ratio)[:top_k].tolist())
            selected[row, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
            row += 1

    def compute(parts: list[tuple[int, int, int]], rows: Tensor, padding: int = 0) -> Tensor:
        own = torch.nn.functional.pad(selected[rows], (0, 0, 0, padding), value=-1) if kind == "selected" else None
        pooled = None if kind == "window" else PooledKeys(far, sequences.plan(parts), ratio, own)
        return backend.attend_pooled(
            query[rows], near, sequences.plan(parts, window), pooled, spec, len(rows) + padding
        )

    everything = [(r, 0, n) for r, n in enumerate(lengths)]
    got = compute(everything, torch.arange(tokens), 2)
    assert got.shape == (tokens + 2, heads, dim)
    assert not got[tokens:].any()
    row = 0
    for n, own, of in zip(lengths, keys, entries, strict=True):
        for at in range(n):
            seen = [own[max(0, at + 1 - window) : at + 1]]
            if kind == "all":
                seen.append(of[: (at + 1) // ratio])
            elif kind == "selected":
                seen.append(of[[i for i in selected[row].tolist() if i >= 0]])
            want = attended(query[row], as_cached(torch.cat(seen), dtype), dim**-0.5, sinks)
            assert_attended(got[row], want, backend, dtype, exact=(1e-5, 5e-6), rounded=(0.02, 0.03))
            row += 1
    starts = [0, lengths[0], sum(lengths[:2])]
    for parts in cuts(lengths):
        rows = torch.cat([torch.arange(starts[r] + start, starts[r] + start + n) for r, start, n in parts])
        assert torch.equal(compute(parts, rows), got[rows])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_values_of_heads_are_rotated_and_back(backend: Backend, interleaved: bool, dtype: torch.dtype) -> None:
    x, angles = random(9, 3, 22).to(dtype), random(11, 4)
    both = (angles.cos(), angles.sin())
    turned = backend.rotate_tail(x, both, interleaved)
    assert torch.equal(turned[..., :14], x[..., :14].float())
    tail, cos, sin = x[..., 14:].double(), both[0][:9, None].double(), both[1][:9, None].double()
    one, other = (tail[..., 0::2], tail[..., 1::2]) if interleaved else tail.chunk(2, -1)
    pair = (one * cos - other * sin, other * cos + one * sin)
    want = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    torch.testing.assert_close(turned[..., 14:].double(), want, atol=1e-6, rtol=1e-6)
    assert torch.equal(backend.rotate_tail(x[3:4], (both[0][3:4], both[1][3:4]), interleaved), turned[3:4])
    back = backend.rotate_tail(turned, both, interleaved, dtype, backwards=True)
    assert back.dtype == dtype
    torch.testing.assert_close(back, x, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0.01)
