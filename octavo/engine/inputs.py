"""Prompts and sampling values, checked at the boundary: what passes here can run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.loading.tokenizer import Tokenizer
from octavo.params import PoolingParams, SamplingParams

ENCODER_KEYS = ("encoder_prompt", "decoder_prompt", "multi_modal_data")


@dataclass
class CheckedPrompt:
    """A prompt that the model can take."""

    text: str | None
    token_ids: list[int]
    cache_salt: str = ""


class InputChecker:
    """Turns what users give into token ids, or refuses it.

    Args:
        tokenizer: None with skip_tokenizer_init.
        vocab_size: token ids are below it.
        max_model_len: longest prompt plus answer.
        max_logprobs: most log-probabilities a token (-1: no limit).
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, max_model_len: int, max_logprobs: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.max_logprobs = max_logprobs

    def prompt(self, prompt: Any, params: SamplingParams | PoolingParams) -> CheckedPrompt:
        """Token ids of a prompt: text, a list of ids, or a dict with `prompt` or `prompt_token_ids`.

        Raises InvalidRequestError for an empty or too long prompt and for ids outside the vocabulary.
        """
        text, ids, salt = self._read(prompt)
        if params.truncate_prompt_tokens is not None:
            keep = params.truncate_prompt_tokens
            keep = self._room(params) if keep == -1 else keep
            ids = ids[-keep:]
        if not ids:
            raise InvalidRequestError("the prompt is empty; give at least one token.")
        self._check_ids(ids, "prompt_token_ids")
        room = self._room(params)
        if len(ids) > room:
            answer = " (one is kept for the answer)" if isinstance(params, SamplingParams) else ""
            raise InvalidRequestError(
                f"the prompt has {len(ids)} tokens, and this model takes {room}{answer}. Shorten it, set "
                "truncate_prompt_tokens, or start the engine with a larger max_model_len or kv_cache_memory."
            )
        return CheckedPrompt(text, ids, salt)

    def _room(self, params: SamplingParams | PoolingParams) -> int:
        return self.max_model_len - (1 if isinstance(params, SamplingParams) else 0)

    def _read(self, prompt: Any) -> tuple[str | None, list[int], str]:
        if isinstance(prompt, str):
            return prompt, self._encode(prompt), ""
        if isinstance(prompt, Mapping):
            if refused := [k for k in ENCODER_KEYS if prompt.get(k)]:
                raise InvalidRequestError(f"{refused[0]} is not taken: this model reads one text prompt.")
            text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            salt = str(prompt.get("cache_salt") or "")
            if ids is not None:
                return text, self._ids(ids), salt
            if isinstance(text, str):
                return text, self._encode(text), salt
            raise InvalidRequestError(f"a prompt dict needs prompt or prompt_token_ids; it has {sorted(prompt)}.")
        if isinstance(prompt, Sequence):
            return None, self._ids(prompt), ""
        raise InvalidRequestError(f"a prompt is text, a list of token ids or a dict, not {type(prompt).__name__}.")

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise InvalidRequestError(
                "this engine was started with skip_tokenizer_init=True and takes token ids: "
                '{"prompt_token_ids": [...]}.'
            )
        return self.tokenizer.encode(text)

    @staticmethod
    def _ids(ids: Any) -> list[int]:
        try:
            return [int(i) for i in ids]
        except (TypeError, ValueError) as error:
            raise InvalidRequestError("prompt_token_ids must be a list of whole numbers.") from error

    def _check_ids(self, ids: Sequence[int], name: str) -> None:
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise InvalidRequestError(
                f"{name} holds {wrong}, outside this model's vocabulary (0 to {self.vocab_size - 1})."
            )

    def sampling(self, params: SamplingParams) -> None:
        """Raises InvalidRequestError for values that this model cannot honour."""
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(params, name)
            if wanted is not None and self.max_logprobs != -1 and (wanted == -1 or wanted > self.max_logprobs):
                raise InvalidRequestError(
                    f"{name}={wanted} is more than max_logprobs={self.max_logprobs}; start with a larger one."
                )
        self._check_ids(list(params.logit_bias or ()), "logit_bias")
        self._check_ids(params.allowed_token_ids or (), "allowed_token_ids")
        self._check_ids(params.stop_token_ids or (), "stop_token_ids")
        if self.tokenizer is None:
            for name in ("stop", "bad_words"):
                if getattr(params, name):
                    raise InvalidRequestError(f"{name} needs a tokenizer, and skip_tokenizer_init=True loads none.")

    def bad_words(self, params: SamplingParams) -> list[list[int]]:
        """The token sequences of bad words, at the start of a text and inside it."""
        found: list[list[int]] = []
        for word in params.bad_words or []:
            assert self.tokenizer is not None
            for text in (word.lstrip(), " " + word.lstrip()):
                ids = self.tokenizer.encode(text, add_special_tokens=False)
                if ids and ids not in found:
                    found.append(ids)
        return found
