"""The tokens of a model that transcribes: how its prompts begin, and what may follow."""

import re
from collections.abc import Mapping
from typing import Any

from octavo.errors import CheckpointError, InvalidRequestError, shorten
from octavo.media.vocabulary import Vocabulary
from octavo.text.languages import LANGUAGES, language_code
from octavo.text.tokenizer import Tokenizer
from octavo.transcripts import TASKS, TranscriptRule

_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
GPT2_END = 50256
MAX_FIRST = 50
"""How many timestamps after 0.00 the first one may be, where generation_config.json says nothing: 1 s."""


class SpeechTokens:
    """Whisper's special tokens, as generation_config.json and config.json have them, or else the tokenizer.

    Args:
        tokenizer: the model's.
        generation: generation_config.json.
        config: config.json, for what stood there before.
        vocab_size: tokens of answers are below it.

    Raises CheckpointError where one is lacking, or is outside of the vocabulary.
    """

    def __init__(
        self, tokenizer: Tokenizer, generation: Mapping[str, Any], config: Mapping[str, Any], vocab_size: int
    ) -> None:
        self._values, self._size = {**config, **generation}, vocab_size
        self._vocabulary = Vocabulary(tokenizer)
        self.start = self._one("decoder_start_token_id", "<|startoftranscript|>")
        self.end = self._one("eos_token_id", "<|endoftext|>")
        self.no_timestamps = self._one("no_timestamps_token_id", "<|notimestamps|>")
        self.previous = self._one("prev_sot_token_id", "<|startofprev|>", self.start)
        silence = next((i for name in ("<|nospeech|>", "<|nocaptions|>") if (i := self._found(name)) is not None), None)
        self.no_speech = self._checked("<|nospeech|>", self.no_timestamps - 1 if silence is None else silence)
        self.timestamps = self._checked("<|0.00|>", self.no_timestamps + 1)
        self.is_multilingual = self._is_multilingual(generation)
        self.languages = self._languages() if self.is_multilingual else {}
        """Ids by codes."""
        self.tasks = self._tasks() if self.is_multilingual else {}
        self._suppress, self._suppress_first = self._list("suppress_tokens"), self._list("begin_suppress_tokens")
        first = self._values.get("max_initial_timestamp_index", MAX_FIRST)
        self._max_first = first if isinstance(first, int) and 0 <= first < vocab_size else None

    def _found(self, name: str) -> int | None:
        return self._vocabulary.find(name)

    def _one(self, key: str, name: str, default: int | None = None) -> int:
        value = self._values.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if value is None:
            value = self._found(name)
        return self._checked(f"{key} ({name})", default if value is None else value)

    def _checked(self, what: str, value: Any) -> int:
        if value is None:
            raise CheckpointError(f"neither generation_config.json nor the tokenizer has {what}; transcripts need it.")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < self._size:
            where = f"this model's vocabulary (0 to {self._size - 1})"
            raise CheckpointError(f"generation_config.json: {what} is {shorten(value)}, outside {where}.")
        return value

    def _list(self, key: str) -> list[int]:
        values = self._values.get(key) or []
        if not isinstance(values, list):
            raise CheckpointError(f"generation_config.json: {key} is no list of tokens.")
        # Files of models with a smaller vocabulary have been published with tokens that these lack.
        return [i for i in values if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < self._size]

    def _is_multilingual(self, generation: Mapping[str, Any]) -> bool:
        said = generation.get("is_multilingual")
        if isinstance(said, bool):
            return said
        # Tokenizers of English-only models have the languages' tokens too, and GPT-2's end.
        return "lang_to_id" in generation or (self.end != GPT2_END and bool(self._named()))

    def _named(self) -> dict[str, int]:
        found = {code: self._found(f"<|{code}|>") for code in LANGUAGES}
        return {code: i for code, i in found.items() if i is not None and i < self._size}

    def _languages(self) -> dict[str, int]:
        given = self._values.get("lang_to_id")
        if not isinstance(given, Mapping):
            return self._named()
        codes = {code[1]: i for name, i in given.items() if (code := _LANGUAGE.fullmatch(str(name)))}
        return {code: self._checked(f"lang_to_id's {code}", i) for code, i in codes.items()}

    def _tasks(self) -> dict[str, int]:
        given = self._values.get("task_to_id")
        given = given if isinstance(given, Mapping) else {}
        found = {task: given.get(task, self._found(f"<|{task}|>")) for task in TASKS}
        return {task: self._checked(f"<|{task}|>", i) for task, i in found.items() if i is not None}

    def language(self, given: str | None) -> str | None:
        """The code of the language that a request names; None where the model is to find out.

        Raises InvalidRequestError for one that is not known, or that this model does not have.
        """
        if not given:
            return None if self.languages else "en"
        code = language_code(given)
        if not self.is_multilingual and code != "en":
            raise InvalidRequestError(f"language {given!r:.60}: this model knows English only.")
        if self.languages and code not in self.languages:
            raise InvalidRequestError(f"language {given!r:.60}: this model has no token for it.")
        return code

    def check_task(self, task: str) -> None:
        """Raises InvalidRequestError for a task that this model does not have."""
        if task != "transcribe" and task not in self.tasks:
            raise InvalidRequestError("this model transcribes, and does not translate. Take a multilingual one.")

    def prompt(self, language: str, task: str, timestamps: bool) -> list[int]:
        """How the decoder's prompt begins, after the text of what came before."""
        ids = [self.start]
        if self.languages:
            ids.append(self.languages[language])
        if task in self.tasks:
            ids.append(self.tasks[task])
        return ids if timestamps else [*ids, self.no_timestamps]

    def rule(self, timestamps: bool) -> TranscriptRule:
        """Which tokens may follow."""
        first = self.timestamps if timestamps else None
        return TranscriptRule(
            self._suppress, self._suppress_first, self.end, first, self.no_timestamps, self._max_first
        )

    def text_ids(self, token_ids: list[int]) -> list[int]:
        """Those of tokens that are text."""
        return [i for i in token_ids if i < self.end]
