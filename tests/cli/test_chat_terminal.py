"""`octavo chat` on a terminal, driven as by fingers."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import write_tiny

pexpect = pytest.importorskip("pexpect")
pytest.importorskip("prompt_toolkit")

PASTE = "\x1b[200~{}\x1b[201~"
PROMPT = r">\x1b\["


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("terminal") / "tiny")


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Any]:
    children = []

    def begin(*options: str, **environment: str) -> Any:
        own = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(tmp_path)}
        # By a short name: a long one would break the greeting's line where nobody can know.
        command = ["-m", "octavo", "chat", "--model", f"./{model.name}", "--kv-cache-memory", "16MiB", *options]
        child = pexpect.spawn(
            sys.executable,
            command,
            cwd=model.parent,
            env=os.environ | own | environment,
            encoding="utf-8",
            timeout=90,
            dimensions=(30, 100),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        children.append(child)
        child.expect("/help lists the commands")
        child.expect(PROMPT)
        return child

    yield begin
    for child in children:
        child.close(force=True)


def test_a_conversation(start: Any) -> None:
    """Pasted lines are one message, as is a block; Ctrl-C twice leaves; what was typed is there the next time."""
    child = start("--max-tokens", "6", "--system", "Be brief.")
    child.send(PASTE.format("pasted one\rpasted two\r"))
    child.send("and more\r")
    child.expect(r"6 tokens, \d+ a second; context \d+ of 2,048")
    child.expect(PROMPT)
    child.send('"""block one\rblock two"""\r')
    child.expect("6 tokens, ")
    child.expect(PROMPT)
    child.send("goes \\\ron\r")
    child.expect("6 tokens, ")
    child.expect(PROMPT)
    child.send("/set temperature 9e9x\r")
    child.expect("must be a number")
    child.send("/histo\t\r")
    child.expect("goes \r\non")
    said = plain(child.before)
    assert "system: Be brief.\n" in said
    assert "user: pasted one\npasted two\nand more\n" in said
    assert "user: block one\nblock two\n" in said
    child.expect(PROMPT)
    child.sendcontrol("c")
    child.expect("Ctrl-C again")
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0

    again = start("--max-tokens", "6")
    again.send("\x1b[A")  # the arrow up
    again.expect("/history")
    again.send("\r")
    again.expect("nothing was said yet")
    again.send("\x04")
    again.expect(pexpect.EOF)


def test_an_answer_is_stopped(start: Any, tmp_path: Path) -> None:
    child = start("--no-history", "--no-markdown")
    child.send("/set ignore_eos on\r")
    child.expect(PROMPT)
    child.send("hello\r")
    child.expect("waiting for the model")
    child.sendcontrol("c")
    child.expect(r"\[stopped\]")
    child.expect(PROMPT)
    child.send("/show\r")
    child.expect(r"messages +2")
    child.expect(PROMPT)
    child.send("/quit\r")
    child.expect(pexpect.EOF)
    assert not list(tmp_path.iterdir())


def test_no_colour(start: Any) -> None:
    child = start("--max-tokens", "6", NO_COLOR="1")
    child.send("/nosuch\r")
    child.expect("no command /nosuch")
    child.send("hello\r")
    child.expect("6 tokens, ")
    colours = r"\x1b\[(?:[0-9]+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;[0-9]+)*m"
    assert not re.search(colours, child.before)
    child.send("/quit\r")
    child.expect(pexpect.EOF)


def test_the_editor(start: Any, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "written there" > "$1"\n')
    editor.chmod(0o755)
    child = start("--max-tokens", "4", "--no-history", EDITOR=str(editor), VISUAL="")
    child.send("/edit\r")
    child.expect("> written there")
    child.expect("4 tokens, ")
    child.send("/quit\r")
    child.expect(pexpect.EOF)


def test_bars_move(model: Path, tmp_path: Path) -> None:
    """`embed` shows how far it is from the first texts on."""
    (tmp_path / "in.txt").write_text("".join(f"text {i}\n" for i in range(3000)))
    command = ["-m", "octavo", "embed", "--model", str(model), "--file", str(tmp_path / "in.txt")]
    command += ["--kv-cache-memory", "16MiB", "--max-num-seqs", "2", "--output", str(tmp_path / "out.npy")]
    child = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=90)
    child.expect("3000/3000")
    seen = {int(n) for n in re.findall(r"(\d+)/3000", child.before)}
    child.expect(pexpect.EOF)
    assert len(seen) > 2


def test_the_bar_of_a_measurement_moves(model: Path) -> None:
    command = ["-m", "octavo", "bench", "latency", "--model", str(model), "--kv-cache-memory", "16MiB"]
    command += ["--runs", "1", "--input-len", "4", "--output-len", "1800"]
    child = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=90)
    child.expect("seconds_per_token")
    seen = {int(n) for n in re.findall(r"(\d+)%", child.before)}
    child.expect(pexpect.EOF)
    assert len(seen) > 3
    assert 100 in seen
