"""Whatever a picture's size: tilings keep their bounds, and every processor's tokens are as many as its rows."""

import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octavo.media.anyres import best_resolution, unpadded_grid
from octavo.media.limits import DEFAULT_LIMITS
from octavo.media.pixels import BICUBIC, interpolate_bicubic, resize_floats, scaled, target_size
from octavo.media.processor import Processor
from octavo.media.processors.idefics3 import longest_edge_size, whole_tiles_size
from octavo.media.processors.internvl import nearest_shape, tile_shapes
from octavo.media.processors.minicpmv import slice_grid, whole_size
from octavo.media.processors.mllama import best_canvas, canvases, fit_to_canvas
from octavo.media.processors.molmo import select_tiling
from octavo.media.processors.phi3v import fit_to_crops
from octavo.media.processors.qwen2_vl import smart_size
from tests.media.cases import CASES, load, media, read_case

EDGES = st.integers(1, 4000)
SIZES = st.tuples(EDGES, EDGES).filter(lambda s: max(s) <= DEFAULT_LIMITS.max_aspect_ratio * min(s))
SMALL = st.tuples(st.integers(1, 260), st.integers(1, 260)).filter(lambda s: max(s) <= 200 * min(s))
PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@given(SIZES)
def test_anyres(size: tuple[int, int]) -> None:
    best = best_resolution(size, PINPOINTS)
    assert best in PINPOINTS
    inner = scaled(size, best)
    assert 1 <= inner[0] <= best[0]
    assert 1 <= inner[1] <= best[1]
    assert inner[0] == best[0] or inner[1] == best[1]
    grid = best[0] // 14, best[1] // 14
    rows, columns = unpadded_grid(size, grid)
    assert rows <= grid[0]
    assert columns <= grid[1]
    assert rows == grid[0] or columns == grid[1]
    assert (grid[0] - rows) % 2 == (grid[1] - columns) % 2 == 0
    assert abs(rows / grid[0] - inner[0] / best[0]) <= 2 / grid[0]
    assert abs(columns / grid[1] - inner[1] / best[1]) <= 2 / grid[1]


@given(SIZES, st.integers(1, 5), st.integers(5, 12))
def test_nearest_shape(size: tuple[int, int], least: int, most: int) -> None:
    picture = Image.new("1", (size[1], size[0]))
    shapes = tile_shapes(least, most)
    shape = nearest_shape(picture, shapes, 448)
    assert least <= shape[0] * shape[1] <= most
    off = abs(shape[0] / shape[1] - size[1] / size[0])
    assert all(off <= abs(i / j - size[1] / size[0]) for i, j in shapes)


@given(SIZES, st.integers(1, 20))
def test_slices(size: tuple[int, int], most: int) -> None:
    grid = slice_grid(size, most, 448)
    area = size[0] * size[1] / 448**2
    assert (grid is None) == (min(math.ceil(area), most) <= 1)
    if grid is not None:
        assert grid[0] * grid[1] <= most
    for enlarge in (True, False):
        height, width = whole_size(size, 448, 14, enlarge)
        assert height % 14 == width % 14 == 0
        assert height * width <= max(448 * 448, area * 448**2) * 14 or min(height, width) == 14


@given(SIZES, st.integers(1, 1000))
def test_smart_size(size: tuple[int, int], least: int) -> None:
    most = 16 * least
    height, width = smart_size(size, 28, least * 784, most * 784)
    assert height % 28 == width % 28 == 0
    assert height * width <= most * 784 or min(height, width) == 28
    assert height * width >= least * 784 / 4


@given(SIZES, st.integers(1, 8))
def test_canvases(size: tuple[int, int], tiles: int) -> None:
    canvas = best_canvas(size, tiles, 560)
    assert canvas in canvases(tiles)
    inner = fit_to_canvas(size, (canvas[0] * 560, canvas[1] * 560), 560)
    assert 1 <= inner[0] <= canvas[0] * 560
    assert 1 <= inner[1] <= canvas[1] * 560
    assert len(set(canvases(tiles))) == len(canvases(tiles))


@given(SIZES)
def test_idefics3(size: tuple[int, int]) -> None:
    height, width = longest_edge_size(size, 1456)
    assert max(height, width) == 1456
    assert min(height, width) >= 1
    rows, columns = whole_tiles_size((height, width), 364)
    assert rows % 364 == columns % 364 == 0
    assert height <= rows < height + 2 * 364
    assert width <= columns < width + 2 * 364


