"""Qwen2-Audio (Chu et al. 2024): Whisper's encoder, of whose rows two become one, and Qwen2."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from octavo.architectures.audio_config import WHISPER, mel_settings, whisper_encoder, whisper_mmproj_names
from octavo.architectures.composite import with_tower
from octavo.architectures.model_config import Config
from octavo.architectures.projector_format import ProjectorFormat, ProjectorHeader
from octavo.architectures.registry import architecture
from octavo.architectures.text_config import text_model
from octavo.media.processors.qwen2_audio import Qwen2AudioProcessor
from octavo.parts import CausalLM, Linear, MediaData, MediaTower, WhisperEncoder, together, whisper_names

NAMES = {**whisper_names(), "multi_modal_projector.linear": "media.project"}
AUDIO = {
    **WHISPER,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
}


class Qwen2AudioTower(MediaTower):
    """Frames of the sound itself, though the log-mel is padded to a window; neighbours are averaged, then normed."""

    def __init__(self, tower: WhisperEncoder, hidden_size: int) -> None:
        super().__init__()
        self.tower = tower
        self.project = Linear(tower.positions.shape[1], hidden_size, True)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        frames = [int(item["feature_attention_mask"].sum()) for item in items]
        rows = self.tower([item["input_features"].to(self.dtype) for item in items], [(n - 1) // 2 + 1 for n in frames])
        pooled = [x[: len(x) // 2 * 2].view(-1, 2, x.shape[1]).mean(1) for x in rows]
        return together(pooled, lambda x, batch: self.project(self.tower.norm(x), batch))


def _mmproj_config(file: ProjectorHeader) -> dict[str, Any]:
    token = file.token("<|AUDIO|>")
    return {"audio_config": file.audio_config(), **({} if token is None else {"audio_token_index": token})}


@architecture(
    "Qwen2AudioForConditionalGeneration",
    about="Qwen2-Audio",
    examples=("Qwen/Qwen2-Audio-7B-Instruct",),
    media=Qwen2AudioProcessor,
    defaults={"audio_config": AUDIO},
    mmproj=(
        ProjectorFormat(
            "qwen2a",
            _mmproj_config,
            lambda file: {**whisper_mmproj_names(), "mm.a.fc": "media.project"},
            preprocessor=mel_settings,
        ),
    ),
)
def qwen2_audio(c: Config) -> CausalLM:
    text = text_model(c.section("text_config"), "qwen2")
    tower = Qwen2AudioTower(whisper_encoder(c.section("audio_config"), AUDIO), text.hidden_size)
    return with_tower(c, text, tower, NAMES)
