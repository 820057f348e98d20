"""LLaVA-1.5 and its kind: a picture is one square, and a token for each patch."""

import re
from typing import ClassVar

from octavo.media.feature import Data, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.processor import IMAGE_ROWS, Config, Processor
from octavo.media.vocabulary import Place


class LlavaProcessor(Processor):
    """LlavaForConditionalGeneration with CLIP or SigLIP (PixtralProcessor has Pixtral's tower)."""

    family = "LLaVA"
    embeds = IMAGE_ROWS
    image_mark = "<image>"
    usual_tower: ClassVar[Config] = {"model_type": "clip_vision_model", "patch_size": 14, "image_size": 336}
    """The tower of a config that says nothing of it."""
    usual_strategy: ClassVar[str] = "default"

    def setup(self, config: Config) -> None:
        self.image_token = token_id(config.get("image_token_index", config.get("image_token_id", 32000)))
        tower = config.get("vision_config") or self.usual_tower
        self.has_class_token: bool = (tower.get("model_type") or self.usual_tower["model_type"]) == "clip_vision_model"
        patch, side = (32, 224) if self.has_class_token else (16, 224)
        self.patch = whole(tower.get("patch_size") or patch)
        self.settings.setdefault("size", {"shortest_edge": tower.get("image_size") or side})
        strategy = config.get("vision_feature_select_strategy") or self.usual_strategy
        self.drops_first: bool = strategy == "default"

    def token(self, kind: str) -> int:
        return self.image_token

    def places(self, token_ids: list[int]) -> list[Place]:
        found, mark = super().places(token_ids), self.image_mark
        if found or not mark or self.vocabulary.tokenizer is None or self.vocabulary.find(mark) is not None:
            return found
        # The text model of a GGUF of before transformers' own format has no token for the mark.
        return self.vocabulary.places_of(re.escape(mark), token_ids)

    def patch_tokens(self, patches: int) -> int:
        """How many features a tile of so many patches gives: the class token comes or goes with the strategy."""
        return patches + int(self.has_class_token) - int(self.drops_first)

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        pixels = self.standard(picture)
        patches = (pixels.shape[1] // self.patch) * (pixels.shape[2] // self.patch)
        return {"pixel_values": pixels}, Span([self.image_token] * self.patch_tokens(patches))
