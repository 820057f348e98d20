"""A decoder: embedding, layers, norm, head."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Self, cast

import torch
from torch import Tensor, nn

from octavo.config import PoolerConfig
from octavo.errors import CheckpointError, ConfigError
from octavo.ops import Backend, PackedLinear
from octavo.parts.batch import Batch, CrossBatch, EncoderBatch
from octavo.parts.draft_head import DraftHead, Predictor
from octavo.parts.embedding import Embedding
from octavo.parts.encoder import CrossAttention
from octavo.parts.linear_layer import Linear
from octavo.parts.media_tower import MediaTower
from octavo.parts.names import Into, Names
from octavo.parts.norms import Norm, norm_rows
from octavo.parts.rotary_embedding import LongRotaryEmbedding
from octavo.parts.shared_attention import SharedAttention
from octavo.parts.split import Split, TakesSplit, split_parts
from octavo.parts.stage import (
    NoEmbedding,
    NoLayer,
    Stage,
    declared_states,
    divide,
    keep_table,
    kept_rows,
    read_name,
    receive_stream,
    send_stream,
)
from octavo.parts.state import PagedKV, StateSpec
from octavo.parts.token_heads import TokenHeads
from octavo.parts.weight_adapter import TakesAdapters
from octavo.parts.weight_slots import Role, WeightSlot, weight_slots

MOST_LAYERS = 4096
"""A damaged config may ask for a billion."""


class CausalLM(nn.Module):
    """A language model as a composition of parts.

    Args:
        embed: tokens of a batch to `[rows, hidden_size]`; the first Embedding in it has the token table.
        layer: makes the layer of a given index.
        layers: how many there are.
        norm: the last norm.
        head: to the vocabulary.
        names: published tensor names to the parts.
        tied: whether the embedding's table serves as the head's weight.
        tied_if_absent: whether the table serves as the head where the checkpoint stores none.
        encoder: makes `[rows, hidden_size]` of an EncoderBatch, for the layers' cross-attention.
        shared: what several layers compute with without having it as theirs, so that every stage has it (Zamba2).
        optional: paths of parameters that become None where the checkpoint stores none.
        logit_scale: factor of the logits.
        softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).
    """

    def __init__(
        self,
        embed: nn.Module,
        layer: Callable[[int], nn.Module],
        layers: int,
        norm: nn.Module,
        head: Linear,
        names: Names,
        *,
        tied: bool = False,
        tied_if_absent: bool = False,
        encoder: nn.Module | None = None,
        shared: nn.Module | None = None,
        optional: tuple[str, ...] = (),
        logit_scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        if layers > MOST_LAYERS:
            raise ValueError(f"{layers} layers are more than any model has (at most {MOST_LAYERS})")
        self.embed = embed
        self.layers = nn.ModuleList([layer(i) for i in range(layers)])
        self.norm = norm
        self.tied = tied
        self._tokens = next((path, m) for path, m in embed.named_modules() if isinstance(m, Embedding))
        self.vocab_size, self.hidden_size = head.outputs, self.tokens.embedding_dim
        self.stream_size = self.hidden_size
        """Values of a row between layers."""
        self.stage = Stage()
        self._embeds = True
        """Whether tokens become rows here."""
        self._kept_by: list[nn.Module] = []
        """Parts of all stages whose rows may go on to later ones."""
        self._table_is_head = False
        self.head: Linear | None = head
        self.encoder = encoder
        self.shared = shared
        self.optional = optional
        self.score: nn.Module | None = None
        self.pooled: nn.Module | None = None
        self.token_heads: TokenHeads | None = None
        self.media: MediaTower | None = None
        self.predictor: Predictor | None = None
        """Of the head that its checkpoints have for guessing tokens; None where they have none, or it is not read."""
        self.draft_head: DraftHead | None = None
        self.read_before = frozenset[int]()
        """Before which layers rows are kept for that head."""
        self.tied_if_absent = tied_if_absent
        self.pooling = PoolerConfig()
        """How rows become one answer, as far as the architecture says it."""
        self.names = names
        self.logit_scale = logit_scale
        self.softcap = softcap
        self.dtype = torch.float32
        """Of activations."""
        self.states: list[StateSpec] = []
        self.all_states: list[StateSpec] = []
        """Those of all stages, as one rank alone would have them: all ranks have the same groups of block tables."""
        self._number_states()

    def split(self, split: Split) -> None:
        """See octavo.parts.split. Logits are gathered, so that every rank has all of them."""
        own = set(self.modules())
        for part in (self.embed, self.layers, self.shared, self.norm, self.draft_head):
            if part is not None:  # else it is another stage's
                split_parts(part, split)
        for reader in (self.encoder, self.media):
            if reader is not None:
                split_parts(reader, split, is_lenient=True)
        self.tokens.split_tokens(split)
        if self.head is not None:
            self.head.split_gathered(split)
        for part in self._kept_by:  # other stages', whose sizes are those of what comes from there
            if part not in own and isinstance(part, TakesSplit):
                part.split(split)
        self._number_states()

    def _number_states(self) -> None:
        """List the states that parts declare, and tell each part its place."""
        self.states.clear()
        shared = dict[str, int]()
        for module in self.modules():
            if hasattr(module, "state_index"):
                state = cast(StateSpec, module.state)
                name = state.shared_as if isinstance(state, PagedKV) else ""
                module.state_index = shared.get(name, len(self.states))  # type: ignore[assignment]
                if isinstance(module, SharedAttention):
                    module.is_first, module.is_sent = name not in shared, name in self.stage.sends
                if name:
                    shared.setdefault(name, len(self.states))
                if module.state_index == len(self.states):
                    self.states.append(state)
        if self.stage.count == 1:
            self.all_states = list(self.states)

    def keep_stage(self, index: int, count: int, embeds_last: bool = False) -> None:
        """Leave of a model on the meta device what the stage `index` of `count` has.

        Layers are shared evenly by their number. Embedding, encoder and tower are the first stage's; the last norm, the
        head and all that follows it the last one's, which has the token table too where that is the head's weight.

        Args:
            embeds_last: whether the last one has the embedding too, for a head that guesses.

        Raises ValueError, with nothing changed, where there are fewer layers than stages.
        """
        crosses = [any(isinstance(m, CrossAttention) for m in layer.modules()) for layer in self.layers]
        self.stage = divide(list(self.layers), crosses, index, count, self.embed)
        self._kept_by = [m for m in self.modules() if hasattr(m, "kept_rows")]
        self._table_is_head = self.head is not None and self.tied
        for i in range(len(self.layers)):
            if i not in self.stage.layers:
                self.layers[i] = NoLayer()
        self._embeds = self.stage.is_first or (embeds_last and self.stage.is_last)
        if not self.stage.is_first:
            self.encoder = self.media = None
        if not self._embeds:
            is_shared = self.stage.is_last and self.head is not None and (self.tied or self.tied_if_absent)
            self.embed = keep_table(self.embed, self.tokens) if is_shared else NoEmbedding()
        if not self.stage.is_last:
            for name in (*dict(self.named_children()), *dict(self.named_parameters(recurse=False))):
                if name not in ("embed", "layers", "shared", "encoder", "media"):
                    setattr(self, name, None)
        self._number_states()

    def weight_slots_in(self, dtype: torch.dtype, round_media: bool = False) -> dict[str, WeightSlot]:
        """All that the model takes of a checkpoint, by path.

        Args:
            dtype: of activations.
            round_media: whether a tower's weights may be rounded where others are: its error is in the keys of every
                later token.
        """
        self.dtype = dtype
        slots = weight_slots(self)
        if self.media is not None:
            self.media.dtype = dtype
            for path, slot in slots.items():
                if path.startswith("media.") and slot.role is Role.MULTIPLIED and not round_media:
                    slot.role = Role.EXACT
        for name in self.optional:
            if name in slots:  # a head that was dropped has none
                owner, _, attribute = name.rpartition(".")
                slots[name].do_without = partial(setattr, self.get_submodule(owner), attribute, None)
        table = slots.get(".".join(filter(None, ["embed", self._tokens[0], "weight"])))
        if table is not None:  # no other stage's
            # Where it is the head of the last stage too, both have it in the same numbers.
            table.role = Role.TIED if self._table_is_head else Role.TABLE
            table.load = self._load_table
        if self.head is None:
            return slots
        if table is not None and self.tied:
            del slots["head.weight"]
            self._tie(table)
        else:
            head = slots["head.weight"]
            head.role = Role.HEAD
            head.do_without = partial(self._tie, table) if table is not None and self.tied_if_absent else None
        return slots

    def _tie(self, table: WeightSlot) -> None:
        """Have the table serve as the head."""
        self.tied = True
        table.role, table.load = Role.TIED, self._load_shared

    def _load_table(self, table: Tensor | PackedLinear) -> None:
        if self._embeds:
            self.tokens.load(table, self.dtype)

    def _load_shared(self, table: Tensor | PackedLinear) -> None:
        assert self.head is not None
        self.head.load(table)
        self._load_table(table)

    def does_without(self, path: str) -> bool:
        """Whether a checkpoint may have a tensor for `path` though the model has no place for it.

        A head that is tied, or that embeddings do without, may be stored, and a tower that nothing is sent to. So is
        what other stages have.
        """
        owner, _, rest = path.partition(".")
        if owner == "layers":
            number = int(rest.partition(".")[0])
            return number < len(self.layers) and isinstance(self.layers[number], NoLayer)
        if owner in ("embed", "encoder") and not self.stage.is_first:
            return True
        return owner in ("head", "media") or (not self.stage.is_last and owner not in ("embed", "encoder"))

    def prepare(self, backend: Backend) -> None:
        """Have every part make what it computes with. All weights are loaded."""
        self._backend = backend
        self._kept_rows = {name: rows for part in self._kept_by for name, rows in kept_rows(part).items()}
        for module in self.modules():
            if module is not self and (prepare := getattr(module, "prepare", None)) is not None:
                prepare(backend)

    def enable_adapters(self, slots: int) -> None:
        """Have adapters in so many slots, from now on. All parts are prepared."""
        for module in self.modules():  # parents come first: experts share what their layer makes
            if module is not self and (enable := getattr(module, "enable_adapters", None)) is not None:
                enable(self._backend, slots)

    def adapted_parts(self) -> dict[str, TakesAdapters]:
        """The parts that adapters may change, by path."""
        unused = {self} if self.stage.is_first else {self, self.tokens}
        return {path: m for path, m in self.named_modules() if m not in unused and isinstance(m, TakesAdapters)}

    def has_more_tokens(self, slot: int) -> bool:
        """Whether the adapter in a slot has a head with more tokens than the model's."""
        return self.head is not None and self.head.more_outputs(slot)

    @contextmanager
    def media_adapter(self, slot: int | None) -> Iterator[None]:
        """Have all that the tower computes meanwhile have a slot's adapter: it makes batches of its own."""
        parts = [] if slot is None or self.media is None else self.media.modules()
        changed = [m for m in parts if isinstance(m, (Linear, Norm))]
        for part in changed:
            part.slot_of_all = slot
        try:
            yield
        finally:
            for part in changed:
                part.slot_of_all = None

    def encode(self, batch: EncoderBatch) -> None:
        """Run the encoder, and have every cross-attention store its keys and values of the result."""
        encoded = None if self.encoder is None else self.encoder(batch)
        self.write_cross_kv(encoded, batch, len(batch.tokens))

    def write_cross_kv(self, encoded: Tensor | None, batch: CrossBatch, rows: int) -> None:
        """Have every cross-attention store its keys and values of `encoded` `[rows, hidden_size]`.

        None on later stages, to which it comes from the one before.
        """
        if self.stage.gets_cross_rows:
            encoded = self._backend.receive(rows, self.stream_size, self.dtype)
        if encoded is None:
            return
        if self.stage.passes_cross_rows:
            self._backend.send(encoded.to(self.dtype))
        for module in self.modules():
            if isinstance(module, CrossAttention):
                module.write_cross_kv(encoded, batch)

    @property
    def long_rope_threshold(self) -> int | None:
        """The longest sequence that the first table of a LongRotaryEmbedding serves; None where there is none."""
        thresholds = {m.long_rope_threshold for m in self.modules() if isinstance(m, LongRotaryEmbedding)}
        return min(thresholds, default=None)

    @property
    def reads_whole(self) -> bool:
        """Whether a part says that all of a prompt is computed in one step, so that a prompt never comes in chunks."""
        return any(getattr(module, "reads_whole", False) for module in self.layers.modules())

    @property
    def num_positions(self) -> int | None:
        """How far its tables of learned positions reach, in tokens; None where it has none."""
        tables = (getattr(module, "positions", None) for module in self.embed.modules())
        return min((table.num_embeddings for table in tables if isinstance(table, Embedding)), default=None)

    @property
    def tokens(self) -> Embedding:
        """The token table, which a tied head shares."""
        return self._tokens[1]

    def drop_head(self) -> None:
        """For embeddings and scores, which need no logits."""
        self.head = None

    def score_with(self, score: nn.Module, names: Mapping[str, str]) -> Self:
        """Replace the head by `score(hidden, batch)`, which gives `[rows, scores]`; `names` are its tensors'."""
        self.drop_head()
        self.score = score
        self.names = self.names.extended(names)
        return self

    def guess_with(self, head: DraftHead) -> None:
        """Have a head's keys lie with those of the layers. The model itself computes as without it.

        It is the last stage's, to which the others pass what it reads of their layers.

        Raises CheckpointError for a head that reads rows which are not there.
        """
        if head.reads and (self.stream_size != self.hidden_size or max(head.reads) >= len(self.layers)):
            raise CheckpointError(
                f"the head reads rows before the layers {', '.join(map(str, head.reads))}, and the "
                f"model has {len(self.layers)} layers with a stream of {self.stream_size} values."
            )
        self.stage = self.stage.passing_reads(head.reads)
        self.read_before = frozenset(i for i in head.reads if self.stage.count == 1 or i in self.stage.layers)
        if self.stage.count > 1:
            self.all_states += declared_states(head)
        if self.stage.is_last:
            self.draft_head = head
            self._number_states()

    def with_media(self, tower: MediaTower, names: Mapping[str, str | Into], text: str = "") -> Self:
        """Have `tower` make rows of media; it lies at `media`.

        Args:
            names: where the tower's published tensors go.
            text: how the published names of everything else begin.
        """
        self.media = tower
        self.names = (self.names.under(text) if text else self.names).extended(names)
        return self

    def drop_media(self) -> None:
        """For text alone: the tower is not loaded, nor layers that do nothing without it; their tensors go nowhere.

        Raises ConfigError where every layer looks at media: such a model says nothing of text alone.
        """
        crossing = [i for i, m in enumerate(self.layers) if any(isinstance(p, CrossAttention) for p in m.modules())]
        if len(crossing) == len(self.layers):
            raise ConfigError(
                "limit_mm_per_prompt allows no item, and this model says nothing without one: allow one, or leave the "
                "option out."
            )
        self.media = None
        for i in crossing:
            self.layers[i] = NoLayer()
        self._number_states()

    @property
    def num_scores(self) -> int:
        """How many values `scores` gives a row: the outputs of `score`, or the vocabulary."""
        if self.score is None:
            return int(self.vocab_size)
        if isinstance(count := getattr(self.score, "num_scores", None), int):
            return count
        return int([m for m in self.score.modules() if isinstance(m, Linear)][-1].outputs)

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states after the last norm, `[rows, hidden_size]`; of a stage before the last, what it sends on."""
        stage = self.stage
        x: Tensor
        if stage.is_first:
            x = self.embed(batch)
        else:
            x = receive_stream(self._backend, stage, batch, self.stream_size, self.dtype, self._kept_rows)
        for i, layer in enumerate(self.layers):
            if i in self.read_before:
                batch.kept[read_name(i)] = x
            x = layer(x, batch)
        if stage.is_last:
            return self.finish(x, batch)
        send_stream(self._backend, stage, x, batch)
        return x

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        """What follows the last layer: `[rows, stream_size]` to `[rows, hidden_size]`."""
        return norm_rows(self.norm, x, batch)

    def embed_with(self, pooled: nn.Module, names: Mapping[str, str]) -> Self:
        """Have `pooled(rows, batch)` make embeddings of pooled rows; `names` are its tensors'."""
        self.pooled = pooled
        self.names = self.names.extended(names)
        return self

    def embeddings(self, pooled: Tensor, batch: Batch) -> Tensor:
        """`[rows, values]` in float32 of pooled rows of the step `batch`."""
        return pooled if self.pooled is None else self.pooled(pooled.to(self.dtype), batch).float()

    def read_rows(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """What a head reads of a step: `[rows, hidden_size]` each, with `hidden` as `forward` has given it."""
        head = self.draft_head
        return (hidden,) if head is None or not head.reads else tuple(batch.kept[read_name(i)] for i in head.reads)

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        """`[rows, scores]` of rows of the step `batch`, in any dtype; logits where the model has no head for scores."""
        hidden = hidden.to(self.dtype)
        return self.logits(hidden, batch) if self.score is None else self.score(hidden, batch)

    def logits(self, hidden: Tensor, batch: Batch, slot: int | None = None) -> Tensor:
        """`[rows, vocab]` in float32 of rows of the step `batch`; `slot` as in `project`."""
        return self.process_logits(self.project(hidden, batch, slot))

    def project(self, hidden: Tensor, batch: Batch, slot: int | None = None) -> Tensor:
        """The head alone: `[rows, vocab]` in float32, which `process_logits` makes logits of.

        Where the adapter in `slot` has more tokens, with its own vocabulary, for rows that all have it.
        """
        assert self.head is not None
        if slot is not None and self.has_more_tokens(slot):
            return self._backend.floats(self.head.with_more_outputs(hidden, slot))
        return self._backend.floats(self.head(hidden, batch))

    def process_logits(self, logits: Tensor) -> Tensor:
        """What comes after the head: `[rows, vocab]`, which may be changed in place."""
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap
