"""The inner loops of products keep their sums in registers, whichever compiler built them: counted in machine code."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import octavo.ops.native
from octavo.ops.native.description import X86, Arm

FOLDER = Path(os.environ.get("OCTAVO_CORE") or Path(octavo.ops.native.__file__).parent)
NAMES = dict.fromkeys(of.name.lower() for of in (*X86, *Arm))  # both have a base
BUILT = [path for name in NAMES for path in FOLDER.glob(f"_core_{name}.*")]
CROSS = "aarch64-linux-gnu-objdump"
"""Reads what was compiled for Arm on another machine."""
MULTIPLIES = re.compile(r"\b(vpmaddubsw|vpdpbusd|vpmaddwd|pmaddwd|vfmadd\w*ps|vdpbf16ps|mulps|[su]dot|smull2?|fmla)\b")
ON_STACK = re.compile(r"\((%rsp|%rbp)|\[sp[,\]]")
ALLOWED = 1.2
"""References to the stack for each multiplication. Vectors that lie in memory need four to nine."""
ALLOWED_IN_BASE = 2.5
"""SSE2 spreads bytes out before it multiplies them."""

FORMATS = ("Simple<4", "Simple<5", "Simple<8", "IQ4_NL", "SuperBlock<4", "SuperBlock<5", "Q6_K")
FORMATS += ("Grouped<4", "Grouped<8", "MXFP4", "NVFP4", "Q2_K", "Q3_K", "IQ4_XS", "TQ2_0")
FORMATS += ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ3_S")
TABLES = ("IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "MXFP4", "NVFP4", "NF4")
"""Formats whose codes are places in a table."""
KERNELS = [f"Packed<octavo::{of}" for of in FORMATS]
KERNELS += ["multiply<float, 1, ", "multiply<octavo::f16, 1, ", "multiply<octavo::bf16, 1, "]
"""What must be among them: products of each format, and of adapters with one row."""


def is_arm(library: Path) -> bool:
    """By the machine that an ELF file names; libraries of macOS are of this machine."""
    head = library.read_bytes()[:20]
    return int.from_bytes(head[18:], "little") == 183 if head[:4] == b"\x7fELF" else platform.machine() == "arm64"


def functions(library: Path) -> Iterator[tuple[str, list[str]]]:
    """Each product's name and its instructions."""
    here = platform.machine().lower() in ("aarch64", "arm64")
    tool = "objdump" if is_arm(library) == here else CROSS
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")
    listing = subprocess.run(
        [tool, "-d", "-C", "--no-show-raw-insn", str(library)], capture_output=True, text=True, check=True
    )
    for block in listing.stdout.split("\n\n"):
        head, _, code = block.strip().partition("\n")
        if "multiply<" in head:  # AMX leaves its tiles in memory
            yield head, code.splitlines()


@pytest.mark.parametrize("library", BUILT, ids=lambda path: path.name.split(".")[0])
def test_sums_stay_in_registers(library: Path) -> None:
    if b"__asan_" in library.read_bytes():
        pytest.skip("sanitizers put their own checks between, on the stack; nobody is given such a library")
    kernels = dict(functions(library))
    of_base = library.name.startswith("_core_base") and not is_arm(library)
    for of in KERNELS:
        assert any(of in name for name in kernels), of
    found = {}
    for name, code in kernels.items():
        if of_base and any(of in name for of in TABLES):
            continue  # no instruction looks bytes up in a table there
        multiplications = sum(bool(MULTIPLIES.search(line)) for line in code)
        assert multiplications > 0, name
        found[name] = sum(bool(ON_STACK.search(line)) for line in code) / multiplications
    allowed = ALLOWED_IN_BASE if of_base else ALLOWED
    assert max(found.values()) < allowed, max(found, key=lambda name: found[name])
