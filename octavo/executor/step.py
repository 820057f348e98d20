"""What the engine and an executor say to each other: plain data that can be written to bytes and read again."""

import msgspec

from octavo.executor.store_messages import StoreNews, StoreWork
from octavo.features import Feature, Positions
from octavo.lora import AdapterRef
from octavo.outputs import PackedLogprobs
from octavo.params import PoolingParams, SamplingParams


class SequenceStart(msgspec.Struct):
    """All that an executor must know of a sequence, told once: with its first step, or before it."""

    seq_id: int
    prompt_token_ids: list[int]
    index: int = 0
    """Its place among the sequences of its request, whose ids follow each other."""
    count: int = 1
    """How many sequences its request has."""
    sampling: SamplingParams | None = None
    """How its tokens are chosen. Logits processors are no plain data: see `Executor.keep_processors`."""
    seed: int = 0
    """Of its request, below 2**64."""
    stop_ids: list[int] = []
    """Tokens that may not come before `min_tokens`."""
    bad_words: list[list[int]] = []
    """Sequences of tokens that may not come."""
    pooling: PoolingParams | None = None
    """Pool the prompt's hidden states, and generate nothing."""
    unpooled: int = 0
    """How many of the prompt's first tokens are not pooled."""
    features: list[Feature] = []
    """Inputs that are not tokens."""
    positions: Positions | None = None
    """Of the prompt's tokens, where they are not 0, 1, 2, ..."""
    both_ways: list[tuple[int, int]] = []
    """First token and end of spans in which every token sees all of the span; no step cuts one."""
    adapter: AdapterRef | None = None
    token_types: list[int] = []
    """Which of a pair of texts each of the prompt's tokens is of; empty where all are of the first."""

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar or bad words decide which tokens may come."""
        return bool(self.bad_words) or (self.sampling is not None and self.sampling.structured_outputs is not None)

    @property
    def waits(self) -> bool:
        """Whether it may be computed only once a StepResult has called it ready."""
        return self.adapter is not None or self.is_constrained


class SequenceStep(msgspec.Struct):
    """The tokens of one sequence that a step computes."""

    seq_id: int
    row: int
    """Its row in the block tables, which is also its slot in states of fixed size."""
    token_ids: list[int]
    start: int
    """Position of the first of them."""
    length: int
    """Tokens that the sequence has in all, computed or not."""
    new_blocks: list[tuple[int, list[int]]]
    """For each group of the cache: where in the row's block table to write, and the blocks; empty for none at all."""
    num_cross_rows: int = 0
    """How many rows its tokens see in cross-attention: those of its features."""
    is_new: bool = False
    """The row begins a sequence, or begins one anew: its fixed-size states are zeroed."""
    encodes: list[int] = []
    """Which of its features' rows are to be computed first; those of others are there already."""
    num_drafts: int = 0
    """How many of `token_ids`, the last ones, are guesses at what follows the others (speculation)."""
    next_drafts: int = 0
    """How many guesses at what follows are wanted back."""
    rewinds: bool = False
    """Whether its fixed-size states are to be those from before the row's last step that had drafts."""
    num_samples: int = 0
    """1 to choose a token after the last that is no draft, and one after each draft that was right; 0 while more of
    the prompt is to come, and for pooling."""
    prompt_logprobs: bool = False
    """Whether the log-probabilities of the prompt's own next tokens are wanted."""


class Step(msgspec.Struct, tag=True):
    """One step of all sequences."""

    starts: list[SequenceStart]
    """Sequences that the executor hears of for the first time."""
    sequences: list[SequenceStep]
    """What to compute, in the order in which the tokens lie in the batch."""
    ended: list[int]
    """Sequences that are done, whose state goes. Their rows may be used again in this step."""
    dropped: list[bytes] = []
    """Digests of features whose rows go, before any are computed."""
    dropped_adapters: list[bytes] = []
    """Digests of adapters that go as soon as no sequence needs them, those of `starts` among them."""
    store: StoreWork | None = None
    """What is to be done with blocks outside of the cache, before anything is computed."""


class Pooled(msgspec.Struct):
    """float32 values of some shape."""

    shape: tuple[int, ...]
    data: bytes


class SequenceResult(msgspec.Struct):
    """What a step gave for one sequence."""

    seq_id: int
    token_ids: list[int] = []
    """The tokens that were chosen. None are while the next one waits for a grammar's mask: it comes `late`."""
    drafts: list[int] = []
    """Guesses at the tokens that follow those."""
    logprobs: list[PackedLogprobs] = []
    """Of each chosen token and its likeliest alternatives, where they were asked for."""
    prompt_logprobs: list[PackedLogprobs] = []
    pooled: Pooled | None = None
    ended: bool = False
    """Whether the grammar lets nothing follow."""
    error: str | None = None
    """Why this sequence cannot go on; the others are not concerned."""
    is_invalid: bool = False
    """Whether the error is of the request's own values, and not of the model or the machine."""
    non_finite: bool = False
    """Whether it overflowed, and what it wrote was taken out of the caches again."""
    draft_overflowed: bool = False
    """Whether only its drafts did: it is to be computed anew, without any."""


class StepResult(msgspec.Struct, tag=True):
    """What a step gave."""

    sequences: list[SequenceResult]
    """In the order of `Step.sequences`."""
    late: list[SequenceResult] = []
    """Tokens that waited for a mask, of sequences that need not be in the step."""
    ready: list[int] = []
    """Sequences that were waited for and may now be computed."""
    refused: list[SequenceResult] = []
    """Sequences that cannot be computed at all, and why."""
    media_seconds: float = 0.0
    """How long towers took."""
    draft_seconds: float = 0.0
    """How long it took to guess what follows, beside what the model's step took."""
    store: StoreNews | None = None
    """What became of such work, of this step or an earlier one."""
