"""Attention's kernels under Triton's interpreter: against the reference, and bit for bit against themselves."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.ops import (
    AttentionPlan,
    AttentionSpec,
    Backend,
    BlockSparse,
    CacheSpec,
    DistanceBias,
    HeadClip,
    KVCache,
    SequenceRun,
)
from octavo.ops.paged_cache import INT4
from octavo.ops.specs import PositionScores
from octavo.token_windows import Chunk
from tests.ops.conftest import REFERENCE

pytest.importorskip("triton")

BLOCK = 16
SPLIT = 64
LENGTHS = (200, 45)
"""Of two sequences; the first has more keys than three splits."""
Part = tuple[int, int, int]
"""Sequence, first token, tokens."""
TOLERANCES = {torch.float32: 1e-5, torch.int8: 1e-5, INT4: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of products of numbers as the cache has them: queries and weights are rounded to these as well."""


class Scene:
    """Two sequences' keys and values in blocks at random places, and queries for all of their tokens."""

    def __init__(
        self, heads: int, kv_heads: int, dims: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        self.heads, self.kv_heads, self.dims = heads, kv_heads, dims
        width = -(-max(LENGTHS) // BLOCK)
        self.table = (torch.randperm(2 * width, generator=generator) + 1).view(2, width)
        self.cache = REFERENCE.make_cache(CacheSpec(kv_heads, *dims), 2 * width + 1, BLOCK, dtype)
        if dtype.is_floating_point:  # what no query sees may be anything finite
            self.cache.keys.fill_(77)
            self.cache.values.fill_(-55)
        for row, length in enumerate(LENGTHS):
            key = torch.randn(length, kv_heads, dims[0], generator=generator)
            value = torch.randn(length, kv_heads, dims[1], generator=generator) if dims[1] else None
            REFERENCE.store(key, value, self.cache, self.plan([(row, 0, length)]))
        self.queries = [torch.randn(n, heads, dims[0], generator=generator) for n in LENGTHS]

    def plan(self, parts: list[Part], window: Any = None, sees: tuple[bool, int] = (False, 0)) -> AttentionPlan:
        runs, first = [], 0
        for row, start, count in parts:
            runs.append(SequenceRun(first, count, start, row, *sees))
            first += count
        return REFERENCE.plan_attention(runs, self.table, BLOCK, window, first)

    def attend(
        self,
        backend: Backend,
        parts: list[Part],
        window: Any = None,
        sees: tuple[bool, int] = (False, 0),
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> list[Tensor]:
        """What each part gives."""
        query = torch.cat([self.queries[row][start : start + count] for row, start, count in parts])
        spec = AttentionSpec(self.heads, self.kv_heads, self.dims[0], 0.25, **options)
        plan = self.plan(parts, window, sees)
        out = backend.attend_stored(query, self.cache, plan, spec, len(query) + 2, dtype)
        assert not out[len(query) :].any()
        return list(out[: len(query)].split([count for *_, count in parts]))


PARTS = [(0, 197, 1), (1, 9, 21), (0, 180, 15)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 30},
    "chunk": {"window": Chunk(45)},
    "softcap and sinks": {"softcap": 2.0, "sinks": torch.tensor([-200.0, 3.0, 500.0, 0.0])},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.1, 0.02, 0.9])},
    "distances": {"distance_bias": DistanceBias(torch.linspace(-1, 2, 4 * 40).view(4, 40), 30)},
    "sparse": {"sparse": BlockSparse(block_size=5, local_blocks=3, stride=8, head_step=1, first_head=2)},
    "both ways": {"sees": (True, 0), "window": 40},
    "not from the first key": {"sees": (True, 7)},
}
CASES = [(name, 2, (24, 24), torch.float32) for name in OPTIONS]
CASES += [("plain", 2, (24, 24), dtype) for dtype in (torch.bfloat16, torch.float16, torch.int8, INT4)]
CASES += [("window", 1, (80, 40), torch.float32), ("plain", 4, (3, 5), torch.int8)]
CASES += [("window", 1, (80, 40), INT4), ("plain", 4, (3, 5), INT4)]
CASES += [("softcap and sinks", 1, (40, 0), dtype) for dtype in (torch.float32, torch.int8, INT4)]


