"""What Triton's interpreter does otherwise here.

Its products are the library's of matrices, which sums a row in another order by where in a tile the row is, and would
show differences that no GPU has: there, each row of a tile goes through the same instructions. And at each call of a
function it prepares the language for that function again, where once a launch serves: half of all time.
"""

from typing import Any

import numpy as np
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

_prepared = set[Any]()
"""Functions that a kernel which runs has called before."""
_launch = interpreter.GridExecutor.__call__


def set_up() -> None:
    """For all kernels of this process."""
    interpreter.InterpreterBuilder.create_dot = _product
    interpreter.InterpretedFunction.__call__ = _call
    interpreter.GridExecutor.__call__ = _launch_anew


def _launch_anew(executor: Any, *arguments: Any, **named: Any) -> None:
    _prepared.clear()
    _launch(executor, *arguments, **named)


def _call(function: Any, *arguments: Any, **named: Any) -> Any:
    """Of a function that a kernel calls."""
    if function.fn not in _prepared:
        interpreter._patch_lang(function.fn)
        _prepared.add(function.fn)
    return function.rewrite()(*arguments, **named)


def _product(builder: Any, x: Any, y: Any, total: Any, precision: Any, imprecise: Any) -> Any:
    """`total + x @ y`, of float16 and float32."""
    widened = (np.ascontiguousarray(v.data.astype(np.float32)) for v in (x, y))
    return TensorHandle(np.einsum("mk,kn->mn", *widened) + total.data, total.dtype.scalar)
