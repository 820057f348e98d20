"""Whether products by tiles are right and fast on this machine: their builders may not have had such instructions."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from octavo.ops.host_memory import Arena
from octavo.ops.native.library import NO_TILES, Library, Tiles
from octavo.ops.native.native_backend import NativeBackend
from octavo.ops.native.packed_weight import PackedWeight, pack, quantize
from octavo.ops.plans import SequenceRun
from octavo.ops.specs import AttentionSpec, CacheSpec
from octavo.ops.stored_rows import of_floats
from octavo.ops.weight_kinds import WeightKind

ROWS, WIDTH, OUTPUTS, ROUNDS = 128, 1024, 512, 5
FEW_ROWS = (1, 7, 17)
"""Rows of steps that must give what ROWS of them give."""
ROUNDING = 1e-5
"""What float32's rounding may change in a sum, of the sum of its terms' sizes."""
TOKENS, BLOCK_SIZE, HEADS = 250, 16, AttentionSpec(8, 2, 64, 64**-0.5)
ROUNDED_WEIGHTS = 2e-2
"""What attention's weights may differ by, which are rounded to bfloat16, where scores are added up in another order."""


def useful_tiles(library: Library) -> Tiles:
    """The products that are right by tiles, and faster than by vectors. Leaves the library to take these alone.

    With quantized weights right is what vectors give, to the last bit. In bfloat16, whose sums vectors add up in
    another order, it is that but for rounding, with the same bits for few rows as for many.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(OUTPUTS, WIDTH, generator=generator)
    codes = _are_codes_useful(library, x, weight)
    bf16 = _is_bf16_useful(library, x.bfloat16(), weight.bfloat16())
    attention = _is_attention_useful(library, torch.randn(TOKENS, 12 * 64, generator=generator))
    return library.set_tiles(Tiles(codes, bf16, attention))


def _are_codes_useful(library: Library, x: Tensor, weight: Tensor) -> bool:
    seconds = dict.fromkeys((True, False), 0.0)
    for kind in (WeightKind.Q8_0, WeightKind.Q4_1):
        packed, results = pack(library, [quantize(library, weight, kind)], Arena()), []
        for codes in seconds:
            library.set_tiles(NO_TILES._replace(codes=codes))
            result, took = _product(packed, x)
            results.append(result)
            seconds[codes] += took
        if not torch.equal(*results):
            return False
    return seconds[True] < seconds[False]


def _is_bf16_useful(library: Library, x: Tensor, weight: Tensor) -> bool:
    """A step of one row counts as much as one of many: tiles take both or neither."""
    x, weight = x[:, : WIDTH - 14].contiguous(), weight[:, : WIDTH - 14].contiguous()  # the last tile is not whole
    packed = pack(library, [of_floats(weight)], Arena())
    seconds = dict.fromkeys((True, False), 0.0)
    for bf16 in seconds:
        library.set_tiles(NO_TILES._replace(bf16=bf16))
        result, took = _product(packed, x)
        few = [_product(packed, x[:rows]) for rows in FEW_ROWS]
        seconds[bf16] = took + few[0][1]
        if bf16 and any(not torch.equal(part, result[: len(part)]) for part, _ in few):
            return False
        error = (result.double() - x.double() @ weight.double().T).abs()
        if bool((error > ROUNDING * (x.double().abs() @ weight.double().abs().T)).any()):
            return False
    return seconds[True] < seconds[False]


def _is_attention_useful(library: Library, qkv: Tensor) -> bool:
    """A prompt and the last of its tokens alone, as in decode, count as much."""
    backend, results = NativeBackend(library), list[Tensor]()
    blocks = -(-TOKENS // BLOCK_SIZE)
    cache = backend.make_cache(CacheSpec(2, 64, 64), blocks, BLOCK_SIZE, torch.bfloat16)
    table = torch.arange(blocks).flip(0)[None]
    prompt, last = (SequenceRun(0, TOKENS - start, start, 0) for start in (0, TOKENS - 1))
    seconds = dict.fromkeys((True, False), 0.0)
    for tiles in seconds:
        library.set_tiles(NO_TILES._replace(attention=tiles))
        for run in (prompt, last):
            plan = backend.plan_attention([run], table, BLOCK_SIZE, None, run.num_tokens)
            result, took = _timed(partial(backend.attend, qkv[run.start :], cache, plan, HEADS, None))
            results.append(result)
            seconds[tiles] += took
    by_tiles, of_last, by_vectors, _ = results
    if not torch.equal(by_tiles[-1:], of_last):
        return False
    return bool(((by_tiles - by_vectors).abs() < ROUNDED_WEIGHTS).all()) and seconds[True] < seconds[False]


def _product(packed: PackedWeight, x: Tensor) -> tuple[Tensor, float]:
    """The product, and the shortest time that it took."""
    out = torch.empty(len(x), OUTPUTS)

    def multiply() -> Tensor:
        packed.multiply(x, out, 0, None)
        return out

    return _timed(multiply)


def _timed(function: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it gives, and the shortest time that it took."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, min(times)
