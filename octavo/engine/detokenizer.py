"""Text as it comes, a token at a time, and where it stops."""

from collections.abc import Sequence

from octavo.loading.tokenizer import Tokenizer
from octavo.params import SamplingParams

REPLACEMENT = "\ufffd"
CONTEXT = 5
"""Tokens before the answer that its first token is decoded with: some tokenizers write spaces by what comes before."""
LONGEST_CHARACTER = 4
"""Most tokens that one character is split into (its bytes in UTF-8)."""


class IncrementalDetokenizer:
    """Decodes a growing answer. Each token costs the same, and half characters are held until they are whole."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._skip = params.skip_special_tokens
        self._spaces = params.spaces_between_special_tokens
        self._window = list(prompt_ids[-CONTEXT:])
        """The tokens that the next one is decoded with."""
        self._read = len(self._window)
        """How many of them are text already."""
        self._known = self._decode(self._window)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip, self._spaces) if ids else ""

    def add(self, token_id: int) -> str:
        """The text that became certain with `token_id`: often a word, sometimes nothing."""
        self._window.append(token_id)
        text = self._decode(self._window)
        broken = text.endswith(REPLACEMENT) and len(self._window) - self._read < LONGEST_CHARACTER
        if broken or len(text) <= len(self._known):
            if not broken and len(self._window) - self._read >= LONGEST_CHARACTER:
                self._settle()  # tokens without text, such as skipped special ones
            return ""
        new = text[len(self._known) :]
        self._settle()
        return new

    def _settle(self) -> None:
        """All of the window is text now; the next token needs only the last run of it."""
        self._window = self._window[self._read :] if self._read < len(self._window) else self._window
        self._read = len(self._window)
        self._known = self._decode(self._window)


class StopChecker:
    """Looks for stop strings in a growing text."""

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        self.stops = list(stops)
        self.include = include
        self._longest = max((len(s) for s in self.stops), default=0)

    def check(self, text: str, num_new: int) -> tuple[int, str] | None:
        """Where `text` ends and at which stop string, if one has come with its last `num_new` characters."""
        if not self.stops or not num_new:
            return None
        start = max(0, len(text) - num_new - self._longest + 1)
        found = [(at, stop) for stop in self.stops if (at := text.find(stop, start)) >= 0]
        if not found:
            return None
        at, stop = min(found, key=lambda f: f[0] + len(f[1]))
        return (at + len(stop) if self.include else at), stop

    def withheld(self, text: str) -> int:
        """Characters at the end of `text` that may yet turn out to begin a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self.stops if len(stop) > length):
                return length
        return 0


class TextStream:
    """The text of one sequence as its tokens come: held where a stop string may begin, cut where one has come.

    Args:
        tokenizer: the model's.
        prompt_ids: what the answer goes on from.
        params: stop strings, special tokens, min_tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids, params)
        self._stops = StopChecker(params.stop or [], params.include_stop_str_in_output)
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self.text = ""
        self.stop: str | None = None
        """The stop string that has come, if one has."""
        self._sent = 0

    def add(self, token_id: int) -> None:
        """The next token."""
        self._num_tokens += 1
        new = self._detokenizer.add(token_id)
        self.text += new
        if self._num_tokens > self._min_tokens and (found := self._stops.check(self.text, len(new))):
            end, self.stop = found
            self.text = self.text[:end]

    def visible(self, finished: bool) -> str:
        """All of the text that is certain: nothing more changes it once the sequence is finished."""
        return self.text[: len(self.text) - (0 if finished else self._stops.withheld(self.text))]

    def take(self, finished: bool) -> str:
        """The text that became certain since the last call."""
        text = self.visible(finished)
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new
