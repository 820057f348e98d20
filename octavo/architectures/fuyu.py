"""Fuyu (Adept 2023): no tower; one linear map makes a row of each of a picture's patches. Persimmon reads them."""

from collections.abc import Sequence

from torch import Tensor

from octavo.architectures.composite import with_tower
from octavo.architectures.config_defaults import defaults_of
from octavo.architectures.model_config import Config
from octavo.architectures.persimmon import persimmon
from octavo.architectures.registry import architecture
from octavo.architectures.text_config import text_config
from octavo.media.processors.fuyu import FuyuProcessor
from octavo.parts import CausalLM, Linear, MediaData, MediaTower, together


class FuyuTower(MediaTower):
    """Patches of `inputs` values, each as a row."""

    def __init__(self, inputs: int, hidden_size: int) -> None:
        super().__init__()
        self.patches = Linear(inputs, hidden_size, True)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        return together([item["image_patches"].to(self.dtype) for item in items], self.patches)


@architecture(
    "FuyuForCausalLM",
    about="Fuyu",
    examples=("adept/fuyu-8b",),
    media=FuyuProcessor,
    defaults={**defaults_of("PersimmonForCausalLM"), "patch_size": 30, "num_channels": 3},
)
def fuyu(c: Config) -> CausalLM:
    text = persimmon(text_config(c))
    tower = FuyuTower(c.patch_size**2 * c.num_channels, text.hidden_size)
    return with_tower(c, text, tower, {"vision_embed_tokens": "media.patches"})
