"""Markdown as it comes: what is shown for good, what it looks like, and what it costs."""

import io
import re

import pytest
from rich.console import Console

from octavo.cli.chat.chat_model import AnswerEnd
from octavo.cli.chat.markdown_blocks import CODE_LINES, Block, MarkdownBlocks
from octavo.cli.chat.terminal_view import TerminalView
from octavo.server.answer_events import CallArguments, CallBegin, CallEnd, Text, Thought
from tests.instructions import instructions

TEXT = """\
# Title
First line,
second line.

1. one
2. two
   - inner

   more of two

```python
def f():

    return 1
```
- a
- b

last"""


def cut(text: str, size: int) -> list[Block]:
    blocks, found = MarkdownBlocks(), list[Block]()
    for i in range(0, len(text), size):
        found += blocks.feed(text[i : i + size])
    return found + list(blocks.end())


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_blocks_are_the_same_however_the_text_comes(size: int) -> None:
    assert cut(TEXT, size) == [
        Block("# Title", is_apart=False),
        Block("First line,\nsecond line."),
        Block("1. one"),
        Block("2. two\n   - inner\n\n   more of two", is_apart=False),
        Block("def f():\n\n    return 1", "python"),
        Block("- a"),
        Block("- b", is_apart=False),
        Block("last"),
    ]


def test_long_code_is_shown_while_it_comes() -> None:
    lines = [f"line {i}" for i in range(3 * CODE_LINES)]
    blocks = MarkdownBlocks()
    shown = list(blocks.feed("~~~\n" + "\n".join(lines[:-1]) + "\n"))
    assert [block.is_apart for block in shown] == [False, False]
    shown += blocks.feed(lines[-1] + "\n~~~\nafter")
    assert "\n".join(block.text for block in shown).split("\n") == lines
    assert blocks.rest == "after"


def printed(view: TerminalView, out: io.StringIO, *pieces: object, remark: str = "") -> str:
    out.seek(0)
    out.truncate()
    view.begin()
    for piece in pieces:
        view.show(piece)  # type: ignore[arg-type]
    view.end(remark, "[3 tokens]")
    return out.getvalue()


def on_screen(**options: bool) -> tuple[TerminalView, io.StringIO]:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=60, height=20, highlight=False, emoji=False, markup=False, _environ={}
    )
    return TerminalView(console, **options), out


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_answers_are_drawn() -> None:
    view, out = on_screen()
    text = "Use **this** :smile: [red]:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n<b>tag</b>\x1b[2J"
    shown = printed(view, out, *(Text(c) for c in text), AnswerEnd("stop", 3, 1.0))
    last = plain(shown.rpartition("Use")[0] + shown[shown.index("\x1b[1mthis") :])
    assert "\x1b[1mthis\x1b[0m" in shown
    assert "\x1b[2J" not in shown
    for part in (" :smile: [red]:", " a  b\n", " 1  2\n", "x = 1\n", "<b>tag</b>␛[2J", "[3 tokens]"):
        assert part in last
    assert "```" not in last.rpartition("x = 1")[2]


def test_thoughts_are_dim_or_folded() -> None:
    view, out = on_screen()
    pieces = [Thought("Let me "), Thought("think.\x1b[2J"), Text("So: yes."), AnswerEnd("stop", 3, 1.0)]
    shown = printed(view, out, *pieces)
    assert "\x1b[2mLet me \x1b[0m" in shown
    assert "\x1b[2J" not in shown
    assert "Let me think.␛[2J\n\nSo: yes.\n" in plain(shown)
    view.shows_thoughts = False
    folded = plain(printed(view, out, *pieces))
    assert "Let me" not in folded
    assert "[thought for 3 words]\n\nSo: yes.\n" in folded


def test_calls_and_remarks() -> None:
    view, out = on_screen(markdown=False)
    shown = printed(view, out, Text("# as *it* is"), CallBegin("f"), CallArguments("{}"), CallEnd(), remark="[stopped]")
    assert "# as *it* is\n\n[calls f({})]\n[stopped]\n[3 tokens]\n" in plain(shown)


def test_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    view = TerminalView(Console(file=out, force_terminal=True, width=60, _environ={"NO_COLOR": "1", "TERM": "xterm"}))
    view.fail("no")
    printed(view, out, Text("```python\nx = 'a'\n```\n"))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7][0-9;]*m", out.getvalue())


@pytest.mark.parametrize("unit", ["word " * 8 + "\n\n", "- item of a list\n", "word ", "    x = 1\n", "| a | b |\n"])
def test_cost_is_linear(unit: str) -> None:
    """Four times the text takes about four times the work, also where it is one block without end."""

    def cost(count: int) -> int:
        def run() -> None:
            blocks = MarkdownBlocks()
            for _ in range(count):
                for _ in blocks.feed(unit):
                    pass
            list(blocks.end())

        return instructions(run)

    assert cost(1600) < 6 * cost(400)
