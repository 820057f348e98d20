"""Chat templates: the prompts that transformers makes of them, and an end to whatever a template does."""

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from octavo.errors import CheckpointError, InvalidRequestError
from octavo.files import TEXT_MAX
from octavo.text import template_process
from octavo.text.chat_prompt import render_chat
from octavo.text.template import ConversationTemplate
from octavo.text.template_files import read_templates
from octavo.text.tokenizer import Tokenizer
from tests.text.chat_templates import (
    COMMAND_R,
    DEEPSEEK_R1,
    HERMES,
    LLAMA_31,
    MISTRAL,
    OF_BOTH,
    OF_PARTS,
    OF_TEXT,
    PARTS_FOR_USERS,
    QWEN_3,
    QWEN_25,
    WITH_TOOLS,
)

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "user", "content": "Hello \U0001f642 "},
    {"role": "assistant", "content": " Hi!"},
    {"role": "user", "content": "How\nare you?"},
]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "now", "parameters": {"type": "object", "properties": {"at": {}}}},
}
CALL = {"at": "Köln", "days": 2}


def tokenizer(**templates: str) -> Tokenizer:
    return cast(Tokenizer, SimpleNamespace(chat_templates=templates, special_tokens=TOKENS))


def rendered(template: str, messages: Any, add_generation_prompt: bool = False, **options: Any) -> str:
    return render_chat(tokenizer(), messages, template=template, add_generation_prompt=add_generation_prompt, **options)


def reference(template: str, messages: Any, **options: Any) -> str:
    """transformers' prompt of messages that are in the shape which the template takes."""
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template([messages], chat_template=template, **{**TOKENS, **options})
    return str(texts[0])


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def as_parts(messages: Any) -> Any:
    return [{**m, "content": parts(m["content"])} for m in messages]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", [*OF_TEXT, *OF_BOTH])
def test_texts_as_transformers_renders_them(name: str, prompt: bool) -> None:
    template = {**OF_TEXT, **OF_BOTH}[name]
    want = reference(template, TALK, add_generation_prompt=prompt)
    assert rendered(template, TALK, prompt) == want
    assert "How\nare you?" in want


@pytest.mark.parametrize("name", [n for n in [*OF_TEXT, *OF_BOTH] if n != "gemma"])
def test_system_messages(name: str) -> None:
    template, talk = {**OF_TEXT, **OF_BOTH}[name], [{"role": "system", "content": "Be brief."}, *TALK]
    assert rendered(template, talk) == reference(template, talk)
    given = [{"role": "system", "content": parts("Be", "brief.")}, *TALK]
    assert "brief." in rendered(template, given)


@pytest.mark.parametrize("name", OF_PARTS)
def test_templates_of_parts_get_parts(name: str) -> None:
    """Today's clients send text, and such templates show nothing of it."""
    template = OF_PARTS[name]
    want = reference(template, as_parts(TALK))
    assert rendered(template, TALK) == rendered(template, as_parts(TALK)) == want
    assert "How\nare you?" in want
    two = [{"role": "user", "content": parts("One,", "two.")}]
    assert rendered(template, two) == reference(template, two)


@pytest.mark.parametrize("name", OF_TEXT)
def test_templates_of_texts_get_texts(name: str) -> None:
    joined = [{"role": "user", "content": "One,\ntwo."}]
    assert rendered(OF_TEXT[name], [{"role": "user", "content": parts("One,", "two.")}]) == reference(
        OF_TEXT[name], joined
    )
    assert rendered(OF_TEXT[name], as_parts(TALK)) == reference(OF_TEXT[name], TALK)


@pytest.mark.parametrize("name", OF_BOTH)
def test_templates_of_both_get_what_was_given(name: str) -> None:
    two = [{"role": "user", "content": parts("One,", "two.")}]
    assert rendered(OF_BOTH[name], two) == reference(OF_BOTH[name], two)
    assert "One,two." in rendered(OF_BOTH[name], two)


@pytest.mark.parametrize("template", [*OF_TEXT.values(), *OF_BOTH.values(), *OF_PARTS.values()])
def test_no_parts_are_an_empty_text(template: str) -> None:
    empty, none = ([{"role": "user", "content": content}] for content in ("", []))
    assert rendered(template, none) == rendered(template, empty)


