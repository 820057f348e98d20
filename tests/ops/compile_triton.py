"""Compiles launches of Triton's kernels for GPUs that need not be there: a program, as the interpreter must be off.

`TRITON_INTERPRET=0 python -m tests.ops.compile_triton TARGET PART ...`, where a part is a name in PARTS or a kind of
stored weights. Says of each kernel the target, how much shared memory it takes and which matrix units it calls.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from octavo.ops import (
    ACTIVATIONS,
    AttentionSpec,
    CacheSpec,
    DeltaInput,
    DistanceBias,
    DrawBy,
    Gate,
    GatedRecurrenceInput,
    HeadNorms,
    HeadScanInput,
    LinearUpdate,
    LowRank,
    NormSpec,
    Penalties,
    PooledKeys,
    PoolSpec,
    RotaryTable,
    RouterSpec,
    ScanInput,
    SequenceRun,
    StreamSpec,
    TokenChanges,
    plan_recurrent,
)
from octavo.ops.paged_cache import INT4
from octavo.ops.specs import BlockSparse, DeltaSpec
from octavo.ops.triton import TritonBackend, attention_launch, triton_adapters, triton_products
from octavo.ops.triton import stored_weight as stored_weights
from octavo.ops.triton.product_tiles import AMD_INSTRUCTION
from octavo.ops.weight_kinds import WeightKind
from tests.ops.stored import random_rows

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
UNITS = re.compile(r"wgmma|mma\.sync|v_mfma_\w+|v_wmma_\w+")
UNIT = {"sm_80": "mma.sync", "sm_90": "wgmma", "gfx942": "v_mfma_f32_16x16x16_bf16"}
"""What multiplies bfloat16, few rows as many: its order of sums is a row's."""
MATRIX = re.compile(r"wgmma\.mma_async[.\w]*|mma\.sync[.\w]*|v_mfma_\w+|v_wmma_\w+|fma\.rn\.f32")
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
NAMES |= {torch.int8: "i8", torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8", torch.float64: "fp64"}
NAMES |= {torch.bool: "i1"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", *AMD_INSTRUCTION)
ALIGNED = [["tt.divisibility", 16]]
MOST_SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}


class Compiled:
    """In a kernel's place: compiles what is launched, and launches nothing."""

    def __init__(self, kernel: Any, target: str) -> None:
        self.kernel, self.target = kernel, target

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.compile

    def compile(self, *arguments: Any, **named: Any) -> None:
        given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
        options = {name: given.pop(name) for name in OPTIONS if name in given}
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = given.pop(parameter.name)
            if parameter.is_constexpr or value is None:
                signature[parameter.name] = "constexpr"
                constants[(place,)] = value.value if isinstance(value, tl.constexpr) else value
            elif isinstance(value, Tensor):
                signature[parameter.name], attributes[(place,)] = "*" + NAMES[value.dtype], ALIGNED
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, int) and value % 16 == 0:
                    attributes[(place,)] = ALIGNED
        assert not given, f"not arguments of {self.kernel.__name__}: {list(given)}"
        source = ASTSource(self.kernel, signature, constants, attributes)
        made = triton.compile(source, target=TARGETS[self.target], options=options)
        shared, text = made.metadata.shared, made.asm.get("ptx") or made.asm["amdgcn"]
        self.instructions, self.units = set(MATRIX.findall(text)), set(UNITS.findall(text))
        print(self.kernel.__name__, self.target, f"shared {shared}", *sorted(self.units), flush=True)
        assert shared <= MOST_SHARED[self.target]


