"""Ultravox: a log-mel as long as the sound."""

from octavo.errors import InvalidRequestError
from octavo.media.feature import Data, Span
from octavo.media.limits import whole
from octavo.media.mel import LogMel
from octavo.media.processor import AUDIO_ROWS, AUDIOS, Config, Processor
from octavo.media.sounds import Sound
from octavo.media.vocabulary import Place


class UltravoxProcessor(Processor):
    """UltravoxModel: audio_values are (bins, frames)."""

    family = "Ultravox"
    takes = AUDIOS
    embeds = AUDIO_ROWS
    audio_mark = "<|reserved_special_token_0|>"

    def setup(self, config: Config) -> None:
        audio = config.get("audio_config") or {}
        self.mel = LogMel(self.settings, whole(audio.get("num_mel_bins", 80)))
        self.mel.check_positions(whole(audio.get("max_source_positions", 1500)))
        self.stack = whole(config.get("stack_factor", 8))
        self.audio_token = self.vocabulary.id("<|reserved_special_token_0|>")

    def token(self, kind: str) -> int:
        return self.audio_token

    def places(self, token_ids: list[int]) -> list[Place]:
        return super().places(token_ids) or self.vocabulary.places_of(r"<\|audio\|>", token_ids, "audio")

    def audio(self, sound: Sound, index: int, count: int) -> tuple[Data, Span]:
        samples = self.mel.samples(sound)
        least = self.mel.fft_length // 2 + 1
        if len(samples) < least:
            raise InvalidRequestError(f"audio {index + 1} is too short. Send {least} samples or more.")
        features = self.mel(samples)
        halved = (features.shape[1] + 1) // 2
        return {"audio_values": features}, Span([self.audio_token] * -(-halved // self.stack))
