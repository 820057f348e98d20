"""Fuyu: no tower; a picture's patches, row by row, come before the prompt."""

import math

from octavo.media.feature import Data, Span
from octavo.media.limits import whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BILINEAR, pad, patches, resize, size_of, square
from octavo.media.processor import ONE_IMAGE, Config, Processor
from octavo.media.vocabulary import Place


class FuyuProcessor(Processor):
    """FuyuForCausalLM: image_patches are (patches, size * size * 3), each as rows, columns, colours."""

    family = "Fuyu"
    takes = ONE_IMAGE
    mean = std = (0.5, 0.5, 0.5)

    def setup(self, config: Config) -> None:
        settings, find = self.settings, self.vocabulary.id
        self.patch = square(settings.get("patch_size") or config.get("patch_size", 30))[0]
        self.most = square(settings.get("size") or {"height": 1080, "width": 1920})
        self.filling = whole(settings.get("padding_value", 1), 255, least=0)
        self.image_token, self.newline = find("|SPEAKER|"), find("|NEWLINE|")
        self.begin, self.answer, self.first = find("<s>"), find("<0x04>"), self.vocabulary.find("|ENDOFTEXT|")

    def token(self, kind: str) -> int:
        return self.image_token

    def prepare(self, token_ids: list[int]) -> list[int]:
        return [self.begin, *token_ids[token_ids[:1] == [self.first] :], self.answer]

    def places(self, token_ids: list[int]) -> list[Place]:
        return [Place("image", 0, 0)]

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        size = size_of(picture)
        scale = min(self.most[0] / size[0], self.most[1] / size[1])
        if scale < 1:
            shrunk = max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)
            picture = resize(picture, shrunk, self.settings.get("resample", BILINEAR))
        rows, columns = math.ceil(picture.height / self.patch), math.ceil(picture.width / self.patch)
        canvas = pad(picture, (rows * self.patch, columns * self.patch), colour=(self.filling,) * 3)
        cells = patches(self.values(canvas), self.patch).transpose(0, 1, 3, 4, 2)
        ids = [*[self.image_token] * columns, self.newline] * rows
        return {"image_patches": cells.reshape(rows * columns, -1)}, Span(ids, self.image_token)
