"""Harmony, in which gpt-oss answers: messages in channels, for what it thinks, what it says and what it calls.

`<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json
<|message|>{...}<|call|>`; the answer to its user is in the channel `final`, and ends with `<|return|>`. A message to a
function is a call of it, whatever its channel. (OpenAI's "harmony response format", 2025.)
"""

import re
from collections.abc import Collection

from octavo.server.answer_events import CallArguments, CallBegin, CallEnd, Event, Text, Thought
from octavo.server.markers import Markers, spelled, visible
from octavo.server.text_reader import Reading, TextReader
from octavo.server.tool_parser import joined

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
_RECIPIENT = re.compile(r"to=(\S+)")
_FUNCTIONS = "functions."
HEADER_MOST = 512
"""Characters of what stands before a message."""


class HarmonyParser:
    """Takes an answer piece by piece, and gives what is thought, said and called.

    What stands where a header should, and is none, is text.

    Args:
        prompt: what it ends in, behind its last `<|start|>`, is the beginning of the answer's first message.
        tools: the names that may be called; any if None.
        max_calls: what is called beyond so many is left out.
    """

    def __init__(self, prompt: str, tools: Collection[str] | None = None, max_calls: int | None = None) -> None:
        self.tools, self.max_calls, self.num_calls = tools, max_calls, 0
        self._reader, self._events = TextReader(), list[Event]()
        self._work = self._run()
        begun = prompt[prompt.rindex(START) :] if START in prompt else f"{START}assistant"
        self.feed(begun if END not in begun else f"{START}assistant", finished=False)
        self._events.clear()

    def feed(self, text: str, finished: bool) -> list[Event]:
        """What is certain now."""
        self._reader.add(text, finished)
        next(self._work, None)
        events, self._events = self._events, []
        return joined(events)

    def _run(self) -> Reading[None]:
        while (yield from self._reader.peek()):
            yield from self._message()

    def _message(self) -> Reading[None]:
        """One message, or text that is none."""
        header = list[str]()
        markers = Markers(MESSAGE, END, CALL, RETURN, START)
        if (yield from self._reader.sees(Markers(START), read=True)):
            header.append(START)
        found = yield from self._reader.until(markers, header.append)
        text = spelled("".join(header))
        if found != MESSAGE:
            self._plain(text)
            if found not in (None, START):
                yield from self._reader.sees(markers, read=True)
            return
        yield from self._reader.sees(markers, read=True)
        channel = re.search(re.escape(CHANNEL) + r"\s*(\w+)", text)
        recipient = _RECIPIENT.search(text)
        yield from self._body(channel[1] if channel else "final", recipient[1] if recipient else "")

    def _plain(self, text: str) -> None:
        """What is no message: text, but for the words of headers."""
        text = re.sub(rf"^{re.escape(START)}assistant|{re.escape(START)}|{re.escape(CHANNEL)}\s*\w*", "", text)
        if text := text.replace(CONSTRAIN, ""):
            self._events.append(Text(text))

    def _body(self, channel: str, recipient: str) -> Reading[None]:
        ends = Markers(END, CALL, RETURN, START)
        name = recipient.split(CHANNEL)[0].split(CONSTRAIN)[0]
        is_function = name.startswith(_FUNCTIONS)
        name = name.removeprefix(_FUNCTIONS)
        if name and (is_function or (self.tools is not None and name in self.tools)) and self.tools != ():
            found = yield from self._call(name, ends)
        else:
            kind = Thought if channel == "analysis" else Text

            def tell(text: str) -> None:
                if text := visible(text):
                    self._events.append(kind(text))

            found = yield from self._reader.until(ends, tell)
        if found not in (None, START):
            yield from self._reader.sees(ends, read=True)

    def _call(self, name: str, ends: Markers) -> Reading[str | None]:
        is_told = self.max_calls is None or self.num_calls < self.max_calls
        self.num_calls += is_told
        if is_told:
            self._events.append(CallBegin(name))

        def tell(text: str) -> None:
            if is_told:
                self._events.append(CallArguments(spelled(text)))

        found = yield from self._reader.until(ends, tell)
        if is_told:
            self._events.append(CallEnd())
        return found
