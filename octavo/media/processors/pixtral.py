"""Pixtral: a picture keeps its shape; rows of patches, each closed by a break, the last by an end."""

import math
from collections.abc import Mapping

import numpy as np

from octavo.media.feature import Data, Embeddings, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BICUBIC, CLIP_MEAN, CLIP_STD, Size, interpolate_bicubic, resize, size_of, square
from octavo.media.processor import IMAGE_ROWS, NO_ROWS, Config, Processor


class PixtralProcessor(Processor):
    """LlavaForConditionalGeneration with Pixtral's tower, in transformers' format."""

    family = "Pixtral"
    embeds = IMAGE_ROWS
    image_mark = "[IMG]"

    def setup(self, config: Config) -> None:
        settings, words = self.settings, self.files.processor
        vision = config["vision_config"]
        self.patch = square(settings.get("patch_size") or vision.get("patch_size", 16))[0]
        size = settings.get("size") or vision.get("image_size", 1024)
        self.longest = whole(size["longest_edge"] if isinstance(size, Mapping) else size)
        self.image_token = token_id(config.get("image_token_index", config.get("image_token_id", 10)))
        self.break_token = self.vocabulary.id(words.get("image_break_token", "[IMG_BREAK]"))
        self.end_token = self.vocabulary.id(words.get("image_end_token", "[IMG_END]"))

    def token(self, kind: str) -> int:
        return self.image_token

    def shrunk(self, size: Size) -> Size:
        """A picture's size if it is within the longest edge, with both edges at most that."""
        ratio = max(size[0] / self.longest, size[1] / self.longest)
        return size if ratio <= 1 else (max(math.floor(size[0] / ratio), 1), max(math.floor(size[1] / ratio), 1))

    def grid(self, size: Size) -> Size:
        """Rows and columns of patches."""
        height, width = self.shrunk(size)
        return (height - 1) // self.patch + 1, (width - 1) // self.patch + 1

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        rows, columns = self.grid(size_of(picture))
        size = rows * self.patch, columns * self.patch
        pixels = self.values(resize(picture, size, self.settings.get("resample", BICUBIC)))
        return {"pixel_values": pixels, "image_sizes": np.array(size)}, self.span(rows, columns)

    def span(self, rows: int, columns: int) -> Span:
        row = [self.image_token] * columns
        ids = ([*row, self.break_token] * rows)[:-1]
        return Span([*ids, self.end_token], self.image_token)

    def rows(self, kind: str, item: Embeddings, index: int, count: int) -> Span:
        rows, columns = self.grid((item.grid[0], item.grid[1])) if item.grid else (1, len(item.rows))
        return self.span(rows, columns)


class MistralPixtralProcessor(PixtralProcessor):
    """PixtralForConditionalGeneration, in Mistral's own format: params.json names all that is needed."""

    embeds = NO_ROWS

    def setup(self, config: Config) -> None:
        vision = config.get("vision_config") or config["vision_encoder"]
        self.patch, self.longest = (
            whole(vision["patch_size"]),
            whole(vision.get("max_image_size", vision["image_size"])),
        )
        self.image_token = token_id(vision["image_token_id"])
        self.break_token = token_id(vision.get("image_break_token_id", 12))
        self.end_token = token_id(vision.get("image_end_token_id", 13))

    def shrunk(self, size: Size) -> Size:
        ratio = max(size[0] / self.longest, size[1] / self.longest)
        return size if ratio <= 1 else (max(round(size[0] / ratio), 1), max(round(size[1] / ratio), 1))

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        rows, columns = self.grid(size_of(picture))
        size = rows * self.patch, columns * self.patch
        levels = np.asarray(picture, np.float32).transpose(2, 0, 1)
        if size != size_of(picture):
            levels = interpolate_bicubic(levels, size)
        mean, std = (np.array(x, np.float32)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
        pixels = (levels / 255 - mean) / std
        return {"pixel_values": pixels, "image_sizes": np.array(size)}, self.span(rows, columns)
