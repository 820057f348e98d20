"""Idefics3: tiles of a picture that is first made as large as allowed, each behind a mark, and the whole last."""

import math

import numpy as np

from octavo.media.feature import Data, Option, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.pixels import LANCZOS, Size, cut, resize, size_of
from octavo.media.processor import Config, Processor

LARGEST = 4096
"""No edge is longer, whatever the configuration says."""


def longest_edge_size(size: Size, longest: int) -> Size:
    """A size whose longer edge is `longest`, the shorter one cut to an integer and made even."""
    height, width = size
    aspect = width / height
    shorter = int(longest / aspect) if width >= height else int(longest * aspect)
    shorter = max(shorter + shorter % 2, 1)
    height, width = (shorter, longest) if width >= height else (longest, shorter)
    if max(height, width) > LARGEST:
        aspect = width / height
        height, width = (int(LARGEST / aspect), LARGEST) if width >= height else (LARGEST, int(LARGEST * aspect))
    return max(height, 1), max(width, 1)


def whole_tiles_size(size: Size, side: int) -> Size:
    """A size of whole tiles: the longer edge first, by which the other one still follows the aspect ratio."""
    height, width = size
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return math.ceil(int(width / aspect) / side) * side, width
    height = math.ceil(height / side) * side
    return height, math.ceil(int(height * aspect) / side) * side


class Idefics3Processor(Processor):
    """Idefics3ForConditionalGeneration: pixel_values are (tiles, 3, side, side), the whole picture last."""

    family = "Idefics3"
    options = (Option("do_image_splitting", False, True),)
    mean = std = (0.5, 0.5, 0.5)
    image_mark = "<image>"

    def setup(self, config: Config) -> None:
        vision, settings = config["vision_config"], self.settings
        self.image_token = token_id(config.get("image_token_id", 128257))
        side = settings.get("max_image_size") or {"longest_edge": vision.get("image_size", 364)}
        self.side, self.longest = (
            whole(side["longest_edge"]),
            whole((settings.get("size") or {}).get("longest_edge", 1456)),
        )
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        self.tile_tokens = whole(self.files.processor.get("image_seq_len") or patches // config["scale_factor"] ** 2)
        names = self.vocabulary.tokenizer
        self.image_text = (names.token(self.image_token) if names else None) or "<image>"

    def token(self, kind: str) -> int:
        return self.image_token

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        resample, settings = self.settings.get("resample", LANCZOS), self.settings
        if settings.get("do_resize", True):
            picture = resize(picture, longest_edge_size(size_of(picture), self.longest), resample)
        tiles, columns = [], 0
        if settings.get("do_image_splitting", True):
            picture = resize(picture, whole_tiles_size(size_of(picture), self.side), resample)
            tiles = cut(picture, (self.side, self.side)) if max(picture.size) > self.side else []
            columns = picture.width // self.side
        tiles.append(resize(picture, (self.side, self.side), resample))
        mask = np.ones((len(tiles), self.side, self.side), np.int64)
        data = {"pixel_values": self.values.many(tiles), "pixel_attention_mask": mask}
        return data, Span(self.vocabulary.encode(self.text(len(tiles) - 1, columns)), self.image_token)

    def text(self, tiles: int, columns: int) -> str:
        """What a picture is in the prompt; tokenized as text, since most marks are no tokens of their own."""
        fake, tokens = "<fake_token_around_image>", self.image_text * self.tile_tokens
        text = ""
        for i in range(tiles):
            row, column = divmod(i, columns)
            text += f"{fake}<row_{row + 1}_col_{column + 1}>{tokens}" + "\n" * (column == columns - 1)
        return text + "\n" * (tiles > 0) + f"{fake}<global-img>{tokens}{fake}"
