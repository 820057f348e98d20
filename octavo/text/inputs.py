"""Prompts and sampling values, checked at the boundary: what passes here can run."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.features import ENCODER, encoder_feature
from octavo.lora import AdapterRef, LoRARequest, refer
from octavo.media.items import count_items
from octavo.media.model_media import ModelMedia, feature_of, positions_of
from octavo.params import PoolingParams, SamplingParams
from octavo.prompts import media_of_encoder
from octavo.text.checked_prompt import CheckedPrompt, EncoderInput
from octavo.text.text_prompts import NO_PROMPTS, TextPrompts, prompt_tokens
from octavo.text.token_ids import NO_TOKENS, KnownTokens, as_token_ids
from octavo.text.tokenizer import Tokenizer
from octavo.text.truncation import side_of, sliced, truncated, truncated_pair

MOST_TOKENS = 1 << 24
"""No vocabulary has as many, whatever an adapter adds to it."""
REMEMBERED = 4096
"""Adapters whose files are known as they were last."""
ENCODER_KEYS = ("encoder_prompt", "decoder_prompt")


def _media_of(prompt: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `multi_modal_data` of a prompt. Raises InvalidRequestError for what is none."""
    data = prompt.get("multi_modal_data") or {}
    if not isinstance(data, Mapping):
        raise InvalidRequestError('multi_modal_data must be a dict such as {"image": picture}.')
    names = prompt.get("multi_modal_uuids") or {}
    for kind, own in names.items() if isinstance(names, Mapping) else [("multi_modal_uuids", None)]:
        given = count_items(kind, data.get(kind))
        if not isinstance(own, Sequence | str) or (1 if isinstance(own, str) else len(own)) != given:
            raise InvalidRequestError(
                f"multi_modal_uuids has another number of {kind} items than multi_modal_data, which has {given}."
            )
    return data if any(count_items(kind, value) for kind, value in data.items()) else {}


def _behind(prompt: Any, before: str) -> Any:
    """A text, or a dict with one, with another text before it."""
    if isinstance(prompt, Mapping) and isinstance(prompt.get("prompt"), str):
        return {**prompt, "prompt": before + prompt["prompt"]}
    return before + prompt if isinstance(prompt, str) else prompt


