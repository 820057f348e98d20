"""What changes queries and keys before positions are applied."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from octavo.ops import Backend, HeadClip, HeadNorms, HeadTransform, NormSpec, RankColumns
from octavo.parts.norms import Norm
from octavo.parts.split import HeadSplit


class QKTransform(nn.Module):
    """What changes queries, keys and values before positions are applied."""

    def split_heads(self, own: HeadSplit) -> None:
        """Leave what one rank's heads need. Raises ValueError where they cannot be changed without the others."""
        raise ValueError(f"{type(self).__name__} does not say how its heads can be divided among ranks")

    @property
    def adapted_slots(self) -> set[int]:
        """The slots of adapters that have another transform."""
        return set()

    def specs(self, slot: int | None = None) -> tuple[HeadTransform, ...]:
        """As a backend is told of it; as the adapter in a slot has it."""
        raise NotImplementedError

    def query_weights(self, slot: int | None = None) -> Tensor | None:
        """`[head_dim]` float32, what queries are multiplied with after positions are applied; None for nothing."""
        return None


class QKNorm(QKTransform):
    """Norms of queries and keys, head by head or (`full_width`) over all heads at once.

    Args:
        q, k: norms over head_dim, or over all heads at once.
        full_width: whether the norms see all heads side by side (OLMoE, MPT) or one at a time (Phi, StableLM 2).
        v: of each head's values (Gemma 3n).
    """

    def __init__(self, q: Norm, k: Norm | None, full_width: bool = False, v: Norm | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v
        self.full_width = full_width
        self.query_columns: RankColumns | None = None
        """What this rank has of all heads side by side; None for all of them."""
        self.key_columns: RankColumns | None = None

    def split_heads(self, own: HeadSplit) -> None:
        """Norms of all heads at once stay whole, and the ranks gather what they norm."""
        if self.full_width:
            self.query_columns, self.key_columns = own.query_columns, own.key_columns
        else:
            self.q.split_heads(own.heads)
            if self.k is not None:
                self.k.split_heads(own.kv_heads)

    def prepare(self, backend: Backend) -> None:
        self.all_gather = backend.all_gather

    @property
    def adapted_slots(self) -> set[int]:
        return self.q.adapted_slots | (self.k.adapted_slots if self.k is not None else set())

    def specs(self, slot: int | None = None) -> tuple[HeadTransform, ...]:
        columns = self.query_columns, self.key_columns
        key, value = (None if norm is None else norm.spec(slot) for norm in (self.k, self.v))
        return (HeadNorms(self.q.spec(slot), key, self.full_width, *columns, value),)


class RotatedQKNorm(QKNorm):
    """Root mean square norms of each head's queries and keys after positions are applied (Hunyuan).

    Rotation keeps lengths, so that heads are divided by theirs before it. What is left are the weights: a score is a
    sum over products of a query's and a key's values, and queries take the keys' weights as well.
    """

    def specs(self, slot: int | None = None) -> tuple[HeadTransform, ...]:
        assert self.k is not None
        query, key = (replace(norm.spec(slot), weight=self._ones(norm.spec(slot))) for norm in (self.q, self.k))
        return (HeadNorms(query, key),)

    def query_weights(self, slot: int | None = None) -> Tensor | None:
        assert self.k is not None
        query, key = self.q.spec(slot).weight, self.k.spec(slot).weight
        assert query is not None
        assert key is not None
        return query * key

    def _ones(self, norm: NormSpec) -> Tensor:
        assert norm.kind == "rms"
        assert norm.weight is not None
        return torch.ones_like(norm.weight)


class Clip(QKTransform):
    """Queries, keys and values between -limit and limit, then `after` (MPT, OLMo)."""

    def __init__(self, limit: float, after: QKTransform | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.after = after

    def split_heads(self, own: HeadSplit) -> None:
        if self.after is not None:
            self.after.split_heads(own)

    @property
    def adapted_slots(self) -> set[int]:
        return set() if self.after is None else self.after.adapted_slots

    def specs(self, slot: int | None = None) -> tuple[HeadTransform, ...]:
        return (HeadClip(self.limit), *(self.after.specs(slot) if self.after is not None else ()))
