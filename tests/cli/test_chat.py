"""Conversations: what is said and kept, and each command, without a terminal."""

import json
import signal
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.chat.chat_commands import COMMANDS, NAMES
from octavo.cli.chat.chat_view import harmless
from octavo.cli.chat.completing import candidates
from octavo.cli.chat.conversation import FILE_BYTES
from octavo.cli.chat.input_history import LONGEST, MOST, InputHistory
from octavo.cli.chat.message_input import goes_on, message_of
from octavo.cli.chat.sampling_values import NOT_HERE, VALUES, bounds, with_value
from octavo.errors import InvalidRequestError, RequestFailedError
from octavo.params import SamplingParams
from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, CallEnd, Text, Thought
from tests.cli.talking import ScriptedModel, Talk


def test_a_pipe_gets_the_answers_alone() -> None:
    talk = Talk(ScriptedModel(lambda m: [None, Thought("hm"), Text("It is "), Text("so.\n\n"), None]))
    assert talk.type("one\n\ntwo\n") == ("It is so.\n\nIt is so.\n\n", "")
    assert [m["content"] for m in talk.conversation.messages] == ["one", "It is so.\n\n", "two", "It is so.\n\n"]
    assert Talk().type("one\n/reset\n/set top_k 3\n") == ("answer 1\n", "")


def test_calls_are_not_shown_as_they_are_written() -> None:
    call = [Text("Let me see. "), CallBegin("look"), CallArguments('{"a":'), CallArguments(" 1}"), CallEnd()]
    talk = Talk(ScriptedModel(lambda m: call))
    assert talk.type("one\n") == ("Let me see. \n", 'octavo: the model calls look({"a": 1})\n')
    assert talk.conversation.messages[-1]["content"] == 'Let me see. look({"a": 1})'
    broken = [CallBegin("look"), CallArguments("{"), CallBroken("<tool_call>{ no", " no")]
    assert Talk(ScriptedModel(lambda m: broken)).type("one\n") == ("<tool_call>{ no\n", "")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("plain  \n", "plain"),
        ("goes \\\non\n", "goes \non"),
        ('"""a\n\nb\\\nc"""\n', "a\n\nb\\\nc"),
        ('"""\na\n"""\n', "a"),
        ('"""one line"""\n', "one line"),
        ('"""never closed\n', '"""never closed'.removeprefix('"""')),
        (" /etc is a folder\n", "/etc is a folder"),
    ],
)
def test_lines_that_are_one_message(lines: str, message: str) -> None:
    talk = Talk()
    talk.type(lines)
    assert talk.model.asked[0][0] == [{"role": "user", "content": message}]


def test_a_block_is_an_argument() -> None:
    talk = Talk()
    talk.type('/system """Be\nbrief."""\nhi\n')
    assert talk.model.asked[0][0][0] == {"role": "system", "content": "Be\nbrief."}
    assert goes_on('/system """a')
    assert not goes_on('/system """a"""')
    assert message_of('what is """ for') == 'what is """ for'


def test_what_fails_is_said_and_not_kept() -> None:
    talk = Talk(ScriptedModel(lambda m: [InvalidRequestError("too long")]))
    assert talk.type("one\n") == ("", "octavo: too long\n")
    assert talk.conversation.messages == []
    assert talk.turns.view.has_failed
    half = Talk(ScriptedModel(lambda m: [Text("half"), RequestFailedError("broken")]))
    assert half.type("one\n") == ("half\n", "octavo: broken\n")
    assert [m["content"] for m in half.conversation.messages] == ["one", "half"]


def test_what_is_attached_outlives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    failing: list[Any] = [InvalidRequestError("no")]
    talk = Talk(ScriptedModel(lambda m: failing or [Text("yes")]))
    talk.type(f"/read {tmp_path / 'a.txt'}\none\n")
    failing.clear()
    talk.type("two\n")
    assert talk.model.asked[-1][0][0]["content"] == "a.txt:\n```\ntext\n```\n\ntwo"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As on a terminal: what runs in the background of a script inherits that interrupts are ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("is_polled", "expected"), [(True, "firstsecond\n"), (False, "first\n")])
