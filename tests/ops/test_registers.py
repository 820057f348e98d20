"""The inner loops of products keep their sums in registers, whichever compiler built them: counted in machine code."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import octavo.ops.native
from octavo.ops.native.library import INSTRUCTIONS

FOLDER = Path(octavo.ops.native.__file__).parent
BUILT = [path for name in INSTRUCTIONS for path in FOLDER.glob(f"_core_{name}.*")]
MULTIPLIES = re.compile(r"\b(vpmaddubsw|vpdpbusd|vpmaddwd|pmaddwd|vfmadd\w*ps|vdpbf16ps|mulps|[su]dot|smull2?|fmla)\b")
ON_STACK = re.compile(r"\((%rsp|%rbp)|\[sp[,\]]")
ALLOWED = 1.2
"""References to the stack for each multiplication. Vectors that lie in memory need four to nine."""
ALLOWED_IN_BASE = 2.5
"""SSE2 spreads bytes out before it multiplies them."""


def functions(library: Path) -> Iterator[tuple[str, list[str]]]:
    """Each product's name and its instructions."""
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(library)], capture_output=True, text=True, check=True
    )
    for block in listing.stdout.split("\n\n"):
        head, _, code = block.strip().partition("\n")
        if "multiply<" in head:  # AMX leaves its tiles in memory
            yield head, code.splitlines()


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump here (it comes with the compiler)")
@pytest.mark.parametrize("library", BUILT, ids=lambda path: path.name.split(".")[0])
def test_sums_stay_in_registers(library: Path) -> None:
    kernels, of_base = dict(functions(library)), library.name.startswith("_core_base")
    assert len(kernels) >= 9, "a kernel for each format at least"
    found = {}
    for name, code in kernels.items():
        if of_base and "IQ4_NL" in name:
            continue  # no instruction looks bytes up in a table there
        multiplications = sum(bool(MULTIPLIES.search(line)) for line in code)
        assert multiplications > 0, name
        found[name] = sum(bool(ON_STACK.search(line)) for line in code) / multiplications
    allowed = ALLOWED_IN_BASE if of_base else ALLOWED
    assert max(found.values()) < allowed, max(found, key=lambda name: found[name])
