"""From logits to tokens: whole-batch tensor operations, each row as if it were alone."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.errors import failure
from octavo.executor.batch_logits import BatchLogits
from octavo.executor.grammar import Grammar, apply_grammars
from octavo.executor.sampling_state import GREEDY, SamplingState
from octavo.executor.token_scores import TokenScores
from octavo.ops import NOT_FINITE, Backend, DrawBy, Likeliest, Penalties, TokenChanges, rows_of, sent
from octavo.outputs import PackedLogprobs

NOTHING_LEFT = (
    "no token may come next: what structured_outputs, allowed_token_ids, bad_words, logits_processors and min_tokens "
    "leave has nothing in common. Loosen one of them."
)
NOT_FINITE_MESSAGE = "the model computed values that are not finite; is the checkpoint sound?"


@dataclass(slots=True)
class Choice:
    """A row's outcome."""

    token_id: int | None = None
    logprobs: PackedLogprobs | None = None
    error: str | None = None
    is_invalid: bool = False
    """Whether the error is of the request's own values."""


def sample(
    logits: Tensor,
    states: Sequence[SamplingState],
    backend: Backend,
    batch: BatchLogits | None = None,
    scores: TokenScores | None = None,
) -> list[Choice]:
    """Choose a token for each row of `logits` `[rows, vocab]` (float32, changed in place).

    The order is vLLM's: structured outputs, allowed tokens, bad words, min_tokens, logit bias, the request's own
    processors, those of the whole `batch`, penalties, temperature, min_p, top_k, top_p. Log-probabilities are those
    that `scores` has, by default of the model's own distribution, before all of these, or of what a transcript's rule
    leaves of it. What goes wrong with one row's values is that row's `error`, and changes no other row.
    """
    return begin_sample(logits, states, backend, batch, scores)()


def begin_sample(
    logits: Tensor,
    states: Sequence[SamplingState],
    backend: Backend,
    batch: BatchLogits | None = None,
    scores: TokenScores | None = None,
) -> Callable[[], list[Choice]]:
    """`sample` as far as nothing waits for the device. What is returned waits, and gives what `sample` does."""
    choices = [Choice() for _ in states]
    _transcribe(logits, states, choices)
    scores = scores or TokenScores(backend)
    reported = [i for i, s in enumerate(states) if s.params.logprobs is not None]
    asking = [states[i] for i in reported]
    before = scores.before(logits, reported, asking) if reported else None

    structured = {i: s.grammar for i, s in enumerate(states) if s.grammar is not None}
    # Rows that a request's own values may leave without any token.
    restricted = [i for i, s in enumerate(states) if s.acts_on_tokens or batch is not None]
    ends = _change(logits, states, choices, backend, batch, structured, restricted)
    draws = _draws(states, choices)

    def choose() -> tuple[Tensor, Likeliest | None]:
        tokens = backend.sample(logits, draws)
        if before is None:
            return tokens, None
        chosen = rows_of(tokens, reported).clamp(min=0)
        told = scores.after(before, rows_of(logits, reported), asking, [draws[i] for i in reported], chosen)
        return tokens, likeliest(told, chosen, [state.params.logprobs or 0 for state in asking], backend)

    peaks = rows_of(logits, restricted).amax(-1) if restricted else None
    first = choose()

    def read() -> list[Choice]:
        backend.await_ranks()
        left = [] if peaks is None else peaks.tolist()  # what is read after the first of it has been computed by then
        stuck = [restricted[place] for place, peak in enumerate(left) if peak == -math.inf]
        tokens, found = choose() if _end(logits, stuck, structured, ends, choices) else first
        chosen = tokens.tolist()
        for choice, token in zip(choices, chosen, strict=True):
            if token == NOT_FINITE:
                choice.error = choice.error or NOT_FINITE_MESSAGE
            else:
                choice.token_id = None if choice.error else token
        if found is not None:
            counts = [state.params.logprobs or 0 for state in asking]
            described = describe(found, [max(0, chosen[i]) for i in reported], counts)
            for i, logprobs in zip(reported, described, strict=True):
                choices[i].logprobs = logprobs
        return choices

    return read


def _change(
    logits: Tensor,
    states: Sequence[SamplingState],
    choices: list[Choice],
    backend: Backend,
    batch: BatchLogits | None,
    structured: dict[int, Grammar],
    restricted: Sequence[int],
) -> dict[int, Tensor]:
    """What requests ask of `logits`, in place. Returns the logits by which the `structured` of `restricted` may end."""
    if structured:
        _follow(logits, structured, choices, backend)
    ends = {i: logits[i].index_select(0, _ids(structured[i], logits)) for i in restricted if i in structured}
    _restrict(logits, states, choices, backend)
    if batch is not None and (problem := batch.apply(logits, states)) is not None:
        for choice in choices:
            choice.error = choice.error or problem
    _penalize(logits, states, choices, backend)
    for i, choice in enumerate(choices):
        if choice.error is not None:
            logits[i] = 0  # nothing is chosen here, and nothing that is no number reaches the others
    return ends


def _ids(grammar: Grammar, logits: Tensor) -> Tensor:
    return sent(grammar.end_ids, torch.int64, logits.device)


def _transcribe(logits: Tensor, states: Sequence[SamplingState], choices: list[Choice]) -> None:
    """Take from rows of transcripts what may not follow in them."""
    for row, state in enumerate(states):
        if state.transcript is None:
            continue
        try:
            state.transcript.apply(logits[row], state.output_token_ids)
        except BaseException as error:
            choices[row].error = failure(error)


