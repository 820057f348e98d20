"""What weights of quantized checkpoints cost: `python bench/quantized.py`, with --write into docs/performance.md.

The layers of a 1.1B model (2,048 wide, 5,632 inside), eight of them so that their weights come from memory, as each
format's tensors are held: 1 row (decode) and 512 (prefill). Medians of rounds, all by turns, and beside each the speed
over its peer: 4-bit formats and GGUF's over Q4_0, 8-bit integers over Q8_0 (`quantization="int8"`), the others over
bfloat16. `--only Q2_K IQ4_XS` measures some of them.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import document
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo.loading.formats.as_stored import stored_rows
from octavo.loading.formats.codes import FP4, NF4, Codes
from octavo.ops import Backend, PackedLinear, StoredRows, select_backend
from octavo.ops.stored_rows import FLOATS, of_floats
from octavo.ops.weight_kinds import NOT_OF_GGUF, WeightKind
from tests.ops.stored import random_blocks

SHAPES = ((2560, 2048), (2048, 2048), (11264, 2048), (2048, 5632))
"""Outputs and inputs: q, k and v; o; gate and up; down."""
LAYERS = 8


def codes(outputs: int, inputs: int, bits: int, group: int) -> Codes:
    numbers = torch.randint(0, 1 << bits, (outputs, inputs), dtype=torch.uint8)
    return Codes(numbers, torch.rand(outputs, -(-inputs // group)) / 100, group)


def awq(outputs: int, inputs: int) -> StoredRows | None:
    of = codes(outputs, inputs, 4, 128)
    zeros = torch.randint(4, 12, of.scales.shape, dtype=torch.uint8)
    return stored_rows(Codes(of.numbers, of.scales, 128, zeros=zeros))


def in_any_order(outputs: int, inputs: int) -> StoredRows | None:
    of = codes(outputs, inputs, 4, 128)
    groups = torch.randperm(inputs) // 128
    return stored_rows(Codes(of.numbers, of.scales, 128, zeros=torch.full(of.scales.shape, 8), groups=groups))


def w8a8(outputs: int, inputs: int) -> StoredRows | None:
    of = codes(outputs, inputs, 8, inputs)
    return stored_rows(Codes(of.numbers.view(torch.int8), of.scales, inputs))


def fp8(outputs: int, inputs: int) -> StoredRows | None:
    numbers = torch.randn(outputs, inputs).to(torch.float8_e4m3fn)
    return stored_rows(Codes(numbers, torch.rand(-(-outputs // 128), inputs // 128) / 100, 128, rows=128))


def nf4(outputs: int, inputs: int) -> StoredRows | None:
    of = codes(outputs, inputs, 4, 64)
    return stored_rows(Codes(of.numbers, of.scales, 64, table=torch.tensor(NF4)))


def nvfp4(outputs: int, inputs: int) -> StoredRows | None:
    of = codes(outputs, inputs, 4, 16)
    scales = of.scales.mul(100).to(torch.float8_e4m3fn).float()
    return stored_rows(Codes(of.numbers, scales, 16, table=torch.tensor(FP4)))


def mxfp4(outputs: int, inputs: int) -> StoredRows | None:
    of = codes(outputs, inputs, 4, 32)
    scales = torch.ldexp(torch.ones(of.scales.shape), torch.randint(-9, -5, of.scales.shape))
    return stored_rows(Codes(of.numbers, scales, 32, table=torch.tensor(FP4)))


def of_gguf(kind: WeightKind) -> Callable[[int, int], StoredRows]:
    return lambda outputs, inputs: random_blocks(kind, outputs, inputs, torch.Generator().manual_seed(0))


def bfloat16(outputs: int, inputs: int) -> StoredRows:
    return of_floats(torch.randn(outputs, inputs).bfloat16())


FORMATS: dict[str, tuple[Callable[[int, int], StoredRows | None], str]] = {
    "bfloat16": (bfloat16, ""),
    "Q4_0": (of_gguf(WeightKind.Q4_0), ""),
    "Q8_0": (of_gguf(WeightKind.Q8_0), ""),
    "AWQ, groups of 128": (awq, "Q4_0"),
    "GPTQ, desc_act": (in_any_order, "Q4_0"),
    "NVFP4": (nvfp4, "Q4_0"),
    "MXFP4": (mxfp4, "Q4_0"),
    "int8 by rows (W8A8)": (w8a8, "Q8_0"),
    "FP8, blocks of 128": (fp8, "bfloat16"),
    "nf4": (nf4, "bfloat16"),
}
GGUF_KINDS = [kind for kind in WeightKind if kind < NOT_OF_GGUF and kind not in FLOATS.values()]
FORMATS |= {kind.name: (of_gguf(kind), "Q4_0") for kind in GGUF_KINDS if kind.name not in FORMATS}


def layers(backend: Backend, make: Callable[[int, int], StoredRows | None]) -> list[PackedLinear]:
    packed = []
    for shape in SHAPES * LAYERS:
        rows = make(*shape)
        assert rows is not None, "a kind of the core's holds it"
        packed.append(backend.stored_linear([rows]))
    return packed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS), help="formats beside their peers")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    args = parser.parse_args()
    with document.printed("bench/quantized.py", args.write):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    backend = select_backend("cpu", "auto")
    backend.set_threads(args.threads)
    peers = {FORMATS[name][1] for name in args.only}
    chosen = {name: of for name, of in FORMATS.items() if name in args.only or name in peers}
    weights = {name: layers(backend, make) for name, (make, _) in chosen.items()}
    size = {
        name: sum(part.data.nbytes for linear in each for part in linear.parts)  # type: ignore[attr-defined]
        for name, each in weights.items()
    }
    times: dict[tuple[str, int], list[float]] = {}
    with backend.computing():
        for rows, rounds in ((1, args.rounds * 3), (512, args.rounds)):
            x = {inputs: torch.randn(rows, inputs).bfloat16() for _, inputs in SHAPES}
            for _ in range(rounds):
                for name, each in weights.items():
                    begin = time.perf_counter()
                    for linear, (_, inputs) in zip(each, SHAPES * LAYERS, strict=True):
                        linear(x[inputs])
                    times.setdefault((name, rows), []).append(time.perf_counter() - begin)
    print(f"`python bench/quantized.py`: products of {args.threads} threads, {backend.name}; milliseconds a layer.\n")
    print("| | MiB a layer | 1 row | over its peer | 512 rows | over its peer |\n| --- | --- | --- | --- | --- | --- |")
    for name, (_, peer) in chosen.items():
        cells = [f"{size[name] / LAYERS / 2**20:.1f}"]
        for rows in (1, 512):
            own = statistics.median(times[name, rows])
            cells.append(f"{own / LAYERS * 1000:.2f}")
            cells.append(f"{statistics.median(times[peer, rows]) / own:.2f} ({peer})" if peer else "")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
