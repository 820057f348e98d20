"""GLM-4V: a square, whose tokens stand between two marks that are replaced as well."""

import dataclasses

import numpy as np

from octavo.media.feature import Data, Processed, Span, spread_positions
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BICUBIC, resize
from octavo.media.processor import ONE_IMAGE, Config, Processor
from octavo.media.vocabulary import Place


class GLM4VProcessor(Processor):
    """ChatGLMModel with a vision_config: images are (3, side, side); the tower gives two rows more than patches.

    All patches share one position, so that the prompt has fewer positions than tokens.
    """

    family = "GLM-4V"
    takes = ONE_IMAGE
    image_mark = "<|begin_of_image|><|endoftext|><|end_of_image|>"

    def setup(self, config: Config) -> None:
        vision = config["vision_config"]
        self.side = whole(vision["image_size"])
        self.patches = (self.side // whole(vision["patch_size"]) // 2) ** 2
        self.begin, self.end = token_id(config["boi_token_id"]), token_id(config["eoi_token_id"])
        self.middle = token_id(config.get("pad_token_id", 151329))

    def places(self, token_ids: list[int]) -> list[Place]:
        begins = (i for i, token in enumerate(token_ids[:-2]) if token == self.begin)
        return [Place("image", i, i + 3) for i in begins if token_ids[i + 2] == self.end]

    def finish(self, processed: Processed) -> Processed:
        inner = np.array([[0, *[1] * self.patches, 2]])
        spans = [(feature.offset, inner) for feature in processed.features]
        return dataclasses.replace(processed, positions=spread_positions(len(processed.token_ids), 1, spans))

    def placeholders(self) -> frozenset[int]:
        return frozenset()

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        ids = [self.begin, *[self.middle] * self.patches, self.end]
        return {"images": self.values(resize(picture, (self.side, self.side), BICUBIC))}, Span(ids)
