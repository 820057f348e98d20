"""Molmo: the whole picture, then crops that overlap, with their patches sorted into one grid."""

import math
from typing import Any

import numpy as np

from octavo.media.feature import Data, Option, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.pixels import CLIP_MEAN, CLIP_STD, Size, resize_floats, size_of, square
from octavo.media.processor import ONE_IMAGE, Config, Processor
from octavo.media.sources import Array
from octavo.media.vocabulary import Place


def select_tiling(size: Size, edge: int, most: int) -> Size:
    """Rows and columns of crops that enlarge a picture least, or else shrink it least; of equals the fewest."""
    found = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most]
    tilings = np.array(sorted(found, key=lambda t: (t[0] * t[1], t[0])), np.int32)
    with np.errstate(divide="ignore"):
        scale = ((tilings * edge).astype(np.float32) / np.array(size, np.float32)).min(axis=1)
    best = scale.argmax() if (scale < 1).all() else np.where(scale < 1, np.float32(10e9), scale).argmin()
    return int(tilings[best][0]), int(tilings[best][1])


class MolmoProcessor(Processor):
    """MolmoForCausalLM.

    images are (crops, patches, 3 * size * size), image_masks (crops, patches) how much of a patch is picture, and
    patch_order (rows,) which of all crops' pooled patches each of the span's rows is, in turn. Rows are added to the
    embeddings of their tokens.
    """

    family = "Molmo"
    takes = ONE_IMAGE
    options = (Option("max_crops", 1, 64),)

    def setup(self, config: Config) -> None:
        settings = self.settings
        self.crop = square(settings.get("base_image_input_size", [336])[0])[0]
        self.patch, self.most = whole(settings.get("image_patch_size", 14)), whole(settings.get("max_crops", 12))
        self.margins: list[int] = [whole(m, least=0) for m in settings.get("overlap_margins", (4, 4))]
        self.pooled = whole(settings.get("image_token_length_h", 12))
        names = ("<im_start>", "<im_patch>", "<im_col>", "<im_end>")
        self.start, self.image_token, self.column, self.end = (self.vocabulary.id(name) for name in names)
        tokenizer: Any = self.vocabulary.tokenizer
        self.bos = token_id(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)

    def token(self, kind: str) -> int:
        return self.image_token

    def encode(self, text: str) -> list[int]:
        return [self.bos, *self.vocabulary.encode(f" {text}")]

    def prepare(self, token_ids: list[int]) -> list[int]:
        return token_ids if token_ids[:1] == [self.bos] else [self.bos, *token_ids]

    def places(self, token_ids: list[int]) -> list[Place]:
        return [Place("image", 1, 1)]

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        before, after = self.margins
        per_crop = self.crop // self.patch
        window, margin = per_crop - before - after, (before + after) * self.patch
        size = size_of(picture)
        tiling = select_tiling((size[0] - margin, size[1] - margin), window * self.patch, self.most)
        canvas, mask = self._fitted(picture, tuple(t * window * self.patch + margin for t in tiling))
        whole, _ = self._fitted(picture, (self.crop, self.crop))
        corners = [(i * window * self.patch, j * window * self.patch) for i, j in np.ndindex(*tiling)]
        crops = [whole, *(canvas[:, y : y + self.crop, x : x + self.crop] for y, x in corners)]
        masks = [mask[y : y + self.crop, x : x + self.crop] for y, x in corners]
        edges = per_crop, self.patch, per_crop, self.patch
        images = np.stack([c.reshape(3, *edges).transpose(1, 3, 2, 4, 0).reshape(per_crop**2, -1) for c in crops])
        parts = np.stack([m.reshape(edges).mean(axis=(1, 3), dtype=np.float32).reshape(-1) for m in masks])
        parts = np.pad(parts, ((0, 1), (0, 0)), constant_values=-1)  # the vendor's: the whole picture's comes last
        grid = tuple((t * window + before + after + 1) // 2 for t in tiling)
        ids = self._tokens(self.pooled, self.pooled) + self._tokens(grid[0], grid[1])
        data = {"images": images, "image_masks": parts, "patch_order": self._order(tiling, window)}
        return data, Span(ids, self.image_token)

    def _tokens(self, rows: int, columns: int) -> list[int]:
        return [self.start, *[*[self.image_token] * columns, self.column] * rows, self.end]

    def _fitted(self, picture: Picture, target: tuple[int, ...]) -> tuple[Array, Array]:
        """A picture scaled into `target` as floats, padded and normalized, and where it is in it."""
        edges = [np.float32(edge) for edge in size_of(picture)]
        scale = min(np.float32(t) / edge for t, edge in zip(target, edges, strict=True))
        height, width = (int(edge * scale) for edge in edges)
        floats = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
        inner = np.clip(resize_floats(floats, (max(height, 1), max(width, 1))), 0, 1)
        top, left = (target[0] - height) // 2, (target[1] - width) // 2
        pixels, mask = np.zeros((3, *target), np.float32), np.zeros(target, bool)
        pixels[:, top : top + height, left : left + width] = inner
        mask[top : top + height, left : left + width] = True
        mean, std = (np.array(x, np.float32)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
        return (pixels - mean) / std if self.settings.get("do_normalize", True) else pixels, mask

    def _order(self, tiling: Size, window: int) -> Array:
        """For each token of the grid, row by row, the pooled patch that it takes: of a crop, outside its margins."""
        valid = np.zeros((*tiling, self.pooled, self.pooled), bool)
        for i, j in np.ndindex(*tiling):
            spans = []
            for at, last in ((i, tiling[0] - 1), (j, tiling[1] - 1)):
                start = self.margins[0] // 2 if at else 0
                patches = window + (0 if at else self.margins[0]) + (self.margins[1] if at == last else 0)
                spans.append(slice(start, start + math.ceil(patches / 2)))
            valid[i, j, spans[0], spans[1]] = True
        numbers = np.arange(valid.size).reshape(valid.shape).transpose(0, 2, 1, 3)
        inside = numbers[valid.transpose(0, 2, 1, 3)] + self.pooled**2
        return np.concatenate([np.arange(self.pooled**2), inside])
