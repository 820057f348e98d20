"""The compiled CPU core: `src/` has its C++, `library` finds it, `kernels` are its operations over tensors."""

from octavo.ops.native.library import Library, load, runnable

__all__ = ["Library", "load", "runnable"]