def test_an_interrupt_stops_the_answer_and_two_leave(is_polled: bool, expected: str) -> None:
    def script(messages: Sequence[Any]) -> Any:
        yield Text("first")
        signal.raise_signal(signal.SIGINT)
        yield Text("second")
        yield Text("third")

    talk = Talk(ScriptedModel(script))
    talk.model.is_polled = is_polled
    before = signal.getsignal(signal.SIGINT)
    assert talk.type("one\n") == (expected, "octavo: [stopped]\n")
    assert talk.conversation.messages[-1] == {"role": "assistant", "content": expected.strip()}
    assert signal.getsignal(signal.SIGINT) is before

    def twice(messages: Sequence[Any]) -> Any:
        yield Text("first")
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield Text("second")

    leaving = Talk(ScriptedModel(twice))
    leaving.model.is_polled = is_polled
    out, _ = leaving.type("one\ntwo\n")
    assert out.startswith("first\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_two_interrupts_at_the_prompt_leave() -> None:
    from octavo.cli.chat.session import converse

    class Pressing:
        """Ctrl-C, a message, then Ctrl-C twice."""

        def __init__(self) -> None:
            self.answers: list[Any] = [KeyboardInterrupt(), "hi", KeyboardInterrupt(), KeyboardInterrupt(), "never"]

        def read(self) -> str | None:
            answer = self.answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return str(answer)

    talk, reader = Talk(), Pressing()
    converse(talk.turns, reader)
    assert reader.answers == ["never"]
    assert len(talk.model.asked) == 1


def test_commands() -> None:
    talk = Talk(system="Be kind.")
    out, err = talk.type("one\n/retry\n/history\n/nonsense\n/regen\n/think off\ntwo\n/bye\nthree\n")
    assert out.startswith("answer 2\nanswer 2\nsystem: Be kind.\nuser: one\nassistant: answer 2\n")
    assert "no command /nonsense" in err
    assert "Did you mean regenerate" in err
    assert [asked[2] for asked in talk.model.asked] == [None, None, False]
    assert "three" not in str(talk.model.asked)
    out, _ = talk.type("/show\n/help\n")
    assert "context       41 tokens of 100" in out
    assert "temperature=0.6, top_k=7" in out
    for command in COMMANDS:
        assert f"/{command.name}" in out
    assert len(NAMES) == sum(1 + len(command.aliases) for command in COMMANDS)
    assert "no message to answer again" in Talk().type("/retry\n")[1]


def test_system_and_reset() -> None:
    talk = Talk()
    out, _ = talk.type("one\n/system Be brief.\n/system\ntwo\n/system off\nthree\n/reset\n/history\n")
    assert out.splitlines()[1] == "Be brief."
    sizes = [len(messages) for messages, _, _ in talk.model.asked]
    assert sizes == [1, 2, 1]
    assert out.endswith("(nothing was said yet)\n")


def test_every_sampling_value_can_be_set() -> None:
    given = {
        "presence_penalty": "1.5", "frequency_penalty": "-1", "repetition_penalty": "1.1", "temperature": "0.7",
        "top_p": "0.9", "top_k": "5", "min_p": "0.1", "seed": "3", "stop": "###", "stop_token_ids": "[1, 2]",
        "include_stop_str_in_output": "on", "bad_words": '["a", "b"]', "ignore_eos": "yes", "max_tokens": "9",
        "min_tokens": "2", "skip_special_tokens": "off", "spaces_between_special_tokens": "false",
        "truncate_prompt_tokens": "50", "logit_bias": '{"5": -1}', "allowed_token_ids": "7",
    }  # fmt: skip
    assert given.keys() <= VALUES.keys()
    for name in VALUES:
        assert bounds(name)
    for name, value in given.items():
        values = with_value({}, f"{name} {value}", {})
        assert values.keys() == {name}
        SamplingParams(**{"max_tokens": None, **values})
        assert with_value(values, f"{name} default", {}) == {}
    assert not set(NOT_HERE) & VALUES.keys()
    assert with_value({}, "stop 5", {}) == {"stop": ["5"]}
    assert with_value({}, "allowed-token-ids 7", {}) == {"allowed_token_ids": [7]}
    assert with_value({}, "seed none", {}) == {"seed": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature 1", "Did you mean temperature?"),
        ("temperature", "a number, at least 0"),
        ("temperature -1", "at least 0"),
        ("temperature hot", "must be a number"),
        ("top_p 1.5", "above 0 and at most 1"),
        ("top_k 1.5", "whole number"),
        ("ignore_eos maybe", "on or off"),
        ("logit_bias 5", "is JSON"),
        ("n 2", "no sampling value"),
        ("temperature NaN", "out of range"),
    ],
)
def test_bounds_are_those_of_sampling_params(text: str, message: str) -> None:
    talk = Talk()
    assert message in talk.type(f"/set {text}\n")[1]
    assert talk.conversation.values == {}


def test_set_values_go_before_the_models_own() -> None:
    talk = Talk(values={"top_p": 0.5})
    out, _ = talk.type("/set temperature 0.1\none\n/set top_p default\ntwo\n/set\n")
    assert [values for _, values, _ in talk.model.asked] == [{"top_p": 0.5, "temperature": 0.1}, {"temperature": 0.1}]
    listed = {line[2:34].strip(): line for line in out.splitlines()[2:]}
    assert listed.keys() == VALUES.keys()
    assert listed["temperature"].startswith("* ")
    assert "at least 0" in listed["temperature"]
    assert listed["top_k"][34:].startswith("7 ")
    assert listed["top_p"][34:].startswith("1.0 ")
    assert listed["ignore_eos"][34:].startswith("off ")
    assert "whole numbers" in listed["stop_token_ids"]
    with pytest.raises(InvalidRequestError, match="top_p=2"):
        Talk(values={"top_p": 2})


