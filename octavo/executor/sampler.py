"""From logits to tokens: whole-batch tensor operations, each row as if it were alone."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.executor.grammar import apply_grammars
from octavo.executor.sampling_state import SamplingState
from octavo.outputs import Logprob, TokenLogprobs

CANDIDATES = 1024
"""A nucleus is looked for among so many of the likeliest tokens before the whole vocabulary is sorted."""
SPAN = 256
"""Tokens in a partial sum when a draw is looked up in the vocabulary's distribution."""


@dataclass(slots=True)
class Choice:
    """A row's outcome."""

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[Choice]:
    """Choose a token for each row of `logits` `[rows, vocab]` (float32, changed in place).

    The order is vLLM's: structured outputs, allowed tokens, bad words, min_tokens, logit bias, the request's own
    processors, penalties, temperature, min_p, top_k, top_p. Log-probabilities are of the model's own distribution,
    before all of these.
    """
    choices = [Choice() for _ in states]
    sound = torch.isfinite(logits.amax(-1)).tolist()
    for choice, ok in zip(choices, sound, strict=True):
        if not ok:
            choice.error = "the model computed values that are not finite; is the checkpoint sound?"
    reported = [i for i, s in enumerate(states) if s.params.logprobs is not None]
    raw = torch.log_softmax(logits[reported], -1) if reported else None

    structured = {i: s.grammar for i, s in enumerate(states) if s.grammar is not None}
    if structured:
        apply_grammars(logits, list(structured), list(structured.values()))
    _restrict(logits, states, choices)
    _penalize(logits, states)
    greedy = torch.tensor([s.params.greedy for s in states], device=logits.device)
    if bool(greedy.all()):
        tokens = logits.argmax(-1)
    else:
        drawn = _draw(logits, states)
        tokens = torch.where(greedy, logits.argmax(-1), drawn) if bool(greedy.any()) else drawn
    for choice, token in zip(choices, tokens.tolist(), strict=True):
        choice.token_id = None if choice.error else token
    if raw is not None:
        wanted = [states[i].params.logprobs or 0 for i in reported]
        described = describe(raw, tokens[torch.tensor(reported, device=tokens.device)], wanted)
        for i, logprobs in zip(reported, described, strict=True):
            choices[i].logprobs = logprobs
    return choices


def describe(logprobs: Tensor, chosen: Tensor, counts: Sequence[int]) -> list[TokenLogprobs]:
    """For each row of `logprobs` `[rows, vocab]` the `chosen` token's entry and those of the likeliest `counts[row]`.

    A count of -1 means the whole vocabulary.
    """
    vocab = logprobs.shape[1]
    counts = [vocab if c < 0 else min(c, vocab) for c in counts]
    own = logprobs.gather(1, chosen.unsqueeze(1))
    ranks = ((logprobs > own).sum(1) + 1).tolist()
    most = max(counts, default=0)
    top_values, top_ids = logprobs.topk(most, dim=-1) if most else (logprobs[:, :0], chosen.unsqueeze(1)[:, :0])
    rows = zip(
        chosen.tolist(), own.squeeze(1).tolist(), ranks, counts, top_values.tolist(), top_ids.tolist(), strict=True
    )
    out = []
    for token, value, rank, count, values, ids in rows:
        entries = {token: Logprob(value, rank)}
        for place, (other, logprob) in enumerate(zip(ids[:count], values[:count], strict=True), 1):
            entries.setdefault(other, Logprob(logprob, place))
        out.append(entries)
    return out


def _restrict(logits: Tensor, states: Sequence[SamplingState], choices: list[Choice]) -> None:
    """Everything that acts on single tokens of single rows."""
    for row, state in enumerate(states):
        p, out = state.params, state.output_token_ids
        if p.allowed_token_ids is not None:
            allowed = torch.full_like(logits[row], -torch.inf)
            index = torch.tensor(p.allowed_token_ids, device=logits.device)
            allowed[index] = logits[row, index]
            logits[row] = allowed
        banned = [w[-1] for w in state.bad_words if w[:-1] == out[len(out) - len(w) + 1 :] or len(w) == 1]
        if len(out) < p.min_tokens:
            banned += state.stop_ids
        if banned:
            logits[row, torch.tensor(banned, device=logits.device)] = -torch.inf
        if p.logit_bias:
            index = torch.tensor(list(p.logit_bias), device=logits.device)
            logits[row, index] += torch.tensor(list(p.logit_bias.values()), device=logits.device)
        if p.logits_processors:
            try:
                logits[row] = _run_processors(p.logits_processors, state, logits[row].clone())
            except Exception as error:  # a stranger's code: whatever it raises ends its own request only
                choices[row].error = f"logits processor failed: {type(error).__name__}: {error}"


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