def _settings(prompt: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    settings = prompt.get(name) or {}
    if not isinstance(settings, Mapping):
        raise InvalidRequestError(f"{name} must be a dict of settings.")
    return settings


class InputChecker:
    """Turns what users give into token ids, or refuses it.

    Args:
        tokenizer: None with skip_tokenizer_init.
        vocab_size: token ids of answers are below it.
        max_model_len: longest prompt plus answer.
        max_logprobs: most log-probabilities a token (-1: no limit).
        encoder: what the model's encoder takes; None for models without one.
        media: what makes features of pictures, films and sounds; None for models of text alone.
        num_embeddings: token ids of prompts are below it; as those of answers if None.
        serves_adapters: whether prompts may come with adapters.
        prompts: what may stand before the texts that are embedded.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        max_model_len: int,
        max_logprobs: int,
        encoder: EncoderInput | None = None,
        media: ModelMedia | None = None,
        num_embeddings: int | None = None,
        serves_adapters: bool = False,
        prompts: TextPrompts = NO_PROMPTS,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self._tokens = KnownTokens(vocab_size, num_embeddings or vocab_size, tokenizer)
        self.max_model_len = max_model_len
        self.max_logprobs = max_logprobs
        self.encoder, self.prompts = encoder, prompts
        self.media = media
        self.serves_adapters = serves_adapters
        self._refs: dict[LoRARequest, AdapterRef] = {}
        """What adapters were last known by."""

    def prompt(
        self, prompt: Any, params: SamplingParams | PoolingParams, adapter: LoRARequest | None = None
    ) -> CheckedPrompt:
        """See `_prompt`; with an `adapter`, the model answers with it.

        Raises InvalidRequestError also for an adapter that is not there, and where none are served. Whether its files
        are sound and fit the model, and whether it has all of the prompt's tokens, is found out when it is loaded.
        """
        if adapter is None:
            return self._prompt(prompt, params, NO_TOKENS)
        ref = self.adapter(adapter)
        checked = self._prompt(prompt, params, range(self._tokens.prompts, MOST_TOKENS))
        checked.adapter = ref
        # What a tower makes of pictures may depend on the adapter.
        checked.features = [f if f.kind == ENCODER else f.under(ref.digest) for f in checked.features]
        return checked

    def adapter(self, adapter: LoRARequest) -> AdapterRef:
        """What the engine knows an adapter by. Raises InvalidRequestError for one that is not there."""
        if not isinstance(adapter, LoRARequest):
            raise InvalidRequestError(f"lora_request is a LoRARequest, not {type(adapter).__name__}.")
        if not self.serves_adapters:
            raise InvalidRequestError(
                f"the adapter {adapter.lora_name!r} cannot be used: start the engine with enable_lora=True."
            )
        try:
            ref = refer(adapter)
            self._refs.pop(adapter, None)
            self._refs[adapter] = ref
            if len(self._refs) > REMEMBERED:
                del self._refs[next(iter(self._refs))]
        except InvalidRequestError:
            if adapter not in self._refs:
                raise
            ref = self._refs[adapter]  # its files are gone, and it may still be in memory
        return ref

    def _prompt(self, prompt: Any, params: SamplingParams | PoolingParams, more: Container[int]) -> CheckedPrompt:
        """Token ids of a prompt: text, a list of ids, or a dict with `prompt` or `prompt_token_ids`.

        A model with an encoder reads such a prompt with it, or a dict with `encoder_prompt` and `decoder_prompt`. For a
        model that takes media, a dict may have `multi_modal_data` (see octavo.media.items.read_media) and
        `mm_processor_kwargs`; they are decoded here. `multi_modal_uuids` are checked, and items known by their content.

        Raises InvalidRequestError for an empty or too long prompt, for ids outside the vocabulary, and for media that
        the model does not take. `more`: ids that an adapter may bring.
        """
        if self.encoder is not None:
            return self._encoder_decoder(prompt, params, self.encoder)
        if isinstance(prompt, Mapping) and self.media is not None and self.media.transcribes:
            prompt = media_of_encoder(prompt)
        if isinstance(prompt, Mapping) and self.media is not None and (data := _media_of(prompt)):
            return self._with_media(prompt, data, params, self.media)
        before = self._before(prompt, params)
        prompt = _behind(prompt, before) if before else prompt
        room = None if params.truncate_prompt_tokens is not None else self._room(params)
        checked = self._checked(*self._read(prompt, room), params, more)
        if before and not self.prompts.are_pooled:
            checked.unpooled = min(prompt_tokens(self._encode_special, before), len(checked.token_ids) - 1)
        checked.both_ways = [] if self.media is None else self.media.both_ways(len(checked.token_ids))
        if isinstance(prompt, Mapping) and prompt.get("token_type_ids"):
            checked.token_types = self._types(prompt["token_type_ids"], len(checked.token_ids), side_of(params))
        return checked

    def _before(self, prompt: Any, params: SamplingParams | PoolingParams) -> str:
        """What stands before a prompt's text. Raises InvalidRequestError where it is asked for and has no place."""
        name = params.prompt_name if isinstance(params, PoolingParams) else None
        if not isinstance(params, PoolingParams) or (name is None and self.prompts.default is None):
            return ""
        before = self.prompts.text(name)
        if isinstance(prompt, str) or (isinstance(prompt, Mapping) and prompt.get("prompt_token_ids") is None):
            return before
        if name is not None:
            raise InvalidRequestError("prompt_name needs a text that the prompt can stand before, not token ids.")
        return ""

    def _encode_special(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._encode(text, None, add_special_tokens)

    @staticmethod
    def _types(types: Any, count: int, side: str) -> list[int]:
        """Types of a prompt's tokens, of which `count` are left when it was cut at a side."""
        if not isinstance(types, Sequence) or len(types) < count or not all(kind in (0, 1) for kind in types):
            raise InvalidRequestError("token_type_ids must be a 0 or a 1 for each of the prompt's tokens.")
        return [int(kind) for kind in sliced(types, count, side)]

    def _with_media(
        self,
        prompt: Mapping[str, Any],
        data: Mapping[str, Any],
        params: SamplingParams | PoolingParams,
        media: ModelMedia,
    ) -> CheckedPrompt:
        if params.truncate_prompt_tokens is not None:
            raise InvalidRequestError(
                "truncate_prompt_tokens would cut through the prompt's media. Leave it out, or send text alone."
            )
        media.check(data)
        options, reading = (_settings(prompt, name) for name in ("mm_processor_kwargs", "media_io_kwargs"))
        if not all(isinstance(values, Mapping) for values in reading.values()):
            raise InvalidRequestError('media_io_kwargs must be a dict such as {"video": {"num_frames": 16}}.')
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if ids is None and isinstance(text, str) and prompt.get("add_special_tokens") is not False:
            self._check_length(len(text), self._room(params))
            ids, salt = media.encode(text), str(prompt.get("cache_salt") or "")
        else:
            rest = {k: v for k, v in prompt.items() if k != "multi_modal_data"}
            text, ids, salt = self._read(rest, self._room(params))
        ids = as_token_ids(ids)
        self._tokens.check_prompt(ids, "prompt_token_ids", text, media.placeholders)
        processed = media.process(ids, data, options, reading)
        checked = self._checked(text, processed.token_ids, salt, params, media.placeholders)
        checked.features = [feature_of(feature) for feature in processed.features]
        checked.positions = positions_of(processed)
        checked.both_ways = media.both_ways(len(processed.token_ids))
        return checked

    def _encoder_decoder(
        self, prompt: Any, params: SamplingParams | PoolingParams, encoder: EncoderInput
    ) -> CheckedPrompt:
        if isinstance(prompt, Mapping) and "encoder_prompt" in prompt:
            source, target = prompt["encoder_prompt"], prompt.get("decoder_prompt")
        else:
            source, target = prompt, None
        encoder_text, encoder_ids, salt = self._read(source, encoder.max_tokens)
        if not encoder_ids:
            raise InvalidRequestError("the encoder's prompt is empty; give at least one token.")
        self._tokens.check_prompt(encoder_ids, "encoder_prompt", encoder_text)
        if len(encoder_ids) > encoder.max_tokens:
            raise InvalidRequestError(
                f"the encoder's prompt has {len(encoder_ids)} tokens, and this encoder takes {encoder.max_tokens}. "
                "Shorten it."
            )
        text, ids = None, list[int]()
        if isinstance(target, Mapping) and target.get("prompt_token_ids") is not None:
            text, ids, _ = self._read(target, self._room(params))
        elif isinstance(target, Sequence) and not isinstance(target, str):
            ids = as_token_ids(target)
        else:
            if encoder.start_token_id is None:
                raise InvalidRequestError(
                    "this model's config has no decoder_start_token_id: give the decoder_prompt as token ids."
                )
            text = target.get("prompt") if isinstance(target, Mapping) else target
            more = self._encode(text, self._room(params), add_special_tokens=False) if text else []
            ids = [encoder.start_token_id, *more]
        checked = self._checked(text, ids, salt, params)
        checked.encoder_text, checked.features = encoder_text, [encoder_feature(encoder_ids)]
        return checked

    def _checked(
        self,
        text: str | None,
        ids: list[int],
        salt: str,
        params: SamplingParams | PoolingParams,
        placeholders: Container[int] = NO_TOKENS,
    ) -> CheckedPrompt:
        ids = truncated(text, ids, params, self._bare, self.max_model_len)
        if not ids:
            raise InvalidRequestError("the prompt is empty; give at least one token.")
        self._tokens.check_prompt(ids, "prompt_token_ids", text, placeholders)
        self.length(ids, params)
        return CheckedPrompt(text, ids, salt)

    def length(self, ids: Sequence[int], params: SamplingParams | PoolingParams) -> None:
        """Raises InvalidRequestError for more token ids than a prompt may have."""
        room = self._room(params)
        if len(ids) > room:
            answer = ", of which one is kept for the answer" if isinstance(params, SamplingParams) else ""
            raise InvalidRequestError(
                f"This model's maximum context length is {self.max_model_len} tokens{answer}. However, the prompt has "
                f"{len(ids)} tokens. Please reduce its length, set truncate_prompt_tokens, or start the engine with a "
                "larger max_model_len or kv_cache_memory."
            )

    def _room(self, params: SamplingParams | PoolingParams) -> int:
        return self.max_model_len - (1 if isinstance(params, SamplingParams) else 0)

    def _read(self, prompt: Any, room: int | None) -> tuple[str | None, list[int], str]:
        """Text, token ids and salt of a prompt that may have `room` tokens (None: any number)."""
        if isinstance(prompt, str):
            return prompt, self._encode(prompt, room), ""
        if isinstance(prompt, Mapping):
            if refused := [k for k in ENCODER_KEYS if prompt.get(k)]:
                raise InvalidRequestError(
                    f"{refused[0]} is not supported: this model has no encoder. Give a single prompt."
                )
            if prompt.get("multi_modal_data") and self.media is None:
                raise InvalidRequestError("multi_modal_data is not supported: this model takes text only.")
            text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            salt = str(prompt.get("cache_salt") or "")
            if ids is not None:
                return text, as_token_ids(ids), salt
            if isinstance(text, str):
                return text, self._encode(text, room, prompt.get("add_special_tokens") is not False), salt
            raise InvalidRequestError(f"a prompt dict needs prompt or prompt_token_ids; it has {sorted(prompt)}.")
        if isinstance(prompt, Sequence):
            return None, as_token_ids(prompt), ""
        raise InvalidRequestError(f"a prompt is text, a list of token ids or a dict, not {type(prompt).__name__}.")

    def encode_pair(self, first: Any, second: Any, params: PoolingParams) -> list[int]:
        """Two texts as one input. Raises InvalidRequestError for texts that are too long, and for what is no text."""
        if not isinstance(first, str) or not isinstance(second, str):
            raise InvalidRequestError("a classifier scores pairs of texts, not of token ids.")
        if self.tokenizer is None:
            raise InvalidRequestError("scores of pairs need a tokenizer, and skip_tokenizer_init=True loads none.")
        if params.truncate_prompt_tokens is None:
            self._check_length(len(first) + len(second), self._room(params))
        return self.tokenizer.encode_pair(first, second)

    def encode_typed_pair(self, first: Any, second: Any, params: PoolingParams) -> dict[str, Any]:
        """The prompt of `encode_pair`, with the tokens' types where the tokenizer has them, and cut where it is."""
        ids, types = self.encode_pair(first, second, params), getattr(self.tokenizer, "pair_types", None)
        own = [] if types is None else types(first, second)
        return truncated_pair((first, second), (ids, own), params, self._bare, self.max_model_len)

    def _bare(self, text: str) -> list[int]:
        """A text's tokens without special ones around them."""
        return self._encode(text, None, add_special_tokens=False)

    def _check_length(self, length: int, room: int) -> None:
        """Refuse a text of so many characters before it is tokenized, where it must have more than `room` tokens."""
        if self.tokenizer is not None and not self._fits(length, room):
            raise InvalidRequestError(
                f"This model's maximum context length is {self.max_model_len} tokens. However, the prompt has {length} "
                f"characters; {room} tokens have {room * self.tokenizer.longest_token} at most. Please reduce its "
                "length, or set truncate_prompt_tokens."
            )

    def _fits(self, length: int, room: int) -> bool:
        """Whether a text of so many characters may have no more than `room` tokens."""
        return length <= room or self.tokenizer is None or length <= room * self.tokenizer.longest_token

    def _encode(self, text: str, room: int | None, add_special_tokens: bool = True) -> list[int]:
        if room is not None:
            self._check_length(len(text), room)
        if self.tokenizer is None:
            raise InvalidRequestError(
                "this engine was started with skip_tokenizer_init=True and takes token ids: "
                '{"prompt_token_ids": [...]}.'
            )
        ids = self.media.encode(text) if add_special_tokens and self.media is not None else None
        return self.tokenizer.encode(text, add_special_tokens) if ids is None else ids

    def sampling(self, params: SamplingParams) -> None:
        """Raises InvalidRequestError for values that this model cannot honour."""
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(params, name)
            if wanted is not None and self.max_logprobs != -1 and (wanted == -1 or wanted > self.max_logprobs):
                raise InvalidRequestError(
                    f"{name}={wanted} is more than max_logprobs={self.max_logprobs}; start with a larger one."
                )
        self._tokens.check_answer(list(params.logit_bias or ()), "logit_bias")
        self._tokens.check_answer(params.allowed_token_ids or (), "allowed_token_ids")
        self._tokens.check_answer(params.stop_token_ids or (), "stop_token_ids")
        self._tokens.check_answer(params.transcript.token_ids() if params.transcript is not None else (), "transcript")
        if self.tokenizer is None:
            for name in ("stop", "bad_words"):
                if getattr(params, name):
                    raise InvalidRequestError(f"{name} needs a tokenizer, but skip_tokenizer_init=True is set.")

    def bad_words(self, params: SamplingParams) -> list[list[int]]:
        """The token sequences of bad words, at the start of a text and inside it; of each, those that can come."""
        words = dict.fromkeys(word.lstrip() for word in params.bad_words or [])
        if words and self.tokenizer is None:
            raise InvalidRequestError("bad_words needs a tokenizer, but skip_tokenizer_init=True is set.")
        found = dict[tuple[int, ...], None]()
        for word in words:
            if not self._fits(len(word), self.max_model_len):
                continue
            for text in (word, " " + word):
                try:
                    found[tuple(self._encode(text, None, add_special_tokens=False))] = None
                except InvalidRequestError as error:
                    raise InvalidRequestError(f"bad_words: {error}") from error
        return [list(ids) for ids in found if ids and max(ids) < self.vocab_size and len(ids) <= self.max_model_len]
