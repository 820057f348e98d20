"""Weights that are made of several tensors of a checkpoint."""

from collections.abc import Callable

from torch import Tensor

from octavo.errors import CheckpointError, shorten
from octavo.loading.formats.as_stored import stored_rows
from octavo.loading.formats.codes import Codes
from octavo.loading.tensor_source import TensorSource
from octavo.ops.stored_rows import StoredRows
from octavo.parts.weight_slots import Shard


class QuantizedTensor(TensorSource):
    """A weight that is made of several tensors of a checkpoint when it is needed.

    Args:
        name: of it, for messages.
        shape: [outputs, inputs].
        make: reads the tensors. It may raise CheckpointError.
        shard: what is taken of it; None for all.
    """

    def __init__(
        self, name: str, shape: tuple[int, int], make: Callable[[], Codes], shard: Shard | None = None
    ) -> None:
        self.name, self.make, self.shard = name, make, shard
        self.whole = shape
        self.shape = shape if shard is None else shard.shape_of(shape)

    def codes(self) -> Codes:
        """Raises CheckpointError for scales that are not finite."""
        codes = self.make()
        if codes.shape != self.whole:
            raise CheckpointError(
                f"{shorten(self.name)}: its tensors make {list(codes.shape)}, and its config {list(self.whole)}. "
                "Is config.json its own?"
            )
        if not bool(codes.scales.isfinite().all()):
            raise CheckpointError(f"{shorten(self.name)}: a scale is not a finite number. Download the file again.")
        return codes if self.shard is None else codes.part(self.shard)

    def read(self) -> Tensor:
        return self.codes().floats()

    def stored(self) -> StoredRows | None:
        return stored_rows(self.codes())

    def part(self, shard: Shard) -> TensorSource:
        if self.shard is not None:
            return super().part(shard)
        return QuantizedTensor(self.name, self.whole, self.make, shard)
