"""Products by the processor's tiles, where there are any (or C++ stands in for them), and which of them serve."""

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from octavo.ops import AttentionSpec, CacheSpec, Gate, SequenceRun
from octavo.ops.host_memory import Arena
from octavo.ops.native import Library, NativeBackend, load, runnable, select_library, self_test
from octavo.ops.native.library import NO_TILES, Tiles
from octavo.ops.native.packed_weight import PackedWeight, pack
from octavo.ops.stored_rows import of_floats
from octavo.ops.weight_kinds import WeightKind
from tests.ops.conftest import native_backend
from tests.ops.stored import random_rows

BLOCK = 32
"""Columns of bfloat16 in a tile."""
SMALLEST = torch.finfo(torch.float32).tiny
ALL = Tiles(codes=True, bf16=True, attention=True)

has_tiles = pytest.mark.skipif("amx" not in runnable(), reason="no tiles here, and none that C++ stands in for")


@pytest.fixture
def tiled() -> Iterator[NativeBackend]:
    backend = native_backend("amx")
    yield backend
    backend.library.set_tiles(ALL)
    backend.set_threads(1)


def packed(library: Library, weight: Tensor) -> PackedWeight:
    return pack(library, [of_floats(weight)], Arena())


def multiplied(weight: PackedWeight, x: Tensor) -> Tensor:
    out = torch.empty(len(x), weight.outputs)
    weight.multiply(x, out, 0, None)
    return out


def as_documented(x: Tensor, weight: Tensor) -> Tensor:
    """The product as Intel's manual has TDPBF16PS, one instruction for each 32 columns, on one sum after the other.

    A product of two numbers of bfloat16, and the sum of it and a float32, are exact in float64 here, so that each step
    is rounded once.
    """

    def flushed(x: Tensor) -> Tensor:
        return torch.where(x.abs() < SMALLEST, torch.zeros(()), x)

    def columns(x: Tensor) -> Tensor:
        return flushed(torch.nn.functional.pad(x.float(), (0, -x.shape[1] % BLOCK))).double()

    a, b = columns(x), columns(weight).T
    total = torch.zeros(len(x), len(weight))
    for first in range(0, a.shape[1], BLOCK):
        apart = [torch.zeros_like(total) for _ in range(2)]
        for k in range(first, first + BLOCK):
            exact = apart[k % 2].double() + a[:, k, None] * b[None, k]
            apart[k % 2] = flushed(exact.float())
        total = flushed(total + flushed(apart[0] + apart[1]))
    return total


@has_tiles
@pytest.mark.parametrize("width", [1, 2, 30, 31, 33, 64, 250, 257, 576])
@pytest.mark.parametrize("rows", [1, 5, 16, 17, 40])
def test_sums_are_as_documented(tiled: NativeBackend, width: int, rows: int, generator: torch.Generator) -> None:
    x = torch.randn(rows, width, generator=generator).bfloat16()
    weight = torch.randn(53, width, generator=generator).bfloat16()
    assert torch.equal(multiplied(packed(tiled.library, weight), x), as_documented(x, weight))


@has_tiles
def test_what_is_too_small_is_zero(tiled: NativeBackend, generator: torch.Generator) -> None:
    """Numbers, products, and sums, of which some are no smaller than float32's exponent allows, and most are."""
    x = (torch.randn(20, 96, generator=generator) * 2.0**-64).bfloat16()
    weight = (torch.randn(32, 96, generator=generator) * 2.0**-62).bfloat16()
    weight[:, ::3] *= 2.0**-65
    got = multiplied(packed(tiled.library, weight), x)
    assert torch.equal(got, as_documented(x, weight))
    assert 0 < int((got == 0).sum()) < got.numel()


@has_tiles
@pytest.mark.parametrize("width", [33, 300, 576])
@pytest.mark.parametrize("outputs", [16, 37, 160])
def test_rows_do_not_see_each_other(tiled: NativeBackend, width: int, outputs: int, generator: torch.Generator) -> None:
    """More rows than are laid out at once, and than a block has; by any number of threads."""
    weight = packed(tiled.library, torch.randn(outputs, width, generator=generator).bfloat16())
    x = torch.randn(1100, width, generator=generator).bfloat16()
    together = multiplied(weight, x)
    tiled.set_threads(1)
    for rows in (1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 95, 97, 129, 1000):
        assert torch.equal(multiplied(weight, x[:rows]), together[:rows]), rows
    for first in (1, 7, 40, 1090):
        assert torch.equal(multiplied(weight, x[first : first + 9]), together[first : first + 9])


