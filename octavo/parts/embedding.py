"""Token and position embeddings: the first part of a model, called on a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from octavo.ops import Backend, PackedLinear
from octavo.parts.batch import Batch, EncoderBatch
from octavo.parts.norms import norm_rows
from octavo.parts.split import Range, Split
from octavo.parts.weight_adapter import AdapterOptions, ChangedBySlot, WeightAdapter
from octavo.parts.weight_slots import Role, Shard, WeightSlot


@dataclass(frozen=True, eq=False)
class TableChange:
    """What an adapter makes of a token table."""

    table: Tensor | None
    """[tokens, embedding_dim] float32, in its place, of this rank's tokens; may have more tokens."""
    tokens: tuple[Tensor, Tensor] | None
    """Ids in order and [count, embedding_dim] float32, in the place of their rows."""
    low_rank: tuple[tuple[Tensor, PackedLinear], ...]
    """[tokens, rank] float32, and what makes rows of that."""
    factor: Tensor | None
    """[embedding_dim] float32 (DoRA)."""


class Embedding(ChangedBySlot[TableChange]):
    """A row of a table `[num_embeddings, embedding_dim]` a token, times `scale` (in the activations' dtype).

    The table is plain, or a weight packed for products, as a head that is tied to it needs it.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.scale = scale
        self.weight: nn.Parameter | None = None
        self._packed: PackedLinear | None = None
        self._own: Range | None = None
        """The tokens whose rows this rank has; None for all."""
        self._is_last = True
        """Whether tokens that an adapter has more than the table are this rank's."""

    def split_tokens(self, split: Split) -> None:
        """Leave one rank's share of the rows, of the table of tokens. Every rank gives the rows of all."""
        self._own, self._is_last = split.share(self.num_embeddings), split.is_last

    def weight_slots(self) -> dict[str, WeightSlot]:
        """The table; CausalLM says which is the tokens'."""
        shard = None if self._own is None else Shard(rows=(self._own,))
        return {"weight": WeightSlot((self.num_embeddings, self.embedding_dim), Role.ADDED, self.load, shard=shard)}

    def load(self, table: Tensor | PackedLinear, dtype: torch.dtype = torch.float32) -> None:
        """Take the table; of a packed one, rows are read in `dtype`."""
        if isinstance(table, Tensor):
            self.weight = nn.Parameter(table, requires_grad=False)
        else:
            self._packed, self._dtype = table, dtype
            self.scale = float(torch.tensor(self.scale, dtype=dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows. The table is loaded."""
        return self._dtype if self.weight is None else self.weight.dtype

    def prepare(self, backend: Backend) -> None:
        self._table_rows, self._scale = backend.table_rows, backend.scale
        self._all_reduce = backend.all_reduce

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        rows = self.of_batch(batch)
        features = batch.features if isinstance(batch, Batch) else None
        return rows if features is None else features.put(rows)

    def of_batch(self, batch: Batch | EncoderBatch) -> Tensor:
        """Rows of a step's tokens, whatever else stands in their places."""
        only_tables = isinstance(batch, Batch) and batch.only_tables
        return self.of(batch.tokens) if only_tables or not self._changes else self._adapted(batch.tokens, batch)

    def of(self, ids: Tensor) -> Tensor:
        """Rows of tokens `ids` `[count]`: `[count, embedding_dim]`."""
        rows = self._own_rows(ids)
        return rows if self._own is None else self._all_reduce(rows)

    def _own_rows(self, ids: Tensor) -> Tensor:
        """The same, of other ranks' tokens zeros."""
        first = None if self._own is None else self._own[0]
        if self._packed is not None:
            return self._packed.rows(ids, self._dtype, self.scale, first)
        assert self.weight is not None, "weights are loaded before anything is computed"
        rows = self._table_rows(self.weight, ids, first)
        return rows if self.scale == 1.0 else self._scale(rows, self.scale)

    def _adapted(self, ids: Tensor, batch: Batch | EncoderBatch) -> Tensor:
        """Rows of tokens, where adapters have other ones, or more of them."""
        rows = self._own_rows(ids.clamp(max=self.num_embeddings - 1))
        for slot, change in self._changes.items():
            if (places := batch.rows_of_slot(slot, len(ids))) is not None:
                rows[places] = self._scaled(self._changed(ids[places], change), rows.dtype)
        return rows if self._own is None else self._all_reduce(rows)

    def _changed(self, ids: Tensor, change: TableChange) -> Tensor:
        """`[count, embedding_dim]` float32."""
        if change.table is not None:
            rows = change.table[self._places(ids, change.table)]
        else:
            rows = self._floats(ids.clamp(max=self.num_embeddings - 1))
        for by_token, low_rank in change.low_rank:
            rows = rows + low_rank(by_token[self._places(ids, by_token)])
        if change.factor is not None:
            rows = rows * change.factor
        if change.tokens is not None:
            tokens, own = change.tokens
            places = torch.searchsorted(tokens, ids).clamp(max=len(tokens) - 1)
            rows = torch.where((tokens[places] == ids)[:, None], own[places], rows)
        if self._own is None:
            return rows
        first, end = self._own
        return rows * ((ids >= first) & ((ids < end) | self._is_last)).unsqueeze(1)

    def _places(self, ids: Tensor, table: Tensor) -> Tensor:
        """Where an adapter's table has tokens; anywhere, for tokens of other ranks."""
        return ids if self._own is None else (ids - self._own[0]).clamp(0, len(table) - 1)

    def _floats(self, ids: Tensor) -> Tensor:
        """Rows without the scale, in float32; the caller may change them."""
        first = None if self._own is None else self._own[0]
        if self._packed is not None:
            return self._packed.rows(ids, torch.float32, first=first)
        assert self.weight is not None
        return self._table_rows(self.weight.data, ids, first).float()

    def _scaled(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        rows = rows.to(dtype)
        return rows if self.scale == 1.0 else self._scale(rows, self.scale)

    def adapter_change(self, adapter: WeightAdapter, options: AdapterOptions) -> TableChange:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        if adapter.bias is not None or adapter.added_bias is not None:
            raise ValueError("a bias, which a token table has not")
        device = options.backend.device
        first, end = self._own or (0, self.num_embeddings)
        if any(part.first or len(part.b) < end - first for part in adapter.low_rank):
            raise ValueError("a part of a table")
        factor = None if adapter.magnitude is None else adapter.magnitude.to(device)
        if adapter.lengths is not None:
            if self._own is not None:
                raise ValueError("a table with lengths of its own, which several ranks share")
            table = adapter.weight if adapter.weight is not None else self._floats(torch.arange(self.num_embeddings))
            total = table.cpu()
            for part in adapter.low_rank:
                total = total + part.b @ part.a
            factor = (adapter.lengths / total.norm(dim=0)).to(device)
        low_rank = tuple(
            (part.b.contiguous().to(device), options.backend.linear(part.a.t().contiguous().to(device)))
            for part in adapter.low_rank
        )
        weight, tokens = adapter.weight, adapter.tokens
        if tokens is not None:
            order = tokens[0].argsort()
            tokens = tokens[0][order], tokens[1][order]
        return TableChange(
            None if weight is None else weight.to(device),
            None if tokens is None else (tokens[0].to(device), tokens[1].to(device)),
            low_rank,
            factor,
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows `ids` of a plain table that is whole, without the scale."""
        assert self.weight is not None, "weights are loaded before anything is computed"
        return self._table_rows(self.weight, ids)


class AliasedEmbedding(Embedding):
    """A table in which some tokens are read as others: placeholders of media that nothing stands for (Gemma 4).

    Args:
        num_embeddings, embedding_dim, scale: as Embedding has them.
        aliases: tokens, and those whose rows they have.
        vocab_size: of the model, which may have more tokens than the table; `num_embeddings` if None.
        unknown: the token whose row those have that the table lacks (Gemma 3n); None where nothing is said of them.
    """

    MORE = 1024
    """Tokens that adapters may have more than the model."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        scale: float = 1.0,
        *,
        aliases: Mapping[int, int] = MappingProxyType({}),
        vocab_size: int | None = None,
        unknown: int | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, scale)
        self.unknown = unknown
        self.aliases, self.vocab_size = dict(aliases), vocab_size or num_embeddings

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        read = torch.arange(self.vocab_size + self.MORE)
        if self.unknown is not None:
            read[self.num_embeddings :] = self.unknown
        for token, other in self.aliases.items():
            read[token] = other
        self._read = read.view(-1, 1).to(backend.device)

    def of_batch(self, batch: Batch | EncoderBatch) -> Tensor:
        return super().of_batch(replace(batch, tokens=self._table_rows(self._read, batch.tokens).view(-1)))


class PositionedEmbedding(nn.Module):
    """Token embeddings plus learned positions (GPT-2), their sum times `scale` (Jais). Both are Embeddings."""

    def __init__(self, tokens: Embedding, positions: Embedding, scale: float = 1.0) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions
        self.scale = scale

    def prepare(self, backend: Backend) -> None:
        self._add, self._scale = backend.add, backend.scale

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        x = self._add(self.tokens(batch), self.positions.lookup(batch.positions))
        return x if self.scale == 1.0 else self._scale(x, self.scale)


class FixedPositions(nn.Module):
    """Token embeddings plus positions that no checkpoint needs to store (Vaswani et al. 2017).

    Args:
        tokens: the token table.
        positions: gives the rows of all positions, `[positions, embedding_dim]` float32.
    """

    def __init__(self, tokens: Embedding, positions: Callable[[], Tensor]) -> None:
        super().__init__()
        self.tokens = tokens
        self._positions = positions

    def prepare(self, backend: Backend) -> None:
        self._add, self._table_rows = backend.add, backend.table_rows
        self._table = self._positions().to(backend.device, self.tokens.dtype)

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        return self._add(self.tokens(batch), self._table_rows(self._table, batch.positions))


class NormedEmbedding(nn.Module):
    """Token embeddings with a norm behind them (BLOOM, BART)."""

    def __init__(self, tokens: Embedding | PositionedEmbedding, norm: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = norm

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        return norm_rows(self.norm, self.tokens(batch), batch)
