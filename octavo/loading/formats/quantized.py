"""Folders whose weights are quantized: what their formats share."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.errors import CheckpointError, UnsupportedModelError, shorten
from octavo.loading.formats.codes import Codes
from octavo.loading.formats.plain import PlainWeights
from octavo.loading.formats.quantized_tensor import QuantizedTensor
from octavo.loading.tensor_source import TensorSource, TransformedTensor
from octavo.parts import Names

Tensors = Mapping[str, TensorSource]
"""A module's tensors by suffix."""


class QuantizedWeights(PlainWeights):
    """A folder in which some modules have tensors of these suffixes in place of a weight of floats.

    A module is quantized where it has the tensors of one, whatever the config lists: exceptions need not be read.

    Args:
        folder: where the files are.
        load_format: which of them to read.
        settings: the quantization's, as config.json has them.
    """

    as_stored = True
    reads: ClassVar[str]
    """What of the format is read, for people."""
    held: ClassVar[str]
    """In which kinds weights are computed with, for people."""
    of_weight: ClassVar[tuple[str, ...]]
    """Suffixes by which a quantized weight is known, `weight` aside: such a module has one of them at least."""
    beside: ClassVar[tuple[str, ...]] = ()
    """More suffixes that belong to such modules, and those that are left out."""
    refused: ClassVar[tuple[str, ...]] = ()
    """Suffixes of tensors that would have to change the inputs of products."""
    inputs_first: ClassVar[bool] = False
    """Whether layers that a plain checkpoint stores as [inputs, outputs] (GPT-2) are stored like all others here."""

    def __init__(self, folder: Path, load_format: str, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, load_format)
        self.settings = settings

    @abstractmethod
    def codes(self, module: str, tensors: Tensors) -> tuple[tuple[int, int], Callable[[], Codes]]:
        """Of a quantized module its weight's shape, and what reads it.

        Raises CheckpointError that names a tensor which is missing or does not fit the others.
        """

    def weights(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        modules: dict[str, dict[str, TensorSource]] = {}
        suffixes = sorted(("weight", *self.of_weight, *self.beside), key=len, reverse=True)
        for name, source in self.tensors(names):
            suffix = next((s for s in suffixes if name.endswith(f".{s}")), None)
            if name.endswith(tuple(f".{s}" for s in self.refused)):
                raise UnsupportedModelError(
                    f"{self.folder}: {shorten(name)} changes the inputs of a product, which is not supported with "
                    f"{self.name}. Take a checkpoint without such tensors."
                )
            if suffix is None:
                yield name, source
            else:
                modules.setdefault(name[: -len(suffix) - 1], {})[suffix] = source
        quantized = 0
        for module, tensors in modules.items():
            name = f"{module}.weight"
            if any(suffix in tensors for suffix in self.of_weight):
                quantized += 1
                shape, make = self.codes(module, tensors)
                yield name, self._as_published(names, name, QuantizedTensor(name, shape, make))
            elif "weight" in tensors:
                yield name, tensors["weight"]
        if not quantized and self.is_expected():
            raise CheckpointError(
                f"{self.folder} says that its weights are quantized ({self.name}), and none of its tensors is "
                f"(*.{self.of_weight[0]}). Is config.json its own?"
            )

    def is_expected(self) -> bool:
        """Whether some weight must be quantized."""
        return True

    def _as_published(self, names: Names, name: str, source: TensorSource) -> TensorSource:
        """A weight in the order of a plain checkpoint's, which the name table turns round."""
        into = names.locate(name) if self.inputs_first else None
        if into is None or into.transform is None:
            return source
        probe = into.transform(torch.empty(2, 3, device="meta")) if not into.stacked else torch.empty(0)
        return TransformedTensor(source, Tensor.t) if probe.shape == (3, 2) else source

    def needed(self, module: str, tensors: Tensors, suffix: str) -> TensorSource:
        """Raises CheckpointError that names a tensor which is not there."""
        if suffix not in tensors:
            raise CheckpointError(f"{self.folder} lacks {shorten(f'{module}.{suffix}')}. Download the whole model.")
        return tensors[suffix]

    def fit(self, module: str, suffix: str, source: TensorSource, *shapes: tuple[int, ...]) -> None:
        """Raises CheckpointError for a tensor of none of these shapes."""
        if source.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise CheckpointError(
                f"{self.folder}: {shorten(f'{module}.{suffix}')} is {list(source.shape)} (expected: {expected}). Is "
                "config.json its own?"
            )

    def integer(self, key: str, default: int | None, choices: tuple[int, ...] | range, settings: Any = None) -> int:
        """A setting. Raises CheckpointError where it is none of `choices`."""
        value = (self.settings if settings is None else settings).get(key, default)
        if type(value) is not int or value not in choices:
            raise CheckpointError(
                f"{self.folder / 'config.json'}: {key} of its quantization is {shorten(value, 60)!r}; "
                f"{self.name} has {', '.join(map(str, choices))}."
            )
        return value


def integers(name: str, source: TensorSource, *dtypes: torch.dtype) -> Tensor:
    """A tensor of codes. Raises CheckpointError where it is of another dtype."""
    tensor = source.read()
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise CheckpointError(
            f"{shorten(name)} is {str(tensor.dtype).removeprefix('torch.')} (expected: {expected}). "
            "Is config.json its own?"
        )
    return tensor