@has_tiles
@pytest.mark.parametrize("rows", [1, 20, 70])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row_and_output(
    tiled: NativeBackend, bad: float, rows: int, generator: torch.Generator
) -> None:
    """The last tile of a panel is not whole, and what lies behind is the next panel's first."""
    weight = torch.randn(64, 40, generator=generator).bfloat16()
    x = torch.randn(rows, 40, generator=generator).bfloat16()
    sound = multiplied(packed(tiled.library, weight), x)
    weight[16, 0] = bad
    x[0, 39] = bad
    got = multiplied(packed(tiled.library, weight), x)
    assert not got[0].isfinite().any()
    assert not got[:, 16].isfinite().any()
    others = [i for i in range(64) if i != 16]
    assert torch.equal(got[1:, others], sound[1:, others])


@has_tiles
@pytest.mark.parametrize("rows", [1, 9, 50])
@pytest.mark.parametrize("hidden", [16, 80])
def test_gated_pairs_of_panels(tiled: NativeBackend, rows: int, hidden: int, generator: torch.Generator) -> None:
    weight = torch.randn(2 * hidden, 100, generator=generator).bfloat16()
    x = torch.randn(rows, 100, generator=generator).bfloat16()
    gate = Gate("silu")
    got = tiled.gated_linear(tiled.linear(weight), x, None, gate)
    both = multiplied(packed(tiled.library, weight), x)
    want = tiled.gated(both, gate)  # of sums that are not rounded
    assert torch.equal(got, want.bfloat16())


@has_tiles
@pytest.mark.skipif("avx512_bf16" not in runnable(), reason="the library to compare with is not built")
@pytest.mark.parametrize("kind", [None, WeightKind.Q8_0, WeightKind.U4_32, WeightKind.Q4_K, WeightKind.IQ4_XS])
def test_without_tiles_products_are_those_of_vectors(
    tiled: NativeBackend, kind: WeightKind | None, generator: torch.Generator
) -> None:
    tiled.library.set_tiles(NO_TILES)
    vectors = native_backend("avx512_bf16")
    weight = torch.randn(70, 256, generator=generator).bfloat16()
    stored = of_floats(weight) if kind is None else random_rows(kind, 70, 256, generator)[0]
    x = torch.randn(100, 256, generator=generator).to(torch.bfloat16 if kind is None else torch.float32)
    for rows in (1, 8, 37, 100):
        got, want = (each.stored_linear([stored])(x[:rows]) for each in (tiled, vectors))
        assert torch.equal(got, want), rows


class TestAttention:
    """tests/ops/test_attention.py holds it to a formula, and to itself in other batches."""

    LENGTHS = (300, 37, 1)

    def attended(self, backend: NativeBackend, dim: int, values: float = 1.0) -> Tensor:
        """Whole prompts, in blocks as in decode; values times a factor."""
        numbers = torch.Generator().manual_seed(dim)
        cache = backend.make_cache(CacheSpec(2, dim, dim), 40, 16, torch.bfloat16)
        table = torch.zeros(3, 19, dtype=torch.int64)
        table[0, :19] = torch.randperm(19, generator=numbers)
        table[1:, :3] = torch.arange(19, 25).view(2, 3)
        runs, first = [], 0
        for row, length in enumerate(self.LENGTHS):
            runs.append(SequenceRun(first, length, 0, row))
            first += length
        plan = backend.plan_attention(runs, table, 16, None, first)
        qkv = torch.randn(first, 10 * dim, generator=numbers)
        qkv[:, 8 * dim :] *= values
        return backend.attend(qkv, cache, plan, AttentionSpec(6, 2, dim, dim**-0.5), None)

    @has_tiles
    @pytest.mark.parametrize("dim", [24, 64, 80])
    def test_takes_tiles_or_not(self, tiled: NativeBackend, dim: int) -> None:
        by_tiles = self.attended(tiled, dim)
        tiled.library.set_tiles(ALL._replace(attention=False))
        by_vectors = self.attended(tiled, dim)
        torch.testing.assert_close(by_tiles, by_vectors, rtol=2e-2, atol=2e-2)
        assert not torch.equal(by_tiles, by_vectors)  # the order is another one
        if "avx512_bf16" in runnable():
            assert torch.equal(self.attended(native_backend("avx512_bf16"), dim), by_vectors)

    @has_tiles
    @pytest.mark.parametrize("dim", [24, 64])
    def test_what_lies_past_the_end_is_no_matter(self, tiled: NativeBackend, dim: int) -> None:
        """Neither what a thread laid out before: a weight of zero makes zero of a number alone."""
        tiled.set_threads(1)
        sound = self.attended(tiled, dim)
        assert not self.attended(tiled, dim, values=float("nan")).isfinite().any()
        assert torch.equal(self.attended(tiled, dim), sound)


