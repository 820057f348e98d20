"""Whisper's log-mel spectrogram, which several models hear by."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from octavo.errors import CheckpointError
from octavo.media.limits import whole
from octavo.media.sounds import Sound
from octavo.media.sources import Array


class LogMel:
    """Whisper's feature extractor by its preprocessor_config.json."""

    def __init__(self, config: Mapping[str, Any], num_mel_bins: int = 80) -> None:
        self.rate = whole(config.get("sampling_rate", 16000), 1 << 20)
        self.hop = whole(config.get("hop_length", 160))
        self.fft_length = whole(config.get("n_fft", 400), 1 << 14, least=2)
        self.window = whole(config.get("chunk_length", 30), 3600) * self.rate
        """Samples that are heard; what comes after them is cut off."""
        self.num_bins = whole(config.get("feature_size", num_mel_bins), 1 << 12)

    def check_positions(self, positions: int) -> None:
        """Raises CheckpointError where more is heard than an encoder of so many positions, of two frames, can read."""
        frames = self.window // self.hop
        if (frames + 1) // 2 > positions:
            raise CheckpointError(
                f"preprocessor_config.json: its {self.window // self.rate} s (chunk_length) are {frames} frames,"
                f" and config.json's audio_config has max_source_positions {positions}, for {2 * positions} frames. "
                "Take both files of the same model."
            )

    def samples(self, sound: Sound) -> Array:
        """A sound's samples at the model's rate, as many as are heard."""
        return sound.at_rate(self.rate).samples[: self.window]

    @property
    def window_frames(self) -> int:
        """Frames of a window."""
        return self.window // self.hop

    def __call__(self, samples: Array) -> Array:
        """float32 of shape (bins, samples // hop)."""
        padded = np.pad(samples, self.fft_length // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.fft_length)[:: self.hop][:-1]
        # A window at a time: the spectrum of a long sound takes a hundred times the sound's memory.
        step = max(1, self.window_frames)
        logs = [self._logs(frames[start : start + step]) for start in range(0, len(frames), step)]
        highest = max(part.max() for part in logs)
        levels = [((np.maximum(part, highest - 8.0) + 4.0) / 4.0).astype(np.float32) for part in logs]
        return np.concatenate(levels, 1)

    def _logs(self, frames: Array) -> Array:
        """Logarithms of power, (bins, frames)."""
        filters = mel_filters(self.fft_length // 2 + 1, self.num_bins, self.rate)
        hann = np.hanning(self.fft_length + 1)[:-1]
        power = np.abs(np.fft.rfft(frames * hann)) ** 2
        logs: Array = np.log10(np.maximum(power @ filters, 1e-10)).T
        return logs


@functools.lru_cache(maxsize=8)
def mel_filters(num_frequencies: int, num_bins: int, rate: int, highest: float = 8000.0) -> Array:
    """Slaney's triangles, each with the area of its band: float64 of shape (frequencies, bins)."""
    corners = _hertz(np.linspace(0.0, _mels(highest), num_bins + 2))
    slopes = corners[None] - np.linspace(0, rate // 2, num_frequencies)[:, None]
    widths = np.diff(corners)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles: Array = np.maximum(0, np.minimum(rising, falling)) * (2.0 / (corners[2:] - corners[:-2]))
    return triangles


_STEP = 27.0 / np.log(6.4)
"""Slaney's scale is even below 1,000 Hz (15 mels), and logarithmic above."""


def _mels(hertz: float) -> float:
    return float(15.0 + np.log(hertz / 1000.0) * _STEP) if hertz >= 1000.0 else 3.0 * hertz / 200.0


def _hertz(mels: Array) -> Array:
    return np.where(mels >= 15.0, 1000.0 * np.exp((mels - 15.0) / _STEP), 200.0 * mels / 3.0)
