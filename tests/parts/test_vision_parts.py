"""Parts of towers that read pictures, against PyTorch's own modules and published formulas."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from octavo.ops import select_backend
from octavo.parts import (
    PatchEmbedding,
    Resampler,
    bucketed_positions,
    flat_convolution,
    resampler_names,
    resized_positions,
    sin_cos_positions,
    unfold,
)
from octavo.parts.names import Names
from octavo.parts.weight_slots import Role, weight_slots

BACKENDS = pytest.mark.parametrize("preference", ["torch", "auto"])


def fill(part: nn.Module, values: Mapping[str, Tensor], preference: str) -> None:
    """Load a part with values by path, and have it ready to compute."""
    backend = select_backend("cpu", preference)
    for path, slot in weight_slots(part).items():
        value = values[path].clone()
        slot.load(backend.linear(value) if slot.role in (Role.MULTIPLIED, Role.EXACT) else value)
    for module in part.modules():
        if hasattr(module, "prepare"):
            module.prepare(backend)


@BACKENDS
@pytest.mark.parametrize("size", [(28, 42), (31, 45), (14, 14)])
def test_patches_are_a_convolution(preference: str, size: tuple[int, int], generator: torch.Generator) -> None:
    convolution = nn.Conv2d(3, 20, 14, 14)
    part = PatchEmbedding(14, 20)
    fill(part, {name: flat_convolution(w.data) for name, w in convolution.named_parameters()}, preference)
    pictures = [torch.randn(3, *size, generator=generator) for _ in range(3)]
    rows = part.of(pictures, torch.float32)
    for picture, got in zip(pictures, rows, strict=True):
        torch.testing.assert_close(got, convolution(picture).flatten(1).t(), rtol=1e-4, atol=1e-4)
        assert torch.equal(got, part.of([picture], torch.float32)[0])


def test_what_is_no_whole_square_is_left_out() -> None:
    picture = torch.arange(2 * 5 * 7).view(2, 5, 7)
    assert unfold(picture, 2).shape == (6, 8)
    assert unfold(picture, 2)[-1].tolist() == picture[:, 2:4, 4:6].flatten().tolist()


def resampler_tensors(queries: int, size: int, inputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """As published code stores them."""
    shapes = {
        "query": (queries, size),
        "kv_proj.weight": (size, inputs),
        "attn.in_proj_weight": (3 * size, size),
        "attn.in_proj_bias": (3 * size,),
        "attn.out_proj.weight": (size, size),
        "attn.out_proj.bias": (size,),
        **{f"ln_{name}.{leaf}": (size,) for name in ("q", "kv", "post") for leaf in ("weight", "bias")},
        "proj": (size, size),
    }
    return {name: torch.randn(shape, generator=generator) / math.sqrt(size) for name, shape in shapes.items()}


def reference(tensors: Mapping[str, Tensor], x: Tensor, key_positions: Tensor, query_positions: Tensor) -> Tensor:
    """What the published resamplers compute, with PyTorch's attention."""
    size = len(tensors["proj"])
    attention = nn.MultiheadAttention(size, 4)
    attention.load_state_dict({n.removeprefix("attn."): w for n, w in tensors.items() if n.startswith("attn.")})
    norms = {}
    for name in ("q", "kv", "post"):
        norms[name] = nn.LayerNorm(size, eps=1e-6)
        norms[name].load_state_dict({leaf: tensors[f"ln_{name}.{leaf}"] for leaf in ("weight", "bias")})
    x = norms["kv"](x @ tensors["kv_proj.weight"].t())
    query = norms["q"](tensors["query"]) + query_positions
    return norms["post"](attention(query, x + key_positions, x)[0]) @ tensors["proj"]


@BACKENDS
def test_resampler(preference: str, generator: torch.Generator) -> None:
    tensors = resampler_tensors(6, 32, 20, generator)
    names = Names(
        {
            **resampler_names("r", "r"),
            "r.ln_post": "r.norm",
        }
    )
    values = {"r.out.weight": tensors["proj"].t()}
    for name, tensor in tensors.items():
        if (into := names.locate(f"r.{name}")) is not None:
            stack = into.transform(tensor) if into.stacked and into.transform else [tensor]
            values |= {into.path.replace("{e}", str(e)): each for e, each in enumerate(stack)}
    part = Resampler(6, 32, 4, 20)
    fill(part, {path.removeprefix("r."): value for path, value in values.items()}, preference)
    items = [torch.randn(n, 20, generator=generator) for n in (9, 1, 16)]
    keys = [torch.randn(len(x), 32, generator=generator) for x in items]
    positions = torch.randn(6, 32, generator=generator)
    got = part(items, keys, positions)
    for i, item in enumerate(items):
        torch.testing.assert_close(got[i], reference(tensors, item, keys[i], positions), rtol=1e-4, atol=1e-4)
        assert torch.equal(got[i], part([item], [keys[i]], positions)[0])


def test_resampler_refuses_heads_that_cannot_share() -> None:
    for num_heads in (0, 3):
        with pytest.raises(ValueError, match="heads cannot share"):
            Resampler(4, 64, num_heads, 64)


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (7, 3)])
def test_sin_cos_positions_have_columns_first(grid: tuple[int, int]) -> None:
    frequencies = 1 / 10000 ** (np.arange(4) / 4)
    got = sin_cos_positions(16, grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            angles = [n * frequencies for n in (column, row)]
            want = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)])
            np.testing.assert_allclose(got[row * grid[1] + column], want, atol=1e-6)


def test_resized_positions() -> None:
    table = torch.arange(16.0)[:, None].repeat(1, 2)
    assert resized_positions(table, (4, 4)) is table
    for antialias in (False, True):
        larger = resized_positions(table, (8, 4), antialias)
        assert larger.shape == (32, 2)
        assert (larger[::4, 0].diff() > 0).all()
    smooth, sharp = (resized_positions(table, (2, 2), antialias) for antialias in (True, False))
    assert not torch.allclose(smooth, sharp)


@pytest.mark.parametrize("side", [1, 10, 27, 70])
def test_buckets_take_the_place_in_which_a_patch_begins(side: int) -> None:
    table = torch.arange(side * side)[:, None]
    for count in (1, 2, 3, 7, 32, 35, 49, 70, 1024):
        got = bucketed_positions(table, (1, count))[:, 0]
        assert got.shape == (count,)
        exact = torch.tensor([i * side // count for i in range(count)])
        on_border = torch.tensor([i * side % count == 0 for i in range(count)])
        assert torch.equal(got[~on_border], exact[~on_border])
        assert ((exact - got)[on_border] <= 1).all()
        assert torch.equal(bucketed_positions(table, (count, 1))[:, 0], got * side)
