"""A conversation on a terminal: Markdown as it comes, thoughts dimmed, what waits shown to wait."""

import contextlib
from collections.abc import Iterator
from typing import Any

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text as Styled

from octavo.cli.chat.chat_model import Piece
from octavo.cli.chat.chat_view import harmless
from octavo.cli.chat.markdown_blocks import Block, MarkdownBlocks
from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, CallEnd, Text, Thought

DIM = Style(dim=True)
FRAMES_PER_SECOND = 10
LONGEST_REST = 2000
"""Characters of an unfinished block that are shown as Markdown: it is drawn anew for every frame."""
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
"""Tags are text: a terminal has no use for them, and who asks about HTML wants to see them."""


class _Heading(Heading):
    """A heading at the left, like all else."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class AnswerMarkdown(Markdown):
    """Markdown of an answer: lines stay lines, as models mean them, and what a link leads to is to be seen."""

    elements = {**Markdown.elements, "heading_open": _Heading}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def highlighted(code: str, language: str) -> Styled:
    """Lines of code, in colours."""
    lexer = (language.split() or ["text"])[0]
    text = Syntax("", lexer, theme="ansi_dark", background_color="default").highlight(code.expandtabs(4))
    text.rstrip()
    return text


class Drawn:
    """A block as it is printed: its own lines, without those that only set it apart."""

    def __init__(self, block: Block, most: int | None = None) -> None:
        self._block, self._most = block, most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        language, text = self._block.language, self._block.text
        if language is None:
            shape: Any = AnswerMarkdown(text)
        else:
            shape = highlighted(text, language)
        lines = [_without_end(line) for line in console.render_lines(shape, options, pad=False)]
        while lines and language is None and not lines[0]:
            del lines[0]
        while lines and not lines[-1]:
            del lines[-1]
        for line in lines if self._most is None else lines[-self._most :]:
            yield from line
            yield Segment.line()


def _without_end(line: list[Segment]) -> list[Segment]:
    """A line without the white space that it ends in, which nobody wants to copy."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []


class _Rest:
    """What is not complete yet, at most as many lines of it as the screen has."""

    def __init__(self, blocks: MarkdownBlocks) -> None:
        self._blocks = blocks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rest, most = self._blocks.rest.strip("\n"), max(1, console.height - 3)
        if not rest:
            yield Spinner("dots", style=DIM)
        elif len(rest) <= LONGEST_REST:
            yield Drawn(Block(rest, self._blocks.language), most)
        else:
            yield Drawn(Block(rest[-LONGEST_REST:], ""), most)


class TerminalView:
    """Shows a conversation with rich.

    Args:
        console: where.
        markdown: whether answers are shown as Markdown; as they are if not.
        shows_thoughts: what a model thinks, or only that it does.
    """

    def __init__(self, console: Console, markdown: bool = True, shows_thoughts: bool = True) -> None:
        self._console, self._markdown, self.shows_thoughts = console, markdown, shows_thoughts
        self.has_failed = False
        self._live: Live | None = None
        self._blocks = MarkdownBlocks()
        self._shown = ""
        """The kind of what was shown last: thought, text, call."""
        self._thoughts = 0
        self._at_line_begin = True

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        with Live(self._spinner(what), console=self._console, transient=True, refresh_per_second=FRAMES_PER_SECOND):
            yield

    def begin(self) -> None:
        self._blocks, self._shown, self._thoughts, self._at_line_begin = MarkdownBlocks(), "", 0, True
        self._animate(self._spinner("waiting for the model"))

    def show(self, piece: Piece) -> None:
        match piece:
            case Thought(text):
                self._think(harmless(text))
            case Text(text) | CallBroken(_, text):
                self._write(harmless(text))
            case CallBegin(name, _):
                self._turn_to("call")
                self._raw(f"[calls {harmless(name)}(")
            case CallArguments(text):
                self._raw(harmless(text))
            case CallEnd():
                self._raw(")]\n")

    def end(self, remark: str = "", numbers: str = "") -> None:
        self._turn_to("")
        self._still()
        if remark:
            self._console.print(Styled(remark, style="yellow"))
        if numbers:
            self._console.print(Styled(numbers, style=DIM))
        self._console.print()

    def tell(self, text: str) -> None:
        self._console.print(Styled(harmless(text)), soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(Styled(harmless(text), style=DIM))

    def fail(self, text: str) -> None:
        self.has_failed = True
        self._console.print(Styled(f"octavo: {harmless(text)}", style="red"))

    def _spinner(self, text: str) -> Spinner:
        return Spinner("dots", Styled(text, style=DIM), style=DIM)

    def _animate(self, what: Any) -> None:
        """Draw this again and again below what is printed."""
        if self._live is None:
            self._live = Live(what, console=self._console, transient=True, refresh_per_second=FRAMES_PER_SECOND)
            self._live.start()
        else:
            self._live.update(what)

    def _still(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _turn_to(self, kind: str) -> None:
        """End what was shown before, where it is of another kind."""
        if self._shown == kind:
            return
        if self._shown == "text":
            for block in self._blocks.end():
                self._print(block)
        elif self._shown == "thought" and not self.shows_thoughts:
            self._still()
            self._console.print(Styled(f"[thought for {self._thoughts:,} words]", style=DIM))
        if kind:
            self._still()
        if not self._at_line_begin:
            self._raw("\n")
        if self._shown and kind:
            self._console.print()
        self._shown = kind
        if kind == "text":
            self._blocks = MarkdownBlocks()
            if self._markdown:
                self._animate(_Rest(self._blocks))

    def _think(self, text: str) -> None:
        self._thoughts += len(text.split())
        if self.shows_thoughts:
            self._turn_to("thought")
            self._raw(text)
        else:
            self._shown = "thought" if not self._shown else self._shown
            self._animate(self._spinner(f"thinking ({self._thoughts:,} words)"))

    def _write(self, text: str) -> None:
        if not text:
            return
        self._turn_to("text")
        if not self._markdown:
            self._raw(text, style="")
            return
        for block in self._blocks.feed(text):
            self._print(block)

    def _print(self, block: Block) -> None:
        """Print a block for good, above what is drawn again and again."""
        if block.is_apart:
            self._console.print()
        if block.language is None:
            self._console.print(Drawn(block), end="")
        else:  # long lines of code are left to the terminal, which does not cut them when they are copied
            self._console.print(highlighted(block.text, block.language), soft_wrap=True)

    def _raw(self, text: str, style: Any = DIM) -> None:
        if text:
            self._console.print(Styled(text, style=style), end="", soft_wrap=True)
            self._at_line_begin = text.endswith("\n")