def attend(backend: TritonBackend, sizes: tuple[int, int, int, int], dtype: torch.dtype, **options: Any) -> None:
    """A decode step, whose splits are shared out."""
    kv_heads, heads, dim, value_dim = sizes
    cache = backend.make_cache(CacheSpec(kv_heads, dim, value_dim), 4, 16, dtype)
    table = torch.zeros(1, 60, dtype=torch.int64)
    plan = backend.plan_attention([SequenceRun(0, 1, 900, 0)], table, 16, options.pop("window", None), 1)
    rows = torch.bfloat16 if dtype != torch.float32 else dtype
    lists = torch.zeros(1, 2048, dtype=torch.int32) if options.pop("lists", False) else None
    spec = AttentionSpec(heads, kv_heads, dim, 0.25, **options)
    if value_dim:
        qkv = torch.zeros(1, (heads + kv_heads) * dim + kv_heads * value_dim, dtype=rows)
        angles = torch.zeros(1, dim // 2), torch.zeros(1, dim // 2)
        backend.attend(qkv, cache, plan, spec, angles)
    else:
        query = torch.zeros(1, heads, dim)
        backend.store(query[:, :1], None, cache, plan)
        backend.attend_stored(query, cache, plan, spec, 1, torch.float32, lists)
        if lists is not None:
            backend.select_keys(query, query[..., 0], cache, plan, 2048, 1)


def attention(backend: TritonBackend) -> None:
    norms = (HeadNorms(NormSpec("rms", torch.ones(128), None, 1e-5), NormSpec("rms", torch.ones(128), None, 1e-5)),)
    attend(backend, (8, 32, 128, 128), torch.bfloat16, transforms=norms)
    attend(backend, (8, 32, 128, 128), torch.int8, alibi_slopes=torch.ones(32))
    attend(backend, (8, 32, 128, 128), INT4)
    attend(backend, (2, 8, 80, 80), INT4, window=128)
    attend(backend, (2, 8, 80, 256), torch.bfloat16)
    attend(backend, (2, 8, 256, 128), torch.bfloat16)
    attend(backend, (8, 32, 128, 128), torch.float32, interleaved=True)
    attend(backend, (4, 32, 64, 64), torch.float16, sinks=torch.ones(32), window=128)
    attend(backend, (8, 8, 80, 80), torch.bfloat16, sparse=BlockSparse(64, 16, 8, 1))
    attend(backend, (2, 8, 256, 256), torch.bfloat16, softcap=50.0, window=4096)
    attend(backend, (2, 8, 256, 256), torch.float32, distance_bias=DistanceBias(torch.ones(8, 40), 30))
    attend(backend, (1, 128, 576, 0), torch.bfloat16)
    attend(backend, (1, 16, 576, 0), torch.float32)
    attend(backend, (1, 64, 576, 0), torch.bfloat16, lists=True)
    for dtype in (torch.float32, torch.bfloat16):
        query = torch.zeros(50, 16, 80, dtype=dtype)
        backend.full_attention(query, query, query, 0.25, [(0, 50, 0, 50)])


def recurrences(backend: TritonBackend) -> None:
    plan = plan_recurrent([SequenceRun(0, 1, 0, 0), SequenceRun(1, 99, 0, 0)])

    def rows(*shape: int) -> Tensor:
        return torch.zeros(100, *shape, dtype=torch.bfloat16)

    x, states = rows(4096), torch.zeros(1)
    backend.convolve(x, states, torch.zeros(4096, 4), torch.zeros(4096), "silu", plan)
    a, d = torch.zeros(4096, 16), torch.zeros(4096)
    backend.scan(ScanInput(x, x, a, rows(16), rows(16), d, x, "silu"), torch.zeros(1, 3, 4096, 16), plan)
    of_heads = torch.zeros(64)
    heads = HeadScanInput(
        x, rows(64), of_heads, (0.0, 1.0), of_heads, rows(1024), rows(1024), of_heads, 8, None, "silu"
    )
    backend.scan_heads(heads, torch.zeros(1, 64, 128, 64), plan)
    backend.gated_recurrence(GatedRecurrenceInput(x, x, d, x, d, d, torch.zeros(100, dtype=torch.int64)), states, plan)
    spec = DeltaSpec(32, 16, 128, 128, 1.0, 1e-6)
    keys, values = rows(2048), rows(4096)
    delta = DeltaInput(keys, keys, values, rows(32), rows(32), torch.zeros(32), torch.zeros(32))
    backend.delta_rule(delta, torch.zeros(1, 32, 128, 128), plan, spec)


def products(backend: TritonBackend) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        linear = triton_products.TritonLinear(torch.zeros(4096, 4096, dtype=dtype))
        x, bias = torch.zeros(3, 4096, dtype=dtype), torch.zeros(4096)
        linear(x, bias)
        apart = triton_products.part_kernel.instructions
        for gate in (None, Gate("silu"), Gate("gelu_new", limit=3.0, up_offset=1.0)):
            for linear.most_programs in (1 << 30, 0):
                linear(x) if gate is None else backend.gated_linear(linear, x, bias, gate)
            # One row's sums are the same instructions, of whatever step it is.
            assert triton_products.product_kernel.instructions >= apart > set()
        backend.head_linear(torch.zeros(4, 512, 128))(torch.zeros(3, 4, 128), dtype)


def rows(backend: TritonBackend) -> None:
    x, weight = torch.zeros(3, 5120, dtype=torch.bfloat16), torch.zeros(5120)
    backend.rms_norm(x, weight, 1e-5)
    backend.rms_norm_gated(x, x, weight[:128], 1e-5, "silu")
    backend.layer_norm(x, weight, weight, 1e-5)
    for activation in ACTIVATIONS:
        backend.multiply(x, x, activation)
    backend.activate(x, "gelu")
    backend.gated(x, Gate("gelu", threshold=0.5))
    backend.scale_rows(x, weight[:3])
    backend.scale_columns(x, weight)
    backend.xielu(x, weight[:4])
    backend.add(x, x, 0.5)
    backend.add_gated(x, x, x[:, :1])
    backend.gated_above(x, backend.row_cutoffs(x, 0.7), "gelu_pytorch_tanh")
    backend.match_magnitude(x, x, 1e-5)
    positions = torch.zeros(3, dtype=torch.int64)
    backend.position_factors(positions, 0.1, 8192.0, 1)
    backend.angles(RotaryTable(torch.zeros(2, 64), (1.0, 2.0), 4096), positions, positions)


def stored(backend: TritonBackend, kind: WeightKind) -> None:
    """Few rows, many, and experts', all by one instruction."""
    linear = backend.stored_linear([random_rows(kind, 64, 2048, torch.Generator())[0]])
    bias, x = torch.zeros(64), torch.zeros(300, 2048, dtype=torch.bfloat16)
    experts = backend.experts([linear] * 8)
    product: Any = stored_weights.product_kernel
    for few in (lambda: linear(x[:3], bias), lambda: linear(x), lambda: experts(x[:3], torch.zeros(3, 2).long())):
        few()
        assert product.units == {UNIT[product.target]}, (kind, product.units)


def around_stored(backend: TritonBackend) -> None:
    """What kinds of weights share: rows of a table, gates after split sums, sums of experts."""
    linear = backend.stored_linear([random_rows(WeightKind.Q6_K, 64, 2048, torch.Generator())[0]])
    x = torch.zeros(3, 2048, dtype=torch.bfloat16)
    linear.rows(torch.zeros(5, dtype=torch.int64), torch.float32, 2.0)
    backend.gated_linear(linear, x, torch.zeros(64), Gate("silu"))
    backend.weighted_sum(x, torch.zeros(1, 3), 3)


def adapters(backend: TritonBackend) -> None:
    table = backend.adapter_table(4)
    low_rank = LowRank(0, torch.zeros(16, 2048), torch.zeros(64, 16))
    table.put(0, backend.pack_update(LinearUpdate((low_rank,)), torch.bfloat16))
    inner: Any = triton_adapters.inner_kernel
    change: Any = triton_adapters.change_kernel
    for rows in (3, 300):
        x, y = (torch.zeros(rows, width, dtype=torch.bfloat16) for width in (2048, 64))
        table.apply(x, y, torch.zeros(rows, dtype=torch.int64))
        # Of 16 inner values at a time, which are too few for the largest unit, whatever the rows.
        assert inner.units == {"mma.sync" if inner.target == "sm_90" else UNIT[inner.target]}
        assert change.units == {UNIT[change.target]}


def choices(backend: TritonBackend) -> None:
    """Of experts, and of tokens."""
    logits, bias = torch.zeros(3, 256), torch.zeros(256)
    groups = {"num_groups": 8, "top_groups": 4, "group_best": 2}
    backend.route(logits, RouterSpec(8, 1.0, 1e-20, scores="sigmoid", is_biased=True, **groups), bias)
    backend.route(logits, RouterSpec(4, 2.0, scores="sqrt_softplus"), None, torch.zeros(3, 4, dtype=torch.int64))
    backend.route(logits[:, :60], RouterSpec(4, 3.0, num_groups=12, top_groups=2))
    backend.route(logits, RouterSpec(2, noise=0.1))
    tokens = torch.zeros(2, 128256)
    for by in (DrawBy(), DrawBy(0.7), DrawBy(0.7, top_k=40, top_p=0.9)):
        backend.sample(tokens, [by, by])
        backend.left_to_draw(tokens, [by, by], torch.zeros(2, dtype=torch.int64))
    ids, whole = torch.zeros(5, dtype=torch.int64), torch.zeros(128256, dtype=torch.bool)
    backend.mask_tokens(tokens, [1], torch.zeros(1, 16032, dtype=torch.uint8))
    backend.change_tokens(tokens, [TokenChanges(0, whole, (ids,), (ids, torch.zeros(5)))])
    backend.penalize(tokens, [Penalties(1, tokens[0], whole, [7], 1.1, 0.5, 0.5)])
    backend.likeliest(backend.log_softmax(tokens), ids[:2], 20)


def streams(backend: TritonBackend) -> None:
    x, y, weights = torch.zeros(3, 8192, dtype=torch.bfloat16), torch.zeros(3, 2048, dtype=torch.bfloat16), torch.zeros
    backend.predict_streams(x, weights(3, 16))
    backend.correct_streams(x, y, weights(3, 4), 1)
    backend.add_to_streams(x, y)
    backend.mix_streams(x, y, weights(3, 4, 5))
    backend.stream_weights(weights(3, 24), StreamSpec(4, weights(3), weights(24), 1e-6, 20))
    backend.stream_weights(weights(3, 4), StreamSpec(4, weights(1), weights(4), 1e-6))


def pooled(backend: TritonBackend) -> None:
    """DeepSeek-V4's widths: entries of 4 tokens that overlap, and of 128."""
    for dtype in (torch.float32, torch.bfloat16, torch.int8, INT4):
        near = backend.make_cache(CacheSpec(1, 512, 0), 4, 16, dtype)
        table = torch.zeros(1, 60, dtype=torch.int64)
        plan = backend.plan_attention([SequenceRun(0, 1, 899, 0)], table, 16, 128, 1)
        query, spec = torch.zeros(1, 64, 512), AttentionSpec(64, 1, 512, 0.05, sinks=torch.zeros(64))
        for ratio, lists in ((4, torch.zeros(1, 512, dtype=torch.int32)), (128, None)):
            far = backend.make_cache(CacheSpec(1, 512, 0, ratio), 4, 16, dtype)
            backend.store_pooled(query[:, 0], far, plan, ratio)
            backend.attend_pooled(query, near, plan, PooledKeys(far, plan, ratio, lists), spec, 1)
        backend.attend_pooled(query, near, plan, None, spec, 1)
    for overlaps in (False, True):
        width = 512 * (1 + overlaps)
        cache = backend.make_cache(CacheSpec(1, 2 * width, 0, 1, True), 4, 16, torch.bfloat16)
        backend.pool_keys(cache, plan, PoolSpec(4, overlaps, torch.zeros(4, width)))


def rotations(backend: TritonBackend) -> None:
    x, angles = torch.zeros(3, 16, 576, dtype=torch.bfloat16), (torch.zeros(3, 32), torch.zeros(3, 32))
    for is_interleaved in (False, True):
        backend.join_rope(*x.split([512, 64], -1), angles, is_interleaved)
    backend.rotate_tail(x, angles, True, torch.bfloat16, backwards=True)


PARTS = {
    "choices": choices,
    "products": products,
    "rows": rows,
    "streams": streams,
    "rotations": rotations,
    "pooled": pooled,
    "attention": attention,
    "recurrences": recurrences,
    "around_stored": around_stored,
    "adapters": adapters,
}


def main(target: str, parts: list[str]) -> None:
    compiled = dict[int, Compiled]()
    for module in [m for name, m in sys.modules.items() if name.startswith("octavo.ops.triton")]:
        for name, kernel in list(vars(module).items()):
            if name.endswith("_kernel") and isinstance(kernel, triton.JITFunction):
                setattr(module, name, compiled.setdefault(id(kernel), Compiled(kernel, target)))
    if TARGETS[target].backend == "hip":
        attention_launch.HAS_LITTLE_SHARED = True
        triton_products.STAGES = 2
        stored_weights.ONE_INSTRUCTION = triton_adapters.ONE_INSTRUCTION = AMD_INSTRUCTION
    backend = TritonBackend(torch.device("cpu"))
    for part in parts:
        if part in PARTS:
            PARTS[part](backend)
        else:
            stored(backend, WeightKind[part])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
