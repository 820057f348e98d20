"""The backend's attention: over paged caches and over rows side by side."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import AttentionPlan, FullRun
from octavo.ops.specs import AttentionSpec, DistanceBias, PositionScores
from octavo.ops.torch import TorchBackend
from octavo.ops.torch.paged_attention import transform_heads
from octavo.ops.triton import triton_attention, triton_heads, triton_key_lists


class TritonAttention(TorchBackend):
    """Attention by kernels; what they have no room for is the reference's."""

    def attend(
        self,
        qkv: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        spec: AttentionSpec,
        angles: tuple[Tensor, Tensor] | None,
        query_factors: Tensor | None = None,
    ) -> Tensor:
        if not triton_attention.takes(cache.dims):
            return super().attend(qkv, cache, plan, spec, angles, query_factors)
        if not triton_heads.takes(spec):
            qkv, spec = self._transform_heads(qkv, cache, spec), replace(spec, transforms=())
        compute = triton_attention.compute_dtype(cache.keys.dtype, qkv.dtype)
        query = triton_heads.prepare(qkv, cache, plan, spec, angles, query_factors, compute)
        return triton_attention.attend_stored(query, cache, plan, spec, qkv.shape[0], qkv.dtype).flatten(1)

    def _transform_heads(self, qkv: Tensor, cache: KVCache, spec: AttentionSpec) -> Tensor:
        """Rows after the spec's transforms."""
        rows, value_dim = qkv.shape[0], cache.dims[1]
        end = qkv.shape[1] - (spec.num_kv_heads * value_dim if spec.stores else 0)
        heads = transform_heads(
            qkv[:, :end].reshape(rows, -1, spec.head_dim),
            qkv[:, end:].reshape(rows, spec.num_kv_heads if spec.stores else 0, value_dim),
            spec,
            self.all_gather,
        )
        return torch.cat([x.flatten(1) for x in heads], dim=1)

    def store(self, keys: Tensor, values: Tensor | None, cache: KVCache, plan: AttentionPlan) -> None:
        triton_heads.store(keys, cache.keys, plan)
        if values is not None:
            triton_heads.store(values, cache.values, plan)

    def attend_stored(
        self,
        query: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        spec: AttentionSpec,
        rows: int,
        dtype: torch.dtype,
        key_lists: Tensor | None = None,
    ) -> Tensor:
        if not triton_attention.takes(cache.dims):
            return super().attend_stored(query, cache, plan, spec, rows, dtype, key_lists)
        return triton_attention.attend_stored(query, cache, plan, spec, rows, dtype, key_lists)

    def select_keys(
        self,
        query: Tensor,
        weights: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        top_k: int,
        rows: int,
        ratio: int = 1,
    ) -> Tensor:
        if not triton_attention.takes(cache.dims):
            return super().select_keys(query, weights, cache, plan, top_k, rows, ratio)
        return triton_key_lists.select_keys(query, weights, cache, plan, top_k, rows, ratio)

    def full_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        runs: Sequence[FullRun],
        bias: DistanceBias | PositionScores | None = None,
    ) -> Tensor:
        if not triton_attention.takes((key.shape[2], value.shape[2])):
            return super().full_attention(query, key, value, scale, runs, bias)
        return triton_attention.full_attention(query, key, value, scale, runs, bias)
