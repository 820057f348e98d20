"""Builds the CPU kernels with the package: one shared library for each instruction set, loaded by octavo/ops/native.

Where there is no compiler the package installs without them, and the PyTorch reference serves.
"""

import platform

from setuptools import Extension, setup

COMMON = ["-std=c++17", "-O3", "-fno-math-errno", "-Wno-psabi"]
INSTRUCTIONS = {"base": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    AVX2 = ["-mavx2", "-mfma"]
    AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
    INSTRUCTIONS |= {"avx2": AVX2, "avx512": AVX512}

setup(
    ext_modules=[
        Extension(
            f"octavo.ops.native._kernels_{name}",
            ["octavo/ops/native/kernels.cpp"],
            extra_compile_args=COMMON + flags,
            language="c++",
            optional=True,
        )
        for name, flags in INSTRUCTIONS.items()
    ]
)
