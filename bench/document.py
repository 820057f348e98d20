"""What measurements write into documents, each in a place of its own that is marked by two comments."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PERFORMANCE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"


def fill(document: Path, mark: str, text: str) -> None:
    """Put `text` between `<!-- MARK -->` and `<!-- end of MARK -->`; a new place comes at the end of the document."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    content, made = document.read_text(), f"{begin}\n{text.strip()}\n{end}"
    place = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    filled = place.sub(lambda _: made, content) if place.search(content) else f"{content.rstrip()}\n\n{made}\n"
    document.write_text(filled)
