"""Compiles kernels of stored weights for an H100, which needs no GPU: `python -m tests.ops.triton_compiled KIND ...`.

It prints for each which of the matrix instructions its text has.
"""

import os
import re
import sys

os.environ["TRITON_INTERPRET"] = "0"

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from octavo.ops.triton.adapter_kernels import change_kernel, inner_kernel
from octavo.ops.triton.grouping_kernels import group_kernel
from octavo.ops.triton.product_kernels import finish_kernel, product_kernel, rows_kernel, weighted_sum_kernel
from octavo.ops.triton.product_tiles import AMD_INSTRUCTION
from octavo.ops.triton.stored_layouts import LAYOUTS
from octavo.ops.weight_kinds import WeightKind


def compiled(
    kernel: object, pointers: dict[str, str], options: dict[str, int] | None = None, **constants: object
) -> str:
    """The text for an H100, or with `options` for an MI300; what is no pointer and no constant is a whole number."""
    names = kernel.arg_names  # type: ignore[attr-defined]
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    values = {(names.index(n),): value for n, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    if options is not None:
        return str(triton.compile(source, target=GPUTarget("hip", "gfx942", 64), options=options).asm["amdgcn"])
    return str(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"])


def amd_instructions() -> set[str]:
    """Of products with few rows and with many."""
    pointers = {"x": "*bf16", "weight": "*u8", "table": "*fp32", "out": "*bf16"}
    constants = {"L": LAYOUTS[WeightKind.Q4_K], "DTYPE": tl.uint8, "IS_ORDERED": False, "GROUPS": 0, "ROOM": 1}
    constants |= {"HAS_BIAS": False, "ARE_SHARED": False, "splits": 1, "part_stride": 0}
    constants |= dict.fromkeys(("columns", "bias", "order", "starts"))
    texts = [
        compiled(product_kernel, pointers, AMD_INSTRUCTION, OUTPUTS=outputs, ROWS=rows, **constants)
        for outputs, rows in ((64, 16), (128, 128))
    ]
    return {found for text in texts for found in re.findall(r"v_mfma_\w+", text)}


def product(kind: WeightKind, groups: int, are_shared: bool) -> str:
    pointers = {"x": "*bf16", "weight": "*i64" if groups else "*u8", "table": "*fp32", "bias": "*fp32"}
    pointers |= {"out": "*fp32" if are_shared else "*bf16", "order": "*i32", "starts": "*i32", "columns": "*i64"}
    return compiled(
        product_kernel, pointers, L=LAYOUTS[kind], DTYPE=tl.uint8, IS_ORDERED=groups > 0, GROUPS=groups, ROOM=8,
        HAS_BIAS=True, ARE_SHARED=are_shared, OUTPUTS=64, ROWS=16,
    )  # fmt: skip


def others() -> dict[str, str]:
    """All other kernels, by name."""
    of_bf16 = {"y": "*bf16", "x": "*bf16", "out": "*bf16", "inner": "*fp32", "table": "*i64", "order": "*i32"}
    of_bf16 |= {"starts": "*i32", "sums": "*fp32", "bias": "*fp32", "weights": "*fp32", "keys": "*i64"}
    sizes = {"DTYPE": tl.bfloat16, "GROUPS": 4, "ROOM": 4, "RANKS": 16, "ROWS": 16}
    rows = of_bf16 | {"ids": "*i64", "weight": "*u8", "table": "*fp32"}
    gate = {"GATED": True, "ACTIVATION": "silu", "THRESHOLD": None, "LIMIT": None, "UP_OFFSET": 0.0}
    return {
        "rows": compiled(rows_kernel, rows | {"scale": "fp32"}, L=LAYOUTS[WeightKind.Q6_K], ROWS=16),
        "finish": compiled(finish_kernel, of_bf16, HAS_BIAS=True, COLUMNS=1024, **gate),
        "weighted_sum": compiled(weighted_sum_kernel, of_bf16, IS_WEIGHTED=True, COLUMNS=1024),
        "group": compiled(group_kernel, of_bf16, GROUPS=4, BLOCK=1024),
        "inner": compiled(inner_kernel, of_bf16, TILE=64, **sizes),
        "change": compiled(change_kernel, of_bf16, OUTPUTS=64, **sizes),
    }


if __name__ == "__main__":
    texts = {}
    for name in sys.argv[1:]:
        kind = WeightKind[name]
        texts |= {f"{name} alone": product(kind, 0, True), f"{name} experts": product(kind, 8, False)}
    for name, text in (texts | others()).items():
        found = next((each for each in ("wgmma", "mma.sync") if each in text), "-")
        print(name, found)
    print("amd", "-".join(amd_instructions()))
