"""Pictures, from whatever a request brings, as RGB."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from octavo.errors import InvalidRequestError, shorten
from octavo.media.limits import DEFAULT_LIMITS, MediaLimits, check_picture_size
from octavo.media.sources import Array, as_array, as_bytes

Picture = Image.Image
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded: no format that starts a program, or reads another file."""
_KINDS = "bytes of an image file, a path, a PIL image, or an array of shape (height, width, 3)"


def decode_picture(value: object, limits: MediaLimits = DEFAULT_LIMITS, name: str = "the image") -> Picture:
    """A picture as RGB, upright as its camera says; transparency is laid over white, as the references do.

    Args:
        value: bytes of a file, a path, a PIL image, or an array: (height, width), with 1, 3 or 4 channels behind or
            before, of bytes or of floats from 0 to 1.
        name: what messages call it.

    Raises InvalidRequestError for what is no picture, is damaged, or exceeds the limits.
    """
    if isinstance(value, Image.Image):
        return _finished(value, limits, name)
    data = as_bytes(value, limits, name)
    if data is not None:
        try:
            picture = Image.open(io.BytesIO(data), formats=_known_formats())
        except Exception as error:
            if isinstance(error, Image.DecompressionBombError):
                raise InvalidRequestError(f"{name} has too many pixels: {error}. Make it smaller first.") from error
            kinds = ", ".join(_known_formats())
            raise InvalidRequestError(f"{name} is no picture that can be read. Formats are {kinds}.") from error
        return _finished(picture, limits, name)
    array = as_array(value)
    if array is None:
        raise InvalidRequestError(f"{name} is of type {type(value).__name__}. Give {_KINDS}.")
    return Image.fromarray(picture_bytes(array, limits, name))


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of them that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _finished(picture: Picture, limits: MediaLimits, name: str) -> Picture:
    check_picture_size(picture.height, picture.width, limits, name)
    try:
        return _as_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # decoders raise whatever they like about damaged data
        reason = shorten(error, 120)
        raise InvalidRequestError(f"{name} is damaged and cannot be decoded ({reason}). Send it again.") from error


def _as_rgb(picture: Picture) -> Picture:
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB") if picture.mode != "RGB" else picture


def picture_bytes(array: Array, limits: MediaLimits, name: str) -> Array:
    """An array as (height, width, 3) bytes. Raises InvalidRequestError for other shapes, types and values."""
    given = f"{name} is an array of shape {array.shape} and type {array.dtype}"
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise InvalidRequestError(f"{given}. Give {_KINDS}.")
    check_picture_size(array.shape[0], array.shape[1], limits, name)
    array = level_bytes(array, given)
    if array.shape[-1] == 4:
        return np.asarray(_as_rgb(Image.fromarray(np.ascontiguousarray(array), "RGBA")))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def level_bytes(array: Array, given: str) -> Array:
    """Values as bytes: bytes as they are, floats from 0 to 1 times 255. Raises InvalidRequestError for others."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InvalidRequestError(f"{given}, and has values that are not finite. Give values from 0 to 1.")
        if array.min() >= 0 and array.max() <= 1:
            levels: Array = np.rint(array * 255).astype(np.uint8)
            return levels
    elif array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    raise InvalidRequestError(f"{given}. Give bytes (numpy.uint8) from 0 to 255, or floats from 0 to 1.")


def picture_content(picture: Picture) -> tuple[Any, ...]:
    """What a digest of a picture is made of."""
    return "picture", picture.size, picture.tobytes()
