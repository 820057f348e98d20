"""Builds the compiled core with the package: one shared library for each instruction set, loaded by octavo/ops/native.

Built are those that OCTAVO_INSTRUCTIONS names (or `all`, or `none`); if it is not set, all for a wheel, otherwise what
this machine runs best. Where there is no compiler the package installs without them, and the PyTorch reference serves.
"""

import ctypes
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

SOURCE = Path("octavo/ops/native/src")
# What is added and multiplied is the same everywhere: a compiler does not choose where to round once instead of twice.
COMMON = ["-std=c++20", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=off", "-w", "-pthread"]
# The best last, each with the flags that it needs; beyond the first in the order of the bits of processor.cpp.
INSTRUCTIONS = {"base": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
    VNNI = [*AVX512, "-mavx512vnni"]
    BF16 = [*VNNI, "-mavx512bf16"]
    INSTRUCTIONS |= {"avx2": AVX2, "avx_vnni": [*AVX2, "-mavxvnni"], "avx512": AVX512, "avx512_vnni": VNNI}
    INSTRUCTIONS |= {"avx512_bf16": BF16, "amx": [*BF16, "-mamx-tile", "-mamx-int8"]}
elif platform.machine().lower() in ("aarch64", "arm64"):
    INSTRUCTIONS |= {"dotprod": ["-march=armv8.2-a+dotprod"]}


def library(name: str, folder: Path, flags: list[str]) -> Extension:
    return Extension(
        f"octavo.ops.native.{name}",
        sorted(str(p) for p in folder.glob("*.cpp")),
        depends=sorted(str(p) for p in folder.glob("*.h")),
        extra_compile_args=COMMON + flags,
        extra_link_args=["-pthread"],
        language="c++",
        optional=True,
    )


PROCESSOR = library("_core_processor", SOURCE / "processor", [])
LIBRARIES = {name: library(f"_core_{name}", SOURCE, flags) for name, flags in INSTRUCTIONS.items()}


class BuildLibraries(build_ext):
    """Compiles the chosen libraries, as many files at a time as there are processors."""

    def build_extensions(self) -> None:
        start = time.monotonic()
        try:
            self.make(PROCESSOR)
            names = self.chosen()
            self.say(f"compiling Octavo's core for {', '.join(names) or 'no instruction set'}")
            self.extensions = [PROCESSOR, *(LIBRARIES[name] for name in names)]
            for of in self.extensions[1:]:
                self.make(of)
        except (CompileError, LinkError) as error:
            self.say(f"Octavo is installed without its compiled core, and PyTorch computes instead: {error}")
        self.say(f"the core took {time.monotonic() - start:.0f} s")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def chosen(self) -> list[str]:
        """The instruction sets to build for."""
        asked = os.environ.get("OCTAVO_INSTRUCTIONS") or ("all" if "bdist_wheel" in self.distribution.commands else "")
        if asked == "all":
            return list(INSTRUCTIONS)
        if asked:
            names = [] if asked == "none" else asked.split(",")
            if unknown := [name for name in names if name not in INSTRUCTIONS]:
                raise SystemExit(f"OCTAVO_INSTRUCTIONS: {', '.join(unknown)} is none of {', '.join(INSTRUCTIONS)}")
            return names
        has = 1 | ctypes.CDLL(os.path.abspath(self.get_ext_fullpath(PROCESSOR.name))).octavo_instructions() << 1
        runs = [name for i, name in enumerate(INSTRUCTIONS) if has >> i & 1]
        return runs[-2:] if runs[-1] == "amx" else runs[-1:]  # AMX is tried beside the one before it

    def make(self, of: Extension) -> None:
        """Compile a library's files side by side, and link them, if any is newer than what is there."""
        result = Path(self.get_ext_fullpath(of.name))
        newest = max(os.path.getmtime(p) for p in (*of.sources, *of.depends, __file__))
        if not self.force and result.exists() and result.stat().st_mtime > newest:
            return
        start, name = time.monotonic(), of.name.rpartition(".")[2]

        def compile_one(source: str) -> str:
            # In a folder of its own: every library is made from the same sources.
            folder = str(Path(self.build_temp, name))
            (compiled,) = self.compiler.compile([source], folder, extra_postargs=of.extra_compile_args)
            return compiled

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
            objects = list(pool.map(compile_one, of.sources))
        result.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(result), extra_postargs=of.extra_link_args, target_lang="c++", build_temp=self.build_temp
        )
        self.say(f"  {name}: {time.monotonic() - start:.0f} s")


setup(cmdclass={"build_ext": BuildLibraries}, ext_modules=[PROCESSOR, *LIBRARIES.values()])
