"""Qwen-VL: a square, whose queries stand between <img> and </img>."""

from octavo.media.feature import Data, Embeddings, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BICUBIC, resize
from octavo.media.processor import IMAGE_ROWS, Config, Processor
from octavo.media.vocabulary import Place


class QwenVLProcessor(Processor):
    """QWenLMHeadModel with `visual`: pixel_values are (3, side, side)."""

    family = "Qwen-VL"
    embeds = IMAGE_ROWS
    image_mark = "Picture {n}: <img></img>"

    def setup(self, config: Config) -> None:
        visual = config["visual"]
        self.side, self.queries = whole(visual["image_size"]), whole(visual.get("n_queries", 256))
        self.start = token_id(visual["image_start_id"])
        self.end, self.image_token = self.start + 1, self.start + 2

    def places(self, token_ids: list[int]) -> list[Place]:
        starts = [i for i, token in enumerate(token_ids) if token == self.start]
        ends = [i for i, token in enumerate(token_ids) if token == self.end]
        return [Place("image", i, j + 1) for i, j in zip(starts, ends, strict=False) if i < j]

    def placeholders(self) -> frozenset[int]:
        return frozenset()

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        pixels = self.values(resize(picture, (self.side, self.side), BICUBIC))
        return {"pixel_values": pixels}, self._span(self.queries)

    def rows(self, kind: str, item: Embeddings, index: int, count: int) -> Span:
        return self._span(len(item.rows))

    def _span(self, rows: int) -> Span:
        return Span([self.start, *[self.image_token] * rows, self.end], self.image_token)