def test_each_role_gets_its_own_shape() -> None:
    system = {"role": "system", "content": parts("S", "T")}
    assert rendered(PARTS_FOR_USERS, [system, *TALK[1:]], True) == "S:S\nT;A: Hi!;U:[How\nare you?];A:"


@pytest.mark.parametrize(
    ("template", "want"),
    [
        ("{{ messages[0].content[0].text }}", "One\ntwo"),
        ("{{ messages[0]['content'][0]['text'] | upper }}", "One\ntwo"),
        ("{% for p in messages[0].content %}{{ p['text'] }};{% endfor %}", "One;two;"),
        ("{% set c = messages[0].content %}{% for p in c %}{{ p.text }};{% endfor %}", "One;two;"),
        ("{% set ns = namespace(c=messages[0].content) %}{{ ns.c | map(attribute='text') | join('+') }}", "One+two"),
        ("{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}", "One\ntwo"),
        ("{{ messages[0].content }}", "One\ntwo"),
        ("{{ messages[0].content ~ '!' }}", "One\ntwo!"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "One\\ntwo"}]'),
    ],
)
def test_parts_that_are_reached_in_other_ways(template: str, want: str) -> None:
    assert rendered(template, [{"role": "user", "content": parts("One", "two")}]).lower() == want.lower()


@pytest.mark.parametrize("part", ["text", {"type": "text", "text": "text"}, {"type": "input_text", "text": "text"}])
def test_kinds_of_parts(part: Any) -> None:
    assert rendered("{{ messages[0].content }}", [{"role": "user", "content": [part]}]) == "text"


@pytest.mark.parametrize("part", [3, None, {"type": "image_url"}, {"type": 3}, {"type": "text", "text": 3}, {}])
def test_parts_that_are_no_text(part: Any) -> None:
    with pytest.raises(InvalidRequestError, match="message 0"):
        rendered("{{ messages[0].content }}", [{"role": "user", "content": [part]}])


def second_turn(content: Any, arguments: Any, call_id: str) -> list[dict[str, Any]]:
    """The conversation after a call, with its result."""
    call = {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}
    made: dict[str, Any] = {"role": "assistant", "content": content, "tool_calls": [call]}
    if content is ...:
        del made["content"]
    result = {"role": "tool", "tool_call_id": call_id, "content": "12 °C"}
    return [{"role": "user", "content": "Weather?"}, made, result]


@pytest.mark.parametrize("content", [None, ..., ""])
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_an_agents_second_turn(name: str, content: Any) -> None:
    """In the shape that Octavo itself returns: content null, arguments as JSON text, long ids."""
    template, own_id = WITH_TOOLS[name], "chatcmpl-tool-" + "0123456789abcdef" * 2
    text = json.dumps(CALL)
    got = rendered(template, second_turn(content, text, own_id), True, tools=[TOOL])
    # DeepSeek's template shows calls only where content is null.
    fitting = {
        "deepseek-r1": second_turn(None, text, own_id),
        "mistral": second_turn("", CALL, own_id[-9:]),
    }.get(name, second_turn("", CALL, own_id))
    assert got == reference(template, fitting, tools=[TOOL], add_generation_prompt=True)
    assert "Köln" in got or "K\\u00f6ln" in got
    assert "None" not in got


@pytest.mark.parametrize("arguments", [CALL, json.dumps(CALL), json.dumps(CALL, ensure_ascii=False)])
def test_arguments_as_objects_or_text(arguments: Any) -> None:
    talk = second_turn("", arguments, "call_1")
    assert rendered(QWEN_25, talk) == reference(QWEN_25, second_turn("", CALL, "call_1"))
    assert '"days": 2}' in rendered(DEEPSEEK_R1, second_turn(None, arguments, "call_1"))


def test_short_ids_stay_and_agree() -> None:
    assert "abc123XYZ" in rendered(MISTRAL, second_turn(None, CALL, "abc123XYZ"))
    text = rendered(MISTRAL, second_turn(None, CALL, "call_1"))
    assert text.count("0000call1") == 2


