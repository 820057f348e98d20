"""Chameleon: pictures become tokens of its own vocabulary, which the model finds; the processor leaves room."""

from octavo.media.feature import Data, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.processor import Config, Processor


class ChameleonProcessor(Processor):
    """ChameleonForConditionalGeneration: pixel_values are (3, side, side)."""

    family = "Chameleon"
    mean = std = (1.0, 1.0, 1.0)
    image_mark = "<image>"

    def setup(self, config: Config) -> None:
        known = config.get("vocabulary_map") or {}
        words = self.files.processor

        def find(name: str) -> int:
            return token_id(known[name]) if name in known else self.vocabulary.id(name)

        self.image_token = find(words.get("image_token", "<image>"))
        self.start, self.end, self.separator = find("<racm3:break>"), find("<eoss>"), find("<reserved08706>")
        self.tokens = whole(words.get("image_seq_length", 1024))
        for key, value in (("resample", 1), ("rescale_factor", 0.0078), ("size", {"shortest_edge": 512})):
            self.settings.setdefault(key, value)
        self.settings.setdefault("crop_size", {"height": 512, "width": 512})

    def token(self, kind: str) -> int:
        return self.image_token

    def prepare(self, token_ids: list[int]) -> list[int]:
        return [*token_ids, self.separator]

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        ids = [self.start, *[self.image_token] * self.tokens, self.end]
        return {"pixel_values": self.standard(picture)}, Span(ids, self.image_token)