@pytest.mark.parametrize(("name", "kv_heads", "dims", "dtype"), CASES)
def test_against_the_reference_and_the_same_bits_however_it_is_cut(
    triton_backend: Backend,
    name: str,
    kv_heads: int,
    dims: tuple[int, int],
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene, options = Scene(4, kv_heads, dims, dtype, generator), OPTIONS[name]
    together = scene.attend(triton_backend, PARTS, **options)
    tolerance = TOLERANCES[dtype]
    for got, want in zip(together, scene.attend(REFERENCE, PARTS, **options), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    monkeypatch.setattr("octavo.ops.triton.attention_launch.ENOUGH_PROGRAMS", 0)  # one program over all splits
    assert torch.equal(scene.attend(triton_backend, PARTS[:1], **options)[0], together[0])
    if "sees" not in options:
        row, start, count = PARTS[2]
        cuts = [(row, start, 4), (row, start + 4, 1), (row, start + 5, count - 5)]
        assert torch.equal(torch.cat(scene.attend(triton_backend, cuts, **options)), together[2])


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.ops.triton.attention_launch.SPLIT", SPLIT)


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_random_schedules_give_the_same_bits(triton_backend: Backend, data: st.DataObject) -> None:
    """Of a sequence's tokens in steps of any sizes, beside another's."""
    scene = Scene(2, 1, (16, 16), torch.float32, torch.Generator().manual_seed(1))
    whole = scene.attend(triton_backend, [(0, 150, 40)])[0]
    start, parts = 150, []
    while start < 190:
        count = data.draw(st.integers(1, min(24, 190 - start)))
        before = [(1, data.draw(st.integers(0, 20)), data.draw(st.integers(1, 20)))] if data.draw(st.booleans()) else []
        parts.append(scene.attend(triton_backend, [*before, (0, start, count)])[-1])
        start += count
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lists_of_keys(triton_backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    scene = Scene(4, 1, (24, 0), dtype, generator)
    parts = [(0, 190, 1), (1, 30, 5)]
    lists = torch.full((8, 150), -1, dtype=torch.int32)
    lists[0] = torch.randperm(190, generator=generator)[:150].sort().values
    for row in range(1, 6):
        lists[row, :row] = torch.randperm(30, generator=generator)[:row].sort().values
    spec, query = AttentionSpec(4, 1, 24, 0.25), torch.cat([scene.queries[r][s : s + n] for r, s, n in parts])
    plan = scene.plan(parts)
    got = triton_backend.attend_stored(query, scene.cache, plan, spec, 8, torch.float32, lists)
    want = REFERENCE.attend_stored(query, scene.cache, plan, spec, 8, torch.float32, lists)
    torch.testing.assert_close(got, want, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    alone = triton_backend.attend_stored(query[:1], scene.cache, scene.plan(parts[:1]), spec, 1, torch.float32, lists)
    assert torch.equal(alone[0], got[0])


@pytest.mark.parametrize("ratio", [1, 4])
@pytest.mark.parametrize("top_k", [9, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, INT4])
def test_keys_are_chosen_as_by_the_reference(
    triton_backend: Backend, dtype: torch.dtype, top_k: int, ratio: int, generator: torch.Generator
) -> None:
    scene, parts = Scene(3, 1, (20, 0), dtype, generator), [(0, 195, 1), (1, 22, 6)]
    query = torch.cat([scene.queries[r][s : s + n] for r, s, n in parts])
    weights = torch.randn(7, 3, generator=generator)
    cache, want = scene.cache, list[Tensor]()
    if ratio > 1:
        keys = torch.randn(13 * 2 + 1, 1, 4, 20, generator=generator)
        cache = REFERENCE.make_cache(CacheSpec(1, 20, 0, tokens_per_row=ratio), 13 * 2 + 1, BLOCK, torch.float32)
        cache.keys.copy_(keys)
    for backend in (REFERENCE, triton_backend):
        want.append(backend.select_keys(query, weights, cache, scene.plan(parts), top_k, 7, ratio))
    assert torch.equal(want[1], want[0])
    alone = triton_backend.select_keys(query[:1], weights[:1], cache, scene.plan(parts[:1]), top_k, 1, ratio)
    assert torch.equal(alone[0], want[1][0])


def test_a_recorded_step_reads_its_runs_when_it_runs(triton_backend: Backend, generator: torch.Generator) -> None:
    """Of such a plan nothing is known but sizes; what is filled in later counts, and rows without tokens do nothing."""
    scene, spec = Scene(4, 2, (24, 24), torch.float32, generator), AttentionSpec(4, 2, 24, 0.25)

    class Unknown(Sequence[Any]):
        def __len__(self) -> int:
            raise AssertionError("runs are not known yet")

        def __getitem__(self, index: Any) -> Any:
            return len(self)

    runs = torch.zeros(3, 6, dtype=torch.int64)
    plan = AttentionPlan(Unknown(), scene.table, BLOCK, None, 3, torch.full((3,), -1), runs)
    query = torch.stack([scene.queries[0][190], scene.queries[1][11], scene.queries[1][12]])
    for _ in range(2):
        got = triton_backend.attend_stored(query, scene.cache, plan, spec, 3, torch.float32)
        want = [scene.attend(triton_backend, [part])[0][0] for part in ((0, 190, 1), (1, 11, 1))]
        if runs.any():
            assert torch.equal(got[:2], torch.stack(want))
        assert not got[2].any()
        runs[:2] = torch.tensor([(0, 1, 190, 0, 0, 0), (1, 1, 11, 1, 0, 0)])


@pytest.mark.parametrize("bias", [None, "distances", "vectors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_attention(
    triton_backend: Backend, bias: str | None, dtype: torch.dtype, generator: torch.Generator
) -> None:
    heads, runs = 4, [(2, 40, 0, 40), (42, 3, 40, 9), (0, 0, 0, 5)]

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    query, key, value = rand(47, heads, 20).to(dtype), rand(49, 2, 20).to(dtype), rand(49, 2, 28).to(dtype)
    by: DistanceBias | PositionScores | None = None
    if bias == "distances":
        by = DistanceBias(rand(heads, 30), 12)
    elif bias == "vectors":
        by = PositionScores(rand(47, heads, 7), rand(49, heads, 7), torch.arange(60) // 9, 33)
    got = triton_backend.full_attention(query, key, value, 0.25, runs, by)
    want = REFERENCE.full_attention(query, key, value, 0.25, runs, by)
    torch.testing.assert_close(got, want, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    alone = triton_backend.full_attention(query, key, value, 0.25, runs[1:], by)
    assert torch.equal(alone[42:], got[42:])
    assert not got[:2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, INT4])
def test_what_is_stored_is_what_the_reference_stores(
    triton_backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    table, held = torch.tensor([[3, 1, 2]]), list[KVCache]()
    plan = REFERENCE.plan_attention([SequenceRun(0, 11, 0, 0)], table, 4, None, 11)
    key, value = torch.randn(11, 2, 21, generator=generator) * 9, torch.randn(11, 2, 5, generator=generator)
    key[3] = 0
    for backend in (triton_backend, REFERENCE):
        held.append(backend.make_cache(CacheSpec(2, 21, 5), 4, 4, dtype))
        backend.store(key.transpose(0, 1).contiguous().transpose(0, 1), value, held[-1], plan)
    assert held[0].keys[3].any()
    assert torch.equal(held[0].keys, held[1].keys)
    assert torch.equal(held[0].values, held[1].values)


@pytest.mark.parametrize("dtype", [torch.int8, INT4])
def test_what_is_not_a_number_stays_so(triton_backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    """In a cache of codes, and through a clip: a sequence that has overflowed is found by its hidden states."""
    plan = REFERENCE.plan_attention([SequenceRun(0, 3, 0, 0)], torch.tensor([[1]]), 4, None, 3)
    key = torch.randn(3, 1, 16, generator=generator)
    key[2, 0, 5] = torch.nan
    cache = triton_backend.make_cache(CacheSpec(1, 16, 16), 2, 4, dtype)
    triton_backend.store(key, key, cache, plan)
    spec = AttentionSpec(1, 1, 16, 0.25, transforms=(HeadClip(1.0),))
    got = triton_backend.attend_stored(key[:, :1].nan_to_num(), cache, plan, spec, 3, torch.float32)
    assert got[2].isnan().all()
    clipped = triton_backend.make_cache(CacheSpec(1, 16, 16), 2, 4, torch.float32)
    out = triton_backend.attend(torch.cat([key] * 3, 1).flatten(1), clipped, plan, spec, None)
    assert out[2].isnan().any()
