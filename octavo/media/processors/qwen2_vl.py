"""Qwen2-VL (also DSE): pictures and films of any shape, as patches of two frames each."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from PIL import Image

from octavo.errors import InvalidRequestError
from octavo.media.feature import Data, Embeddings, Option, Processed, Span, spread_positions
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BICUBIC, MAX_RESIZED, Size, resize, size_of
from octavo.media.processor import IMAGE_AND_VIDEO_ROWS, IMAGES_AND_VIDEOS, Config, Processor
from octavo.media.sources import Array


def smart_size(size: Size, factor: int, least: int, most: int) -> Size:
    """Both edges as multiples of `factor`, the shape nearly kept, pixels between `least` and `most`."""
    height, width = size
    rows, columns = round(height / factor), round(width / factor)
    pixels = rows * columns * factor**2
    if pixels > most:
        scale = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(edge / scale / factor)) for edge in size)
    elif pixels < least:
        scale = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(edge * scale / factor) for edge in size)
    return rows * factor, columns * factor


def _pixels(settings: Config, usual: tuple[int, int]) -> tuple[int, int]:
    """The least and most pixels of a picture as a preprocessor's settings have them, or the usual ones."""
    size = settings.get("size") or {}
    least = settings.get("min_pixels") or size.get("shortest_edge") or usual[0]
    most = settings.get("max_pixels") or size.get("longest_edge") or usual[1]
    return whole(least, MAX_RESIZED), whole(most, MAX_RESIZED)


class Qwen2VLProcessor(Processor):
    """Qwen2VLForConditionalGeneration: pixel_values (patches, 3 * 2 * 14 * 14) in blocks of 2 x 2, grid_thw (3,).

    Positions have three axes: time, row and column of the merged patches.
    """

    family = "Qwen2-VL"
    takes = IMAGES_AND_VIDEOS
    embeds = IMAGE_AND_VIDEO_ROWS
    options: ClassVar[tuple[Option, ...]] = (
        Option("min_pixels", 1, 1 << 24),
        Option("max_pixels", 1, 1 << 24),
    )
    image_mark = "<|vision_start|><|image_pad|><|vision_end|>"
    video_mark = "<|vision_start|><|video_pad|><|vision_end|>"

    def setup(self, config: Config) -> None:
        settings = self.settings
        self.tokens = {
            "image": token_id(config["image_token_id"]),
            "video": token_id(config.get("video_token_id", 151656)),
        }
        self.patch, self.pair = whole(settings.get("patch_size", 14)), whole(settings.get("temporal_patch_size", 2))
        self.merge = whole(settings.get("merge_size", 2))
        self.picture_pixels = _pixels(settings, (56 * 56, 28 * 28 * 1280))
        self.film_pixels = _pixels(self.files.video, self.picture_pixels)

    def token(self, kind: str) -> int:
        return self.tokens[kind]

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        pixels, grid = self._patches([picture], self.picture_pixels)
        return {"pixel_values": pixels, "image_grid_thw": grid}, self._span("image", grid)

    def video(self, frames: Array, index: int, count: int) -> tuple[Data, Span]:
        pixels, grid = self._patches([Image.fromarray(frame) for frame in frames], self.film_pixels)
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}, self._span("video", grid)

    def rows(self, kind: str, item: Embeddings, index: int, count: int) -> Span:
        rows = math.prod(item.grid) // self.merge**2
        if len(item.grid) != 3 or rows != len(item.rows):
            given = f"{kind} {index + 1} has {len(item.rows)} rows and the grid {item.grid}"
            raise InvalidRequestError(f"{given}. Give {kind}_grid_thw: time, height and width in patches.")
        return Span([self.tokens[kind]] * rows)

    def finish(self, processed: Processed) -> Processed:
        spans = []
        for feature in processed.features:
            grid = feature.data.get("grid", feature.data.get(f"{feature.kind}_grid_thw"))
            assert grid is not None
            shape = int(grid[0]), int(grid[1]) // self.merge, int(grid[2]) // self.merge
            inner = np.indices(shape).reshape(3, -1)
            inner[0] = inner[0] * self.pair_positions(feature.kind)
            spans.append((feature.offset, inner))
        positions = spread_positions(len(processed.token_ids), 3, spans)
        return dataclasses.replace(processed, positions=positions)

    def pair_positions(self, kind: str) -> float:
        """How far apart pairs of frames are on the axis of time; what is no whole number there is cut off."""
        return 1.0

    def _span(self, kind: str, grid: Array) -> Span:
        return Span([self.tokens[kind]] * (int(grid.prod()) // self.merge**2))

    def _patches(self, frames: list[Picture], pixels_between: tuple[int, int]) -> tuple[Array, Array]:
        size = smart_size(size_of(frames[0]), self.patch * self.merge, *pixels_between)
        pixels = self.values.many([resize(f, size, self.settings.get("resample", BICUBIC)) for f in frames])
        missing = -len(pixels) % self.pair
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)]) if missing else pixels
        times, rows, columns = len(pixels) // self.pair, size[0] // self.patch, size[1] // self.patch
        blocks = pixels.reshape(
            *(times, self.pair, 3),
            *(rows // self.merge, self.merge, self.patch, columns // self.merge, self.merge, self.patch),
        ).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        flat = blocks.reshape(times * rows * columns, 3 * self.pair * self.patch**2)
        return flat, np.array([times, rows, columns])


class Qwen2_5VLProcessor(Qwen2VLProcessor):
    """Qwen2_5_VLForConditionalGeneration: the same, with positions in time that follow a film's seconds.

    Frames are taken to be `fps` a second: a setting of the film's processor, or of the prompt.
    """

    family = "Qwen2.5-VL"
    options = (*Qwen2VLProcessor.options, Option("fps", 0.01, 1000.0))

    def setup(self, config: Config) -> None:
        super().setup(config)
        fps = self.settings.get("fps") or self.files.video.get("fps") or 2.0
        vision = config.get("vision_config") or {}
        self.time_step = vision.get("tokens_per_second", 4) * self.pair / fps

    def pair_positions(self, kind: str) -> float:
        return self.time_step if kind == "video" else 1.0
