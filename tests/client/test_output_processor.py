"""Messages to outputs, without an engine: whatever the messages hold and however they come."""

import asyncio
from typing import Any

import pytest

from octavo.client.async_requests import RequestStream
from octavo.client.output_processor import Chunk, OutputProcessor
from octavo.engine.messages import Tokens
from octavo.params import RequestOutputKind, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt
from tests.server.scripted import byte_tokenizer

TOKENIZER = byte_tokenizer("</s>")
END = TOKENIZER.encode("</s>")[0]


class Told:
    """A client that writes down what it is told."""

    def __init__(self) -> None:
        self.ended: list[Any] = []

    def finish(self, request_id: str, index: int) -> None:
        self.ended.append((request_id, index))

    def abort(self, request_id: str) -> None:
        self.ended.append(request_id)


def processor(with_entries: bool = False, **values: Any) -> OutputProcessor:
    params = SamplingParams(**{"max_tokens": None, "output_kind": RequestOutputKind.DELTA, **values})
    return OutputProcessor("r", CheckedPrompt("x", [1]), params, TOKENIZER, with_entries=with_entries)


def tokens(text: str, index: int = 0, end: str | None = None, **values: Any) -> Tokens:
    return Tokens("r", index, TOKENIZER.encode(text), finish_reason=end, **values)


def outputs(made: OutputProcessor, *messages: Tokens) -> list[Any]:
    given = []
    for message in messages:
        made.add(message)
        given.append(made.output())
    return [output for output in given if output is not None]


def test_a_stop_string_across_messages_ends_the_request() -> None:
    made, client = processor(stop=["cd"]), Told()
    first, last = outputs(made, tokens("abc"), tokens("def"))
    assert (first.outputs[0].text, last.outputs[0].text) == ("ab", "")
    assert (last.finished, last.outputs[0].finish_reason, last.outputs[0].stop_reason) == (True, "stop", "cd")
    assert len(last.outputs[0].token_ids) == 1  # what came behind it is left out
    made.settle(client, "r")  # type: ignore[arg-type]
    assert client.ended == ["r"]
    assert outputs(made, tokens("more")) == []


def test_one_of_several_ends_and_the_others_go_on() -> None:
    made, client = processor(n=2, stop=["b"]), Told()
    outputs(made, tokens("ab", 1))
    made.settle(client, "r")  # type: ignore[arg-type]
    made.settle(client, "r")  # type: ignore[arg-type]
    assert client.ended == [("r", 1)]
    (output,) = outputs(made, tokens("late", 1), tokens("ac", 0, "length"))
    assert (output.finished, [c.index for c in output.outputs]) == (True, [0])
    made.settle(client, "r")  # type: ignore[arg-type]
    assert client.ended == [("r", 1)]


@pytest.mark.parametrize("included", [False, True])
def test_the_token_that_ends_an_answer_is_no_text_unless_asked_for(included: bool) -> None:
    made = processor(include_stop_str_in_output=included, skip_special_tokens=False)
    (output,) = outputs(made, Tokens("r", 0, [*TOKENIZER.encode("ab"), END], finish_reason="stop"))
    assert output.outputs[0].text == ("ab</s>" if included else "ab")
    assert len(output.outputs[0].token_ids) == 3


def test_best_of_returns_the_likeliest() -> None:
    made = processor(n=1, best_of=2, output_kind=RequestOutputKind.FINAL_ONLY)
    assert made.params.logprobs == 0
    for index, logprob in enumerate((-3.0, -1.0)):
        (token,) = TOKENIZER.encode("ab"[index])
        given = outputs(made, tokens("ab"[index], index, "length", logprobs=[[(token, logprob, 1)]]))
    (answer,) = given[0].outputs
    assert (answer.index, answer.text, answer.cumulative_logprob) == (0, "b", -1.0)


def test_log_probabilities_come_with_their_text() -> None:
    ids = TOKENIZER.encode("é")
    places = [[(token, -0.5, 1)] for token in ids]
    made = processor(with_entries=True, logprobs=0)
    halves = [Tokens("r", 0, [token], [place]) for token, place in zip(ids, places, strict=True)]
    chunks = [c for output in outputs(made, *halves) for c in output.outputs]
    assert all(isinstance(c, Chunk) for c in chunks)
    assert [len(c.entries) for c in chunks] == [0, 2]
    assert "".join(e.text.text for e in chunks[1].entries) == chunks[1].text == "é"
    plain = processor(logprobs=0)
    entries = [c.logprobs for output in outputs(plain, *halves) for c in output.outputs]
    assert [len(e) for e in entries] == [1, 1]


def test_prompt_logprobs_are_told_once_in_a_stream() -> None:
    about_prompt: Any = [None, [(1, -2.0, 4)]]
    first, second = outputs(processor(prompt_logprobs=0), tokens("a", prompt_logprobs=about_prompt), tokens("b"))
    assert first.prompt_logprobs[1][1].rank == 4
    assert second.prompt_logprobs is None


def test_a_failure_of_the_text_is_its_sequences_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made, client = processor(n=2), Told()

    def fails(token_id: int) -> None:
        raise MemoryError("injected")

    monkeypatch.setattr(made.answers[0].stream, "add", fails)
    (output,) = outputs(made, tokens("a"))
    assert (output.outputs[0].finish_reason, "injected" in str(output.outputs[0].stop_reason)) == ("error", True)
    made.settle(client, "r")  # type: ignore[arg-type]
    assert client.ended == [("r", 0)]
    (output,) = outputs(made, tokens("b", 1, "length"))
    assert (output.finished, output.outputs[0].text) == (True, "b")


def test_a_backlog_is_kept_together() -> None:
    """By sequence, however they take turns; nothing is lost, and the end comes with the last tokens."""

    async def main() -> list[Any]:
        stream = RequestStream()
        for i in range(100):
            stream.put(Tokens("r", i % 2, [i], [[(i, -1.0, 1)]], "length" if i >= 98 else None))
        return await stream.take()

    messages = asyncio.run(main())
    assert [(m.index, m.finish_reason, len(m.logprobs)) for m in messages] == [(0, "length", 50), (1, "length", 50)]
    assert messages[1].token_ids == list(range(1, 100, 2))
