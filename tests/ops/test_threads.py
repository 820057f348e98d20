"""The number of threads changes no bit: how work is cut, and how many threads it is worth, decide nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo.ops import Gate
from octavo.ops.native import NativeBackend
from octavo.ops.paged_cache import INT4
from octavo.ops.weight_kinds import WeightKind
from tests.ops.stored import random_rows
from tests.ops.test_attention import Cache

COUNTS = (1, 2, 3, 7, 16)
ROWS = (1, 2, 9, 70)


def with_each(native: NativeBackend, compute: Callable[[], list[Tensor]]) -> None:
    """Compute with each number of threads, and hold the results to be the same."""
    found = []
    for count in COUNTS:
        native.set_threads(count)
        assert native.threads == count
        found.append(compute())
    native.set_threads(1)
    for count, results in zip(COUNTS[1:], found[1:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found[0], results, strict=True)), count


@pytest.mark.parametrize(
    "kind", [torch.float32, torch.bfloat16, WeightKind.Q4_1, WeightKind.Q8_0, WeightKind.Q6_K], ids=str
)
def test_products(native: NativeBackend, kind: torch.dtype | WeightKind, generator: torch.Generator) -> None:
    """Of 37 panels, which no number of threads above has alike, and with a gate."""
    dtype = kind if isinstance(kind, torch.dtype) else torch.float32

    def product(outputs: int) -> Callable[[Tensor], Tensor]:
        if isinstance(kind, torch.dtype):
            return native.linear(torch.randn(outputs, 512, generator=generator).to(kind))
        return native.stored_linear([random_rows(kind, outputs, 512, generator)[0]])

    plain, gated = product(37 * 16 - 5), product(2 * 37 * 16)
    x = torch.randn(max(ROWS), 512, generator=generator).to(dtype)

    def compute() -> list[Tensor]:
        made = [plain(x[:rows]) for rows in ROWS]
        return made + [native.gated_linear(gated, x[:rows], None, Gate("silu")) for rows in ROWS]

    with_each(native, compute)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, WeightKind.Q4_1, WeightKind.Q6_K], ids=str)
@pytest.mark.parametrize("outputs", [37 * 16 - 5, 9])
def test_experts(
    native: NativeBackend, kind: torch.dtype | WeightKind, outputs: int, generator: torch.Generator
) -> None:
    """Of few rows each, which are computed side by side, of many, and of both; the same as each expert by itself."""
    dtype, count = kind if isinstance(kind, torch.dtype) else torch.float32, 6
    if isinstance(kind, torch.dtype):
        weights = [native.linear(torch.randn(outputs, 256, generator=generator).to(kind)) for _ in range(count)]
    else:
        weights = [native.stored_linear([random_rows(kind, outputs, 256, generator)[0]]) for _ in range(count)]
    experts, x = native.experts(weights), torch.randn(60, 256, generator=generator).to(dtype)
    ways = [torch.tensor([[3]]), torch.tensor([[0, 5]]), torch.tensor([[1, 2], [2, 4], [4, 0]])]
    ways += [
        torch.randint(0, count, (60, 1), generator=generator),
        torch.tensor([[0]] * 50 + [[e] for e in [1, 2, 3, 4, 5] * 2]),
    ]

    def compute() -> list[Tensor]:
        return [experts(x[: len(chosen)], chosen) for chosen in ways]

    with_each(native, compute)
    for chosen, results in zip(ways, compute(), strict=True):
        for i, expert in enumerate(chosen.flatten().tolist()):
            row = x[i // chosen.shape[1]].unsqueeze(0)
            assert torch.equal(results[i], weights[expert](row)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, INT4])
def test_attention(native: NativeBackend, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Few queries over contexts of one span and of several, alone and together, and many at once."""
    cache = Cache(native, [300, 700, 2600], 3, 32, 16, generator, dtype)
    q = torch.randn(300, 9, 32, generator=generator)
    ways = [
        *([(row, length - 1, q[:1])] for row, length in enumerate(cache.lengths)),
        [(row, length - 4, q[4 * row : 4 * row + 4]) for row, length in enumerate(cache.lengths)],
        [(2, 2300, q)],
    ]
    with_each(native, lambda: [torch.cat(cache.attend(queries)) for queries in ways])
