"""Qwen2-Audio: a log-mel that is padded to the window."""

import numpy as np

from octavo.errors import InvalidRequestError
from octavo.media.feature import Data, Span
from octavo.media.limits import token_id, whole
from octavo.media.mel import LogMel
from octavo.media.processor import AUDIOS, Config, Processor
from octavo.media.sounds import Sound


class Qwen2AudioProcessor(Processor):
    """Qwen2AudioForConditionalGeneration: input_features (bins, window), feature_attention_mask (window,)."""

    family = "Qwen2-Audio"
    takes = AUDIOS
    audio_mark = "Audio {n}: <|audio_bos|><|AUDIO|><|audio_eos|>"

    def setup(self, config: Config) -> None:
        self.audio_token = token_id(config.get("audio_token_index", config.get("audio_token_id", 151646)))
        audio = config["audio_config"]
        self.mel = LogMel(self.settings, whole(audio.get("num_mel_bins", 128)))
        self.mel.check_positions(whole(audio.get("max_source_positions", 1500)))

    def token(self, kind: str) -> int:
        return self.audio_token

    def audio(self, sound: Sound, index: int, count: int) -> tuple[Data, Span]:
        samples = self.mel.samples(sound)
        frames = -(-len(samples) // self.mel.hop)
        tokens = ((frames - 1) // 2 - 1) // 2 + 1
        if tokens < 1:
            raise InvalidRequestError(f"audio {index + 1} is too short. Send {3 * self.mel.hop} samples or more.")
        features = self.mel(np.pad(samples, (0, self.mel.window - len(samples))))
        mask = (np.arange(features.shape[1]) < frames).astype(np.int64)
        return {"input_features": features, "feature_attention_mask": mask}, Span([self.audio_token] * tokens)
