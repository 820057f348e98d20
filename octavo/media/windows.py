"""A sound of any length as a model hears it: in windows, each of which begins where the text before it ends."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from octavo.media.feature import MediaFeature
from octavo.media.limits import DEFAULT_LIMITS
from octavo.media.sounds import Sound
from octavo.media.sources import Array

LONG_SOUNDS = replace(DEFAULT_LIMITS, max_bytes=2 << 30, max_seconds=4 * 3600.0, max_samples=1 << 31)
"""Of a sound that is transcribed: it has the model's rate, and one channel, from the moment that it is read."""


@dataclass(frozen=True, slots=True)
class SoundWindows:
    """The frames of a sound, of which a model hears so many at once."""

    frames: Array
    """float32 of shape (bins, frames), as many as a window has at least: silence follows a short sound."""
    num_frames: int
    """Those of the sound itself."""
    window: int
    """Frames that are heard at once."""
    frame_seconds: float
    frames_per_row: int
    """Frames from one row of the encoder to the next, which is also from one timestamp to the next."""
    duration: float
    """Seconds."""
    read: Callable[[Array], MediaFeature]
    """What the encoder reads of a window's frames."""

    def at(self, seek: int) -> MediaFeature:
        """The window that begins with frame `seek`, with zeros where the frames end."""
        part = self.frames[:, seek : seek + self.window]
        lacking = self.window - part.shape[1]
        return self.read(np.pad(part, ((0, 0), (0, lacking))) if lacking else part)


@runtime_checkable
class HearsWindows(Protocol):
    """A processor whose model transcribes."""

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        ...

    def windows(self, sound: Sound) -> SoundWindows: ...
