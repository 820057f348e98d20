"""GGUF files as they are written: types of tensors, and data one tensor after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gguf import GGUFWriter

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Types that can be written, as `gguf` rounds to them."""
HEADS = ("token_embd.weight", "output.weight")
"""Tables and heads, which lose more by rounding: 8 bits at least."""
FLOAT32 = ("norm", "_inp", "ssm_", "rope_", "exp_probs")
"""Parts of names of tensors that llama.cpp adds to, multiplies or chooses with, and keeps as floats."""


def type_for(name: str, shape: tuple[int, ...], kind: str, kept: list[str]) -> str | None:
    """The type that a tensor of `shape`, as numpy has it, is written in; None for its own.

    Args:
        kept: gets the names of matrices whose rows are no multiple of the type's blocks.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2 or not name.endswith(".weight") or any(part in name for part in FLOAT32):
        return None
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if shape[-1] % block:
        kept.append(name)
        return None
    return "Q8_0" if name in HEADS and block > 1 else kind


def add_values(writer: "GGUFWriter", values: Mapping[str, Any]) -> None:
    """Metadata by full keys: texts, numbers, truths and lists of these."""
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        writer.add_array(key, value) if isinstance(value, list) else add[type(value)](key, value)


@dataclass(frozen=True)
class Planned:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def type(self) -> Any:
        """The gguf package's number."""
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType[self.kind]

    @property
    def nbytes(self) -> int:
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape, dtype=np.int64)) // int(block) * int(size)

    def data(self, floats: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """The tensor as the file has it."""
        from gguf.quants import quantize

        made: np.ndarray[Any, Any] = np.ascontiguousarray(quantize(floats, self.type))
        return made


class TensorWriter:
    """Writes a header, and then the tensors in the order in which they were planned."""

    def __init__(self, writer: "GGUFWriter", path: Path, tensors: list[Planned]) -> None:
        self._writer, self._path = writer, path
        for each in tensors:
            writer.add_tensor_info(each.name, each.shape, np.dtype(np.float32), each.nbytes, each.type)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        self._missing = sum(each.nbytes + writer.data_alignment for each in tensors)

    def write(self, data: "np.ndarray[Any, Any]") -> None:
        """The next tensor's data."""
        self._writer.write_tensor_data(data)

    def pretend(self) -> None:
        """Have the file as long as it will be, so that its header can be read."""
        self._writer.fout[0].flush()
        with self._path.open("r+b") as file:
            file.truncate(self._path.stat().st_size + self._missing)

    def close(self) -> None:
        """The file ends where its last tensor does."""
        self._writer.fout[0].flush()
        self._writer.fout[0].truncate()
        self._writer.close()
