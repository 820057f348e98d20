"""An answer follows its schema; what is thought before it does not have to."""

import dataclasses
import json
from typing import Any

import pytest

from octavo.executor.grammar_text import to_llguidance
from octavo.params import StructuredOutputsParams
from octavo.server.answer_events import collect
from octavo.server.answer_reader import AnswerReaders
from octavo.server.harmony import CHANNEL, CONSTRAIN, END, MARKERS, MESSAGE, START
from octavo.server.model_formats import ModelFormats
from octavo.server.protocol import ChatRequest
from octavo.server.reasoning_formats import FORMATS
from octavo.text.tokenizer import Tokenizer
from tests.server.scripted import byte_tokenizer

WANTED: list[tuple[dict[str, Any], str]] = [
    ({"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}, '{"a": 5}'),
    ({"json_object": True}, '{"b": [1]}'),
    ({"regex": "[0-9]{3}"}, "123"),
    ({"choice": ["yes", "no"]}, "yes"),
    ({"grammar": 'start: "a" b\nb: "b"'}, "ab"),
]
HARMONY = ModelFormats(True, None, None)
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}so {{it}}\nis{END}{START}assistant"


def takes(
    tokenizer: Tokenizer, formats: ModelFormats, prompt: str, wanted: dict[str, Any], text: str, **variables: Any
) -> bool:
    """Whether an answer to the prompt may be this text, and end there."""
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}]})
    preamble = AnswerReaders(formats, request).preamble(prompt, variables, tokenizer)
    return follows(tokenizer, StructuredOutputsParams(**wanted, preamble=preamble), text)


def follows(tokenizer: Tokenizer, params: StructuredOutputsParams, text: str) -> bool:
    """Whether the text is an answer that may end."""
    import llguidance

    inner = tokenizer.inner  # type: ignore[attr-defined]
    own = llguidance.LLTokenizer(inner.to_str(), n_vocab=inner.get_vocab_size(), eos_token=inner.token_to_id("</s>"))
    matcher = llguidance.LLMatcher(own, to_llguidance(*params.as_grammar()), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.encode(text)
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize(("wanted", "answer"), WANTED)
@pytest.mark.parametrize("special", [True, False])
def test_only_the_final_message_follows_the_schema(wanted: dict[str, Any], answer: str, special: bool) -> None:
    tokenizer, prompt = byte_tokenizer("</s>", *(MARKERS if special else ())), f"{START}assistant"
    final = f"{CHANNEL}final{MESSAGE}{answer}"
    for text, is_taken in (
        (final, True),
        (ANALYSIS + final, True),
        (f"{ANALYSIS}{ANALYSIS}{CHANNEL}final {CONSTRAIN}json{MESSAGE}{answer}", True),
        (answer, False),
        (ANALYSIS, False),
        (f"{ANALYSIS}{CHANNEL}final{MESSAGE}?{answer}", False),
        (f"{CHANNEL}commentary{MESSAGE}{answer}", False),
    ):
        assert takes(tokenizer, HARMONY, prompt, wanted, text) == is_taken, text
    begun = f"{prompt}{CHANNEL}final{MESSAGE}"
    assert takes(tokenizer, HARMONY, begun, wanted, answer)
    assert not takes(tokenizer, HARMONY, begun, wanted, final)


@pytest.mark.parametrize(("wanted", "answer"), WANTED)
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma4", "deepseek_r1", "seed_oss"])
def test_a_thought_needs_to_follow_nothing(name: str, special: bool, wanted: dict[str, Any], answer: str) -> None:
    format = FORMATS[name]
    opening, closing = format.openings[0], format.closings[0]
    tokenizer, formats = byte_tokenizer("</s>", *(format.markers if special else ())), ModelFormats(False, format, None)
    thought = f"so {{it}}\nis{closing}\n\n"
    inside = f"x{opening}\n"
    assert takes(tokenizer, formats, inside, wanted, thought + answer)
    assert not takes(tokenizer, formats, inside, wanted, answer)
    ended = f"x{opening}{closing}\n"
    assert takes(tokenizer, formats, ended, wanted, answer)
    assert not takes(tokenizer, formats, ended, wanted, thought + answer)
    if format.implied:
        assert takes(tokenizer, formats, "x", wanted, thought + answer)
        assert takes(tokenizer, formats, "x", wanted, answer, enable_thinking=False)
    else:
        assert takes(tokenizer, formats, "x", wanted, answer)
        assert takes(tokenizer, formats, "x", wanted, opening + thought + answer)
    assert not takes(tokenizer, formats, inside, wanted, thought + "?" + answer)


def test_without_a_format_there_is_no_preamble() -> None:
    params = StructuredOutputsParams(json={"a": 1})
    assert params.as_grammar() == ("json_schema", json.dumps({"a": 1}))
    assert takes(byte_tokenizer("</s>"), ModelFormats(False, None, None), "x", {"regex": "a"}, "a")


def test_a_forced_call_is_a_message_to_its_function() -> None:
    tokenizer, prompt = byte_tokenizer("</s>", *MARKERS), f"{START}assistant"
    called = f"{CHANNEL}commentary to=functions.f {CONSTRAIN}json{MESSAGE}"
    tools = [{"function": {"name": name, "parameters": {"type": "object", "properties": {"a": {}}}}} for name in "fg"]
    named = {"type": "function", "function": {"name": "f"}}
    for choice, count in ((named, 2), ("required", 1)):
        body = {"messages": [{"role": "user", "content": "x"}], "tools": tools[:count], "tool_choice": choice}
        readers = AnswerReaders(HARMONY, ChatRequest.model_validate(body))
        forced = readers.forced()
        assert forced is not None
        preamble = readers.preamble(prompt, {}, tokenizer)
        for text, is_taken in (
            (f'{ANALYSIS}{called}{{"a": 5}}', True),
            (f'{called}{{"a": 5}}', True),
            (f'{called}{{"b": 5}}', False),
            (f'{CHANNEL}final{MESSAGE}{{"a": 5}}', False),
            ('{"a": 5}', False),
        ):
            assert follows(tokenizer, dataclasses.replace(forced, preamble=preamble), text) == is_taken, text
        answer = collect(readers.new(prompt, {}).feed(f'{ANALYSIS}{called}{{"a": 5}}', finished=True))
        assert [(one.name, one.arguments) for one in answer.calls] == [("f", '{"a": 5}')]
        assert (answer.thought, answer.content) == ("so {it}\nis", "")
    readers = AnswerReaders(HARMONY, ChatRequest.model_validate({**body, "tools": tools}))
    text = f'{CHANNEL}final{MESSAGE}[{{"name": "g", "parameters": {{}}}}]'
    assert [one.name for one in collect(readers.new(prompt, {}).feed(text, finished=True)).calls] == ["g"]
