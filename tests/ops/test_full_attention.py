"""Attention in which all queries of a run see all of its keys, against a plain one in float64, and in other batches."""

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, DistanceBias, PositionScores
from tests.ops.conftest import rounds_queries


def reference(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: DistanceBias | None = None) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(group, 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * scale
    if bias is not None:
        queries, keys = torch.arange(len(query)) + len(key) - len(query), torch.arange(len(key))
        at = (keys - queries[:, None] + bias.origin).clamp(0, bias.table.shape[1] - 1)
        scores = scores + bias.table.double()[:, at]
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


SHAPES = [
    (4, 4, 64, 64),
    (2, 2, 72, 72),
    (6, 2, 80, 80),
    (3, 3, 88, 88),
    (4, 1, 16, 24),
    (2, 2, 21, 33),
    (2, 2, 256, 256),
]


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "value_dim"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_the_plain_formula(
    backend: Backend,
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    query = torch.randn(700, heads, dim, generator=generator).to(dtype)
    key = torch.randn(900, kv_heads, dim, generator=generator).to(dtype)
    value = torch.randn(900, kv_heads, value_dim, generator=generator).to(dtype)
    # As many, fewer and more queries than keys; one of each; none; keys that two runs share. Rows 580 to 589 in none.
    runs = [(0, 300, 0, 300), (300, 5, 310, 577), (305, 265, 310, 3), (570, 1, 899, 1), (571, 9, 40, 0)]
    runs += [(590, 0, 5, 5), (590, 110, 0, 300)]
    got = backend.full_attention(query, key, value, dim**-0.5, runs)
    assert got.dtype == dtype
    assert got.shape == (700, heads, value_dim)
    pairs = dtype == torch.bfloat16 and rounds_queries(backend, dtype)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 4e-2 if pairs else 1e-2}[dtype]
    for first, count, first_key, keys in runs:
        seen = slice(first_key, first_key + keys)
        want = reference(query[first : first + count], key[seen], value[seen], dim**-0.5)
        found = got[first : first + count].double()
        torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)
    assert not got[571:590].any()


@pytest.mark.parametrize("reach", [(130, 259), (5, 8), (0, 1), (20, 21)])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (6, 2, 24)])
def test_a_bias_by_distance(
    backend: Backend, heads: int, kv_heads: int, dim: int, reach: tuple[int, int], generator: torch.Generator
) -> None:
    query = torch.randn(500, heads, dim, generator=generator)
    key, value = torch.randn(2, 500, kv_heads, dim, generator=generator).unbind(0)
    origin, distances = reach
    bias = DistanceBias(torch.randn(heads, distances, generator=generator), origin)
    runs = [(0, 300, 0, 300), (300, 1, 300, 1), (301, 199, 301, 199)]
    got = backend.full_attention(query, key, value, 0.2, runs, bias)
    for first, count, _, _ in runs:
        own = slice(first, first + count)
        want = reference(query[own], key[own], value[own], 0.2, bias)
        torch.testing.assert_close(got[own].double(), want, rtol=1e-5, atol=1e-5)
        alone = backend.full_attention(query[own], key[own], value[own], 0.2, [(0, count, 0, count)], bias)
        assert torch.equal(alone, got[own])
    some = DistanceBias(bias.table[heads // 2 :].contiguous(), origin)
    halves = query[:, heads // 2 :], key[:, kv_heads // 2 :], value[:, kv_heads // 2 :]
    assert torch.equal(backend.full_attention(*halves, 0.2, runs, some), got[:, heads // 2 :])


@pytest.mark.parametrize("terms", ["query", "key", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_with_vectors_of_distances(
    backend: Backend, terms: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    heads, dim, vectors, reach = 3, 24, 11, 40
    query, key, value = torch.randn(3, 420, heads, dim, generator=generator).to(dtype).unbind(0)
    of_query, of_key = torch.randn(2, 420, heads, vectors, generator=generator).unbind(0)
    numbers = torch.randint(vectors, (2 * reach + 1,), generator=generator)
    runs = [(0, 300, 0, 300), (300, 1, 300, 1), (301, 119, 301, 119)]

    def scores(own: slice) -> PositionScores:
        given = (None if terms == "key" else of_query[own], None if terms == "query" else of_key[own])
        return PositionScores(*given, numbers, reach)

    got = backend.full_attention(query, key, value, 0.2, runs, scores(slice(None)))
    pairs = dtype == torch.bfloat16 and rounds_queries(backend, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2 if pairs else 1e-2
    for first, count, _, _ in runs:
        own, at = slice(first, first + count), torch.arange(count)
        number = numbers[(at - at[:, None] + reach).clamp(0, 2 * reach)]  # [queries, keys]
        want = torch.einsum("qhd,khd->hqk", query[own].double(), key[own].double())
        if terms != "key":
            want += of_query[own].double()[at[:, None], :, number].permute(2, 0, 1)
        if terms != "query":
            want += of_key[own].double()[at[None, :], :, number].permute(2, 0, 1)
        want = torch.einsum("hqk,khd->qhd", (want * 0.2).softmax(-1), value[own].double())
        torch.testing.assert_close(got[own].double(), want, rtol=tolerance, atol=tolerance)
        alone = backend.full_attention(query[own], key[own], value[own], 0.2, [(0, count, 0, count)], scores(own))
        assert torch.equal(alone, got[own])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (2, 2, 72), (6, 2, 80)])
def test_the_same_bits_whatever_the_other_runs_are(
    backend: Backend, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    counts = [577, 1, 64, 130, 577, 300]
    both = heads + 2 * kv_heads
    items = [torch.randn(n, both, dim, generator=generator).to(dtype) for n in counts]

    def attend(chosen: list[int]) -> list[Tensor]:
        rows = torch.cat([items[i] for i in chosen])
        runs, first = [], 0
        for i in chosen:
            runs.append((first, counts[i], first, counts[i]))
            first += counts[i]
        # Queries, keys and values as a product leaves them, side by side.
        out = backend.full_attention(*rows.split([heads, kv_heads, kv_heads], 1), dim**-0.5, runs)
        return list(out.split([counts[i] for i in chosen]))

    alone = [attend([i])[0] for i in range(len(items))]
    for chosen in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 4], [2] * 9 + [0]):
        for i, got in zip(chosen, attend(chosen), strict=True):
            assert torch.equal(got, alone[i])
    # What lies beside a run's keys is not looked at, and it does not matter where in memory all of this lies.
    rows = torch.full((577 + 40, both, dim), torch.nan, dtype=dtype)
    rows[23 : 23 + 577] = items[0]
    split = [x.contiguous() for x in rows.split([heads, kv_heads, kv_heads], 1)]
    assert torch.equal(backend.full_attention(*split, dim**-0.5, [(23, 577, 23, 577)])[23:600], alone[0])


def test_many_keys(backend: Backend, generator: torch.Generator) -> None:
    """More than are summed by themselves, by threads that share them, as far as there is little else to share."""
    query = torch.randn(300, 2, 32, generator=generator)
    key, value = torch.randn(2, 9000, 2, 32, generator=generator).unbind(0)
    together = backend.full_attention(query, key, value, 0.2, [(0, 300, 0, 9000)])
    torch.testing.assert_close(together.double(), reference(query, key, value, 0.2), rtol=1e-5, atol=1e-5)
    one = [backend.full_attention(query[i : i + 1], key, value, 0.2, [(0, 1, 0, 9000)]) for i in (0, 157, 299)]
    assert torch.equal(torch.cat(one), together[[0, 157, 299]])
