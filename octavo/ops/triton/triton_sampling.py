"""Sampling: what TritonBackend has of it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.ops.plans import NOT_FINITE, DrawBy
from octavo.ops.torch import TorchBackend
from octavo.ops.triton.launching import ROWS, cdiv, columns_of, on_device, together, warps_of
from octavo.ops.triton.sample_kernel import left_kernel, sample_kernel


def _fields(by: Sequence[DrawBy], vocab: int) -> Tensor:
    """[rows, fields] float64, as the kernel has them."""
    rows = []
    for row in by:
        top_k = row.top_k if 0 < row.top_k < vocab else vocab
        floor = math.log(np.float32(row.min_p)) if row.min_p > 0 else -math.inf
        is_drawn = row.temperature != 0
        rows.append((row.temperature if is_drawn else 1.0, floor, top_k, row.top_p, row.draw, is_drawn))
    return torch.tensor(rows, dtype=torch.float64)


class TritonSampling(TorchBackend):
    """Tokens are chosen on the device; how each row draws crosses to it in one copy."""

    def sample(self, logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
        logits = together(logits)
        (rows, vocab), columns = logits.shape, columns_of(logits.shape[1])
        tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
        if rows:
            drawn = [row for row in by if row.temperature != 0]
            fields = _fields(by, vocab).to(logits.device, non_blocking=True) if drawn else logits
            sample_kernel[(cdiv(rows, ROWS),)](
                logits, fields, tokens, rows, vocab, logits.stride(0), NOT_FINITE, bool(drawn),
                any(0 < row.top_k < vocab for row in drawn), any(row.top_p < 1 for row in drawn), ROWS, columns,
                num_warps=warps_of(columns),
            )  # fmt: skip
        return tokens

    def left_to_draw(self, logits: Tensor, by: Sequence[DrawBy], chosen: Tensor) -> Tensor:
        logits = together(logits)
        (rows, vocab), columns = logits.shape, columns_of(logits.shape[1])
        left = torch.empty(rows, vocab, device=logits.device)
        drawn = [row for row in by if row.temperature != 0]
        if rows:
            left_kernel[(cdiv(rows, ROWS),)](
                logits, on_device(_fields(by, vocab), logits.device), chosen, left, rows, vocab, logits.stride(0),
                any(0 < row.top_k < vocab for row in drawn), any(row.top_p < 1 for row in drawn), ROWS, columns,
                num_warps=warps_of(columns),
            )  # fmt: skip
        return left
