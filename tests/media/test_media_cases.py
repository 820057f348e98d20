"""Every row's processor agrees with its reference on the golden cases: tokens, and what the tower reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.media.feature import Processed
from tests.media.cases import CASES, load, media, read_case

CASE_NUMBERS = [(path, i) for path in CASES for i in range(len(read_case(path)["cases"]))]


def as_batch(arrays: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """Items' arrays as the reference puts them into one: joined, or padded with zeros and stacked."""
    joined = sum(a.shape[0] for a in arrays)
    if arrays[0].ndim == len(shape) and joined == shape[0]:
        return np.concatenate(arrays)
    if arrays[0].ndim == len(shape) - 1 and len(arrays) == 1 and joined == shape[1]:
        return arrays[0][None]
    if len(shape) == arrays[0].ndim + 1 and len(arrays) == shape[0]:
        return np.stack([np.pad(a, [(0, n - m) for n, m in zip(shape[1:], a.shape, strict=True)]) for a in arrays])
    if len(shape) >= 2 and shape[0] == 1:
        return as_batch(arrays, shape[1:])[None]
    raise AssertionError(f"{[a.shape for a in arrays]} do not make {shape}")


def reference_array(name: str, processed: Processed, shape: tuple[int, ...]) -> Any:
    """An array under the reference's name, made of the features' own."""
    features = processed.features
    if name.startswith("pixel_values["):
        slices = [one for f in features for one in [*f.data["source"], *f.data.get("slices", [])]]
        return slices[int(name[13:-1])]
    if name.startswith("audio_values."):
        return features[int(name[13:])].data["audio_values"][None]
    if name == "num_patches":
        return np.array([len(f.data["pixel_values"]) for f in features])
    if name == "batch_num_images":
        return np.array([len(features)])
    if name == "cross_attention_mask":
        return cross_attention_mask(processed, shape)
    if name == "image_input_idx":
        return molmo_input_idx(processed, shape)
    return as_batch([f.data[name] for f in features if name in f.data], shape)


def cross_attention_mask(processed: Processed, shape: tuple[int, ...]) -> Any:
    mask = np.zeros(shape)
    for i, feature in enumerate(processed.features):
        assert feature.length == 0
        assert feature.visible is not None
        start, end = feature.visible
        mask[0, start:end, i] = feature.data["aspect_ratio_mask"]
    return mask


def molmo_input_idx(processed: Processed, shape: tuple[int, ...]) -> Any:
    (feature,) = processed.features
    assert feature.takes is not None
    index = np.full(int(np.prod(shape)), -100)
    index[feature.data["patch_order"]] = feature.offset + np.flatnonzero(feature.takes)
    return index.reshape(shape)


@pytest.mark.parametrize(("path", "number"), CASE_NUMBERS, ids=[f"{p.stem}-{i}" for p, i in CASE_NUMBERS])
def test_case(path: Path, number: int, tmp_path: Path) -> None:
    case = read_case(path)
    want = case["cases"][number]
    processor = load(case, tmp_path)
    given = media(want)
    processed = processor(want["prompt_token_ids"], **given)
    assert processed.token_ids == want["expanded_token_ids"]
    assert len(processed.features) == sum(map(len, given.values()))
    for name, said in want["processed"].items():
        got = reference_array(name, processed, tuple(said["shape"]))
        assert got.shape == tuple(said["shape"]), name
        assert got.mean(dtype=np.float64) == pytest.approx(said["mean"], abs=1e-5), name
        assert got.std(dtype=np.float64) == pytest.approx(said["std"], abs=1e-5), name
        np.testing.assert_allclose(got.reshape(-1)[: len(said["first"])], said["first"], atol=1e-5, err_msg=name)
    again = processor(processed.token_ids, **given)
    assert again.token_ids == processed.token_ids
    assert [(f.offset, f.length) for f in again.features] == [(f.offset, f.length) for f in processed.features]
    assert [f.digest for f in again.features] == [f.digest for f in processed.features]
