"""What this machine can do at most, for the rooflines: `python bench/machine.py`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("machine.cpp")


FLAGS = {"avx2": ["-mavx2", "-mfma"]}


def measure(threads: int | None = None, instructions: str | None = None) -> dict[str, float]:
    """GFLOP/s by kind of number (int8: GOP/s; a kind that has no instruction is missing), and GB/s read.

    Args:
        threads: how many work at a time; all if None.
        instructions: one of FLAGS, to be kept to; all that this processor has if None.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "machine"
        command = ["c++", "-std=c++20", "-O3", "-pthread", str(SOURCE), "-o", str(program)]
        subprocess.run([*command, *(FLAGS[instructions] if instructions else ["-march=native"])], check=True)
        counted = [str(program)] if threads is None else [str(program), str(threads)]
        found: dict[str, float] = json.loads(subprocess.run(counted, check=True, capture_output=True).stdout)
    return found


def table(found: dict[str, float]) -> str:
    """The measurements as a line."""
    units = {"float32": "GFLOP", "bfloat16": "GFLOP", "int8": "GOP"}
    arithmetic = ", ".join(f"{found[k]:.0f} {unit}/s in {k}" for k, unit in units.items() if k in found)
    return (
        f"This machine's {found['threads']:.0f} threads: {arithmetic}; reads {found['read 1 GB']:.0f} GB/s of 1 GB, "
        f"{found['read 64 MB']:.0f} GB/s of 64 MB"
    )


if __name__ == "__main__":
    print(table(measure()), file=sys.stdout)
