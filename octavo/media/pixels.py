"""From a picture to what a tower reads: sizes, crops, padding, and values."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from octavo.errors import InvalidRequestError
from octavo.media.limits import whole
from octavo.media.pictures import Picture
from octavo.media.sources import Array

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_RESIZED = 1 << 25
"""Pixels of a picture that is made larger; a thin one, whose shorter edge is what counts, would have any number."""
BILINEAR, BICUBIC, LANCZOS = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS

Size = tuple[int, int]
"""Height and width."""


def size_of(picture: Picture) -> Size:
    """Height and width of a picture."""
    return picture.height, picture.width


def resize(picture: Picture, size: Size, resample: int = BICUBIC) -> Picture:
    """A picture of another size, by Pillow's filter of this number. Raises InvalidRequestError if it would be huge."""
    if size[0] * size[1] > MAX_RESIZED:
        given = f"an image of {picture.width} x {picture.height} pixels would become {size[1]} x {size[0]}"
        raise InvalidRequestError(f"{given}, which is too much. Cut it, so that its edges are more alike.")
    if size == size_of(picture):
        return picture
    return picture.resize((size[1], size[0]), Image.Resampling(resample))


def target_size(size: Size, rule: Any) -> Size:
    """A size by a preprocessor's rule: both edges as they are named, or the shortest edge (also as a number)."""
    if isinstance(rule, Mapping) and "height" in rule:
        return whole(rule["height"]), whole(rule["width"])
    edge = whole(rule["shortest_edge"] if isinstance(rule, Mapping) else rule)
    height, width = size
    return (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)


def square(rule: Any) -> Size:
    """A size that is the same for all pictures, however a preprocessor writes it."""
    return target_size((1, 1), rule)


def crop_centre(picture: Picture, size: Size) -> Picture:
    """The middle of a picture, with black around it where it is smaller."""
    top, left = (picture.height - size[0]) // 2, (picture.width - size[1]) // 2
    return picture.crop((left, top, left + size[1], top + size[0]))


def pad(picture: Picture, size: Size, offset: Size = (0, 0), colour: tuple[int, int, int] = (0, 0, 0)) -> Picture:
    """A picture of `size` in which this one begins at `offset` (row and column)."""
    if size == size_of(picture):
        return picture
    canvas = Image.new("RGB", (size[1], size[0]), colour)
    canvas.paste(picture, (offset[1], offset[0]))
    return canvas


def pad_centre(picture: Picture, size: Size, colour: tuple[int, int, int] = (0, 0, 0)) -> Picture:
    """A picture in the middle of a larger one; an odd pixel goes to the right or the bottom."""
    return pad(picture, size, ((size[0] - picture.height) // 2, (size[1] - picture.width) // 2), colour)


def cut(picture: Picture, tile: Size) -> list[Picture]:
    """Tiles of one size, row by row."""
    return [
        picture.crop((left, top, left + tile[1], top + tile[0]))
        for top in range(0, picture.height, tile[0])
        for left in range(0, picture.width, tile[1])
    ]


class Values:
    """A preprocessor's rescaling and normalizing, looked up: bytes to float32, each channel by a table of 256."""

    def __init__(
        self, config: Mapping[str, Any], mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
    ) -> None:
        levels = np.arange(256, dtype=np.float64)
        if config.get("do_rescale", True):
            levels = levels * config.get("rescale_factor", 1 / 255)
        table = np.repeat(levels.astype(np.float32)[None], 3, axis=0)
        if config.get("do_normalize", True):
            means, stds = (
                np.broadcast_to(np.asarray(given, np.float32), (3,))[:, None]
                for given in (config.get("image_mean", mean), config.get("image_std", std))
            )
            with np.errstate(all="ignore"):
                table = (table - means) / stds
        if not np.isfinite(table).all():
            raise ValueError("image_mean, image_std and rescale_factor give values that are not finite")
        self.table = table

    def __call__(self, picture: Picture) -> Array:
        """float32 of shape (3, height, width)."""
        pixels = np.asarray(picture)
        return np.stack([self.table[c][pixels[..., c]] for c in range(3)])

    def many(self, pictures: list[Picture]) -> Array:
        """float32 of shape (pictures, 3, height, width): pictures of one size."""
        return np.stack([self(p) for p in pictures])


def patches(pixels: Array, size: int) -> Array:
    """Pixels (channels, height, width) as patches (rows, columns, channels, size, size)."""
    channels, height, width = pixels.shape
    return pixels.reshape(channels, height // size, size, width // size, size).transpose(1, 3, 0, 2, 4)


def resize_floats(pixels: Array, size: Size) -> Array:
    """Floats (channels, height, width) of another size: bilinear, antialiased, never rounded, as torch has them."""
    for axis, length in ((2, size[1]), (1, size[0])):
        before = pixels.shape[axis]
        scale = np.float32(before) / np.float32(length)
        reach = max(scale, np.float32(1))
        centres = scale * (np.arange(length, dtype=np.float32) + np.float32(0.5))
        first = np.maximum((centres - reach + np.float32(0.5)).astype(int), 0)
        last = np.minimum((centres + reach + np.float32(0.5)).astype(int), before)
        places = first + np.arange((last - first).max())[:, None]
        off = (places.astype(np.float32) - centres + np.float32(0.5)) * (np.float32(1) / reach)
        weights = np.where(places < last, np.maximum(np.float32(1) - np.abs(off), 0), np.float32(0))
        pixels = _weighed(pixels, axis, places, weights / weights.sum(axis=0))
    return pixels


def interpolate_bicubic(pixels: Array, size: Size) -> Array:
    """Floats (channels, height, width) of another size as torch's bicubic interpolation has them: no antialiasing."""
    for axis, length in ((2, size[1]), (1, size[0])):
        places = (np.arange(length) + 0.5) * (pixels.shape[axis] / length) - 0.5
        first = np.floor(places).astype(int)
        pixels = _weighed(pixels, axis, first + np.arange(-1, 3)[:, None], _cubic(places - first).astype(np.float32))
    return pixels


def _weighed(pixels: Array, axis: int, places: Array, weights: Array) -> Array:
    """Sums along an axis of what is at `places`, times `weights`, both (terms, new length); edges go on outwards."""
    shape = [1, 1, 1]
    shape[axis] = places.shape[1]
    total: Array = np.zeros([*pixels.shape[:axis], shape[axis], *pixels.shape[axis + 1 :]], np.float32)
    for where, weight in zip(np.clip(places, 0, pixels.shape[axis] - 1), weights, strict=True):
        total += np.take(pixels, where, axis) * weight.reshape(shape)
    return total


def _cubic(part: Array) -> Array:
    """Weights of the four neighbours of a place that lies `part` behind the second."""
    a = -0.75
    near, far = np.stack([part, 1 - part]), np.stack([part + 1, 2 - part])
    inner = ((a + 2) * near - (a + 3)) * near * near + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return np.stack([outer[0], inner[0], inner[1], outer[1]])


def scaled(size: Size, target: Size) -> Size:
    """The largest size of the same shape within `target`, the free edge rounded up."""
    height, width = size
    if target[1] / width < target[0] / height:
        return min(math.ceil(height * (target[1] / width)), target[0]), target[1]
    return target[0], min(math.ceil(width * (target[0] / height)), target[1])
