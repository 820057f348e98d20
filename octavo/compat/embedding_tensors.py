"""`vllm.utils.serial_utils` and `vllm.entrypoints.pooling.utils`: embeddings that came as bytes, as tensors again."""

import base64
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from octavo.errors import InvalidRequestError
from octavo.server.embedding_bytes import as_bytes

EMBED_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""The number types of `embed_dtype`, by their names."""
ENDIANNESS = ("native", "big", "little")


@dataclass
class MetadataItem:
    """Where an embedding lies among the bytes of an answer, and how it is written."""

    index: int
    embed_dtype: str
    endianness: str
    start: int
    end: int
    shape: tuple[int, ...]


def binary2tensor(binary: bytes, shape: tuple[int, ...], embed_dtype: str, endianness: str) -> torch.Tensor:
    """The numbers that the bytes are, of the type that they were asked for.

    Raises InvalidRequestError for a name that is none.
    """
    for name, value, known in (("embed_dtype", embed_dtype, EMBED_DTYPES), ("endianness", endianness, ENDIANNESS)):
        if value not in known:
            raise InvalidRequestError(f"{name}={value!r:.40} is unknown; it is one of {', '.join(known)}.")
    dtype = EMBED_DTYPES[embed_dtype]
    codes = np.frombuffer(binary, np.dtype(f"i{dtype.itemsize}")).reshape(shape)
    is_other = endianness not in ("native", sys.byteorder)
    return torch.from_numpy(codes.byteswap() if is_other else codes.copy()).view(dtype)


def tensor2binary(tensor: torch.Tensor, embed_dtype: str, endianness: str) -> bytes:
    """The bytes of a tensor's numbers, one after the other."""
    return as_bytes(tensor.detach().float().cpu().numpy(), embed_dtype, endianness)


def tensor2base64(tensor: torch.Tensor) -> str:
    """A file of torch.save with the tensor, in base64, as `prompt_embeds` of requests are sent."""
    file = io.BytesIO()
    torch.save(tensor, file)
    return base64.b64encode(file.getvalue()).decode()


def build_metadata_items(
    embed_dtype: str, endianness: str, shape: tuple[int, ...], n_request: int
) -> list[MetadataItem]:
    """Where embeddings of one shape lie in an answer without metadata (`encoding_format="bytes_only"`)."""
    size = math.prod(shape) * EMBED_DTYPES[embed_dtype].itemsize
    return [
        MetadataItem(index, embed_dtype, endianness, index * size, (index + 1) * size, shape)
        for index in range(n_request)
    ]


def decode_pooling_output(items: Sequence[MetadataItem], body: bytes) -> list[torch.Tensor]:
    """The embeddings of an answer's body, in the order of its inputs."""
    return [
        binary2tensor(body[item.start : item.end], tuple(item.shape), item.embed_dtype, item.endianness)
        for item in sorted(items, key=lambda item: item.index)
    ]
