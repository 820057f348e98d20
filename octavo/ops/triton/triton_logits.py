"""What requests ask of logits, and are told of tokens: what TritonBackend has of octavo.ops.logit_changes.

A step's requests cross to the device as tables of a few numbers each, which nobody waits for.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.ops.logit_changes import Likeliest, Penalties, TokenChanges, sent
from octavo.ops.torch import TorchBackend
from octavo.ops.triton.launching import ROWS, cdiv, columns_of, on_device, together, warps_of
from octavo.ops.triton.logit_kernels import (
    likeliest_kernel,
    log_softmax_kernel,
    mask_kernel,
    penalize_kernel,
    tokens_kernel,
)

LISTED = 256
"""Tokens of a list that a program changes."""
MOST = 32
"""Likeliest tokens that are found one after the other; for more, a row is sorted."""


class TritonLogits(TorchBackend):
    """Operations between logits and tokens. Logits' rows may lie apart, their values may not."""

    def mask_tokens(self, logits: Tensor, rows: Sequence[int], masks: Tensor) -> None:
        table, bits = sent(rows, torch.int64, logits.device), on_device(masks, logits.device)
        self._mask(logits, len(rows), table, bits, is_packed=True)

    def _mask(self, logits: Tensor, count: int, table: Tensor, masks: Tensor, is_packed: bool) -> None:
        columns = columns_of(logits.shape[1])
        mask_kernel[(count, cdiv(logits.shape[1], columns))](
            logits, logits.stride(0), logits.shape[1], table, masks, masks.stride(0), is_packed, columns,
            num_warps=warps_of(columns),
        )  # fmt: skip

    def change_tokens(self, logits: Tensor, changes: Sequence[TokenChanges]) -> None:
        if wholes := [(c.row, c.forbidden.data_ptr()) for c in changes if c.forbidden is not None]:
            table = torch.tensor(wholes, dtype=torch.int64)
            on_it = on_device(table, logits.device)
            self._mask(logits, len(wholes), on_it, on_it, is_packed=False)
        banned = [(c.row, ids.data_ptr(), 0, len(ids)) for c in changes for ids in c.banned if len(ids)]
        biased = [(c.row, c.bias[0].data_ptr(), c.bias[1].data_ptr(), len(c.bias[0])) for c in changes if c.bias]
        for lists, is_added in ((banned, False), (biased, True)):
            if lists:
                table = on_device(torch.tensor(lists, dtype=torch.int64), logits.device)
                blocks = cdiv(max(count for *_, count in lists), LISTED)
                tokens_kernel[(len(lists), blocks)](logits, logits.stride(0), table, is_added, LISTED, num_warps=4)

    def penalize(self, logits: Tensor, penalties: Sequence[Penalties]) -> None:
        ends = list(itertools.accumulate(len(p.new) for p in penalties))
        table = [
            (p.row, p.counts.data_ptr(), p.in_prompt.data_ptr(), end - len(p.new), end)
            for p, end in zip(penalties, ends, strict=True)
        ]
        factors = torch.tensor([(p.repetition, p.frequency, p.presence) for p in penalties])
        new = [token for p in penalties for token in p.new] or [0]
        columns = columns_of(logits.shape[1])
        penalize_kernel[(len(penalties), cdiv(logits.shape[1], columns))](
            logits, logits.stride(0), logits.shape[1], on_device(torch.tensor(table), logits.device),
            on_device(factors, logits.device), sent(new, torch.int64, logits.device), columns,
            num_warps=warps_of(columns), enable_fp_fusion=False,
        )  # fmt: skip

    def log_softmax(self, logits: Tensor) -> Tensor:
        logits = together(logits)
        (rows, vocab), columns = logits.shape, columns_of(logits.shape[1])
        out = torch.empty(rows, vocab, device=logits.device)
        if rows:
            log_softmax_kernel[(cdiv(rows, ROWS),)](
                logits, logits.stride(0), out, rows, vocab, ROWS, columns, num_warps=warps_of(columns)
            )
        return out

    def likeliest(self, scores: Tensor, chosen: Tensor, most: int) -> Likeliest:
        scores = together(scores)
        (rows, vocab), columns, device = scores.shape, columns_of(scores.shape[1]), scores.device
        own, ranks = torch.empty(rows, device=device), torch.empty(rows, dtype=torch.int64, device=device)
        listed = most if most <= MOST else 0
        values = torch.empty(rows, listed, device=device)
        ids = torch.empty(rows, listed, dtype=torch.int64, device=device)
        if rows:
            likeliest_kernel[(cdiv(rows, ROWS),)](
                scores, scores.stride(0), chosen, own, ranks, values, ids, rows, vocab, listed, ROWS, columns,
                num_warps=warps_of(columns),
            )  # fmt: skip
        if most > MOST:
            values, ids = (t[:, :most] for t in scores.sort(dim=-1, descending=True, stable=True))
        return Likeliest(own, ranks, values, ids)
