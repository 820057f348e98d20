"""Phi-3-Vision and Phi-3.5-Vision (also VLM2Vec): crops of 336 pixels, a newline behind each row, the whole last."""

import math

import numpy as np
from PIL import Image

from octavo.media.feature import Data, Option, Span
from octavo.media.limits import whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BILINEAR, Values, cut, interpolate_bicubic, pad, resize
from octavo.media.processor import IMAGE_ROWS, Config, Processor
from octavo.media.vocabulary import Place

SIDE, TILE_TOKENS, TILE_ROWS = 336, 144, 12
"""Fixed by the vendor's code."""


def fit_to_crops(picture: Picture, most: int) -> Picture:
    """A picture whose longer edge is as many crops as fit, with white above and below (or beside, if it is tall)."""
    tall = picture.width < picture.height
    if tall:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    ratio = picture.width / picture.height
    across = 1
    while (across + 1) * math.ceil((across + 1) / ratio) <= most:
        across += 1
    width = across * SIDE
    height = max(int(width / ratio), 1)
    picture = resize(picture, (height, width), BILINEAR)
    padded = math.ceil(height / SIDE) * SIDE
    picture = pad(picture, (padded, width), ((padded - height) // 2, 0), (255, 255, 255))
    return picture.transpose(Image.Transpose.TRANSPOSE) if tall else picture


class Phi3VProcessor(Processor):
    """Phi3VForCausalLM: pixel_values are (1 + crops, 3, 336, 336), the whole first; image_sizes their canvas."""

    family = "Phi-3-Vision"
    embeds = IMAGE_ROWS
    options = (Option("num_crops", 1, 64),)
    image_mark = "<|image_{n}|>"

    def setup(self, config: Config) -> None:
        self.most = whole(self.settings.get("num_crops", 16))
        found = self.vocabulary.find("<|image|>")
        self.image_token = 32044 if found is None else found
        self.after = self.vocabulary.beginning()
        self.values = Values(self.settings)

    def token(self, kind: str) -> int:
        return self.image_token

    def places(self, token_ids: list[int]) -> list[Place]:
        found = self.vocabulary.places_of(r"<\|image_(\d{1,6})\|>", token_ids)
        return [Place(p.kind, p.start, p.stop, p.before, self.after + p.after, p.index) for p in found]

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        canvas = fit_to_crops(picture, self.most)
        pixels = self.values(canvas)
        whole = interpolate_bicubic(pixels, (SIDE, SIDE))
        crops = self.values.many(cut(canvas, (SIDE, SIDE)))
        rows, columns = canvas.height // SIDE, canvas.width // SIDE
        tokens = (rows * columns + 1) * TILE_TOKENS + 1 + (rows + 1) * TILE_ROWS
        data = {"pixel_values": np.stack([whole, *crops]), "image_sizes": np.array([canvas.height, canvas.width])}
        return data, Span([self.image_token] * tokens)
