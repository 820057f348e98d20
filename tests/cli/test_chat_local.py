"""Conversations with models of this process, as a user has them in a pipe."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from octavo.cli.chat.chat_model import AnswerEnd
from octavo.cli.chat.conversation import Conversation
from octavo.cli.chat.local_chat import LocalChat, new_reader
from octavo.config import EngineArgs
from octavo.errors import InvalidRequestError, OctavoError
from octavo.server.answer_events import CallArguments, CallBegin, CallEnd, Text, Thought
from octavo.server.model_formats import model_formats
from tests.server.conftest import write_tiny


def octavo(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def model(smollm_file: Path) -> Sequence[str]:
    return ("--model", str(smollm_file), "--kv-cache-memory", "256MiB", "--max-model-len", "1024")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny(tmp_path_factory.mktemp("chat") / "tiny")
    recommended = {"temperature": 0.6, "top_k": 7, "top_p": 0.9, "max_new_tokens": 5}
    (folder / "generation_config.json").write_text(json.dumps(recommended))
    return folder


@pytest.fixture(scope="module")
def local(tiny: Path) -> LocalChat:
    return LocalChat(EngineArgs(str(tiny), kv_cache_memory="16MiB", dtype="float32"))


def test_chat_in_a_pipe(model: Sequence[str], tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = ["What is the capital of France?", "/set temprature 1", "/retry", f"/save {saved}", "/quit"]
    options = ("--system", "Be brief.", "--max-tokens", "24", "--dtype", "float32")
    done = octavo("chat", *options, *model, stdin="\n".join(lines) + "\n")
    assert "Did you mean temperature" in done.stderr
    assert done.returncode == 1  # a script is told that a line of it failed
    first, second = done.stdout.splitlines()
    assert first == second
    assert "Paris" in first
    talk = json.loads(saved.read_text())
    assert [m["role"] for m in talk] == ["system", "user", "assistant"]
    quick = octavo("chat", *options, *model, "--quick", "What is the capital of France?")
    assert (quick.returncode, quick.stdout, quick.stderr) == (0, first + "\n", "")


def test_cut_answers_are_marked(model: Sequence[str]) -> None:
    done = octavo("chat", "--max-tokens", "4", *model, stdin="Tell me a long story.\n")
    assert done.returncode == 0
    assert done.stderr == "octavo: [cut after 4 tokens; /set max_tokens allows more.]\n"


def test_interrupt_stops_the_answer_not_the_program(model: Sequence[str]) -> None:
    command = [sys.executable, "-u", "-m", "octavo", "chat", "--max-tokens", "800", *model]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    # As in a terminal: what runs in the background of a script inherits that interrupts are ignored.
    process = subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Tell me a very long story about a dragon.\n")
    process.stdin.flush()
    seen = b""
    while len(seen) < 100:
        seen += os.read(process.stdout.fileno(), 100)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(b"/history\n/quit\n", timeout=60)
    assert process.returncode == 0, err
    assert err == b"octavo: [stopped]\n"
    assert b"user: Tell me" in out


def test_the_models_own_values_are_the_defaults(local: LocalChat) -> None:
    talk = Conversation(local)
    assert local.defaults == {"temperature": 0.6, "top_k": 7, "top_p": 0.9, "max_tokens": 5}
    *_, end = talk.say("hello")
    assert isinstance(end, AnswerEnd)
    assert (end.reason, end.output_tokens) == ("length", 5)
    assert talk.used == end.used == (end.prompt_tokens or 0) + 5
    talk.set_value("max_tokens 9")
    *_, end = talk.retry()
    assert isinstance(end, AnswerEnd)
    assert end.output_tokens == 9
    talk.set_value("max_tokens none")
    talk.set_value("ignore_eos on")
    *_, end = talk.retry()
    assert isinstance(end, AnswerEnd)
    assert end.used == local.context_length


def test_what_is_stopped_leaves_nothing_behind(local: LocalChat) -> None:
    talk = Conversation(local, {"max_tokens": 500, "ignore_eos": True})
    pieces = talk.say("hello")
    assert any(isinstance(next(pieces), Text) for _ in range(50))
    pieces.close()
    assert talk.messages[-1]["role"] == "assistant"
    *_, end = talk.say("again")
    assert isinstance(end, AnswerEnd)


def test_values_are_checked_before_anything_runs(local: LocalChat) -> None:
    talk = Conversation(local)
    with pytest.raises(InvalidRequestError, match="takes no image"):
        talk.attach("image", "/nosuch.png")
    with pytest.raises(OctavoError, match="tokens"):
        list(talk.say("a" * 5000))
    assert talk.messages == []
    assert list(talk.say("short"))


def test_another_model_takes_its_place(tiny: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other")
    talk = Conversation(LocalChat(EngineArgs(str(tiny), kv_cache_memory="16MiB", dtype="float32")), {"max_tokens": 3})
    list(talk.say("one"))
    talk.load_model(str(other))
    assert (talk.model.name, "top_k" in talk.model.defaults) == (str(other), False)
    list(talk.say("two"))
    for bad in ("/nosuch", str(tmp_path)):
        with pytest.raises(OctavoError):
            talk.load_model(bad)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text((tiny / "config.json").read_text())
    with pytest.raises(OctavoError):
        talk.load_model(str(tmp_path / "bad"))
    assert talk.model.name == str(other)
    list(talk.say("three"))
    assert len(talk.messages) == 6


QWEN = '{% if enable_thinking %}<think>{% endif %}</think><tool_call>\n{"name": ...}</tool_call>'


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("<think>\nhm\n</think>\n\nyes", [Thought("hm"), Text("yes")]),
        ("yes", [Text("yes")]),
        (
            '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
            [CallBegin("f"), CallArguments('{"a": 1}'), CallEnd()],
        ),
        ('{"name": "f"}', [Text('{"name": "f"}')]),
    ],
)
def test_thoughts_and_calls_are_told_apart(text: str, events: list[object]) -> None:
    reader = new_reader(model_formats("auto", "auto", (QWEN,)), "user: x", {})
    assert reader.feed(text, finished=True) == events
