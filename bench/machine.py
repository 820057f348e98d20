"""What this machine can do at most, for the rooflines: `python bench/machine.py`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("machine.cpp")


def measure() -> dict[str, float]:
    """GFLOP/s by kind of number (int8: GOP/s; a kind that has no instruction is missing), and GB/s read."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "machine"
        command = ["c++", "-std=c++20", "-O3", "-march=native", "-pthread", str(SOURCE), "-o", str(program)]
        subprocess.run(command, check=True)
        found: dict[str, float] = json.loads(subprocess.run([program], check=True, capture_output=True).stdout)
    return found


def table(found: dict[str, float]) -> str:
    """The measurements as a line."""
    arithmetic = ", ".join(f"{found[k]:.0f} GFLOP/s in {k}" for k in ("float32", "bfloat16", "int8") if k in found)
    return (
        f"{found['threads']:.0f} threads: {arithmetic}; reads {found['read 1 GB']:.0f} GB/s of 1 GB, "
        f"{found['read 64 MB']:.0f} GB/s of 64 MB"
    )


if __name__ == "__main__":
    print(table(measure()), file=sys.stdout)