def test_calls_without_arguments() -> None:
    assert '"arguments": {}' in rendered(QWEN_25, second_turn(None, "", "call_1"))
    assert '"arguments": {}' in rendered(QWEN_25, second_turn(None, None, "call_1"))


@pytest.mark.parametrize("calls", [3, ["x"], [{}], [{"function": {}}], [{"function": {"name": 3}}]])
def test_calls_that_are_none(calls: Any) -> None:
    with pytest.raises(InvalidRequestError, match="message 1"):
        rendered(QWEN_25, [TALK[0], {"role": "assistant", "tool_calls": calls}])


@pytest.mark.parametrize("arguments", ["{", "[" * 100_000, "9" * 10_000])
def test_arguments_that_are_no_json(arguments: str) -> None:
    with pytest.raises(InvalidRequestError, match="message 1"):
        rendered(QWEN_25, second_turn(None, arguments, "call_1"))


def test_no_content_is_invented() -> None:
    shows = "{% for m in messages %}{{ m.role }}:{{ 'content' in m }};{% endfor %}"
    talk = second_turn(..., CALL, "call_1")
    assert rendered(shows, talk) == "user:True;assistant:False;tool:True;"
    assert rendered(shows, second_turn(None, CALL, "call_1")) == "user:True;assistant:True;tool:True;"


@pytest.mark.parametrize("template", [QWEN_25, HERMES, LLAMA_31, "{% for m in messages %}{{ m.content }}{% endfor %}"])
@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"role": "assistant"}])
def test_null_content_is_empty(template: str, message: dict[str, Any]) -> None:
    empty = {"role": "assistant", "content": ""}
    assert rendered(template, [TALK[0], message]) == reference(template, [TALK[0], empty])
    null = {"role": "user", "content": None}
    assert rendered(template, [null]) == reference(template, [{**null, "content": ""}])


def test_no_calls_are_no_calls() -> None:
    """OpenAI's client sends its messages back with `tool_calls: null`."""
    answer = {"role": "assistant", "content": "Hi!", "tool_calls": None, "refusal": None}
    assert rendered(LLAMA_31, [TALK[0], answer]) == reference(LLAMA_31, [TALK[0], {**TALK[1], "content": "Hi!"}])


def test_reasoning_by_all_its_names() -> None:
    for name in ("reasoning_content", "reasoning", "thinking"):
        talk = [TALK[0], {"role": "assistant", "content": "Hi!", name: "They greet."}]
        assert "<think>\nThey greet.\n</think>" in rendered(QWEN_3, talk)


TRIMS = "{% for m in messages %}<{{ m.role }}>\n{{ m.content | trim }}</s>\n{% endfor %}"
KEEPS = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}</s>\n{% endfor %}"
LISTS = "{% for m in messages %}<{{ m.role }}>\n{% for p in m.content %}{{ p.text }}{% endfor %}</s>\n{% endfor %}"


@pytest.mark.parametrize("template", [TRIMS, KEEPS, LLAMA_31, QWEN_25, HERMES, DEEPSEEK_R1, OF_BOTH["gemma-3"]])
@pytest.mark.parametrize(
    "content", ["The answer", "The answer: ", "Yes\n\n", "x", "Hello \U0001f642 ", "s", "</s>", "<"]
)
def test_continued_as_transformers_does(template: str, content: str) -> None:
    talk = [*TALK, {"role": "assistant", "content": content}]
    assert rendered(template, talk, continue_final_message=True) == reference(
        template, talk, continue_final_message=True
    )


@pytest.mark.parametrize(
    ("template", "content", "want"),
    [
        (KEEPS, "", "<user>\na</s>\n<assistant>\n"),
        (TRIMS, "", "<user>\na</s>\n<assistant>\n"),
        (LISTS, "", "<user>\na</s>\n<assistant>\n"),
        (KEEPS, None, "<user>\na</s>\n<assistant>\n"),
        (KEEPS, "a", "<user>\na</s>\n<assistant>\na"),
        (KEEPS, "a ", "<user>\na</s>\n<assistant>\na "),
        (TRIMS, "a ", "<user>\na</s>\n<assistant>\na"),
        (TRIMS, " \n", "<user>\na</s>\n<assistant>\n"),
        (LISTS, parts("a", "b "), "<user>\na</s>\n<assistant>\nab "),
        (KEEPS, parts("a", "b"), "<user>\na</s>\n<assistant>\na\nb"),
        (KEEPS + "{{ messages[0].content }}", "a", "<user>\na</s>\n<assistant>\na"),
    ],
)
def test_continued_where_it_is_hard(template: str, content: Any, want: str) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
    assert rendered(template, talk, continue_final_message=True) == want


