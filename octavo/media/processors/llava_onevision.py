"""LLaVA-OneVision: one picture in tiles, several as a square each, films as a tile a frame."""

import math
from typing import ClassVar

import numpy as np
from PIL import Image

from octavo.media.anyres import shrunken_grid
from octavo.media.feature import Data, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.pixels import CLIP_MEAN, Values, pad_centre, resize, size_of, square
from octavo.media.processor import IMAGES_AND_VIDEOS, NO_ROWS, Config
from octavo.media.processors.llava_next import LlavaNextProcessor
from octavo.media.sources import Array


class LlavaOnevisionProcessor(LlavaNextProcessor):
    """LlavaOnevisionForConditionalGeneration. A pixel_values of one tile is one of several pictures."""

    family = "LLaVA-OneVision"
    lone_differs = True
    takes = IMAGES_AND_VIDEOS
    embeds = NO_ROWS
    usual_tower: ClassVar[Config] = {"model_type": "siglip_vision_model", "patch_size": 14, "image_size": 384}
    usual_strategy = "full"
    video_mark = "<video>"

    def setup(self, config: Config) -> None:
        super().setup(config)
        self.video_token = token_id(config.get("video_token_index", config.get("video_token_id", 151647)))
        self.film = {**self.settings, **self.files.video}
        self.film_values = Values(self.film)
        self.most_tiles = whole(int(str(config.get("vision_aspect_ratio") or "anyres_max_9").rpartition("_")[2]))
        mean = np.broadcast_to(self.settings.get("image_mean", CLIP_MEAN), (3,))
        self.background = (int(255 * mean[0]), int(255 * mean[1]), int(255 * mean[2]))

    def token(self, kind: str) -> int:
        return self.image_token if kind == "image" else self.video_token

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        if count == 1:
            return super().image(picture, index, count)
        edge = max(picture.size)
        pixels = self.standard(pad_centre(picture, (edge, edge), self.background))[None]
        tokens = self.patch_tokens(self.grid**2) + 1
        return {"pixel_values": pixels, "image_sizes": np.array(size_of(picture))}, Span([self.image_token] * tokens)

    def joined(self, rows: int, columns: int) -> int:
        rows, columns = shrunken_grid((rows, columns), self.grid, self.most_tiles)
        return rows * (columns + 1)

    def video(self, frames: Array, index: int, count: int) -> tuple[Data, Span]:
        size, resample = square(self.film["size"]), self.film.get("resample", 3)
        pixels = self.film_values.many([resize(Image.fromarray(frame), size, resample) for frame in frames])
        pooled = math.ceil(size[0] // self.patch / 2)
        return {"pixel_values_videos": pixels}, Span([self.video_token] * (len(frames) * pooled**2 + 1))
