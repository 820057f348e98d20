"""What the sampler keeps for one sequence."""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from octavo.executor.bad_words import BadWords, check_tokens
from octavo.executor.grammar import Grammar
from octavo.executor.transcript_logits import TranscriptLogits
from octavo.ops import DrawBy, Penalties, TokenChanges, sent
from octavo.params import SamplingParams

GREEDY = DrawBy()
MOST = 1 << 31
"""More tokens than any vocabulary has."""
_MASK = (1 << 64) - 1


def mix(a: int, b: int) -> int:
    """A 64-bit hash of two integers (the finalizer of SplitMix64)."""
    z = (a * 0x9E3779B97F4A7C15 + b + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@dataclass(frozen=True, eq=False)
class FixedChanges:
    """What a request asks of single tokens at all times, as TokenChanges has it."""

    vocab: int
    forbidden: Tensor | None
    bias: tuple[Tensor, Tensor] | None
    stops: Tensor | None
    """Ids of tokens that may not come before `min_tokens`."""

    @classmethod
    def of(cls, params: SamplingParams, stop_ids: frozenset[int], vocab: int, device: torch.device) -> Self:
        """Raises IndexError for tokens beyond the vocabulary."""
        forbidden = bias = None
        if params.allowed_token_ids is not None:
            allowed = list(params.allowed_token_ids)
            check_tokens(allowed, vocab)
            forbidden = torch.ones(vocab, dtype=torch.bool)
            forbidden[torch.tensor(allowed, dtype=torch.long)] = False
            forbidden = forbidden.to(device, non_blocking=True)
        if params.logit_bias:
            check_tokens(params.logit_bias, vocab)
            values = sent(list(params.logit_bias.values()), torch.float32, device)
            bias = sent(list(params.logit_bias), torch.int64, device), values
        stops = sorted(stop_ids) if params.min_tokens else []
        check_tokens(stops, vocab)
        return cls(vocab, forbidden, bias, sent(stops, torch.int64, device) if stops else None)


@dataclass(eq=False)
class SamplingState:
    """A sequence's sampling values, and what it has seen so far."""

    params: SamplingParams
    seed: int
    """Its randomness: the draw for output token t is a hash of (seed, t), whatever else runs."""
    prompt_token_ids: list[int]
    stop_ids: frozenset[int]
    """Tokens that may not come before `min_tokens`."""
    grammar: Grammar | None = None
    """What the answer must follow."""
    bad_words: BadWords | list[list[int]] = field(default_factory=list)
    """Sequences of tokens that may not come; a list is made a BadWords, which several states may share."""
    output_token_ids: list[int] = field(default_factory=list)
    late_logits: Tensor | None = None
    """Logits `[vocab]` of the next token, kept while its mask is being found."""
    ended: bool = False
    """Whether no further token will be chosen."""
    _counts: Tensor | None = None
    _in_prompt: Tensor | None = None
    _counted: int = 0
    _fixed: FixedChanges | None = None

    def __post_init__(self) -> None:
        p = self.params
        self.has_penalties = p.presence_penalty != 0 or p.frequency_penalty != 0 or p.repetition_penalty != 1
        self.acts_on_tokens = bool(
            self.bad_words
            or p.bad_words
            or p.min_tokens
            or p.logit_bias
            or p.logits_processors
            or p.allowed_token_ids is not None
            or p.transcript is not None
        )
        """Whether single tokens of its row are changed."""
        self.transcript = None if p.transcript is None else TranscriptLogits(p.transcript)
        self._bad_words_state = 0
        self._bad_words_seen = 0

    def accept(self, token_id: int) -> bool:
        """The next token was chosen; whether the grammar lets nothing follow it."""
        self.output_token_ids.append(token_id)
        if self.grammar is None:
            return False
        self.grammar.accept(token_id)
        return self.grammar.ended

    def draw_by(self) -> DrawBy:
        """How the next token is chosen."""
        p = self.params
        if p.greedy:
            return GREEDY
        draw = (mix(self.seed, len(self.output_token_ids)) >> 11) / (1 << 53)
        return DrawBy(float(p.temperature), float(p.min_p), min(max(0, p.top_k), MOST), float(p.top_p), draw)

    def token_changes(self, row: int, vocab: int, device: torch.device) -> TokenChanges:
        """What the next token may not be, and what is added to logits `[vocab]`, of the given row of a batch.

        Raises IndexError for tokens beyond the vocabulary.
        """
        fixed = self._fixed
        if fixed is None or fixed.vocab != vocab:
            fixed = self._fixed = FixedChanges.of(self.params, self.stop_ids, vocab, device)
            self._bad_words().check(vocab)
        banned = list[Tensor]()
        if self.bad_words:
            banned += self._banned(device)
        if len(self.output_token_ids) < self.params.min_tokens and fixed.stops is not None:
            banned.append(fixed.stops)
        return TokenChanges(row, fixed.forbidden, tuple(banned), fixed.bias)

    def _banned(self, device: torch.device) -> list[Tensor]:
        """Tokens that would now complete a bad word."""
        words = self._bad_words()
        if self._bad_words_seen > len(self.output_token_ids):
            self._bad_words_state = self._bad_words_seen = 0
        for token in self.output_token_ids[self._bad_words_seen :]:
            self._bad_words_state = words.after(self._bad_words_state, token)
        self._bad_words_seen = len(self.output_token_ids)
        longer = words.banned(self._bad_words_state)
        return [words.always(device), *([sent(longer, torch.int64, device)] if longer else [])]

    def _bad_words(self) -> BadWords:
        if not isinstance(self.bad_words, BadWords):
            self.bad_words = BadWords(self.bad_words)
        return self.bad_words

    def penalties(self, row: int, vocab: int, device: torch.device) -> Penalties:
        """What its tokens pay, in the given row of a batch. Those that have come are taken for counted from now on."""
        p = self.params
        factors = float(p.repetition_penalty), float(p.frequency_penalty), float(p.presence_penalty)
        if self._counts is None or self._in_prompt is None or self._counted > len(self.output_token_ids):
            self._counts = torch.zeros(vocab, device=device)
            in_prompt = torch.zeros(vocab, dtype=torch.bool)
            in_prompt[[token for token in self.prompt_token_ids if token < vocab]] = True  # others are of pictures
            self._in_prompt = in_prompt.to(device, non_blocking=True)
            self._counted = 0
        new = self.output_token_ids[self._counted :]
        check_tokens(new, vocab)
        self._counted = len(self.output_token_ids)
        return Penalties(row, self._counts, self._in_prompt, new, *factors)
