"""Builds the compiled core with the package: one shared library for each instruction set, loaded by octavo/ops/native.

Where there is no compiler the package installs without them, and the PyTorch reference serves.
"""

import copy
import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path("octavo/ops/native/src")
COMMON = ["-std=c++20", "-O3", "-g0", "-fno-math-errno", "-Wno-psabi", "-pthread"]
INSTRUCTIONS = {"base": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
    VNNI = [*AVX512, "-mavx512vnni"]
    BF16 = [*VNNI, "-mavx512bf16"]
    AMX = [*BF16, "-mamx-tile", "-mamx-int8"]
    INSTRUCTIONS |= {"avx2": AVX2, "avx512": AVX512, "avx512_vnni": VNNI, "avx512_bf16": BF16, "amx": AMX}
elif platform.machine().lower() in ("aarch64", "arm64"):
    INSTRUCTIONS |= {"dotprod": ["-march=armv8.2-a+dotprod"]}


class BuildLibraries(build_ext):
    """Compiles the libraries side by side, and each in a folder of its own: they are made from the same sources."""

    def build_extension(self, ext: Extension) -> None:
        builder = copy.copy(self)
        builder.build_temp = str(Path(self.build_temp, ext.name.rpartition(".")[2]))
        build_ext.build_extension(builder, ext)


if only := os.environ.get("OCTAVO_INSTRUCTIONS"):  # for a quicker build: some of them, by name
    INSTRUCTIONS = {name: INSTRUCTIONS[name] for name in only.split(",")}

setup(
    cmdclass={"build_ext": BuildLibraries},
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
    ],
)
