"""Triton's kernels for keys of several tokens each: a sample of what `make triton` tries, against the reference."""

import pytest
import torch

from octavo.ops import AttentionSpec, Backend, PooledKeys, PoolSpec
from octavo.ops.paged_cache import INT4
from tests.ops.conftest import REFERENCE
from tests.ops.test_pooled_keys import Sequences, random

pytest.importorskip("triton")

LENGTHS = [1, 9, 21]
HEADS, DIM, RATIO, BLOCK = 6, 40, 4, 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, INT4], ids=str)
def test_attention_and_entries(triton_backend: Backend, dtype: torch.dtype) -> None:
    """The reference's values of the reference's bytes, and a token's bits whatever is computed beside it."""
    ours, theirs = (Sequences(backend, BLOCK, LENGTHS) for backend in (triton_backend, REFERENCE))
    near, far = theirs.cache(DIM, dtype), theirs.cache(DIM, dtype, RATIO)
    theirs.store([random(n, DIM, seed=n) for n in LENGTHS], near)
    mine, tokens = ours.cache(DIM, dtype, RATIO), sum(LENGTHS)
    rows = random(tokens, 2 * DIM)[:, :DIM]
    for sequences, cache in ((ours, mine), (theirs, far)):
        sequences.backend.store_pooled(rows, cache, sequences.whole(), RATIO)
    assert torch.equal(mine.keys, far.keys)

    query, spec = random(tokens, HEADS, DIM), AttentionSpec(HEADS, 1, DIM, DIM**-0.5, sinks=random(HEADS))
    selected = torch.full((tokens + 2, 3), -1, dtype=torch.int32)
    selected[[9, 30], 0], selected[30, 1] = torch.tensor([1, 2], dtype=torch.int32), 4
    exact = 1e-5 if dtype != torch.bfloat16 else 0.03
    for lists in (None, selected):
        pooled = PooledKeys(far, ours.whole(), RATIO, lists)
        for window, seen in ((5, pooled), (None, None)):
            plan = ours.whole(window)
            got = triton_backend.attend_pooled(query, near, plan, seen, spec, tokens + 2)
            want = REFERENCE.attend_pooled(query, near, theirs.whole(window), seen, spec, tokens + 2)
            torch.testing.assert_close(got, want, atol=exact, rtol=exact)
            assert not got[tokens:].any()
            alone = ours.plan([(2, 20, 1)], window)
            last = None if seen is None else PooledKeys(far, alone, RATIO, None if lists is None else lists[30:31])
            again = triton_backend.attend_pooled(query[30:31], near, alone, last, spec, 1)
            assert torch.equal(again[0], got[30])


@pytest.mark.parametrize("overlaps", [False, True])
def test_entries_are_means(triton_backend: Backend, overlaps: bool) -> None:
    width = DIM * (1 + overlaps)
    ours, spec = Sequences(triton_backend, BLOCK, LENGTHS), PoolSpec(RATIO, overlaps, random(RATIO, width))
    cache = ours.cache(2 * width)
    cache.keys.copy_(random(*cache.keys.shape))
    got = triton_backend.pool_keys(cache, ours.whole(), spec)
    torch.testing.assert_close(got, REFERENCE.pool_keys(cache, ours.whole(), spec), atol=2e-6, rtol=2e-6)
    assert torch.equal(triton_backend.pool_keys(cache, ours.plan([(2, 19, 1)]), spec)[0], got[29])
    assert got[29].any()


def test_padding_of_recorded_steps_is_passed_over(triton_backend: Backend) -> None:
    """A run without tokens, of a step whose runs cannot be looked at."""
    ours = Sequences(triton_backend, BLOCK, LENGTHS)
    plan = ours.plan([(2, 19, 1), (1, 7, 1)])
    plan.run_table[1, 1] = 0
    near, far = ours.cache(DIM), ours.cache(DIM, ratio=RATIO)
    rows = random(2, DIM)
    triton_backend.store_pooled(rows, far, plan, RATIO)
    assert int((far.keys != 77).any(-1).sum()) == 1
    spec = AttentionSpec(HEADS, 1, DIM, 1.0)
    out = triton_backend.attend_pooled(random(2, HEADS, DIM), near, plan, PooledKeys(far, plan, RATIO), spec, 2)
    assert out[0].any()
    assert not out[1].any()
    assert not triton_backend.pool_keys(ours.cache(2 * DIM), plan, PoolSpec(RATIO, False, random(RATIO, DIM)))[1].any()