class TestWhichServe:
    """A trial decides, by bits and by time, and ranks decide together."""

    @pytest.mark.parametrize(
        ("tiles", "words"),
        [
            (ALL, "quantized weights, bfloat16's, attention,"),
            (NO_TILES, "nothing,"),
            (NO_TILES._replace(bf16=True), "bfloat16's,"),
        ],
    )
    def test_those_that_the_trial_has_found(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiles: Tiles, words: str
    ) -> None:
        taken = list[Tiles]()
        library = SimpleNamespace(name="amx", tiles=ALL, set_tiles=lambda tiles: taken.append(tiles) or tiles)
        monkeypatch.setattr(select_library, "runnable", lambda: ("amx", "base"))
        monkeypatch.setattr(select_library, "Library", lambda name: library)
        monkeypatch.setattr(select_library, "useful_tiles", lambda library: tiles)
        with caplog.at_level(logging.INFO, "octavo"):
            assert load.__wrapped__() is library
        assert taken == [tiles]
        assert f"takes tiles for {words}" in caplog.text

    @pytest.mark.parametrize(
        ("wrong", "seconds", "useful"),
        [(False, (1.0, 2.0), True), (True, (1.0, 2.0), False), (False, (2.0, 1.0), False)],
    )
    def test_a_trial_is_of_every_bit_and_of_speed(
        self, monkeypatch: pytest.MonkeyPatch, wrong: bool, seconds: tuple[float, float], useful: bool
    ) -> None:
        library, taken = Library(runnable()[0]), list[Tiles]()

        def product(weight: PackedWeight, x: Tensor) -> tuple[Tensor, float]:
            result = torch.empty(len(x), weight.outputs)
            weight.multiply(x, result, 0, None)
            of_bf16 = x.dtype == torch.bfloat16
            by_tiles = taken[-1].bf16 if of_bf16 else taken[-1].codes
            if wrong and by_tiles and len(x) == (17 if of_bf16 else 128):
                result.view(torch.int32)[5, 7] ^= 1
            return result, seconds[not by_tiles]

        def timed(function: Callable[[], Tensor]) -> tuple[Tensor, float]:
            result, by_tiles = function(), taken[-1].attention
            if wrong and by_tiles and len(result) > 1:
                result[-1, 7] += 1e-6
            return result, seconds[not by_tiles]

        monkeypatch.setattr(self_test, "_product", product)
        monkeypatch.setattr(self_test, "_timed", timed)
        monkeypatch.setattr(library, "set_tiles", lambda tiles: taken.append(tiles) or tiles)
        assert self_test.useful_tiles(library) == Tiles(useful, useful, useful)
        assert taken[-1] == Tiles(useful, useful, useful)

    def test_a_trial_is_of_what_is_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tiles that give all rows the same wrong number."""
        library, taken = Library(runnable()[0]), list[Tiles]()

        def timed(function: Callable[[], Tensor]) -> tuple[Tensor, float]:
            result, by_tiles = function(), any(taken[-1])
            return result + 5e-2 * by_tiles, 2.0 - by_tiles

        monkeypatch.setattr(self_test, "_timed", timed)
        monkeypatch.setattr(library, "set_tiles", lambda tiles: taken.append(tiles) or tiles)
        assert self_test.useful_tiles(library) == NO_TILES

    @pytest.mark.parametrize("own", [True, False])
    @pytest.mark.parametrize("others", [True, False])
    def test_ranks_decide_together(self, monkeypatch: pytest.MonkeyPatch, own: bool, others: bool) -> None:
        backend, taken = NativeBackend(Library(runnable()[0])), list[Tiles]()
        monkeypatch.setattr(backend.library, "tiles", Tiles(codes=True, bf16=own, attention=True))
        monkeypatch.setattr(backend.library, "set_tiles", taken.append)
        monkeypatch.setattr(backend, "least", lambda values: [min(value, int(others)) for value in values])
        backend.agree()
        assert taken == [Tiles(codes=True, bf16=own and others, attention=others)]
