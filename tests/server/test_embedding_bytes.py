"""Embeddings in the number types that clients ask for are those that PyTorch makes."""

import base64
import json

import numpy as np
import pytest
import torch

from octavo.server.embedding_bytes import as_base64, as_bytes, bytes_body

TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def hard_values() -> np.ndarray:  # type: ignore[type-arg]
    """Numbers of every size, between two neighbours of each type, beyond all, and none."""
    values = [np.random.default_rng(0).normal(0, scale, 2000) for scale in (1e-9, 1e-3, 1.0, 300.0, 1e5)]
    for dtype in TYPES.values():
        if dtype.itemsize == 1:
            codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
            near = np.sort(codes[torch.isfinite(codes)].numpy())
            values += [near, (near[1:] + near[:-1]) / 2]
    special = [0.0, -0.0, np.inf, -np.inf, 448.0, 464.0, 479.9, 480.0, -500.0, 57344.0, 61440.0, 61439.0, 65520.0]
    return np.concatenate([*values, special]).astype(np.float32)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_rounded_as_pytorch_rounds(name: str) -> None:
    values = hard_values()
    want = torch.from_numpy(values).to(TYPES[name])
    found = torch.frombuffer(bytearray(as_bytes(values, name, "native")), dtype=TYPES[name])
    same = (found.view(torch.uint8) == want.view(torch.uint8)).view(len(values), -1).all(1)
    both_nan = torch.isnan(found.float()) & torch.isnan(want.float())
    assert bool((same | both_nan).all()), values[~(same | both_nan).numpy()][:10]


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_bytes_may_be_in_either_order(name: str) -> None:
    values = np.array([1.5, -2.25], np.float32)
    little, big = as_bytes(values, name, "little"), as_bytes(values, name, "big")
    size = len(little) // 2
    assert big == b"".join(little[i : i + size][::-1] for i in (0, size))
    assert base64.b64decode(as_base64(values, name, "big")) == big


def test_a_body_of_bytes_says_where_each_array_is() -> None:
    arrays = [np.ones(3, np.float32), np.zeros((2, 2), np.float32)]
    body, headers = bytes_body(arrays, "float16", "little", {"model": "m"})
    told = json.loads(headers["metadata"])
    assert told["model"] == "m"
    for place, array in zip(told["data"], arrays, strict=True):
        part = np.frombuffer(body[place["start"] : place["end"]], "<f2").reshape(place["shape"])
        assert part.tolist() == array.tolist()
    assert bytes_body(arrays, "float16", "little", None) == (body, {})
