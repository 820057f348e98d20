"""How much a picture, film or sound may be. What is larger is refused before it is decoded."""

from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequestError, shorten


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Bounds of one item. What is above them is an error of its request alone."""

    max_bytes: int = 256 << 20
    """Of a file, before decoding."""
    max_pixels: int = 1 << 26
    """Of a picture, or of one frame."""
    max_aspect_ratio: float = 200.0
    """Longer edge by shorter one: models resize by the shorter edge, or by the longer one."""
    max_frames: int = 1024
    """That a film may give to the model, after sampling."""
    max_film_pixels: int = 1 << 28
    """Of those frames together."""
    max_prompt_pixels: int = 1 << 28
    """Of all pictures and frames of one prompt."""
    max_decoded_frames: int = 36_000
    """That are looked at in a film's file to find them."""
    max_seconds: float = 1800.0
    """Of a sound."""
    max_channels: int = 8
    max_samples: int = 1 << 27
    """Of a sound, all channels together."""


DEFAULT_LIMITS = MediaLimits()


def whole(value: Any, most: int = 1 << 16, least: int = 1) -> int:
    """A size or count of a checkpoint's configuration, within bounds. Raises ValueError, or TypeError."""
    if isinstance(value, bool) or value != int(value) or not least <= value <= most:
        raise ValueError(f"{shorten(value)} where a number from {least} to {most:,} belongs")
    return int(value)


def token_id(value: Any) -> int:
    """A token's id in a checkpoint's configuration. Raises ValueError, or TypeError."""
    return whole(value, 1 << 31, least=0)


def check_picture_size(height: int, width: int, limits: MediaLimits, name: str) -> None:
    """Raises InvalidRequestError for what is empty, too large or too thin; `name` is how the message calls it."""
    size = f"{name} is {width} x {height} pixels"
    if height < 1 or width < 1:
        raise InvalidRequestError(f"{size}, so there is nothing to see. Send one with at least 1 x 1.")
    if height * width > limits.max_pixels:
        raise InvalidRequestError(f"{size}, more than the {limits.max_pixels:,} allowed. Make it smaller first.")
    if max(height, width) > limits.max_aspect_ratio * min(height, width):
        ratio = f"its longer edge may be at most {limits.max_aspect_ratio:g} times the shorter"
        raise InvalidRequestError(f"{size}; {ratio}. Cut it into pieces.")


def check_film_size(frames: int, height: int, width: int, limits: MediaLimits, name: str) -> None:
    """Raises InvalidRequestError for a film without frames, with too many, or with too many pixels in all."""
    check_picture_size(height, width, limits, f"a frame of {name}")
    remedy = "Take fewer frames (num_frames or fps of the media options), or smaller ones."
    if frames < 1:
        raise InvalidRequestError(f"{name} has no frames. Send at least one.")
    if frames > limits.max_frames:
        raise InvalidRequestError(
            f"{name} has {frames:,} frames, more than the {limits.max_frames:,} allowed. {remedy}"
        )
    if frames * height * width > limits.max_film_pixels:
        size = f"{frames} frames of {width} x {height} pixels"
        raise InvalidRequestError(f"{name} has {size}, more than {limits.max_film_pixels:,} pixels in all. {remedy}")


def check_sound_size(samples: int, channels: int, rate: int, limits: MediaLimits, name: str) -> None:
    """Raises InvalidRequestError for a sound that is empty or too long; `samples` are those of one channel."""
    if samples < 1:
        raise InvalidRequestError(f"{name} has no samples. Send at least one.")
    if not 1 <= channels <= limits.max_channels:
        raise InvalidRequestError(
            f"{name} has {channels} channels; 1 to {limits.max_channels} are taken. Mix it first."
        )
    if samples > limits.max_seconds * rate or samples * channels > limits.max_samples:
        length = f"{samples / rate:,.0f} seconds long"
        raise InvalidRequestError(f"{name} is {length}, more than the {limits.max_seconds:,.0f} allowed. Cut it.")