def likeliest(scores: Tensor, chosen: Tensor, counts: Sequence[int], backend: Backend) -> Likeliest:
    """What `describe` tells of `scores` `[rows, vocab]`, of the same `counts`, on the device."""
    return backend.likeliest(scores, chosen, max((_within(c, scores.shape[1]) for c in counts), default=0))


def describe(found: Likeliest, chosen: Sequence[int], counts: Sequence[int]) -> list[PackedLogprobs]:
    """For each row the `chosen` token's entry and those of the likeliest `counts[row]`, which is waited for.

    A count of -1 means the whole vocabulary. A chosen token outside of it, such as a picture's placeholder, is one that
    could not come.
    """
    own, ranks = found.own.tolist(), found.ranks.tolist()
    rows = zip(chosen, own, ranks, counts, found.values.tolist(), found.ids.tolist(), strict=True)
    out = []
    for token, value, rank, count, values, ids in rows:
        most = _within(count, len(ids))
        best = zip(ids[:most], values[:most], range(1, most + 1), strict=True)
        out.append([(token, value, rank), *(entry for entry in best if entry[0] != token)])
    return out


def _within(count: int, vocab: int) -> int:
    """How many tokens a request is told of."""
    return vocab if count < 0 else min(count, vocab)


def _follow(logits: Tensor, grammars: dict[int, Grammar], choices: list[Choice], backend: Backend) -> None:
    """Mask the rows that follow a grammar: all together, or each by itself where one fails."""
    try:
        problems = apply_grammars(logits, list(grammars), list(grammars.values()), backend)
    except BaseException as error:
        failure(error)  # goes on upwards if it is no request's
        problems = {}
        for row, grammar in grammars.items():
            try:
                problems |= apply_grammars(logits, [row], [grammar], backend)
            except BaseException as of_row:
                problems[row] = f"structured_outputs: {failure(of_row)}"
    for row, problem in problems.items():
        choices[row].error, choices[row].is_invalid = problem, True


def _draws(states: Sequence[SamplingState], choices: list[Choice]) -> list[DrawBy]:
    """How each row's token is chosen."""
    draws = []
    for state, choice in zip(states, choices, strict=True):
        try:
            draws.append(state.draw_by())
        except BaseException as error:
            choice.error = choice.error or failure(error)
            draws.append(GREEDY)
    return draws


def _restrict(logits: Tensor, states: Sequence[SamplingState], choices: list[Choice], backend: Backend) -> None:
    """Everything that acts on single tokens of single rows: allowed tokens, bad words, min_tokens and biases."""
    changes = list[TokenChanges]()
    for row, state in enumerate(states):
        if not state.acts_on_tokens:
            continue
        try:
            changes.append(state.token_changes(row, logits.shape[1], logits.device))
        except BaseException as error:
            choices[row].error = choices[row].error or failure(error)
    if changes:
        backend.change_tokens(logits, changes)
    for row in [change.row for change in changes]:
        state = states[row]
        if state.params.logits_processors:
            try:
                logits[row] = _run_processors(state.params.logits_processors, state, logits[row].clone())
            except BaseException as error:  # a stranger's code: whatever it raises ends its own request only
                choices[row].error = choices[row].error or f"logits processor failed: {failure(error)}"


def _end(
    logits: Tensor,
    stuck: Sequence[int],
    grammars: dict[int, Grammar],
    ends: dict[int, Tensor],
    choices: list[Choice],
) -> bool:
    """See to rows that have no token left; whether any has now, so that tokens are to be chosen again.

    Where what acts on single tokens forbids all that a row's grammar allows, and the grammar may end here, it ends:
    `ends` has the logits of end tokens in such rows. Where it may not, that is the request's error.
    """
    has_ended = False
    for i in stuck:
        if choices[i].error is not None:
            continue
        if i in ends and bool((ends[i] > -math.inf).any()):
            logits[i].index_copy_(0, _ids(grammars[i], logits), ends[i])
            has_ended = True
        else:
            choices[i].error, choices[i].is_invalid = NOTHING_LEFT, True
    return has_ended


def _run_processors(processors: Sequence[Any], state: SamplingState, logits: Tensor) -> Tensor:
    for processor in processors:
        arguments = [state.prompt_token_ids, state.output_token_ids][2 - _leading_arguments(processor) :]
        result = processor(*(list(a) for a in arguments), logits)
        if not isinstance(result, Tensor) or result.shape != logits.shape:
            raise TypeError(f"it must return a tensor of shape {list(logits.shape)}")
        logits = result
    return logits


def _leading_arguments(processor: Any) -> int:
    """1 for `f(output_ids, logits)`, 2 for `f(prompt_ids, output_ids, logits)`."""
    try:
        parameters = inspect.signature(processor).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return 2 if len(positional) == 3 else 1


def _penalize(logits: Tensor, states: Sequence[SamplingState], choices: list[Choice], backend: Backend) -> None:
    penalties = list[Penalties]()
    for row, state in enumerate(states):
        if not state.has_penalties:
            continue
        try:
            penalties.append(state.penalties(row, logits.shape[1], logits.device))
        except BaseException as error:
            choices[row].error = choices[row].error or failure(error)
    if penalties:
        backend.penalize(logits, penalties)
