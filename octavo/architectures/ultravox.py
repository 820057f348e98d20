"""Ultravox (Fixie 2024): Whisper's encoder, whose rows are stacked and brought to the size of Llama's."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from octavo.architectures.audio_config import WHISPER, mel_settings, whisper_encoder, whisper_mmproj_names
from octavo.architectures.composite import with_tower
from octavo.architectures.model_config import Config
from octavo.architectures.projector_format import ProjectorFormat, ProjectorHeader
from octavo.architectures.registry import OtherCheckpoint, architecture
from octavo.architectures.text_config import text_model
from octavo.media.processors.ultravox import UltravoxProcessor
from octavo.ops import Backend, Gate
from octavo.parts import (
    CausalLM,
    Into,
    Linear,
    MediaData,
    MediaTower,
    RMSNorm,
    SpanBatch,
    WhisperEncoder,
    gate_second,
    together,
    whisper_names,
)

SWIGLU = "swiglu"


NAMES: dict[str, str | Into] = {
    **whisper_names(),
    "multi_modal_projector.linear_1": gate_second("media.gate_up"),
    "multi_modal_projector.linear_2": "media.down",
    "multi_modal_projector.ln_pre": "media.first_norm",
    "multi_modal_projector.{ln_mid|ln_post}": "media.{mid_norm|last_norm}",
}


class UltravoxTower(MediaTower):
    """Stacked frames through a gated feed-forward with norms around it.

    Args:
        tower: gives the frames.
        stack: how many of them make a row.
        inner_size: values of the first product.
        hidden_size: of the text.
        activation: swiglu, whose gate and up have half of inner_size each, or one of a value.
        norm_inside: whether the second norm is inside, before the last product (since v0.5), or behind it.
    """

    def __init__(
        self,
        tower: WhisperEncoder,
        stack: int,
        inner_size: int,
        hidden_size: int,
        activation: str,
        norm_inside: bool,
    ) -> None:
        super().__init__()
        is_gated, self.activation = activation == SWIGLU, activation
        intermediate_size = inner_size // 2 if is_gated else inner_size
        stacked = tower.positions.shape[1] * stack
        self.tower, self.stack = tower, stack
        self.first_norm = RMSNorm(stacked, 1e-6)
        self.gate_up = Linear(stacked, {"gate": intermediate_size, "up": intermediate_size} if is_gated else inner_size)
        self.mid_norm = RMSNorm(intermediate_size, 1e-6) if norm_inside else nn.Identity()
        self.down = Linear(intermediate_size, hidden_size)
        self.last_norm = nn.Identity() if norm_inside else RMSNorm(hidden_size, 1e-6)

    def prepare(self, backend: Backend) -> None:
        self._activate = backend.activate

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        frames = self.tower([item["audio_values"].to(self.dtype) for item in items])
        return together([self._stacked(self.tower.norm(x)) for x in frames], self._project)

    def _stacked(self, x: Tensor) -> Tensor:
        return functional.pad(x, (0, 0, 0, -len(x) % self.stack)).view(-1, x.shape[1] * self.stack)

    def _project(self, x: Tensor, batch: SpanBatch) -> Tensor:
        x = self.first_norm(x)
        if self.activation == SWIGLU:
            x = self.gate_up.gated(x, batch, Gate("silu"))
        else:
            x = self._activate(self.gate_up(x, batch), self.activation)
        return self.last_norm(self.down(self.mid_norm(x), batch))  # type: ignore[no-any-return]


MMPROJ_NAMES: dict[str, str | Into] = {
    **whisper_mmproj_names(),
    "mm.a.mlp.1": gate_second("media.gate_up"),
    "mm.a.mlp.2": "media.down",
    "mm.a.{norm_pre|norm_mid}": "media.{first_norm|mid_norm}",
}
"""llama.cpp has no name for the last norm, so of versions before 0.5 there are no files."""


def _mmproj_config(file: ProjectorHeader) -> dict[str, Any]:
    first = file.tensors.get("mm.a.mlp.1.weight")
    return {
        "audio_config": file.audio_config(),
        "stack_factor": file.integer("audio.projector.stack_factor", 1, 64) or 8,
        "projector_ln_mid": True,
        **({} if first is None or not first.shape else {"hidden_size": first.shape[0]}),
    }


@architecture(
    "UltravoxModel",
    about="Ultravox",
    examples=("fixie-ai/ultravox-v0_3",),
    media=UltravoxProcessor,
    others={
        "text_model_id": OtherCheckpoint("text_config", {"": "language_model."}, has_tokenizer=True),
        "audio_model_id": OtherCheckpoint("audio_config", {"model.encoder.": "audio_tower."}, has_processor=True),
    },
    defaults={
        "hidden_size": 4096,
        "stack_factor": 8,
        "projector_act": SWIGLU,
        "projector_ln_mid": False,
        "audio_config": WHISPER,
    },
    mmproj=(ProjectorFormat("ultravox", _mmproj_config, lambda file: MMPROJ_NAMES, preprocessor=mel_settings),),
)
def ultravox(c: Config) -> CausalLM:
    names = NAMES
    if c.projector_act != SWIGLU:
        names = {**NAMES, "multi_modal_projector.linear_1": "media.gate_up"}
    text = text_model(c.section("text_config"), "llama")
    encoder = whisper_encoder(c.section("audio_config"))
    inner_size, act = c.hidden_size, c.projector_act
    tower = UltravoxTower(encoder, c.stack_factor, inner_size, text.hidden_size, act, c.projector_ln_mid)
    return with_tower(c, text, tower, names)
