"""PaliGemma: the picture's tokens come first, or where the prompt has <image>, then <bos>; a newline ends it."""

from octavo.media.feature import Data, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.processor import IMAGE_ROWS, ONE_IMAGE, Config, Processor


class PaliGemmaProcessor(Processor):
    """PaliGemmaForConditionalGeneration: pixel_values are (3, side, side)."""

    family = "PaliGemma"
    takes = ONE_IMAGE
    embeds = IMAGE_ROWS
    mean = std = (0.5, 0.5, 0.5)

    def setup(self, config: Config) -> None:
        vision = config.get("vision_config") or {"patch_size": 14}
        side, patch = vision.get("image_size") or 224, vision.get("patch_size") or 16
        self.image_token = token_id(config.get("image_token_index", config.get("image_token_id", 257152)))
        self.settings.setdefault("size", {"height": side, "width": side})
        self.tokens = whole(self.settings.get("image_seq_length") or (side // patch) ** 2)
        self.bos, self.newline = token_id(config.get("bos_token_id", 2)), self.vocabulary.encode("\n")

    def token(self, kind: str) -> int:
        return self.image_token

    def prepare(self, token_ids: list[int]) -> list[int]:
        text = token_ids[token_ids[:1] == [self.bos] :]
        if self.image_token not in text:
            return [self.image_token, self.bos, *text, *self.newline]
        behind = text.index(self.image_token) + 1
        return [*text[:behind], self.bos, *text[behind:], *self.newline]

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        return {"pixel_values": self.standard(picture)}, Span([self.image_token] * self.tokens)

    @classmethod
    def both_ways(cls, tokens: int) -> list[tuple[int, int]]:
        return [(0, tokens)]
