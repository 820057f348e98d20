"""Stages: each has some of a model's layers, and hands what it has made of a step to the next one.

What crosses a border is the residual stream, what layers behind it come back to, and, in steps that read media or an
encoder's input, the rows that cross-attention behind it stores keys and values of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.embedding import Embedding
from octavo.parts.state import StateSpec


class NoLayer(nn.Module):
    """In the place of a layer that changes nothing, or that another stage has."""

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return x


class NoEmbedding(nn.Module):
    """In the place of an embedding that another stage has. A table may lie in it that is the head's weight."""


class KeptRows(NamedTuple):
    """How rows of what a part keeps look, where they are not as the stream's."""

    size: int
    """Values of a row."""
    dtype: torch.dtype | None = None
    """None for the stream's."""


@dataclass(frozen=True)
class Stage:
    """What one of a model's stages has, and what crosses its borders."""

    index: int = 0
    count: int = 1
    layers: range = range(0)
    """Which of the model's layers it has, if there are several stages."""
    receives: tuple[str, ...] = ()
    """What of `Batch.kept` comes with the stream from the stage before."""
    sends: tuple[str, ...] = ()
    """What of it goes on to the next."""
    passes_cross_rows: bool = False
    """Whether cross-attention of later stages needs an encoder's or a tower's rows."""
    gets_cross_rows: bool = False
    """Whether such rows come from the stage before."""

    def passing_reads(self, reads: Sequence[int]) -> "Stage":
        """This stage, which passes on the stream as it is before these layers, for a head that reads it at the end."""
        before = tuple(read_name(i) for i in reads if i < self.layers.start)
        passed = () if self.is_last else tuple(read_name(i) for i in reads if i < self.layers.stop)
        return replace(self, receives=self.receives + before, sends=self.sends + passed)

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


def divide(
    layers: Sequence[nn.Module], crosses: Sequence[bool], index: int, count: int, embed: nn.Module | None = None
) -> Stage:
    """The stage `index` of `count` of a model with these layers, which are shared evenly by their number.

    Args:
        layers: all of the model's. Those that do nothing do not count.
        crosses: for each of them, whether it has cross-attention.
        index: from 0.
        count: of stages.
        embed: what comes before them, which may keep something too.

    Raises ValueError where there are fewer layers than stages.
    """
    there = [i for i, layer in enumerate(layers) if not isinstance(layer, NoLayer)]
    if len(there) < count:
        raise ValueError(f"the model has {len(there)} layers for {count} stages")
    # Where they cannot be even, the last stage has fewer: it has the head too.
    cuts = [0, *(there[-(-len(there) * i // count)] for i in range(1, count)), len(layers)]
    own = range(cuts[index], cuts[index + 1])
    return Stage(
        index,
        count,
        own,
        receives=_kept_across(layers, own.start, embed) if index else (),
        sends=_kept_across(layers, own.stop, embed) if index < count - 1 else (),
        passes_cross_rows=any(crosses[own.stop :]),
        gets_cross_rows=index > 0 and any(crosses[own.start :]),
    )


def _named(module: nn.Module | None, attribute: str) -> dict[str, None]:
    """The names that parts of a module have in `keeps` or `mixes`."""
    parts = () if module is None else module.modules()
    return {name: None for part in parts for name in getattr(part, attribute, ())}


def kept_rows(module: nn.Module) -> dict[str, KeptRows]:
    """How rows of what parts of a module keep look; only of what is not as the stream."""
    return {name: rows for part in module.modules() for name, rows in getattr(part, "kept_rows", {}).items()}


def _kept_across(layers: Sequence[nn.Module], border: int, embed: nn.Module | None) -> tuple[str, ...]:
    """What layers before a border keep and layers behind it mix in."""
    keeps, mixes = _named(embed, "keeps"), set[str]()
    for i, layer in enumerate(layers):
        if i < border:
            keeps |= _named(layer, "keeps")
        else:
            mixes |= set(_named(layer, "mixes"))
    return tuple(name for name in keeps if name in mixes)


def read_name(layer: int) -> str:
    """What the stream before a layer is kept as, for a head that reads it."""
    return f"before layer {layer}"


def declared_states(module: nn.Module) -> list[StateSpec]:
    """The states of all parts of a module."""
    return [cast(StateSpec, part.state) for part in module.modules() if hasattr(part, "state_index")]


def keep_table(embed: nn.Module, table: Embedding) -> nn.Module:
    """`embed` with nothing but its token table, at its path."""
    if embed is table:
        return embed
    kept = NoEmbedding()
    for name, child in embed.named_children():
        if any(module is table for module in child.modules()):
            kept.add_module(name, keep_table(child, table))
    return kept


def receive_stream(
    backend: Backend, stage: Stage, batch: Batch, size: int, dtype: torch.dtype, kept: Mapping[str, KeptRows]
) -> Tensor:
    """The stream `[rows, size]` of a step, from the stage before; what layers come back to goes to `batch.kept`.

    `kept`: how rows of what is not as the stream look.
    """
    rows = batch.tokens.shape[0]
    x = backend.receive(rows, size, dtype)
    for name in stage.receives:
        of_rows = kept.get(name, KeptRows(size))
        batch.kept[name] = backend.receive(rows, of_rows.size, of_rows.dtype or dtype)
    return x


def send_stream(backend: Backend, stage: Stage, x: Tensor, batch: Batch) -> None:
    """Hand the stream to the next stage."""
    backend.send(x)
    for name in stage.sends:
        backend.send(batch.kept[name])
