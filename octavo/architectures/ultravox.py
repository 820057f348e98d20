"""Ultravox (Fixie 2024): Whisper's encoder, whose rows are stacked and brought to the size of Llama's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.architectures.audio_config import WHISPER, whisper_encoder
from octavo.architectures.composite import with_tower
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.text_config import text_model
from octavo.errors import UnsupportedModelError
from octavo.media.processors.ultravox import UltravoxProcessor
from octavo.ops import Gate
from octavo.parts import (
    CausalLM,
    Into,
    Linear,
    MediaData,
    MediaTower,
    RMSNorm,
    SpanBatch,
    WhisperEncoder,
    together,
    whisper_names,
)


def gate_first(weight: Tensor) -> Tensor:
    """The published first layer has the gate in its second half."""
    return torch.cat(weight.chunk(2)[::-1])


NAMES: dict[str, str | Into] = {
    **whisper_names(),
    "multi_modal_projector.linear_1": Into("media.gate_up", gate_first),
    "multi_modal_projector.linear_2": "media.down",
    "multi_modal_projector.ln_pre": "media.first_norm",
    "multi_modal_projector.{ln_mid|ln_post}": "media.{mid_norm|last_norm}",
}


class UltravoxTower(MediaTower):
    """Stacked frames through a gated feed-forward with norms around it.

    Args:
        tower: gives the frames.
        stack: how many of them make a row.
        intermediate_size: values of gate and of up.
        hidden_size: of the text.
        norm_inside: whether the second norm is inside, before the last product (since v0.5), or behind it.
    """

    def __init__(
        self, tower: WhisperEncoder, stack: int, intermediate_size: int, hidden_size: int, norm_inside: bool
    ) -> None:
        super().__init__()
        stacked = tower.positions.shape[1] * stack
        self.tower, self.stack = tower, stack
        self.first_norm = RMSNorm(stacked, 1e-6)
        self.gate_up = Linear(stacked, {"gate": intermediate_size, "up": intermediate_size})
        self.mid_norm = RMSNorm(intermediate_size, 1e-6) if norm_inside else nn.Identity()
        self.down = Linear(intermediate_size, hidden_size)
        self.last_norm = nn.Identity() if norm_inside else RMSNorm(hidden_size, 1e-6)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        frames = self.tower([item["audio_values"].to(self.dtype) for item in items])
        return together([self._stacked(self.tower.norm(x)) for x in frames], self._project)

    def _stacked(self, x: Tensor) -> Tensor:
        return functional.pad(x, (0, 0, 0, -len(x) % self.stack)).view(-1, x.shape[1] * self.stack)

    def _project(self, x: Tensor, batch: SpanBatch) -> Tensor:
        x = self.mid_norm(self.gate_up.gated(self.first_norm(x), batch, Gate("silu")))
        return self.last_norm(self.down(x, batch))  # type: ignore[no-any-return]


@architecture(
    "UltravoxModel",
    about="Ultravox",
    examples=("fixie-ai/ultravox-v0_3",),
    media=UltravoxProcessor,
    defaults={
        "hidden_size": 4096,
        "stack_factor": 8,
        "projector_act": "swiglu",
        "projector_ln_mid": False,
        "audio_config": WHISPER,
    },
)
def ultravox(c: Config) -> CausalLM:
    if c.projector_act != "swiglu":
        raise UnsupportedModelError(f"config.json: projector_act {c.projector_act!r} is not supported; swiglu is.")
    text = text_model(c.section("text_config"), "llama")
    encoder = whisper_encoder(c.section("audio_config"))
    tower = UltravoxTower(encoder, c.stack_factor, c.hidden_size // 2, text.hidden_size, c.projector_ln_mid)
    return with_tower(c, text, tower, NAMES)
