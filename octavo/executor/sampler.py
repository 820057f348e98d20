"""From logits to tokens: whole-batch tensor operations, each row as if it were alone."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.errors import failure
from octavo.executor.batch_logits import BatchLogits
from octavo.executor.grammar import Grammar, apply_grammars
from octavo.executor.sampling_state import GREEDY, SamplingState
from octavo.executor.token_scores import TokenScores
from octavo.ops import NOT_FINITE, Backend, DrawBy
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
    choices = [Choice() for _ in states]
    _transcribe(logits, states, choices)
    scores = scores or TokenScores()
    reported = [i for i, s in enumerate(states) if s.params.logprobs is not None]
    asking = [states[i] for i in reported]
    told = scores.before(logits[reported], asking) if reported else None

    structured = {i: s.grammar for i, s in enumerate(states) if s.grammar is not None}
    if structured:
        _follow(logits, structured, choices)
    # Where a grammar may end, in rows that a request's own values may leave without any token.
    restricted = [i for i, s in enumerate(states) if s.acts_on_tokens or batch is not None]
    ends = {i: logits[i, structured[i].end_ids] for i in restricted if i in structured}
    _restrict(logits, states, choices)
    if batch is not None and (problem := batch.apply(logits, states)) is not None:
        for choice in choices:
            choice.error = choice.error or problem
    _penalize(logits, states, choices)
    _keep_one(logits, states, restricted, ends, choices)
    draws = _draws(states, choices)
    tokens = backend.sample(logits, draws)
    for choice, token in zip(choices, tokens.tolist(), strict=True):
        if token == NOT_FINITE:
            choice.error = choice.error or NOT_FINITE_MESSAGE
        else:
            choice.token_id = None if choice.error else token
    if told is not None:
        chosen = tokens.clamp(min=0)[torch.tensor(reported, device=tokens.device)]
        told = scores.after(told, logits[reported], asking, [draws[i] for i in reported], chosen)
        described = describe(told, chosen, [state.params.logprobs or 0 for state in asking])
        for i, logprobs in zip(reported, described, strict=True):
            choices[i].logprobs = logprobs
    return choices


def _transcribe(logits: Tensor, states: Sequence[SamplingState], choices: list[Choice]) -> None:
    """Take from rows of transcripts what may not follow in them."""
    for row, state in enumerate(states):
        if state.transcript is None:
            continue
        try:
            state.transcript.apply(logits[row], state.output_token_ids)
        except BaseException as error:
            choices[row].error = failure(error)


def describe(logprobs: Tensor, chosen: Tensor, counts: Sequence[int]) -> list[PackedLogprobs]:
    """For each row of `logprobs` `[rows, vocab]` the `chosen` token's entry and those of the likeliest `counts[row]`.

    A count of -1 means the whole vocabulary. A chosen token outside of it, such as a picture's placeholder, is one that
    could not come.
    """
    vocab = logprobs.shape[1]
    counts = [vocab if c < 0 else min(c, vocab) for c in counts]
    own = logprobs.gather(1, chosen.clamp(max=vocab - 1).unsqueeze(1))
    own[chosen >= vocab] = -torch.inf
    ranks = ((logprobs > own).sum(1) + 1).tolist()
    most = max(counts, default=0)
    top_values, top_ids = logprobs.topk(most, dim=-1) if most else (logprobs[:, :0], chosen.unsqueeze(1)[:, :0])
    rows = zip(
        chosen.tolist(), own.squeeze(1).tolist(), ranks, counts, top_values.tolist(), top_ids.tolist(), strict=True
    )
    out = []
    for token, value, rank, count, values, ids in rows:
        likeliest = zip(ids[:count], values[:count], range(1, count + 1), strict=True)
        out.append([(token, value, rank), *(entry for entry in likeliest if entry[0] != token)])
    return out


def _follow(logits: Tensor, grammars: dict[int, Grammar], choices: list[Choice]) -> None:
    """Mask the rows that follow a grammar: all together, or each by itself where one fails."""
    try:
        problems = apply_grammars(logits, list(grammars), list(grammars.values()))
    except BaseException as error:
        failure(error)  # goes on upwards if it is no request's
        problems = {}
        for row, grammar in grammars.items():
            try:
                problems |= apply_grammars(logits, [row], [grammar])
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


def _restrict(logits: Tensor, states: Sequence[SamplingState], choices: list[Choice]) -> None:
    """Everything that acts on single tokens of single rows."""
    for row, state in enumerate(states):
        if not state.acts_on_tokens:
            continue
        try:
            _restrict_row(logits[row], state)
        except BaseException as error:
            choices[row].error = choices[row].error or failure(error)
            continue
        if state.params.logits_processors:
            try:
                logits[row] = _run_processors(state.params.logits_processors, state, logits[row].clone())
            except BaseException as error:  # a stranger's code: whatever it raises ends its own request only
                choices[row].error = choices[row].error or f"logits processor failed: {failure(error)}"


def _restrict_row(logits: Tensor, state: SamplingState) -> None:
    """Allowed tokens, bad words, min_tokens and biases of one row `[vocab]`, in place."""
    p = state.params
    if p.allowed_token_ids is not None:
        allowed = torch.full_like(logits, -torch.inf)
        index = torch.tensor(p.allowed_token_ids, device=logits.device)
        allowed[index] = logits[index]
        logits.copy_(allowed)
    if state.bad_words:
        state.ban(logits)
    if len(state.output_token_ids) < p.min_tokens and state.stop_ids:
        logits[torch.tensor(list(state.stop_ids), device=logits.device)] = -torch.inf
    if p.logit_bias:
        index = torch.tensor(list(p.logit_bias), device=logits.device)
        logits[index] += torch.tensor(list(p.logit_bias.values()), device=logits.device)


def _keep_one(
    logits: Tensor,
    states: Sequence[SamplingState],
    restricted: Sequence[int],
    ends: dict[int, Tensor],
    choices: list[Choice],
) -> None:
    """See that each of the `restricted` rows, of whose tokens something acts on single ones, has one left.

    Where that forbids all that its grammar allows, and the grammar may end here, it ends: `ends` has the logits of end
    tokens in such rows. Where it may not, that is the request's error.
    """
    for i in restricted:
        state = states[i]
        if choices[i].error is not None or float(logits[i].max()) > -math.inf:
            continue
        if state.grammar is not None and bool((ends[i] > -math.inf).any()):
            logits[i, state.grammar.end_ids] = ends[i]
        elif not bool(logits[i].isnan().any()):
            choices[i].error, choices[i].is_invalid = NOTHING_LEFT, True
    for i, choice in enumerate(choices):
        if choice.error is not None:
            logits[i] = 0  # nothing is chosen here, and nothing that is no number reaches the others


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


def _penalize(logits: Tensor, states: Sequence[SamplingState], choices: list[Choice]) -> None:
    vocab, device = logits.shape[1], logits.device
    rows, pairs, penalties = list[int](), list[tuple[Tensor, Tensor]](), list[tuple[float, float, float]]()
    for row, state in enumerate(states):
        if not state.has_penalties:
            continue
        p = state.params
        try:
            penalty = float(p.repetition_penalty), float(p.frequency_penalty), float(p.presence_penalty)
            pairs.append(state.counts(vocab, device))
        except BaseException as error:
            choices[row].error = choices[row].error or failure(error)
            continue
        rows.append(row)
        penalties.append(penalty)
    if not rows:
        return
    counts, in_prompt = torch.stack([c for c, _ in pairs]), torch.stack([p for _, p in pairs])
    generated = counts > 0
    repetition, frequency, presence = torch.tensor(penalties, device=device).unsqueeze(1).unbind(2)
    part = logits[rows]
    repetition = torch.where(generated | in_prompt, repetition, 1.0)
    part = torch.where(part > 0, part / repetition, part * repetition)
    part -= frequency * counts
    part -= presence * generated
    logits[rows] = part
