"""LLaVA-1.5 and its kind: a picture is one square, and a token for each patch."""

from octavo.media.feature import Data, Span
from octavo.media.limits import token_id, whole
from octavo.media.pictures import Picture
from octavo.media.processor import IMAGE_ROWS, Config, Processor


def patch_tokens(config: Config, patches: int) -> int:
    """How many features a tile of so many patches gives: the class token comes or goes with the strategy."""
    class_tokens = int(config["vision_config"].get("model_type", "clip_vision_model") == "clip_vision_model")
    return patches + class_tokens - int(config.get("vision_feature_select_strategy", "default") == "default")


class LlavaProcessor(Processor):
    """LlavaForConditionalGeneration with CLIP or SigLIP (PixtralProcessor has Pixtral's tower)."""

    family = "LLaVA"
    embeds = IMAGE_ROWS
    image_mark = "<image>"

    def setup(self, config: Config) -> None:
        self.image_token = token_id(config.get("image_token_index", config.get("image_token_id", 32000)))
        default = 32 if config["vision_config"].get("model_type") == "clip_vision_model" else 16
        self.patch = whole(config["vision_config"].get("patch_size") or self.files.processor.get("patch_size", default))
        self.settings.setdefault("size", {"shortest_edge": config["vision_config"].get("image_size", 336)})

    def token(self, kind: str) -> int:
        return self.image_token

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        pixels = self.standard(picture)
        patches = (pixels.shape[1] // self.patch) * (pixels.shape[2] // self.patch)
        return {"pixel_values": pixels}, Span([self.image_token] * patch_tokens(self.files.config, patches))