def test_a_last_message_that_is_not_shown() -> None:
    with pytest.raises(InvalidRequestError, match="cannot be continued"):
        rendered("{{ messages[0].content }}", TALK, continue_final_message=True)
    with pytest.raises(InvalidRequestError, match="cannot both be set"):
        rendered(KEEPS, TALK, True, continue_final_message=True)


@pytest.mark.parametrize(
    "template",
    [
        "a{% generation %}{{ messages[0].content }}{% endgeneration %}b",
        "{% for m in messages %}{%- generation -%} {{ m.role }} {%- endgeneration -%}{% endfor %}",
        "{{ tools | tojson }}{{ tools | tojson(indent=2) }}{{ tools | tojson(4) if false }}",
        "{{ tools | tojson(separators=(',', ':')) }}{{ tools | tojson(sort_keys=true) }}",
        "{{ 'é<' | tojson }}{{ 'é<' | tojson(ensure_ascii=true) }}{{ 'é' | tojson(true) }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
        "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ bos_token }}{{ pad_token }}|",
        "{% set ns = namespace(a=1, self=2) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(b=2).b }}",
        "{{ strftime_now('%Y') | length }}",
        "  {% if true %}\nx\n  {% endif %}\ny",
        "{{ documents | length if documents else 'none' }}{{ date_string is defined }}{{ eos_token }}",
        "{{ [3, 1] | sort | join(',') }}{{ {'b': 1, 'a': 2} | items | list }}{{ 'a' ~ 1 }}{{ range(3) | list }}",
        "{% macro f(x, y='d') %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}{% call f(1) %}c{% endcall %}",
        "{{ messages[0].items() | list | length }}{{ messages[0].get('x', 'y') }}{{ messages[::-1][0].role }}",
    ],
)
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_everything_in_the_environment(template: str, tools: Any) -> None:
    want = reference(template, TALK, tools=tools, documents=None, add_generation_prompt=False)
    assert rendered(template, TALK, tools=tools) == want


def test_filters_tests_and_globals_are_those_of_transformers() -> None:
    from transformers.utils import chat_template_utils

    from octavo.text.template_environment import environment

    theirs, ours = chat_template_utils._compile_jinja_template("x").environment, environment()
    for kind in ("filters", "tests", "globals"):
        assert set(getattr(theirs, kind)) <= set(getattr(ours, kind))
    assert (ours.trim_blocks, ours.lstrip_blocks, ours.autoescape) == (True, True, False)


def test_variables_and_documents() -> None:
    documents = [{"title": "T", "text": "Body"}]
    assert rendered(COMMAND_R, TALK, documents=documents) == reference(COMMAND_R, TALK, documents=documents)
    assert "text: Body" in rendered(COMMAND_R, TALK, variables={"documents": documents})
    options = {"enable_thinking": False}
    assert rendered(QWEN_3, TALK, True, variables=options) == reference(
        QWEN_3, TALK, add_generation_prompt=True, **options
    )
    assert "Today Date: today" in rendered(LLAMA_31, TALK, variables={"date_string": "today"})
    assert rendered("{{ bos_token }}{{ context }}", TALK, variables={"bos_token": "B", "context": "c"}) == "Bc"


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "self", "loop", "chat_template", "caller"]
)
def test_reserved_names(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"chat_template_kwargs holds '{name}'"):
        rendered("{{ messages[0].content }}", TALK, variables={name: 1})