@given(SIZES, st.integers(1, 16))
def test_molmo_and_phi3(size: tuple[int, int], most: int) -> None:
    rows, columns = select_tiling((size[0] - 112, size[1] - 112), 224, most)
    assert 1 <= rows * columns <= most


@given(SMALL, st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_phi3(size: tuple[int, int], most: int) -> None:
    canvas = fit_to_crops(Image.new("RGB", (size[1], size[0])), most)
    assert canvas.width % 336 == canvas.height % 336 == 0
    assert canvas.width // 336 * (canvas.height // 336) <= max(most, max(size) // min(size) + 1)


@given(SIZES, st.integers(1, 500))
def test_shortest_edge(size: tuple[int, int], edge: int) -> None:
    height, width = target_size(size, {"shortest_edge": edge})
    assert min(height, width) == edge
    assert target_size(size, edge) == (height, width)
    assert abs(height * size[1] - width * size[0]) <= max(size)


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(deadline=None, max_examples=60)
def test_floats_are_resized_as_torch_does(size: tuple[int, int], target: tuple[int, int]) -> None:
    import torch

    pixels = np.random.default_rng(size).random((3, *size), np.float32)
    tensor = torch.from_numpy(pixels)[None]
    want = torch.nn.functional.interpolate(tensor, target, mode="bicubic")[0]
    np.testing.assert_allclose(interpolate_bicubic(pixels, target), want, atol=2e-5)
    if target[1] > 1:  # torch 2.13 reads the first row for all where one column is left
        want = torch.nn.functional.interpolate(tensor, target, mode="bilinear", antialias=True)[0]
        np.testing.assert_allclose(resize_floats(pixels, target), want, atol=2e-5)
    same = torch.nn.functional.interpolate(tensor, size, mode="bicubic")[0]
    np.testing.assert_allclose(interpolate_bicubic(pixels, size), same, atol=1e-6)
    assert BICUBIC == 3


@functools.cache
def processor_of(path: Path) -> tuple[Processor, dict[str, Any]]:
    case = read_case(path)
    with tempfile.TemporaryDirectory() as folder:
        return load(case, Path(folder)), case


WITH_PICTURES = [
    path for path in CASES if any(c.get("images") for c in read_case(path)["cases"]) and "Phi3V" not in path.stem
]


@pytest.mark.parametrize("path", WITH_PICTURES, ids=[p.stem for p in WITH_PICTURES])
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_any_size_through_any_processor(path: Path, data: st.DataObject) -> None:
    processor, case = processor_of(path)
    want = next(c for c in case["cases"] if c.get("images") and not c.get("pre_expanded"))
    count = len(media(want)["images"])
    sizes = [data.draw(SMALL) for _ in range(count)]
    pictures = [Image.fromarray(np.full((*s, 3), 7 * i, np.uint8)) for i, s in enumerate(sizes)]
    processed = processor(want["prompt_token_ids"], images=pictures)
    assert len(processed.features) == count
    for feature in processed.features:
        rows = expected_rows(processor, feature.data)
        assert rows is None or feature.num_rows == rows
        assert all(np.isfinite(array).all() for array in feature.data.values())


def expected_rows(processor: Any, data: dict[str, Any]) -> int | None:
    """Rows that a tower gives for its arrays, where the arrays alone say it."""
    family, pixels = processor.family, data.get("pixel_values")
    if family in ("InternVL", "H2OVL", "NVLM-D", "Idefics3"):
        return len(pixels) * int(processor.tile_tokens)
    if family == "Pixtral":
        return int(pixels.shape[1] // processor.patch * (pixels.shape[2] // processor.patch))
    if family == "Qwen2-VL":
        return len(pixels) // int(processor.merge) ** 2
    if family == "MiniCPM-V":
        return int((1 + len(data.get("slices", []))) * processor.queries)
    if family == "Fuyu":
        return len(data["image_patches"])
    if family == "Molmo":
        assert len(set(data["patch_order"])) == len(data["patch_order"])
        assert data["patch_order"].max() < len(data["images"]) * processor.pooled**2
        return len(data["patch_order"])
    return 0 if family == "Llama 3.2 Vision" else None
