"""Tokens to text and back, whatever library knows the model's tokenizer."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from octavo.errors import CheckpointError, InvalidRequestError, UnsupportedModelError, failure
from octavo.files import read_json
from octavo.text.added_tokens import add_tokens
from octavo.text.chat_prompt import Templated, render_chat
from octavo.text.tekken import TEMPLATE, tekken_tokenizer
from octavo.text.template_files import ChatTemplates, read_templates

T = TypeVar("T")

SLOW_CHARACTERS = 1 << 20
"""Longest text for a tokenizer that is Python code: such code takes seconds for it, and cannot be interrupted."""


def guarded(work: Callable[[], T]) -> T:
    """What `work` returns. Raises InvalidRequestError for whatever a tokenizer raises, a panic in Rust included."""
    try:
        return work()
    except BaseException as error:
        raise InvalidRequestError(f"the tokenizer failed on this text ({failure(error):.200}).") from error


def decode_known(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> str:
    """The text of `ids`. Of tokens that the tokenizer fails on, since it does not know them, there is none."""

    def text_of(part: Sequence[int]) -> str | None:
        try:
            return guarded(lambda: decode(part))
        except InvalidRequestError:
            return None

    text = text_of(ids)
    return text if text is not None else text_of([i for i in ids if text_of([i]) is not None]) or ""


class Tokenizer(Templated, Protocol):
    """What the engine needs of a tokenizer. A text that it cannot read is an InvalidRequestError."""

    eos_token_id: int | None
    bos_token_id: int | None

    @property
    def vocab_size(self) -> int: ...

    @property
    def longest_token(self) -> int:
        """Most characters that one token stands for, as far as the vocabulary says."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Other threads go on meanwhile."""
        ...

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Two texts as one input, with whatever the model puts between them."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True, spaces_between: bool = True) -> str: ...

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token."""
        ...

    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]], **options: Any) -> str | list[int]:
        """As transformers' tokenizers have it."""
        ...


class _ChatTemplates:
    """What scripts ask of `LLM.get_tokenizer()` beside encoding: transformers' apply_chat_template."""

    def apply_chat_template(
        self: Any,
        conversation: Sequence[Mapping[str, Any]],
        chat_template: str | None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> str | list[int]:
        """The prompt of a conversation, as token ids or (`tokenize=False`) as text."""
        text = render_chat(
            self,
            conversation,
            template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            variables=variables,
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text


class FastTokenizer(_ChatTemplates):
    """A tokenizer of the `tokenizers` library."""

    def __init__(
        self, inner: Any, special_tokens: dict[str, str], chat_templates: ChatTemplates, eos_token_id: int | None = None
    ) -> None:
        self.inner = inner
        self.special_tokens = special_tokens
        self.chat_templates = chat_templates
        self.bos_token_id = self._id("bos_token")
        self.eos_token_id = self._id("eos_token") if eos_token_id is None else eos_token_id

    def _id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        found: int | None = None if token is None else self.inner.token_to_id(token)
        return found

    @property
    def vocab_size(self) -> int:
        return int(self.inner.get_vocab_size(with_added_tokens=True))

    @functools.cached_property
    def longest_token(self) -> int:
        return _longest(self.inner.get_vocab(with_added_tokens=True), self.inner.normalizer is not None)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return guarded(lambda: encode_freely(self.inner, text, add_special_tokens))

    def encode_pair(self, first: str, second: str) -> list[int]:
        return guarded(lambda: encode_freely(self.inner, (first, second), True))

    def pair_types(self, first: str, second: str) -> list[int]:
        """Which of the two texts each token of `encode_pair` is of, 0 or 1."""
        return guarded(lambda: [*self.inner.encode_batch([(first, second)])[0].type_ids])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True, spaces_between: bool = True) -> str:
        if len(ids) < MANY_TOKENS:
            return decode_known(lambda i: str(self.inner.decode(i, skip_special_tokens=skip_special_tokens)), ids)
        # As with texts: only the call for several lets other threads run.
        return decode_known(lambda i: str(self.inner.decode_batch([i], skip_special_tokens)[0]), ids)

    def token(self, token_id: int) -> str | None:
        found: str | None = self.inner.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
        return found


MANY_TOKENS = 1000


def encode_freely(inner: Any, text: str | tuple[str, str], add_special_tokens: bool) -> list[int]:
    """Token ids by the `tokenizers` library's call for several texts: its `encode` lets no other thread run."""
    ids: list[int] = inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
    return ids


def _longest(vocabulary: Mapping[Any, int], normalized: bool) -> int:
    """Characters of the longest token. A normalizer may join several characters into one: four, to be safe."""
    return max((len(token) for token in vocabulary), default=1) * (4 if normalized else 1)


class TransformersTokenizer(_ChatTemplates):
    """A tokenizer that only transformers can load: sentencepiece, tiktoken, or code of the model's own."""

    def __init__(self, inner: Any, chat_templates: ChatTemplates) -> None:
        self.inner = inner
        self.chat_templates = chat_templates
        self.eos_token_id: int | None = inner.eos_token_id
        self.bos_token_id: int | None = inner.bos_token_id
        self.special_tokens = {k: str(v) for k, v in inner.special_tokens_map.items() if isinstance(v, str)}

    @property
    def vocab_size(self) -> int:
        return len(self.inner)

    @functools.cached_property
    def longest_token(self) -> int:
        return _longest(guarded(self.inner.get_vocab), True)

    @functools.cached_property
    def _library(self) -> Any:
        """The tokenizer of the `tokenizers` library that works inside, where it is all that works."""
        own_code = not type(self.inner).__module__.startswith("transformers.")
        return None if own_code else getattr(self.inner, "backend_tokenizer", None)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if self._library is not None:
            return guarded(lambda: encode_freely(self._library, text, add_special_tokens))
        _check_length(text)
        return guarded(lambda: list(self.inner.encode(text, add_special_tokens=add_special_tokens)))

    def encode_pair(self, first: str, second: str) -> list[int]:
        if self._library is not None:
            return guarded(lambda: encode_freely(self._library, (first, second), True))
        _check_length(first, second)
        return guarded(lambda: list(self.inner.encode(first, second)))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True, spaces_between: bool = True) -> str:
        options: dict[str, Any] = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        if not getattr(self.inner, "is_fast", False):
            options["spaces_between_special_tokens"] = spaces_between
        return decode_known(lambda part: str(self.inner.decode(list(part), **options)), ids)

    def token(self, token_id: int) -> str | None:
        try:
            found = guarded(lambda: self.inner.convert_ids_to_tokens(token_id))
        except InvalidRequestError:  # an id that its vocabulary does not have
            return None
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else found


