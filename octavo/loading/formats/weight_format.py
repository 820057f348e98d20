"""What a weight format says of itself."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

from octavo.loading.tensor_source import TensorSource
from octavo.parts import Names


class WeightFormat(ABC):
    """How a checkpoint stores its weights: which tensors make one, and what is made of them.

    A format gives each weight as one TensorSource `[outputs, inputs]` under the name that it has in a plain checkpoint,
    `....q_proj.weight`. What merges, splits, stacks or reorders weights then works for every format by rows.
    """

    name: ClassVar[str]
    as_stored: ClassVar[bool] = False
    """Whether weights are computed with in the kinds in which they are stored, where the backend has those."""
    suffixes: ClassVar[tuple[str, ...]] = ("weight",)
    """Ends of the names of tensors that make one weight together. Others, such as biases, are by themselves."""

    @abstractmethod
    def tensors(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        """Every tensor under its published name. Raises CheckpointError for files that are not sound.

        Args:
            names: the model's table, with what `names` adds.
        """

    def names(self, published: Names) -> Names:
        """The model's name table, with what this format spells otherwise."""
        return published

    def drop_pages(self) -> None:  # noqa: B027
        """All weights have been read: what is mapped of files need not stay in memory. It is read again when needed."""

    def weight(self, module: str, tensors: Mapping[str, TensorSource]) -> TensorSource:
        """The weight `[outputs, inputs]` of the published `module`, of its tensors by suffix.

        Raises CheckpointError that names a tensor which is missing or of a wrong shape.
        """
        return tensors["weight"]

    def weights(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        """Every weight, bias and other parameter under its published name. Raises as `tensors` and `weight`."""
        incomplete: dict[str, dict[str, TensorSource]] = {}
        for name, source in self.tensors(names):
            suffix = next((s for s in self.suffixes if name.endswith(f".{s}")), None)
            if suffix is None:
                yield name, source
                continue
            module = name[: -len(suffix) - 1]
            tensors = incomplete.setdefault(module, {})
            tensors[suffix] = source
            if len(tensors) == len(self.suffixes):
                yield f"{module}.weight", self.weight(module, incomplete.pop(module))
        for module, tensors in incomplete.items():
            yield f"{module}.weight", self.weight(module, tensors)
