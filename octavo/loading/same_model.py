"""Whether two configs describe the same model: what their parts are, and the numbers that these have."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

OF_TORCH = frozenset(vars(nn.Module()))
NOT_COMPARED = frozenset(("names", "predictor", "_batch_size"))
"""Where tensors lie (those of a layer that guesses tokens are in no GGUF file), and a number of a run."""
TOLERANCE = 2e-6
"""Between numbers of a config and the float32 of a file, or a table that was computed of them."""


def difference(first: nn.Module, second: nn.Module) -> str | None:
    """Where two models that were built on the meta device are not the same; None where they are."""
    return _of_modules(first, second, "")


def _of_modules(first: nn.Module, second: nn.Module, path: str) -> str | None:
    where = path or "the model"
    if type(first) is not type(second):
        return f"{where} ({type(first).__name__}, {type(second).__name__})"
    shapes, others = ({name: tuple(p.shape) for name, p in m.named_parameters(recurse=False)} for m in (first, second))
    if shapes != others:
        return f"{where} ({shapes}, {others})"
    inside, inside_other = dict(first.named_children()), dict(second.named_children())
    if inside.keys() != inside_other.keys():
        return f"{where} ({', '.join(sorted(inside.keys() ^ inside_other.keys()))})"
    own, other = ({k: v for k, v in vars(m).items() if k not in OF_TORCH | NOT_COMPARED} for m in (first, second))
    if (found := _of_values(own, other, path)) is not None:
        return found
    pairs = ((f"{path}.{name}".lstrip("."), child, inside_other[name]) for name, child in inside.items())
    return next((found for name, a, b in pairs if (found := _of_modules(a, b, name))), None)


def _of_values(first: Any, second: Any, path: str) -> str | None:
    """The same of what parts hold: numbers, settings, tables, functions and other parts."""
    if isinstance(first, nn.Module) and isinstance(second, nn.Module):
        return _of_modules(first, second, path)
    if _is_number(first) and _is_number(second):
        same = math.isclose(first, second, rel_tol=TOLERANCE)
        return None if same else f"{path} ({first}, {second})"
    if type(first) is not type(second):
        return f"{path} ({first!s:.80}, {second!s:.80})"
    if isinstance(first, Tensor):
        same = first.shape == second.shape and (first.is_meta or first.allclose(second, rtol=TOLERANCE, atol=1e-12))
        return None if same else path
    if isinstance(first, Mapping):
        if first.keys() != second.keys():
            return f"{path} ({', '.join(sorted(map(str, first.keys() ^ second.keys())))})"
        parts = [(f"{path}.{key}".lstrip("."), value, second[key]) for key, value in first.items()]
    elif isinstance(first, list | tuple):
        if len(first) != len(second):
            return f"{path} ({len(first)}, {len(second)})"
        parts = [(f"{path}.{i}", a, b) for i, (a, b) in enumerate(zip(first, second, strict=True))]
    elif is_dataclass(first) and not isinstance(first, type):
        parts = [(f"{path}.{f.name}", getattr(first, f.name), getattr(second, f.name)) for f in fields(first)]
    elif callable(first):
        return _of_functions(first, second, path)
    else:
        return None if first == second else f"{path} ({first!s:.80}, {second!s:.80})"
    return next((found for name, a, b in parts if (found := _of_values(a, b, name))), None)


def _of_functions(first: Any, second: Any, path: str) -> str | None:
    """Functions are the same that are made by the same code, of the same values."""
    if isinstance(first, partial):
        return _of_values((first.func, first.args, first.keywords), (second.func, second.args, second.keywords), path)
    code, other = (getattr(f, "__code__", f) for f in (first, second))
    if code is not other and code != other:
        return path
    cells: list[Sequence[Any]] = [
        [cell.cell_contents for cell in getattr(f, "__closure__", None) or ()] for f in (first, second)
    ]
    return _of_values(list(cells[0]), list(cells[1]), path)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
