"""BLIP-2: the queries' tokens come before everything."""

from octavo.media.feature import Data, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.processor import IMAGE_ROWS, ONE_IMAGE, Config, Processor
from octavo.media.vocabulary import Place


class Blip2Processor(Processor):
    """Blip2ForConditionalGeneration: pixel_values are (3, side, side)."""

    family = "BLIP-2"
    takes = ONE_IMAGE
    embeds = IMAGE_ROWS

    def setup(self, config: Config) -> None:
        found = config.get("image_token_index", config.get("image_token_id", self.vocabulary.find("<image>")))
        self.image_token = token_id(50265 if found is None else found)
        self.queries = whole(config.get("num_query_tokens", 32))
        edge = config["vision_config"].get("image_size", 224)
        self.settings.setdefault("size", {"height": edge, "width": edge})

    def token(self, kind: str) -> int:
        return self.image_token

    def prepare(self, token_ids: list[int]) -> list[int]:
        return [t for t in token_ids if t != self.image_token]

    def places(self, token_ids: list[int]) -> list[Place]:
        return [Place("image", 0, 0)]

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        return {"pixel_values": self.standard(picture)}, Span([self.image_token] * self.queries)
