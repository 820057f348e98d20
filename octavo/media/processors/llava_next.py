"""LLaVA-NeXT (also e5-v): the whole picture, then the tiles of its best resolution; and its kind for films."""

import numpy as np
from PIL import Image

from octavo.media.anyres import anyres_tiles, best_resolution, unpadded_grid
from octavo.media.feature import Data, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BICUBIC, Size, resize, size_of, square
from octavo.media.processor import NO_ROWS, ONE_VIDEO, Config
from octavo.media.processors.llava import LlavaProcessor
from octavo.media.sources import Array


class LlavaNextProcessor(LlavaProcessor):
    """LlavaNextForConditionalGeneration: pixel_values are (tiles, 3, side, side), the whole picture first, image_sizes
    (height, width), tile_grid the rows and columns of the others."""

    family = "LLaVA-NeXT"

    def setup(self, config: Config) -> None:
        super().setup(config)
        self.pinpoints = [(whole(h), whole(w)) for h, w in config.get("image_grid_pinpoints") or self._own_pinpoints()]
        self.side = square(self.settings.get("crop_size") or self.settings["size"])[0]
        self.grid = self.side // self.patch
        """Patches along a tile's edge."""

    def _own_pinpoints(self) -> list[Size]:
        default = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
        pinpoints: list[Size] = self.settings.get("image_grid_pinpoints") or default
        return pinpoints

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        size, resample = size_of(picture), self.settings.get("resample", BICUBIC)
        whole = resize(picture, square(self.settings["size"]), resample)
        tiles = anyres_tiles(picture, self.pinpoints, self.side, resample)
        pixels = np.stack([self.standard(tile) for tile in [whole, *tiles]])
        best = best_resolution(size, self.pinpoints)
        rows, columns = unpadded_grid(size, (best[0] // self.side * self.grid, best[1] // self.side * self.grid))
        tokens = self.patch_tokens(self.grid**2) + self.joined(rows, columns)
        tile_grid = np.array([best[0] // self.side, best[1] // self.side])
        data = {"pixel_values": pixels, "image_sizes": np.array(size), "tile_grid": tile_grid}
        return data, Span([self.image_token] * tokens)

    def joined(self, rows: int, columns: int) -> int:
        """Tokens of the tiles' grid: a newline closes each row."""
        return rows * (columns + 1)


class LlavaNextVideoProcessor(LlavaProcessor):
    """LlavaNextVideoForConditionalGeneration: pixel_values_videos are (frames, 3, side, side)."""

    family = "LLaVA-NeXT-Video"
    takes = ONE_VIDEO
    embeds = NO_ROWS
    image_mark, video_mark = "", "<video>"

    def setup(self, config: Config) -> None:
        super().setup(config)
        self.settings.update(self.files.video)
        self.video_token = token_id(config.get("video_token_index", config.get("video_token_id", 32000)))
        self.stride = whole(config.get("spatial_pool_stride") or 2)

    def token(self, kind: str) -> int:
        return self.video_token

    def video(self, frames: Array, index: int, count: int) -> tuple[Data, Span]:
        pixels = np.stack([self.standard(Image.fromarray(frame)) for frame in frames])
        edges = (pixels.shape[2] // self.patch // self.stride, pixels.shape[3] // self.patch // self.stride)
        return {"pixel_values_videos": pixels}, Span([self.video_token] * (len(frames) * edges[0] * edges[1]))
