"""Builds the compiled core with the package: one shared library for each instruction set, loaded by octavo/ops/native.

Where there is no compiler the package installs without them, and the PyTorch reference serves.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup

SOURCE = Path("octavo/ops/native/src")
COMMON = ["-std=c++20", "-O3", "-fno-math-errno", "-Wno-psabi", "-pthread"]
INSTRUCTIONS = {"base": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
    VNNI = [*AVX512, "-mavx512vnni"]
    INSTRUCTIONS |= {"avx2": AVX2, "avx512": AVX512, "avx512_vnni": VNNI, "avx512_bf16": [*VNNI, "-mavx512bf16"]}

setup(
    ext_modules=[
        Extension(
            f"octavo.ops.native._core_{name}",
            sorted(str(p) for p in SOURCE.glob("*.cpp")),
            depends=sorted(str(p) for p in SOURCE.glob("*.h")),
            extra_compile_args=COMMON + flags,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
        for name, flags in INSTRUCTIONS.items()
    ]
)