HOSTILE = [
    "{{ 1 / 0 }}",
    "{{ 1 % 0 }}",
    "{{ 'a' + 1 }}",
    "{{ none.x.y }}",
    "{{ messages.nothing.more }}",
    "{{ [] | first + 'a' }}",
    "{{ nothing() }}",
    "{{ 'a' | nothing }}",
    "{{ x",
    "{% if %}",
    "{% endfor %}",
    "{% include 'a' %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception('no' * 1000000) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{{ range(10 ** 9) | list }}",
    "{{ lipsum(n=10 ** 9) }}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ ['a'] * 10 ** 10 }}",
    "{{ 2 ** (2 ** 40) }}",
    "{{ ('a' * 10 ** 7) | join('b' * 1000) }}",
    "{{ ('a' * 10 ** 6) | replace('a', 'b' * 10 ** 6) }}",
    "{{ 'a' | center(10 ** 11) }}",
    "{{ 'a'.ljust(10 ** 11) }}",
    "{{ 'a'.zfill(10 ** 11) }}",
    "{{ 'a\tb'.expandtabs(10 ** 11) }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ '%99999999999d' | format(1) }}",
    "{{ '{:>99999999999}'.format(1) }}",
    "{{ ('a\n' * 10 ** 6) | indent(10 ** 6) }}",
    "{{ messages | tojson(indent=10 ** 11) }}",
    "{{ [1] | batch(10 ** 11, 'x') | list }}",
    "{{ [1] | slice(10 ** 11) | list }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x] * 2 %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'abcdefgh' * 1000 }}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{{ 'abcdefgh' * 1000 }}{% endfor %}{% endset %}{{ x }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'].mro() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ messages.append(1) }}",
    "{% set ns = namespace(_x=1) %}",
    "{% set ns = namespace() %}{% set ns['__class__'] = 1 %}",
]


@pytest.mark.parametrize("template", HOSTILE, ids=[h[:40] for h in HOSTILE])
def test_whatever_a_template_does_has_an_end(template: str) -> None:
    """The bound is in the process that renders: of its own time and memory, so nothing here waits for a clock."""
    with pytest.raises(InvalidRequestError, match="the chat template") as caught:
        rendered(template, TALK)
    assert len(str(caught.value)) < 800
    assert rendered("{{ messages[0].role }}", TALK) == "user"


@pytest.mark.slow
def test_nothing_that_a_process_has_rendered_leaves_it_without_memory() -> None:
    """Neither many long templates, whose compiled forms would be kept, nor one that meets the limit."""
    text = "x" * (12 << 20)
    for i in range(40):
        assert len(rendered(f"{{# {i} #}}{text}", TALK)) == len(text)
    with pytest.raises(InvalidRequestError, match="exceeded its limits"):
        rendered("{{ 'a' * 10 ** 9 }}", TALK)
    assert len(rendered("{{ messages[0].content }}", [{"role": "user", "content": text}])) == len(text)


def test_a_harmless_template_that_meets_its_limit() -> None:
    """Every message twice, for each message: the template is no attack, but the conversation is."""
    squares = "{% for m in messages %}{% for n in messages %}{{ n.content }}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequestError, match="the chat template"):
        rendered(squares, [{"role": "user", "content": "x" * 100}] * 20_000)


@pytest.mark.parametrize("value", [float("nan"), 10**30, "\ud800", {"a": [1, None, True]}, "\x00\x7f", -0.0])
def test_values_arrive_as_they_are(value: Any) -> None:
    assert rendered("{{ v }}", TALK, variables={"v": value}) == reference("{{ v }}", TALK, v=value)


def test_values_that_are_not_plain() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, object(), 10**10_000):
        with pytest.raises(InvalidRequestError, match="chat template"):
            rendered("{{ v }}", TALK, variables={"v": value})
    message = SimpleNamespace(model_dump=lambda: {"text": "of a model"})
    assert rendered("{{ v.text }}", TALK, variables={"v": message}) == "of a model"


