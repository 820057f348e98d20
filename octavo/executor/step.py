"""What the engine hands to the executor for a step, and what comes back."""

from dataclasses import dataclass, field

from torch import Tensor

from octavo.executor.sampling_state import SamplingState
from octavo.outputs import TokenLogprobs
from octavo.parts import Pooler


@dataclass(slots=True)
class SequenceStep:
    """What a step computes of one sequence."""

    row: int
    """Its row in the block tables, which is also its slot in states of fixed size."""
    token_ids: list[int]
    """The tokens to compute."""
    start: int
    """Position of the first of them."""
    length: int
    """Tokens that the sequence has in all, computed or not."""
    new_blocks: list[tuple[int, list[int]]]
    """For each group of the cache: where in the row's block table to write, and the blocks."""
    is_new: bool
    """The row begins a sequence, or begins one anew: its fixed-size states are zeroed."""
    encoder_tokens: list[int] = field(default_factory=list)
    """What the encoder has read, or reads now if the row is new; empty in models without one."""
    sampling: SamplingState | None = None
    """Choose the next token after the last one; None while more of the prompt is to come, and for pooling."""
    prompt_logprobs: int | None = None
    """How many log-probabilities to give for each of `prompt_targets`."""
    prompt_targets: list[int] = field(default_factory=list)
    """The prompt's own next tokens, for the first rows of this step."""
    pooler: Pooler | None = None
    pool_finishes: bool = False


@dataclass(slots=True)
class SequenceResult:
    """What a step gave for one sequence."""

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    pooled: Tensor | None = None
    error: str | None = None
    """Why this sequence cannot go on; the others are not concerned."""
    is_invalid: bool = False
    """Whether the error is of the request's own values, and not of the model or the machine."""
    is_late: bool = False
    """Its next token waits for the grammar's mask; `ModelRunner.sample_late` chooses it once that is there."""
    non_finite: bool = False
    """Whether what it wrote was taken out of the caches again."""
