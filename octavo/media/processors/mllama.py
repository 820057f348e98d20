"""Llama 3.2 Vision: tiles of a canvas, seen by cross-attention; the prompt keeps its one token a picture."""

import dataclasses
import math

import numpy as np

from octavo.errors import CheckpointError
from octavo.media.feature import Data, MediaFeature, Processed, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BILINEAR, Size, cut, pad, resize, size_of, square
from octavo.media.processor import Config, Processor


def canvases(tiles: int) -> list[Size]:
    """All canvases of at most so many tiles, in rows and columns; a canvas' place here, and one, is its number."""
    return [(h, w) for h in range(1, tiles + 1) for w in range(1, tiles + 1) if h * w <= tiles]


def best_canvas(size: Size, tiles: int, side: int) -> Size:
    """The canvas that enlarges a picture least, or else shrinks it least; of equals the one with fewest tiles."""
    scales = {c: min(c[0] * side / size[0], c[1] * side / size[1]) for c in canvases(tiles)}
    larger = [s for s in scales.values() if s >= 1]
    best = min(larger) if larger else max(scales.values())
    return min((c for c, scale in scales.items() if scale == best), key=lambda c: c[0] * c[1])


def fit_to_canvas(size: Size, canvas: Size, side: int) -> Size:
    """The largest size of a picture's shape in the canvas, though a small one grows to a tile at most."""
    height, width = (min(max(edge, side), most) for edge, most in zip(size, canvas, strict=True))
    if width / size[1] < height / size[0]:
        return min(math.floor(size[0] * (width / size[1])) or 1, height), width
    return height, min(math.floor(size[1] * (height / size[0])) or 1, width)


class MllamaProcessor(Processor):
    """MllamaForConditionalGeneration.

    pixel_values are (most tiles, 3, side, side), zeros where there is none; aspect_ratio_ids (1,) is the number of the
    canvas, aspect_ratio_mask (most tiles,) says which tiles there are. A feature takes no rows of the prompt; `visible`
    says which tokens see it: up to the next picture that does not follow at once. Cross-attention reads the rows of
    tiles that there are, each its patches' and one of its class.
    """

    family = "Llama 3.2 Vision"
    image_mark = "<|image|>"

    def setup(self, config: Config) -> None:
        vision = config["vision_config"]
        self.image_token = token_id(config.get("image_token_index", config.get("image_token_id", 128256)))
        self.side = square(self.settings.get("size") or vision["image_size"])[0]
        self.rows_per_tile = (self.side // whole(vision.get("patch_size", 14))) ** 2 + 1
        self.tiles = whole(self.settings.get("max_image_tiles", vision.get("max_num_tiles", 4)))
        self._check_canvases(vision)

    def _check_canvases(self, vision: Config) -> None:
        """The tower has learned rows for its canvases, by number: the processor must number them alike."""
        most = whole(vision.get("max_num_tiles", 4))
        mine = [list(canvas) for canvas in canvases(self.tiles)]
        ratios = vision.get("supported_aspect_ratios", mine if self.tiles == most else None)
        if self.tiles != most or [list(ratio) for ratio in ratios] != mine:
            raise CheckpointError(
                f"pictures are cut into at most {self.tiles} tiles (max_image_tiles), on the canvases {mine}, and "
                f"config.json's vision_config has max_num_tiles {most} and supported_aspect_ratios {ratios!s:.300}, "
                "which must be the same in the same order. Take both files of the same model."
            )

    def token(self, kind: str) -> int:
        return self.image_token

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        rows, columns = best_canvas(size_of(picture), self.tiles, self.side)
        canvas = rows * self.side, columns * self.side
        size = fit_to_canvas(size_of(picture), canvas, self.side)
        inner = resize(picture, size, self.settings.get("resample", BILINEAR))
        tiles = self.values.many(cut(pad(inner, canvas), (self.side, self.side)))
        pixels = np.zeros((self.tiles, *tiles.shape[1:]), np.float32)
        pixels[: len(tiles)] = tiles
        data = {
            "pixel_values": pixels,
            "aspect_ratio_ids": np.array([canvases(self.tiles).index((rows, columns)) + 1]),
            "aspect_ratio_mask": (np.arange(self.tiles) < len(tiles)).astype(np.int64),
        }
        return data, Span([self.image_token])

    def finish(self, processed: Processed) -> Processed:
        features: list[MediaFeature] = []
        end: int | None = None
        behind: int | None = None
        for feature in reversed(processed.features):
            start = feature.offset
            end = end if behind in (None, start + 1) else behind
            rows = int(feature.data["aspect_ratio_mask"].sum()) * self.rows_per_tile
            features.append(dataclasses.replace(feature, length=0, visible=(start, end), cross_rows=rows))
            behind = start
        return dataclasses.replace(processed, features=features[::-1])