def _penalize(logits: Tensor, states: Sequence[SamplingState]) -> None:
    rows = [i for i, s in enumerate(states) if s.has_penalties]
    if not rows:
        return
    vocab, device = logits.shape[1], logits.device
    pairs = [states[i].counts(vocab, device) for i in rows]
    counts, in_prompt = torch.stack([c for c, _ in pairs]), torch.stack([p for _, p in pairs])
    generated = counts > 0

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(states[i].params, name) for i in rows], device=device).unsqueeze(1)

    part = logits[rows]
    repetition = torch.where(generated | in_prompt, column("repetition_penalty"), 1.0)
    part = torch.where(part > 0, part / repetition, part * repetition)
    part -= column("frequency_penalty") * counts
    part -= column("presence_penalty") * generated
    logits[rows] = part


def _draw(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """[rows] tokens drawn by temperature, min_p, top_k and top_p. Greedy rows get some token."""
    device, vocab = logits.device, logits.shape[1]
    temperature = torch.tensor([s.params.temperature if not s.params.greedy else 1.0 for s in states], device=device)
    scaled = logits / temperature.unsqueeze(1)
    min_p = [s.params.min_p for s in states]
    if any(min_p):
        floor = scaled.amax(-1, keepdim=True) + torch.tensor(min_p, device=device).log().unsqueeze(1)
        scaled.masked_fill_(scaled < floor, -torch.inf)
    draws = torch.tensor([s.draw() for s in states], dtype=torch.float64, device=device)
    filtered = [i for i, s in enumerate(states) if 0 < s.params.top_k < vocab or s.params.top_p < 1]
    if not filtered:
        return _draw_from_all(scaled, draws)
    tokens = torch.empty(len(states), dtype=torch.long, device=device)
    if free := sorted(set(range(len(states))) - set(filtered)):
        tokens[free] = _draw_from_all(scaled[free], draws[free])
    tokens[filtered] = _draw_from_top(scaled[filtered], [states[i] for i in filtered], draws[filtered])
    return tokens


def _draw_from_all(logits: Tensor, draws: Tensor) -> Tensor:
    """Where each draw falls in the cumulated distribution, found by partial sums, then inside one of them."""
    weights = torch.exp(logits - logits.amax(-1, keepdim=True)).double()
    short = -weights.shape[1] % SPAN
    spans = torch.nn.functional.pad(weights, (0, short)).view(len(weights), -1, SPAN)
    ends = spans.sum(-1).cumsum(-1)
    target = (draws * ends[:, -1]).unsqueeze(1)
    span = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(span > 0, ends.gather(1, (span - 1).clamp(min=0)), 0.0)
    inside = spans.gather(1, span.unsqueeze(-1).expand(-1, -1, SPAN)).squeeze(1).cumsum(-1)
    place = torch.searchsorted(inside, target - before, right=True)
    # Rounding may leave a draw at the very end of its span: take the span's last token that has weight.
    last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
    return (span * SPAN + torch.minimum(place, last)).squeeze(1)


def _draw_from_top(logits: Tensor, states: Sequence[SamplingState], draws: Tensor) -> Tensor:
    """Draws from each row's top_k and top_p tokens.

    Whether a row is sorted whole or in its first CANDIDATES is a matter of that row alone.
    """
    vocab = logits.shape[1]
    values, ids = logits.topk(min(CANDIDATES, vocab), dim=-1)
    top_k = [s.params.top_k if 0 < s.params.top_k < vocab else vocab for s in states]
    top_p = torch.tensor([s.params.top_p for s in states], dtype=torch.float64, device=logits.device)
    peak = values[:, :1]
    total = torch.exp(logits - peak).sum(-1, dtype=torch.float64)
    found = torch.exp(values - peak).sum(-1, dtype=torch.float64)
    enough = (found >= top_p * total).tolist()
    tokens = torch.empty(len(states), dtype=torch.long, device=logits.device)
    short = [i for i in range(len(states)) if top_k[i] <= values.shape[1] or enough[i]]
    if short:
        tokens[short] = _pick(
            values[short], ids[short], total[short], [top_k[i] for i in short], top_p[short], draws[short]
        )
    if rest := sorted(set(range(len(states))) - set(short)):
        all_values, all_ids = logits[rest].sort(dim=-1, descending=True, stable=True)
        tokens[rest] = _pick(all_values, all_ids, total[rest], [top_k[i] for i in rest], top_p[rest], draws[rest])
    return tokens


def _pick(values: Tensor, ids: Tensor, total: Tensor, top_k: list[int], top_p: Tensor, draws: Tensor) -> Tensor:
    """One token a row from candidates in descending order."""
    width = values.shape[1]
    weights = torch.exp(values - values[:, :1]).double()
    limit = torch.tensor(top_k, device=values.device).unsqueeze(1)
    weights.masked_fill_(torch.arange(width, device=values.device) >= limit, 0.0)
    ends = weights.cumsum(-1)
    # top_p is a share of what top_k left.
    whole = torch.where(limit.squeeze(1) <= width, ends[:, -1], total)
    outside = ends - weights >= (top_p * whole).unsqueeze(1)
    outside[:, 0] = False
    weights.masked_fill_(outside, 0.0)
    ends = weights.cumsum(-1)
    place = torch.searchsorted(ends, (draws * ends[:, -1]).unsqueeze(1), right=True)
    last = (ends < ends[:, -1:]).sum(-1, keepdim=True)
    return ids.gather(1, torch.minimum(place, last)).squeeze(1)
