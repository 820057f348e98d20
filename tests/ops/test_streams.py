"""Several residual streams: against plain weights in float64, and a row alone against the same row among others."""

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, StreamSpec


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_weights_are_made_of_products(backend: Backend, count: int) -> None:
    products, eps = random(11, count * (2 + count)) * 3, 1e-4
    spec = StreamSpec(count, random(3), random(count * (2 + count)), eps, 7)
    read, weights = backend.stream_weights(products, spec)
    scaled = products.double() * spec.scale.double().repeat_interleave(torch.tensor([count, count, count * count]))
    given, taken, mix = (scaled + spec.bias.double()).split([count, count, count * count], dim=1)
    mix = torch.softmax(mix.view(-1, count, count), -1) + eps
    mix = mix / (mix.sum(1, keepdim=True) + eps)
    for _ in range(6):
        mix = mix / (mix.sum(2, keepdim=True) + eps)
        mix = mix / (mix.sum(1, keepdim=True) + eps)
    torch.testing.assert_close(read.double(), torch.sigmoid(given) + eps, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights[:, :, 0].double(), 2 * torch.sigmoid(taken), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights[:, :, 1:].double(), mix.transpose(1, 2), atol=2e-6, rtol=2e-6)
    own_read, own_weights = backend.stream_weights(products[4:5], spec)
    assert torch.equal(own_read, read[4:5])
    assert torch.equal(own_weights, weights[4:5])
    alone = StreamSpec(count, spec.scale[:1], spec.bias[:count], eps)
    only, nothing = backend.stream_weights(products[:, :count].contiguous(), alone)
    assert torch.equal(only, read)
    assert not nothing.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_are_mixed(backend: Backend, dtype: torch.dtype) -> None:
    count, size = 4, 37
    x, y, weights = random(9, count * size).to(dtype), random(9, size).to(dtype), random(9, count, 1 + count)
    got = backend.mix_streams(x, y, weights)
    terms = torch.cat([y.double().unsqueeze(1), x.double().view(9, count, size)], dim=1)
    want = (weights.double() @ terms).flatten(1)
    torch.testing.assert_close(
        got.double(), want.to(dtype).double(), atol=1e-5, rtol=0.01 if dtype != torch.float32 else 1e-5
    )
    assert torch.equal(backend.mix_streams(x[2:3], y[2:3], weights[2:3]), got[2:3])
