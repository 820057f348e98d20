"""Whether a library is right and fast on this very machine: for instructions that its builders may not have had."""

import time

import torch
from torch import Tensor

from octavo.ops.host_memory import Arena
from octavo.ops.native.library import Library
from octavo.ops.native.packed_weight import pack, quantize
from octavo.ops.weight_kinds import WeightKind

ROWS, WIDTH, OUTPUTS, ROUNDS = 128, 1024, 512, 5


def self_test(library: Library, before: Library) -> bool:
    """Whether products with quantized weights are, to the last bit, those of `before`, and faster."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(OUTPUTS, WIDTH, generator=generator)
    seconds = dict.fromkeys((library, before), 0.0)
    for kind in (WeightKind.Q8_0, WeightKind.Q4_1):
        results = []
        for candidate in seconds:
            result, took = _product(candidate, x, weight, kind)
            results.append(result)
            seconds[candidate] += took
        if not torch.equal(*results):
            return False
    return seconds[library] < seconds[before]


def _product(library: Library, x: Tensor, weight: Tensor, kind: WeightKind) -> tuple[Tensor, float]:
    """The product, and the shortest time that it took."""
    packed = pack(library, [quantize(library, weight, kind)], Arena())
    out = torch.empty(ROWS, OUTPUTS)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        packed.multiply(x, out, 0, None)
        times.append(time.perf_counter() - start)
    return out, min(times)
