"""PaliGemma: the picture's tokens come first, then <bos>, the prompt, and a newline."""

from octavo.media.feature import Data, Span
from octavo.media.pictures import Picture
from octavo.media.processor import IMAGE_ROWS, ONE_IMAGE, Config, Processor
from octavo.media.vocabulary import Place


class PaliGemmaProcessor(Processor):
    """PaliGemmaForConditionalGeneration: pixel_values are (3, side, side)."""

    family = "PaliGemma"
    takes = ONE_IMAGE
    embeds = IMAGE_ROWS
    mean = std = (0.5, 0.5, 0.5)

    def setup(self, config: Config) -> None:
        vision = config["vision_config"]
        self.image_token = int(config.get("image_token_index", config.get("image_token_id", 257152)))
        self.settings.setdefault("size", {"height": vision["image_size"], "width": vision["image_size"]})
        patches = (vision.get("image_size", 224) // vision.get("patch_size", 14)) ** 2
        self.tokens = int(self.settings.get("image_seq_length") or patches)
        self.newline = self.vocabulary.encode("\n")

    def token(self, kind: str) -> int:
        return self.image_token

    def prepare(self, token_ids: list[int]) -> list[int]:
        return [t for t in token_ids if t != self.image_token] + self.newline

    def places(self, token_ids: list[int]) -> list[Place]:
        return [Place("image", 0, 0)]

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        return {"pixel_values": self.standard(picture)}, Span([self.image_token] * self.tokens)
