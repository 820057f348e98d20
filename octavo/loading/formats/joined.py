"""A checkpoint and others that it consists of, read as one."""

from collections.abc import Iterator, Mapping, Sequence

from octavo.loading.formats.weight_format import WeightFormat
from octavo.loading.tensor_source import TensorSource
from octavo.parts import Names


class JoinedWeights(WeightFormat):
    """The weights of several checkpoints of floats.

    Args:
        whole: what it has itself counts.
        parts: others, each with how its names begin, and how they do here. What begins otherwise is left out.
    """

    name = "joined"

    def __init__(self, whole: WeightFormat, parts: Sequence[tuple[WeightFormat, Mapping[str, str]]]) -> None:
        self.whole, self.parts = whole, parts

    def tensors(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        own = set()
        for name, source in self.whole.tensors(names):
            own.add(name)
            yield name, source
        for part, beginnings in self.parts:
            for name, source in part.tensors(names):
                begin = next((b for b in beginnings if name.startswith(b)), None)
                here = None if begin is None else beginnings[begin] + name.removeprefix(begin)
                if here is not None and here not in own:
                    yield here, source


class WeightsBeside(WeightFormat):
    """A checkpoint, in whatever format, and plain ones beside it.

    Args:
        whole: the checkpoint.
        parts: others, each with what stands before its names here.
    """

    name = "beside"

    def __init__(self, whole: WeightFormat, parts: Sequence[tuple[WeightFormat, str]]) -> None:
        self.whole, self.parts = whole, parts
        self.as_stored = whole.as_stored  # type: ignore[misc]
        self.name = whole.name  # type: ignore[misc]

    def names(self, published: Names) -> Names:
        return self.whole.names(published)

    def tensors(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        yield from self.whole.tensors(names)
        for part, before in self.parts:
            yield from ((before + name, source) for name, source in part.tensors(names))

    def weights(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        yield from self.whole.weights(names)
        for part, before in self.parts:
            yield from ((before + name, source) for name, source in part.weights(names))

    def drop_pages(self) -> None:
        for each in (self.whole, *(part for part, _ in self.parts)):
            each.drop_pages()
