"""Whisper: one log-mel of a window, which all of the prompt sees by cross-attention."""

import dataclasses

import numpy as np

from octavo.errors import InvalidRequestError
from octavo.media.feature import Data, MediaFeature, Processed, Span, content_digest
from octavo.media.limits import token_id, whole
from octavo.media.mel import LogMel
from octavo.media.processor import ONE_AUDIO, Config, Processor
from octavo.media.sounds import Sound
from octavo.media.sources import Array
from octavo.media.windows import SoundWindows


class WhisperProcessor(Processor):
    """WhisperForConditionalGeneration: input_features (bins, window).

    The prompt is the decoder's, and all of it sees the sound; <|startoftranscript|> stands for it, and stays as it is.
    """

    family = "Whisper"
    takes = ONE_AUDIO
    transcribes = True
    audio_mark = "<|startoftranscript|>"

    def setup(self, config: Config) -> None:
        self.start = token_id(config.get("decoder_start_token_id", 50257))
        self.mel = LogMel(self.settings, whole(config.get("num_mel_bins", 80)))
        self.mel.check_positions(whole(config.get("max_source_positions", 1500)))

    def token(self, kind: str) -> int:
        return self.start

    def encode(self, text: str) -> list[int]:
        return self.vocabulary.encode(text)  # the tokenizer would write a transcript's beginning and end around it

    def audio(self, sound: Sound, index: int, count: int) -> tuple[Data, Span]:
        heard, seconds = self.mel.window / self.mel.rate, len(sound.samples) / sound.rate
        if seconds > heard + 0.01:  # what resampling and a container's padding add
            raise InvalidRequestError(
                f"audio {index + 1} of {count} lasts {seconds:.1f} s, and Whisper hears {heard:g} s at once. "
                "Transcribe it (LLM.transcribe, /v1/audio/transcriptions), or cut it into pieces."
            )
        samples = self.mel.samples(sound)
        features = self.mel(np.pad(samples, (0, self.mel.window - len(samples))))
        return {"input_features": features}, Span([self.start])

    def finish(self, processed: Processed) -> Processed:
        return dataclasses.replace(processed, features=[_crossed(feature) for feature in processed.features])

    @property
    def sampling_rate(self) -> int:
        return self.mel.rate

    def windows(self, sound: Sound) -> SoundWindows:
        mel = self.mel
        samples = sound.at_rate(mel.rate).samples
        lacking = mel.window - len(samples)
        frames = mel(np.pad(samples, (0, lacking)) if lacking > 0 else samples)
        seconds, heard = len(samples) / mel.rate, max(1, len(samples) // mel.hop)
        return SoundWindows(frames, heard, mel.window_frames, mel.hop / mel.rate, 2, seconds, self._window)

    def _window(self, frames: Array) -> MediaFeature:
        digest = content_digest(frames, "window", self._how)
        return _crossed(MediaFeature("audio", {"input_features": frames}, 0, 1, digest))


def _crossed(feature: MediaFeature) -> MediaFeature:
    """A feature that cross-attention sees from the prompt's first token on."""
    rows = (feature.data["input_features"].shape[1] + 1) // 2
    return dataclasses.replace(feature, length=0, visible=(0, None), cross_rows=rows)
