"""Text as it comes, a token at a time, and where it stops."""

import codecs
from collections import deque
from collections.abc import Mapping, Sequence

from octavo.params import SamplingParams
from octavo.text.stops import StopChecker
from octavo.text.token_text import REPLACEMENT, TokenText, token_texts
from octavo.text.tokenizer import Tokenizer

CONTEXT = 5
"""Tokens before the answer that its first token is decoded with: some tokenizers write spaces by what comes before."""
LONGEST_CHARACTER = 4
"""Most tokens that one character is split into (its bytes in UTF-8)."""


def _utf8() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


class IncrementalDetokenizer:
    """Decodes a growing answer. Each token costs the same, and half characters are held until they are whole.

    Args:
        tokenizer: the model's.
        prompt_ids: what the answer goes on from.
        params: whether special tokens are text.
        shown: special tokens that stand in the text though others are skipped, and what stands for them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._texts = token_texts(tokenizer)
        self._skip = params.skip_special_tokens
        self._spaces = params.spaces_between_special_tokens
        self._shown = (shown or {}) if self._skip else {}
        self._utf8 = _utf8()
        """Of a text that is its tokens' bytes: those that are no whole character yet."""
        self._window = list(prompt_ids[-CONTEXT:])
        """Of any other text: the tokens that the next one is decoded with."""
        self._read = len(self._window)
        """How many of them are text already."""
        self._known = "" if self._texts.is_byte_level else self._decode(self._window)
        self._half: list[TokenText] = []
        """Of a text that is its tokens' bytes: the tokens since the last whole character."""
        self.runs: deque[list[TokenText]] = deque()
        """The tokens whose text is certain, in order, for whoever wants them one by one: a run is whole characters."""

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip, self._spaces) if ids else ""

    def add(self, token_id: int) -> str:
        """The text that became certain with `token_id`: often a word, sometimes nothing."""
        if token_id in self._shown:
            text = self._shown[token_id]
            before = self.flush()
            self.runs.append([TokenText(text, b"")])
            return before + text
        if self._texts.is_byte_level:
            data = b"" if self._skip and self._texts.is_skipped(token_id) else self._texts.own(token_id).data
            text = self._utf8.decode(data)
            self._half.append(TokenText(text, data))
            if not self._utf8.getstate()[0]:
                self.runs.append(self._half)
                self._half = []
            return text
        if self._skip and len(self._window) == self._read and self._texts.is_skipped(token_id):
            self.runs.append([TokenText("", b"")])  # the next token follows the text before it
            return ""
        return self._add_to_window(token_id)

    def _add_to_window(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        broken = text.endswith(REPLACEMENT) and len(self._window) - self._read < LONGEST_CHARACTER
        if broken or len(text) <= len(self._known):
            if not broken and len(self._window) - self._read >= LONGEST_CHARACTER:
                self._settle("")  # tokens without text
            return ""
        new = text[len(self._known) :]
        self._settle(new)
        return new

    def _settle(self, new: str) -> None:
        """All of the window is text now; the next token needs only the last run of it."""
        run = self._window[self._read :]
        self.runs.append(self._share(run, new))
        self._window = run or self._window
        self._read = len(self._window)
        self._known = self._decode(self._window)

    def _share(self, run: Sequence[int], new: str) -> list[TokenText]:
        """Of the text that tokens have made together, what each has: a character is its last token's."""
        if len(run) == 1 and REPLACEMENT not in new:
            return [TokenText(new, new.encode())]
        data = [b"" if self._skip and self._texts.is_skipped(t) else self._texts.own(t).data for t in run]
        decoder = _utf8()
        texts = [decoder.decode(d) for d in data]
        texts[-1] += decoder.decode(b"", True)
        whole = "".join(texts)
        left_out = len(whole) - len(new)  # the space of a text's first word
        if whole.endswith(new) and not whole[: max(0, left_out)].strip(" "):
            for i, text in enumerate(texts):
                cut = min(left_out, len(text))
                texts[i], data[i], left_out = text[cut:], data[i][cut:], left_out - cut
            return [TokenText(t, d) for t, d in zip(texts, data, strict=True)]
        texts = [*("" for _ in run[:-1]), new]
        if REPLACEMENT not in new:
            data = [t.encode() for t in texts]
        return [TokenText(t, d) for t, d in zip(texts, data, strict=True)]

    def flush(self) -> str:
        """The text of what is held, because the answer ends in the midst of a character."""
        if self._texts.is_byte_level:
            text = self._utf8.decode(b"", True)
            if self._half:
                last = self._half[-1]
                self.runs.append([*self._half[:-1], TokenText(last.text + text, last.data)])
                self._half = []
            return text
        if len(self._window) == self._read:
            return ""
        new = self._decode(self._window)[len(self._known) :]
        self._settle(new)
        return new


class TextStream:
    """The text of one sequence as its tokens come: held where a stop string may begin, cut where one has come.

    Args:
        tokenizer: the model's.
        prompt_ids: what the answer goes on from.
        params: stop strings, special tokens, min_tokens.
        shown: special tokens that are text all the same, and how they are written.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids, params, shown)
        self._stops = StopChecker(self._spelled(params, tokenizer, shown), params.include_stop_str_in_output)
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self.text = ""
        self.stop: str | None = None
        """The stop string that has come, if one has."""
        self._sent = 0
        self._taken = 0
        """Where the text of the tokens ends that were taken."""

    def _spelled(self, params: SamplingParams, tokenizer: Tokenizer, shown: Mapping[int, str] | None) -> list[str]:
        """The stop strings, and again as they are where a special token in them is written as `shown` says."""
        stops, self._given = list(params.stop or []), dict[str, str]()
        for token_id, written in (shown or {}).items() if params.skip_special_tokens else ():
            name = tokenizer.token(token_id)
            for stop in [*stops, *self._given] if name else ():
                if (other := stop.replace(str(name), written)) != stop:
                    self._given[other] = self._given.get(stop, stop)
        return [*stops, *self._given]

    def add(self, token_id: int) -> None:
        """The next token."""
        self._num_tokens += 1
        new = self._detokenizer.add(token_id)
        self.text += new
        if self._num_tokens > self._min_tokens and (found := self._stops.check(self.text, len(new))):
            end, stop = found
            self.stop = self._given.get(stop, stop)
            self.text = self.text[:end]

    def end(self) -> None:
        """The token that ended the answer, and is no part of its text."""
        self._flush()
        self._detokenizer.runs.append([TokenText("", b"")])

    def _flush(self) -> None:
        held = self._detokenizer.flush()
        if self.stop is None:
            self.text += held

    def visible(self, finished: bool) -> str:
        """All of the text that is certain: nothing more changes it once the sequence is finished."""
        if finished:
            self._flush()
        return self.text[: len(self.text) - (0 if finished else self._stops.withheld(self.text))]

    def take(self, finished: bool) -> str:
        """The text that became certain since the last call."""
        text = self.visible(finished)
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new

    def drop_tokens(self) -> None:
        """Nobody takes the tokens one by one."""
        self._detokenizer.runs.clear()

    def take_tokens(self, finished: bool) -> list[TokenText]:
        """The tokens whose text became certain since the last call. All of an answer's together are its text.

        Tokens behind the place where a stop string cut the text have none.
        """
        end, runs, taken = len(self.visible(finished)), self._detokenizer.runs, list[TokenText]()
        while runs:
            length = sum(len(part.text) for part in runs[0])
            if not finished and self._taken + length > end:
                break
            taken += _cut(runs.popleft(), end - self._taken)
            self._taken = min(end, self._taken + length)
        return taken


def _cut(run: list[TokenText], length: int) -> list[TokenText]:
    """The tokens of a run as far as its first `length` characters go."""
    if length >= sum(len(part.text) for part in run):
        return run
    num_bytes = len("".join(part.text for part in run)[:length].encode("utf-8", "ignore"))
    out = []
    for part in run:
        text, data = part.text[:length], part.data[:num_bytes]
        out.append(TokenText(text, data))
        length, num_bytes = length - len(text), num_bytes - len(data)
    return out
