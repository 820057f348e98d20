"""The operations as Triton kernels, for GPUs; imported where this backend is chosen alone (octavo.ops.select_backend).

A kernel's row has the same bits whatever the rows around it: tiles, and the order of what is summed up, depend on a
weight's or a cache's shape and never on the number of rows. octavo.ops.torch says what each operation means, and
computes what has no kernel here.

To add kernels: a file of functions under `@triton.jit`, with a mixin of the operations that launch them (as
triton_norms.py), which TritonBackend has before the reference among its bases. What they share is in launching.py.
"""

from octavo.ops.triton.triton_backend import TritonBackend

__all__ = ["TritonBackend"]
