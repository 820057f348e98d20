"""The compiled CPU core: `src/` has its C++, `library` finds it, `native_backend` has its operations over tensors."""

from octavo.ops.native.library import Library, runnable
from octavo.ops.native.native_backend import NativeBackend
from octavo.ops.native.select_library import load

__all__ = ["Library", "NativeBackend", "load", "runnable"]