def _check_length(*texts: str) -> None:
    if (length := sum(map(len, texts))) > SLOW_CHARACTERS:
        raise InvalidRequestError(
            f"the text has {length} characters, and this model's tokenizer, which is Python code, takes at most "
            f"{SLOW_CHARACTERS} at a time. Shorten it, or give token ids."
        )


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises CheckpointError where there is none or it is damaged, UnsupportedModelError where it needs code of its own
    and `trust_remote_code` is false.
    """
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    if (folder / "tokenizer.json").is_file():
        return _fast(folder, settings)
    if (folder / "tekken.json").is_file():
        return _tekken(folder, settings)
    return _through_transformers(folder, settings, trust_remote_code)


def _fast(folder: Path, settings: dict[str, Any]) -> FastTokenizer:
    from tokenizers import Tokenizer as Inner

    try:
        inner = Inner.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"{folder / 'tokenizer.json'} is damaged: {error}") from error
    inner.no_truncation()
    inner.no_padding()
    special = add_tokens(inner, folder, settings)
    _follow_bos_settings(inner, settings, special)
    return FastTokenizer(inner, special, read_templates(folder, settings))


def _tekken(folder: Path, settings: dict[str, Any]) -> FastTokenizer:
    inner, special = tekken_tokenizer(folder / "tekken.json")
    set_template(inner, special.get("bos_token"), None)
    return FastTokenizer(inner, special, {"default": TEMPLATE, **read_templates(folder, settings)})


_REBUILD_FOR = ("Llama", "CodeLlama", "Gemma")


def _follow_bos_settings(inner: Any, settings: dict[str, Any], special: dict[str, str]) -> None:
    """transformers' Llama and Gemma tokenizers obey add_bos_token and add_eos_token over tokenizer.json; so do we."""
    kind = settings.get("tokenizer_class") or ""
    if not kind.startswith(_REBUILD_FOR) or not {"add_bos_token", "add_eos_token"} & settings.keys():
        return
    bos = special.get("bos_token") if settings.get("add_bos_token", True) else None
    eos = special.get("eos_token") if settings.get("add_eos_token", False) else None
    set_template(inner, bos, eos)


def set_template(inner: Any, bos: str | None, eos: str | None) -> None:
    """Have `inner` put `bos` before and `eos` after each text."""
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    used = [t for t in (bos, eos) if t is not None]
    single = " ".join([*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])])
    template = TemplateProcessing(
        single=single, pair=f"{single} $B:1", special_tokens=[(t, inner.token_to_id(t)) for t in used]
    )
    inner.post_processor = Sequence([ByteLevel(trim_offsets=False), template])


def _through_transformers(folder: Path, settings: dict[str, Any], trust_remote_code: bool) -> TransformersTokenizer:
    from transformers import AutoTokenizer

    try:
        inner = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # transformers raises whatever its tokenizers do
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"the tokenizer in {folder} is Python code that comes with the model. If you trust it, set "
                "trust_remote_code=True (--trust-remote-code)."
            ) from error
        raise CheckpointError(
            f"{folder} has no tokenizer that loads ({type(error).__name__}: {str(error).splitlines()[0][:200]}). "
            "Give one with tokenizer=, or set skip_tokenizer_init=True and use token ids."
        ) from error
    return TransformersTokenizer(inner, read_templates(folder, settings))
