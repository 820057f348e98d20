"""What changes queries and keys before positions are applied."""

from torch import nn

from octavo.ops import HeadClip, HeadNorms, HeadTransform
from octavo.parts.norms import Norm


class QKTransform(nn.Module):
    """What changes queries, keys and values before positions are applied."""

    @property
    def adapted_slots(self) -> set[int]:
        """The slots of adapters that have another transform."""
        return set()

    def specs(self, slot: int | None = None) -> tuple[HeadTransform, ...]:
        """As a backend is told of it; as the adapter in a slot has it."""
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

    @property
    def adapted_slots(self) -> set[int]:
        return self.q.adapted_slots | self.k.adapted_slots

    def specs(self, slot: int | None = None) -> tuple[HeadTransform, ...]:
        return (HeadNorms(self.q.spec(slot), self.k.spec(slot), self.full_width),)


class Clip(QKTransform):
    """Queries, keys and values between -limit and limit, then `after` (MPT, OLMo)."""

    def __init__(self, limit: float, after: QKTransform | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.after = after

    @property
    def adapted_slots(self) -> set[int]:
        return set() if self.after is None else self.after.adapted_slots

    def specs(self, slot: int | None = None) -> tuple[HeadTransform, ...]:
        return (HeadClip(self.limit), *(self.after.specs(slot) if self.after is not None else ()))
