"""Builds the compiled core with the package: one shared library for each instruction set, loaded by octavo/ops/native.

Built are those that OCTAVO_INSTRUCTIONS names (or `all`, or `none`); if it is not set, all for a wheel, otherwise what
this machine runs best. Where there is no compiler the package installs without them, and the PyTorch reference serves.
"""

import ctypes
import importlib
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

SOURCE = Path("octavo/ops/native/src")
# What is added and multiplied is the same everywhere: a compiler does not choose where to round once instead of twice.
COMMON = ["-std=c++20", "-g0", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden", "-w", "-pthread"]
if not any(flag.startswith("-O") for flag in os.environ.get("CXXFLAGS", "").split()):
    COMMON.append("-O3")


def without_torch(name: str) -> ModuleType:
    """A module that needs no PyTorch, which is not here: without what its packages import."""
    packages = ["octavo", "octavo.ops", "octavo.ops.native"]
    for package in packages:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [package.replace(".", "/")]
    try:
        return importlib.import_module(name)
    finally:
        for package in packages:
            del sys.modules[package]


BINDING = without_torch("octavo.ops.native.binding")
DESCRIPTION = BINDING.description
X86, ARM, MACHINE = DESCRIPTION.X86, DESCRIPTION.Arm, platform.machine().lower()
if MACHINE in ("x86_64", "amd64"):
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
    VNNI = [*AVX512, "-mavx512vnni"]
    BF16 = [*VNNI, "-mavx512bf16"]
    FLAGS = {X86.BASE: [], X86.AVX2: AVX2, X86.AVX_VNNI: [*AVX2, "-mavxvnni"], X86.AVX512: AVX512}
    FLAGS |= {X86.AVX512_VNNI: VNNI, X86.AVX512_BF16: BF16, X86.AMX: [*BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16"]}
elif MACHINE in ("aarch64", "arm64"):
    AS_WRITTEN = ["-fno-schedule-insns"]  # GCC would begin more products than registers hold, and keep them in memory
    FLAGS = {ARM.BASE: AS_WRITTEN, ARM.DOTPROD: [*AS_WRITTEN, "-march=armv8.2-a+dotprod"]}
else:
    FLAGS = {X86.BASE: []}
INSTRUCTIONS = {of.name.lower(): of for of in FLAGS}


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
LIBRARIES = {name: library(f"_core_{name}", SOURCE, FLAGS[of]) for name, of in INSTRUCTIONS.items()}


class BuildLibraries(build_ext):
    """Compiles the chosen libraries, as many files at a time as there are processors."""

    def build_extensions(self) -> None:
        start = time.monotonic()
        try:
            self.write_header()
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
        has = ctypes.CDLL(os.path.abspath(self.get_ext_fullpath(PROCESSOR.name))).octavo_instructions()
        runs = [name for name, of in INSTRUCTIONS.items() if has >> of & 1]
        return runs[-1:]

    def write_header(self) -> None:
        """The description of the operations for C++, written anew only where it says something else."""
        folder, text = Path(self.build_temp, "generated"), BINDING.header()
        self.header = folder / "description.h"
        if not self.header.exists() or self.header.read_text() != text:
            folder.mkdir(parents=True, exist_ok=True)
            self.header.write_text(text)

    def make(self, of: Extension) -> None:
        """Compile a library's files side by side, and link them, if any is newer than what is there."""
        result = Path(self.get_ext_fullpath(of.name))
        newest = max(os.path.getmtime(p) for p in (*of.sources, *of.depends, self.header, __file__))
        if not self.force and result.exists() and result.stat().st_mtime > newest:
            return
        start, name = time.monotonic(), of.name.rpartition(".")[2]

        def compile_one(source: str) -> str:
            # In a folder of its own: every library is made from the same sources.
            folder = str(Path(self.build_temp, name))
            flags, include = of.extra_compile_args, [str(self.header.parent)]
            (compiled,) = self.compiler.compile([source], folder, include_dirs=include, extra_postargs=flags)
            return compiled

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
            objects = list(pool.map(compile_one, of.sources))
        result.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(result), extra_postargs=of.extra_link_args, target_lang="c++", build_temp=self.build_temp
        )
        self.say(f"  {name}: {time.monotonic() - start:.0f} s")


setup(cmdclass={"build_ext": BuildLibraries}, ext_modules=[PROCESSOR, *LIBRARIES.values()])
