"""The compiled CPU kernels, called through ctypes: plain pointers and shapes.

They serve float32 and bfloat16. `load()` finds the library for this processor; without one (no compiler when the
package was installed) the PyTorch reference serves.
"""

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.ops.attention import AttentionPlan, BlockSparse
from octavo.ops.attention import paged_attention as reference
from octavo.ops.scan import RecurrentPlan
from octavo.ops.scan import scan_step as scan_reference

log = logging.getLogger("octavo")

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_new": 1, "gelu_fast": 1, "gelu_pytorch_tanh": 1}
SCAN_WIDTHS = frozenset([*range(1, 65), *range(113, 129)])
"""Values of state a channel that the scan is compiled for."""
_BY_CAPABILITY = {"AVX512": ("avx512", "avx2", "base"), "AVX2": ("avx2", "base")}

_P, _I64, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "octavo_set_parallel": [_P],
    "octavo_rms_norm": [_P, _P, _P, _I64, _I64, _FLOAT, _INT, _INT],
    "octavo_gated": [_P, _P, _I64, _I64, _INT, _INT, _INT],
    "octavo_rotate_store": [_P, _P, _P, _P, _P, _P, _P, _I64, _I64, _INT, _INT, _INT, _INT, _INT, _INT, _INT],
    "octavo_selective_scan": [*[_P] * 9, *[_I64] * 2, *[_INT] * 3],
    "octavo_attention": [
        *[_P] * 5,
        _I64,
        _P,
        *[_I64] * 2,
        *[_INT] * 4,
        *[_FLOAT] * 2,
        _P,
        _I64,
        *[_INT] * 3,
    ],
}


def _find_library() -> tuple[Path, str] | None:
    folder = Path(__file__).parent
    for name in _BY_CAPABILITY.get(torch.backends.cpu.get_cpu_capability(), ("base",)):
        for path in sorted(folder.glob(f"_kernels_{name}*.so")):
            return path, name
    return None


def _openmp_parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch itself uses, so that both share its threads.

    Other packages bring runtimes of their own. Two that spin for the same processors make each other wait for whole
    slices of time, so anything but torch's is left alone, and without it the kernels compute in the caller's thread.
    """
    for path in sorted(Path(torch.__file__).parent.glob("lib/lib*omp*.so*")):
        if path.name.startswith(("libgomp", "libiomp", "libomp")):
            try:
                return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, _P).value
            except (OSError, AttributeError):
                continue
    return None


class NativeKernels:
    """The library's functions over tensors. Shapes and meaning are those of the reference in octavo.ops."""

    def __init__(self, path: Path, instructions: str) -> None:
        self.instructions = instructions
        library = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        self._rms_norm = library.octavo_rms_norm
        self._gated = library.octavo_gated
        self._rotate_store = library.octavo_rotate_store
        self._attention = library.octavo_attention
        self._scan = library.octavo_selective_scan
        library.octavo_set_parallel(_openmp_parallel())

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        width = x.shape[-1]
        self._rms_norm(
            x.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            x.numel() // width,
            width,
            eps,
            DTYPES[x.dtype],
            torch.get_num_threads(),
        )
        return out

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        gate_up = gate_up.contiguous()
        out = gate_up.new_empty(rows, width)
        self._gated(
            gate_up.data_ptr(),
            out.data_ptr(),
            rows,
            width,
            ACTIVATIONS[activation],
            DTYPES[gate_up.dtype],
            torch.get_num_threads(),
        )
        return out

    def rotate_store(
        self,
        qkv: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        interleaved: bool,
        key_cache: Tensor,
        value_cache: Tensor,
        plan: AttentionPlan,
    ) -> Tensor:
        tokens, all_heads, dim = plan.num_tokens, qkv.shape[1], qkv.shape[2]
        kv_heads, block_size = key_cache.shape[1], key_cache.shape[2]
        heads = all_heads - 2 * kv_heads
        qkv = qkv.contiguous()
        query = torch.empty(tokens, heads, dim)
        self._rotate_store(
            qkv.data_ptr(),
            angles[0].data_ptr() if angles else None,
            angles[1].data_ptr() if angles else None,
            query.data_ptr(),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            plan.slots.data_ptr(),
            block_size,
            tokens,
            heads,
            kv_heads,
            dim,
            angles[0].shape[1] if angles else 0,
            interleaved,
            DTYPES[qkv.dtype],
            torch.get_num_threads(),
        )
        return query

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        plan: AttentionPlan,
        out: Tensor,
        scale: float,
        softcap: float | None = None,
        alibi_slopes: Tensor | None = None,
        sparse: BlockSparse | None = None,
    ) -> None:
        if sparse is not None:
            reference(query, key_cache, value_cache, plan, out, scale, softcap, alibi_slopes, sparse)
            return
        self._attention(
            query.data_ptr(),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            out.data_ptr(),
            plan.run_table.data_ptr(),
            plan.run_table.shape[0],
            plan.block_table.data_ptr(),
            plan.block_table.shape[1],
            plan.block_size,
            query.shape[1],
            key_cache.shape[1],
            key_cache.shape[3],
            value_cache.shape[3],
            scale,
            softcap or 0.0,
            None if alibi_slopes is None else alibi_slopes.data_ptr(),
            plan.window or 0,
            DTYPES[key_cache.dtype],
            DTYPES[out.dtype],
            torch.get_num_threads(),
        )

    def scan_step(
        self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, plan: RecurrentPlan
    ) -> Tensor:
        """The plain recurrence, one token after the other: the first of the three parts of `state` is all of it."""
        channels, width = a.shape
        if width not in SCAN_WIDTHS:
            return scan_reference(x, dt, a, b, c, d, state, plan)
        x, dt, b, c = (v.contiguous() for v in (x, dt, b, c))
        y = torch.zeros_like(x)
        self._scan(
            *(v.data_ptr() for v in (x, dt, a, b, c, d, y, state, plan.table)),
            len(plan.table),
            state.stride(0),
            channels,
            width,
            torch.get_num_threads(),
        )
        return y


@functools.cache
def load() -> NativeKernels | None:
    """The kernels for this processor, or None, with one line that says why."""
    found = _find_library()
    if found is None:
        log.info("no compiled kernels (was there a C++ compiler at installation?); the PyTorch reference computes")
        return None
    try:
        return NativeKernels(*found)
    except OSError as error:
        log.warning("the compiled kernels do not load (%s); the PyTorch reference computes", error)
        return None
