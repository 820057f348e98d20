"""Queries, keys and values on their way to attention, by the kernels of octavo.ops.triton.head_kernels."""

from typing import Any

import torch
from torch import Tensor

from octavo.ops.paged_cache import GROUP, INT4, KVCache
from octavo.ops.plans import AttentionPlan
from octavo.ops.specs import AttentionSpec, HeadClip, HeadNorms, NormSpec
from octavo.ops.triton import head_kernels
from octavo.ops.triton.launching import power_of_two, together

ROWS = 8
"""Of a program; always as many, since sums of norms must be taken in one way."""
WARPS = 4


def store(rows: Tensor, cache: Tensor, plan: AttentionPlan) -> None:
    """Store `rows` `[tokens, heads, dim]` in `cache` `[blocks, heads, block_size, row]` at the plan's slots."""
    tokens, heads, dim = rows.shape
    if not tokens:
        return
    rows = together(rows)
    head_kernels.store_kernel[(-(-tokens // ROWS), heads)](
        rows,
        cache,
        plan.slot_mapping,
        tokens,
        rows.stride(0),
        rows.stride(1),
        HEADS=heads,
        DIM=dim,
        WIDTH=row_width(dim, cache),
        BLOCK=plan.block_size,
        ROWS=ROWS,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


def takes(spec: AttentionSpec) -> bool:
    """Whether the kernel does the spec's transforms: norms of each head, a clip before them and one behind."""
    norms = [t for t in spec.transforms if isinstance(t, HeadNorms)]
    clips = len(spec.transforms) - len(norms)
    if len(norms) > 1 or any(t.full_width for t in norms) or clips > 1 + len(norms):
        return False
    if any(t.value is not None and t.value.weight is not None and t.value.weight.dim() > 1 for t in norms):
        return False
    return clips < 2 or not isinstance(spec.transforms[1], HeadClip)


def prepare(
    qkv: Tensor,
    cache: KVCache,
    plan: AttentionPlan,
    spec: AttentionSpec,
    angles: tuple[Tensor, Tensor] | None,
    query_factors: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Transform and rotate; store keys and values; give back the queries, `[tokens, heads, head_dim]` in `dtype`."""
    tokens, value_dim = plan.num_tokens, cache.dims[1]
    query = torch.empty(tokens, spec.num_heads, spec.head_dim, dtype=dtype, device=qkv.device)
    if not tokens:
        return query
    qkv = together(qkv)
    cos, sin = (None, None) if angles is None or not angles[0].shape[1] else (a.contiguous() for a in angles)
    stored = spec.num_kv_heads if spec.stores else 0
    head_kernels.heads_kernel[(-(-tokens // ROWS), spec.num_heads + 2 * stored)](
        qkv,
        qkv.stride(0),
        query,
        cache.keys,
        cache.values,
        plan.slot_mapping,
        tokens,
        cos,
        sin,
        **_transform_arguments(spec),
        column_weights=spec.query_weights,
        row_factors=query_factors,
        NUM_HEADS=spec.num_heads,
        KV_HEADS=spec.num_kv_heads,
        DIM=spec.head_dim,
        WIDTH=row_width(spec.head_dim, cache.keys),
        VALUE_DIM=value_dim,
        VALUE_WIDTH=row_width(value_dim, cache.values),
        BLOCK=plan.block_size,
        ROWS=ROWS,
        PAIRS=0 if cos is None else cos.shape[1],
        IS_INTERLEAVED=spec.interleaved,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return query


def row_width(dim: int, cache: Tensor) -> int:
    """Columns of rows of `dim` numbers: for int4 whole groups."""
    return max(GROUP if cache.dtype == INT4 else 16, power_of_two(dim))


def _transform_arguments(spec: AttentionSpec) -> dict[str, Any]:
    """What the kernel is told of transforms that it `takes`."""
    clips: dict[str, float | None] = {"CLIP_BEFORE": None, "CLIP_AFTER": None}
    norms: HeadNorms | None = None
    for transform in spec.transforms:
        if isinstance(transform, HeadNorms):
            norms = transform
        else:
            clips["CLIP_BEFORE" if norms is None else "CLIP_AFTER"] = transform.limit
    given: dict[str, Any] = dict(clips)
    for name in ("query", "key", "value"):
        norm: NormSpec | None = None if norms is None else getattr(norms, name)
        given[f"{name}_weight"] = None if norm is None or norm.weight is None else norm.weight.contiguous()
        given[f"{name}_bias"] = None if norm is None or norm.bias is None else norm.bias.contiguous()
        given[f"{name}_eps"] = 0.0 if norm is None else norm.eps
        kinds = {"rms": head_kernels.RMS, "layer": head_kernels.LAYER}
        given[f"{name.upper()}_NORM"] = head_kernels.NO_NORM if norm is None else kinds[norm.kind]
    given["WEIGHT_STEP"] = _step(given["query_weight"])
    given["KEY_WEIGHT_STEP"] = _step(given["key_weight"])
    return given


def _step(weight: Tensor | None) -> int:
    """From one head's weights to the next's."""
    return weight.shape[1] if weight is not None and weight.dim() == 2 else 0