def test_files_go_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "code.md").write_text("````\nfenced\n````\n")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\x00\xff\xfe")
    (tmp_path / "large.txt").write_text("a" * (FILE_BYTES + 1))
    talk = Talk()
    _, err = talk.type(
        f"/read {tmp_path}/code.md\n/read {tmp_path}/photo.png\n/read {tmp_path}/large.txt\n/read /nosuch\n/read\n"
        f"/image {tmp_path}/photo.png\n/audio {tmp_path}/photo.png\nwhat are these?\nand now?\n"
    )
    for said in ("is no UTF-8 text", "is larger than the 1,048,576 bytes", "/nosuch", "name a file", "takes no audio"):
        assert said in err
    assert talk.model.media == {"image": [str(tmp_path / "photo.png")]}
    parts = talk.model.asked[0][0][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image", "text"]
    assert parts[0]["text"] == "code.md:\n`````\n````\nfenced\n````\n`````"
    assert talk.model.asked[1][0][2] == {"role": "user", "content": "and now?"}


def test_conversations_are_saved_and_models_changed(tmp_path: Path) -> None:
    talk, saved = Talk(system="Be brief."), tmp_path / "talk.json"
    _, err = talk.type(f"one\n/save {saved}\n/save /nosuch/x\n/load other\ntwo\n/load missing\nthree\n")
    assert [m["role"] for m in json.loads(saved.read_text())] == ["system", "user", "assistant"]
    assert "/nosuch/x cannot be written" in err
    assert "missing was not found" in err
    assert (talk.model.name, [len(asked[0]) for asked in talk.model.asked]) == ("other", [2, 4, 6])
    again = Talk()
    again.type(f"/load {saved}\nfour\n")
    assert len(again.model.asked[0][0]) == 4
    for bad in ('{"a": 1}', "[1]", "[", '[{"role": "user"}]'):
        saved.write_text(bad)
        assert "is not a saved conversation" in again.type(f"/load {saved}\n")[1]


def test_adapters() -> None:
    talk = Talk()
    out, err = talk.type("/lora\n/lora poems\n/lora\n/lora poem\n")
    assert out == "  poems: /adapters/poems\n* poems: /adapters/poems\n"
    assert "Did you mean poems?" in err
    talk.type("/lora off\n")
    assert talk.model.adapter is None


def test_the_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s, edited" "$(cat "$1")" > "$1"\n')
    editor.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(editor))
    talk = Talk()
    talk.type("one\n/edit\n/edit two\n")
    assert [m["content"] for m in talk.conversation.messages[::2]] == ["one", "one, edited", "two, edited"]
    monkeypatch.setenv("EDITOR", "/nosuch/editor")
    assert "cannot be started" in talk.type("/edit x\n")[1]
    monkeypatch.setenv("EDITOR", "false")
    assert "ended with 1; nothing was sent" in talk.type("/edit x\n")[1]


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("apple.txt", "ant.txt", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "abode").mkdir()
    talk = Talk().conversation

    def completed(line: str) -> list[str]:
        return [line[: len(line) - c.replaces] + c.text for c in candidates(line, talk)]

    assert completed("/re") == ["/reset", "/read", "/retry"]
    assert completed("/set te") == ["/set temperature"]
    assert completed("/read a") == ["/read abode/", "/read ant.txt", "/read apple.txt"]
    assert completed("/image ./.h") == ["/image ./.hidden"]
    assert completed("/read abode/") == completed("/read /nosuch/") == completed("hello /re") == completed("") == []
    assert completed("/think s") == ["/think show"]
    assert completed("/lora ") == ["/lora off", "/lora poems"]
    assert [c.about for c in candidates("/set top_p", talk)] == ["a number, above 0 and at most 1"]


def test_history_is_bounded_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "octavo" / "chat_history"
    history = InputHistory(path)
    for text in ("one", "two\nlines", "two\nlines", " ", "x" * (LONGEST + 1)):
        history.add(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert InputHistory(path).entries == ["one", "two\nlines"]
    with open(path, "ab") as file:
        file.write(b"\xff{not json\n" + b'"later"\n' * 3)
    assert InputHistory(path).entries[:2] == ["one", "two\nlines"]
    for i in range(2 * MOST + 2):
        history.add(str(i))
    again = InputHistory(path)
    assert (len(again.entries), again.entries[-1]) == (MOST, str(2 * MOST + 1))
    assert len(path.read_bytes().splitlines()) == MOST
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    nowhere = InputHistory(None)
    nowhere.add("kept")
    assert nowhere.entries == ["kept"]
    unwritable = InputHistory(Path("/proc/nosuch/history"))
    unwritable.add("kept")
    assert unwritable.entries == ["kept"]


def test_terminals_obey_nothing_that_a_model_writes() -> None:
    assert harmless("a\x1b[2J\x07b\r\n\tc\x9b31m") == "a␛[2J␇b\n\tc\ufffd31m"
