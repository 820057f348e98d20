"""What requests ask of logits, and are told of tokens: see octavo.ops.logit_changes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.ops.logit_changes import Likeliest, Penalties, TokenChanges, sent
from octavo.ops.plans import DrawBy
from octavo.ops.torch import sampling


class TorchLogits:
    """The reference's operations."""

    def mask_tokens(self, logits: Tensor, rows: Sequence[int], masks: Tensor) -> None:
        bits = np.unpackbits(masks.numpy(), axis=1, count=logits.shape[1], bitorder="little")
        allowed = torch.from_numpy(bits).to(logits.device).bool()
        index = sent(rows, torch.int64, logits.device)
        logits[index] = logits[index].masked_fill_(~allowed, -torch.inf)

    def change_tokens(self, logits: Tensor, changes: Sequence[TokenChanges]) -> None:
        for change in changes:
            row = logits[change.row]
            if change.forbidden is not None:
                row.masked_fill_(change.forbidden, -torch.inf)
            for ids in change.banned:
                row[ids] = -torch.inf
            if change.bias is not None:
                ids, values = change.bias
                row[ids] += values

    def penalize(self, logits: Tensor, penalties: Sequence[Penalties]) -> None:
        device = logits.device
        for one in penalties:
            for token in one.new:
                one.counts[token] += 1
        counts, in_prompt = torch.stack([p.counts for p in penalties]), torch.stack([p.in_prompt for p in penalties])
        factors = torch.tensor([(p.repetition, p.frequency, p.presence) for p in penalties], device=device)
        repetition, frequency, presence = factors.unsqueeze(1).unbind(2)
        generated, rows = counts > 0, [p.row for p in penalties]
        part = logits[rows]
        repetition = torch.where(generated | in_prompt, repetition, 1.0)
        part = torch.where(part > 0, part / repetition, part * repetition)
        part -= frequency * counts
        part -= presence * generated
        logits[rows] = part

    def log_softmax(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, -1)

    def likeliest(self, scores: Tensor, chosen: Tensor, most: int) -> Likeliest:
        vocab = scores.shape[1]
        own = scores.gather(1, chosen.clamp(max=vocab - 1).unsqueeze(1))
        own[chosen >= vocab] = -torch.inf
        ranks = (scores > own).sum(1) + 1
        values, ids = scores.topk(most, dim=-1) if most else (scores[:, :0], chosen.unsqueeze(1)[:, :0])
        return Likeliest(own.squeeze(1), ranks, values, ids)

    def left_to_draw(self, logits: Tensor, by: Sequence[DrawBy], chosen: Tensor) -> Tensor:
        return sampling.left_to_draw(logits, by, chosen)