def test_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than processes, some of which are ended: each gets its own answer."""
    monkeypatch.setattr(template_process, "_pool", template_process._Pool())
    got: dict[int, str] = {}

    def one(i: int) -> None:
        try:
            got[i] = rendered("{{ 1 / 0 if i % 5 == 0 else i }}", TALK, variables={"i": i})
        except InvalidRequestError:
            got[i] = "refused"

    threads = [threading.Thread(target=one, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: "refused" if i % 5 == 0 else str(i) for i in range(20)}
    assert len(template_process._pool._idle) <= template_process.PROCESSES
    template_process._pool.close()


def test_a_process_that_has_died_is_replaced() -> None:
    rendered("x", TALK)
    for process in template_process._pool._idle:
        process._process.kill()
        process._process.wait()
    assert rendered("y", TALK) == "y"


class TestFiles:
    """Every spelling of a folder's templates."""

    def test_in_the_config(self, tmp_path: Path) -> None:
        named = [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]
        assert read_templates(tmp_path, {"chat_template": "A"}) == {"default": "A"}
        assert read_templates(tmp_path, {"chat_template": named}) == {"default": "A", "rag": "B"}
        assert read_templates(tmp_path, {"chat_template": {"default": "A", "rag": "B"}}) == {"default": "A", "rag": "B"}
        assert read_templates(tmp_path, {"chat_template": None}) == read_templates(tmp_path, {}) == {}

    @pytest.mark.parametrize("kind", ["FIFO", "MiB", "points out", "cannot be opened"])
    def test_named_files_are_checked_as_those_beside_the_config(self, kind: str, tmp_path: Path) -> None:
        file = tmp_path / "model" / "additional_chat_templates" / "rag.jinja"
        file.parent.mkdir(parents=True)
        if kind == "FIFO":
            os.mkfifo(file)
        elif kind == "MiB":
            with open(file, "wb") as made:
                made.truncate(TEXT_MAX + 1)
        else:
            (tmp_path / "secret").write_text("A")
            file.symlink_to(tmp_path / ("secret" if kind == "points out" else "gone"))
        with pytest.raises(CheckpointError, match=kind):
            read_templates(tmp_path / "model", {"chat_template": "A"})

    def test_in_files(self, tmp_path: Path) -> None:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("T")
        assert read_templates(tmp_path, {"chat_template": "A"}) == {"default": "A", "tool_use": "T"}
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "P"}))
        assert read_templates(tmp_path, {"chat_template": "A"})["default"] == "A"
        assert read_templates(tmp_path, {}) == {"default": "P", "tool_use": "T"}
        (tmp_path / "chat_template.jinja").write_text("Ä", encoding="utf-8")
        named = [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]
        assert read_templates(tmp_path, {"chat_template": named}) == {"default": "Ä", "tool_use": "T"}

    @pytest.mark.parametrize("value", [3, ["A"], [{"name": "a"}], [{"name": 3, "template": "A"}], {"default": 3}])
    def test_of_a_wrong_type(self, value: Any, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="chat_template must be"):
            read_templates(tmp_path, {"chat_template": value})

    def test_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\xff")
        with pytest.raises(CheckpointError, match="not readable"):
            read_templates(tmp_path, {})

    def test_by_name(self) -> None:
        model = tokenizer(default="A", tool_use="T{{ tools | length }}")
        assert render_chat(model, TALK) == "A"
        assert render_chat(model, TALK, tools=[TOOL]) == "T1"
        assert render_chat(model, TALK, tools=[TOOL], template="default") == "A"
        with pytest.raises(InvalidRequestError, match=r"no default. Set chat_template to one of rag"):
            render_chat(tokenizer(rag="R"), TALK)
        with pytest.raises(InvalidRequestError, match="no chat template"):
            render_chat(tokenizer(), TALK)


HARMONY = (
    "{% for m in messages %}{% if m.tool_calls %}"
    "{% if m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}"
    "[{{ m.content or m.thinking }}]({{ m.tool_calls[0].function.name }})"
    "{% else %}{{ m.role }}:{{ m.content }}{% endif %}{% endfor %}"
)


def test_thoughts_and_content_are_joined_where_a_template_takes_one_of_them() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "I look.", "reasoning": "so", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "5"},
    ]
    assert ConversationTemplate(HARMONY, ()).prompt(messages, False) == "user:Hi[so\n\nI look.](f)tool:5"
    both = "{% for m in messages %}{{ m.reasoning }}{{ m.thinking }}{{ m.content }}{% endfor %}"
    assert ConversationTemplate(both, ()).prompt(messages[1:2], False) == "sosoI look."
