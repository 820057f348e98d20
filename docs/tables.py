"""Write what is made from the code: the tables of models in the documents, and what the golden cases show of each row.

`make docs` runs it; tests/test_docs.py fails when a file says something else.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs.compatibility_tables import PAGE, filled  # noqa: E402
from octavo.architectures import find_architecture  # noqa: E402
from octavo.architectures.families import INDEX, made_index  # noqa: E402
from octavo.cli.models import inputs_of, markdown  # noqa: E402
from octavo.loading.formats import QUANTIZED  # noqa: E402
from octavo.loading.formats.quantized import QuantizedWeights  # noqa: E402
from octavo.media.processor import Processor  # noqa: E402
from octavo.ops.weight_kinds import BITS_HELD, NOT_OF_GGUF, WeightKind  # noqa: E402
from octavo.parts import PagedKV  # noqa: E402
from tests.golden import CASES, config_of, read_case  # noqa: E402

PLACES = {
    ROOT / "README.md": ("architecture", "models", "inputs", "tasks", "golden cases", "GGUF"),
    ROOT / "docs" / "models.md": (),
}
CONFORMANCE = ROOT / "octavo" / "architectures" / "conformance.json"
MARKED = re.compile(r"(<!-- models: made by `make docs` -->\n).*?(<!-- end of models -->)", re.DOTALL)
PRECISION = ROOT / "docs" / "precision.md"
FORMATS = re.compile(r"(<!-- formats: made by `make docs` -->\n).*?(<!-- end of formats -->)", re.DOTALL)
GGUF_TYPES = re.compile(r"(<!-- GGUF types: made by `make docs` -->\n).*?(<!-- end of GGUF types -->)", re.DOTALL)


def conformance() -> str:
    """For each row how many golden cases there are (the tests hold it to all), if it can share prefixes, its inputs."""
    counts: Counter[str] = Counter()
    caching, processors = {}, dict[str, list[type[Processor] | None]]()
    for path in CASES:
        config = config_of(read_case(path))
        found = find_architecture(config["architectures"])
        counts[found.name] += 1
        processors.setdefault(found.name, []).append(found.processor(found.config(config)))
        with torch.device("meta"):
            caching[found.name] = all(isinstance(s, PagedKV) for s in found.build(found.config(config)).states)
    rows: dict[str, dict[str, object]] = {
        name: {"golden_cases": n, "prefix_caching": caching[name]} for name, n in sorted(counts.items())
    }
    for name, made in processors.items():
        if any(made):
            rows[name]["inputs"] = inputs_of(*made)
    return json.dumps(rows, indent=1) + "\n"


def formats() -> str:
    """The table of formats of quantized checkpoints."""
    lines = ["| `quant_method` | what is read | computed with as |", "| --- | --- | --- |"]
    for method, format in sorted(QUANTIZED.items()):
        if isinstance(format, type) and issubclass(format, QuantizedWeights):
            lines.append(f"| {method} | {format.reads} | {format.held} |")
    return "\n".join(lines) + "\n"


def gguf_types() -> str:
    """The table of GGUF's types that are computed with as stored."""
    lines = ["| type | bits of a weight in the file | in memory |", "| --- | --- | --- |"]
    for kind in sorted(kind for kind in WeightKind if kind < NOT_OF_GGUF):
        of = GGMLQuantizationType(kind)
        values, size = GGML_QUANT_SIZES[of]
        bits = 8 * size / values
        lines.append(f"| {of.name} | {bits:.4g} | {BITS_HELD.get(kind, bits):.4g} |")
    return "\n".join(lines) + "\n"


def with_table(place: Path) -> str:
    """A document with its marked place filled. Raises ValueError if it has none."""
    if place == PAGE:
        return filled(place.read_text())
    if place == PRECISION:
        text = FORMATS.sub(lambda m: f"{m[1]}{formats()}{m[2]}", place.read_text())
        return GGUF_TYPES.sub(lambda m: f"{m[1]}{gguf_types()}{m[2]}", text)
    text, count = MARKED.subn(lambda m: f"{m[1]}{markdown(*PLACES[place])}\n{m[2]}", place.read_text())
    if count != 1:
        raise ValueError(f"{place} has no place for the table of models")
    return text


if __name__ == "__main__":
    INDEX.write_text(made_index())
    CONFORMANCE.write_text(conformance())
    for place in (*PLACES, PRECISION, PAGE):
        place.write_text(with_table(place))
