"""What changes queries and keys before positions are applied."""

from torch import nn

from octavo.ops import HeadClip, HeadNorms, HeadTransform
from octavo.parts.norms import Norm


class QKTransform(nn.Module):
    """What changes queries, keys and values before positions are applied."""

    def specs(self) -> tuple[HeadTransform, ...]:
        """As a backend is told of it."""
        raise NotImplementedError


class QKNorm(QKTransform):
    """Norms of queries and keys, head by head or (`full_width`) over all heads at once.

    Args:
        q, k: norms over head_dim, or over all heads at once.
        full_width: whether the norms see all heads side by side (OLMoE, MPT) or one at a time (Phi, StableLM 2).
    """

    def __init__(self, q: Norm, k: Norm, full_width: bool = False) -> None:
        super().__init__()
        self.q, self.k = q, k
        self.full_width = full_width
        for norm in self.modules():
            if isinstance(norm, Norm):
                norm.takes_adapters = False

    def specs(self) -> tuple[HeadTransform, ...]:
        return (HeadNorms(self.q.spec(), self.k.spec(), self.full_width),)


class Clip(QKTransform):
    """Queries, keys and values between -limit and limit, then `after` (MPT, OLMo)."""

    def __init__(self, limit: float, after: QKTransform | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.after = after

    def specs(self) -> tuple[HeadTransform, ...]:
        return (HeadClip(self.limit), *(self.after.specs() if self.after is not None else ()))
