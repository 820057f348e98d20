"""Write the tables that are made from the code into the documents: `make docs`."""

import re
from pathlib import Path

from octavo.cli.models import markdown

ROOT = Path(__file__).parents[1]
PLACES = (ROOT / "README.md", ROOT / "docs" / "models.md")
MARKED = re.compile(r"(<!-- models: made by `make docs` -->\n).*?(\n<!-- end of models -->)", re.DOTALL)


def with_table(text: str) -> str:
    """A document with its marked place filled."""
    return MARKED.sub(lambda m: m[1] + markdown() + m[2], text)


if __name__ == "__main__":
    for place in PLACES:
        place.write_text(with_table(place.read_text()))
