"""Structured output: which tokens may come next, so that an answer follows a schema, an expression or a grammar.

llguidance does the grammars. It was chosen over xgrammar for its start: it makes a grammar ready in about a
millisecond, with no automaton built ahead, and finds a step's mask in about one more.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import InvalidRequestError
from octavo.loading.tokenizer import FastTokenizer, Tokenizer, TransformersTokenizer
from octavo.params import StructuredOutputsParams


class Grammar:
    """One sequence's place in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def accept(self, token_id: int) -> None:
        """The token was chosen. A token after the grammar's end (an ignored end-of-sequence) changes nothing."""
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token_id)


class GrammarCompiler:
    """Makes Grammars for one tokenizer.

    Args:
        tokenizer: the model's; None with skip_tokenizer_init.
        vocab_size: of the model, whose logits are masked.
        eos_token_ids: tokens that may come where a grammar may end.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos = tokenizer, vocab_size, sorted(eos_token_ids)
        self._table: Any = None

    def compile(self, wanted: StructuredOutputsParams) -> Grammar:
        """Raises InvalidRequestError for a schema, expression or grammar that is not one."""
        import llguidance

        kind, text = wanted.as_grammar()
        try:
            grammar = llguidance.grammar_from(kind, text)
        except ValueError as error:
            raise InvalidRequestError(f"structured_outputs: {error}") from error
        matcher = llguidance.LLMatcher(self._tokens(), grammar, log_level=0)
        if matcher.is_error():
            said = matcher.get_error().strip().splitlines()[0]
            raise InvalidRequestError(f"structured_outputs: this {kind.replace('_', ' ')} cannot be used: {said}")
        return Grammar(matcher)

    def _tokens(self) -> Any:
        """The vocabulary as llguidance wants it, made once: it takes a fifth of a second."""
        if self._table is None:
            import llguidance

            self._table = llguidance.LLTokenizer(
                _as_json(self._tokenizer), n_vocab=self._vocab_size, eos_token=self._eos or None
            )
        return self._table


def _as_json(tokenizer: Tokenizer | None) -> str:
    if isinstance(tokenizer, FastTokenizer):
        return str(tokenizer.inner.to_str())
    if isinstance(tokenizer, TransformersTokenizer) and getattr(tokenizer.inner, "is_fast", False):
        return str(tokenizer.inner.backend_tokenizer.to_str())
    if tokenizer is None:
        raise InvalidRequestError("structured_outputs needs a tokenizer, and skip_tokenizer_init=True loads none.")
    raise InvalidRequestError("structured_outputs needs a tokenizer.json; this model's tokenizer is code of its own.")


def apply_grammars(logits: Tensor, rows: Sequence[int], grammars: Sequence[Grammar]) -> None:
    """Set the logits `[rows, vocab]` of tokens that may not come next to -inf, for the given rows, in place."""
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    vocab = logits.shape[1]
    masks = allocate_token_bitmask(len(rows), vocab)
    for i, grammar in enumerate(grammars):
        fill_next_token_bitmask(grammar.matcher, masks, i)
    bits = np.unpackbits(masks.view(np.uint8), axis=1, count=vocab, bitorder="little")
    allowed = torch.from_numpy(bits).to(logits.device).bool()
    index = torch.tensor(list(rows), device=logits.device)
    logits[index] = logits[index].masked_fill(~allowed, -torch.inf)
