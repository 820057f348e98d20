"""Inputs of a prompt that are not its tokens: what an encoder reads, and later pictures, films and sounds."""

import hashlib
from array import array
from collections.abc import Sequence

import msgspec

ENCODER = "encoder"
"""The tokens that the encoder of an encoder-decoder reads; all layers attend to what it makes of them."""


class Feature(msgspec.Struct, frozen=True):
    """An input that the executor makes rows of, once for all sequences that bring the same.

    Equal digests mean equal rows: the digest names them in caches and in the prefix cache's hashes.
    """

    kind: str
    data: list[int] | bytes
    """Token ids, or the bytes of an array."""
    length: int
    """How many rows are made of it: what it takes of a step's token budget."""
    digest: bytes
    """32 bytes that nobody finds twice."""
    offset: int | None = None
    """The first of the `length` placeholder tokens in the prompt whose embeddings the rows replace; None where layers
    attend to the rows instead (cross-attention)."""
    takes: bytes | None = None
    """A byte for each of these tokens: 1 where it takes the next row, 0 where it keeps its own embedding; None where
    each takes one."""
    visible: tuple[int, int | None] | None = None
    """In cross-attention: the first token of the prompt that sees the rows, and the first behind it that does not, None
    where all that follow do; None where every token does."""

    def under(self, adapter: bytes) -> "Feature":
        """This with the adapter of that digest, which may have other rows made of it."""
        digest = hashlib.blake2b(self.digest + adapter, digest_size=32, person=b"octavo adapter").digest()
        return msgspec.structs.replace(self, digest=digest)


class Positions(msgspec.Struct, frozen=True):
    """Positions of a prompt's tokens where these are not 0, 1, 2, ...: an answer goes on after the largest."""

    axes: int
    data: bytes
    """int64 of shape [axes, tokens]"""

    def extended(self, count: int) -> "Positions":
        """Those of the prompt and of `count` tokens behind it."""
        rows = array("q", self.data)
        tokens, following = len(rows) // self.axes, max(rows) + 1
        more = array("q", range(following, following + count))
        extended = array("q")
        for axis in range(self.axes):
            extended += rows[axis * tokens : (axis + 1) * tokens] + more
        return Positions(self.axes, extended.tobytes())


def encoder_feature(token_ids: Sequence[int]) -> Feature:
    """What an encoder reads, as a feature."""
    digest = hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=32, person=b"octavo encoder")
    return Feature(ENCODER, list(token_ids), len(token_ids), digest.digest())
