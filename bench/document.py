"""What measurements write into documents, each in a place of its own that is marked by two comments."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from octavo.cli.env import processor

ROOT = Path(__file__).parent.parent
PERFORMANCE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"


def fill(document: Path, mark: str, text: str) -> None:
    """Put `text` between `<!-- MARK -->` and `<!-- end of MARK -->`; a new place comes at the end of the document."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    content, made = document.read_text(), f"{begin}\n{text.strip()}\n{end}"
    place = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    filled = place.sub(lambda _: made, content) if place.search(content) else f"{content.rstrip()}\n\n{made}\n"
    document.write_text(filled)


class _Both(io.StringIO):
    """Keeps what is printed, and prints it."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return super().write(text)


@contextlib.contextmanager
def printed(mark: str, is_written: bool) -> Iterator[None]:
    """With `is_written`, what is printed inside comes to docs/performance.md too, with the processor's name."""
    with contextlib.redirect_stdout(_Both()) as kept:
        yield
    if is_written:
        fill(PERFORMANCE, mark, f"On an {processor()}:\n\n{kept.getvalue()}")
