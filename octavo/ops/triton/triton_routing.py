"""Routing: what TritonBackend has of it."""

import torch
from torch import Tensor

from octavo.ops.specs import RouterSpec
from octavo.ops.torch import TorchBackend
from octavo.ops.triton.launching import ROWS, cdiv, power_of_two, together, warps_of
from octavo.ops.triton.route_kernels import route_kernel, sparse_mixer_kernel


class TritonRouting(TorchBackend):
    """Of equal experts, and of equal groups, the first are chosen."""

    def route(
        self, logits: Tensor, spec: RouterSpec, bias: Tensor | None = None, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits = together(logits.float())
        rows, count = logits.shape
        weights = torch.empty(rows, spec.top_k, device=logits.device)
        numbers = torch.empty(rows, spec.top_k, dtype=torch.int64, device=logits.device) if chosen is None else chosen
        if not rows:
            return weights, numbers
        grid = (cdiv(rows, ROWS),)
        if chosen is None and spec.noise is not None:
            lanes = power_of_two(count)
            sparse_mixer_kernel[grid](
                logits, weights, numbers, rows, logits.stride(0), count, 2 * spec.noise,
                spec.top_k, ROWS, lanes, num_warps=warps_of(lanes),
            )  # fmt: skip
            return weights, numbers
        size = count // spec.num_groups
        groups, lanes = power_of_two(spec.num_groups), power_of_two(size)
        route_kernel[grid](
            logits, None if bias is None else bias.float().contiguous(),
            None if chosen is None else chosen.contiguous(), weights, numbers, rows, logits.stride(0), size,
            spec.eps, spec.min_norm, spec.factor, spec.scores, spec.norm, spec.top_k, power_of_two(spec.top_k),
            spec.num_groups, spec.top_groups, min(spec.group_best, size), ROWS, groups, lanes,
            num_warps=warps_of(groups * lanes),
        )  # fmt: skip
        return weights, numbers
