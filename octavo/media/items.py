"""A request's media as it was written: one or several of a kind, as values, files, tensors or their towers' rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from octavo.errors import InvalidRequestError, did_you_mean, shorten
from octavo.media.feature import Item, as_embeddings
from octavo.media.films import decode_film, frame_sampling
from octavo.media.limits import DEFAULT_LIMITS, MediaLimits
from octavo.media.pictures import decode_picture
from octavo.media.sounds import decode_sound
from octavo.media.sources import Array, as_array

KINDS = ("image", "video", "audio")
MAX_ITEMS = 256


@dataclass(frozen=True, slots=True)
class MediaItems:
    """Decoded items of a prompt, in their order: what a processor takes."""

    images: list[Item] = field(default_factory=list)
    videos: list[Item] = field(default_factory=list)
    audios: list[Item] = field(default_factory=list)


def read_media(
    data: Mapping[str, Any],
    io_options: Mapping[str, Mapping[str, Any]] | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> MediaItems:
    """What `multi_modal_data` of a prompt holds, decoded.

    Args:
        data: by kind (image, video, audio), one item or several in a list. A dict {"image_embeds": rows} or a
            tensor of floats is an item's rows, with three axes those of several items; "image_grid_thw" or
            "image_sizes" (height, width) stand beside them where a model needs it. A list of pictures is one video.
        io_options: by kind; video has num_frames and fps.

    Raises InvalidRequestError that names the item.
    """
    check_kinds(data)
    pixels = 0
    sampling = frame_sampling((io_options or {}).get("video", {}))
    found: dict[str, list[Item]] = {}
    for kind, value in data.items():
        several = _several(kind, value)
        if len(several) > MAX_ITEMS:
            raise InvalidRequestError(f"the prompt has {len(several):,} {kind} items. Give {MAX_ITEMS} at most.")
        found[kind] = []
        for i, one in enumerate(several):
            name = kind if len(several) == 1 else f"{kind} {i + 1} of {len(several)}"
            rows = _rows(kind, one, name)
            if rows is not None:
                found[kind] += rows
            elif kind == "image":
                found[kind].append(decode_picture(one, limits, name))
            elif kind == "video":
                found[kind].append(decode_film(one, sampling, limits, name))
            else:
                found[kind].append(decode_sound(one, limits, name))
            pixels += _pixels(found[kind][-1])
            if pixels > limits.max_prompt_pixels:
                most = f"more than the {limits.max_prompt_pixels:,} pixels of one prompt"
                raise InvalidRequestError(f"with {name}, the prompt has {most}. Send fewer or smaller ones.")
    return MediaItems(*(found.get(kind, []) for kind in KINDS))


def check_kinds(data: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError for a kind of media that there is not."""
    unknown = [kind for kind in data if kind not in KINDS]
    if unknown:
        hint = did_you_mean(str(unknown[0]), KINDS)
        raise InvalidRequestError(
            f"multi_modal_data has no kind {shorten(unknown[0], 40)!r}.{hint} Give image, video or audio."
        )


def count_items(kind: str, value: Any) -> int:
    """How many items of a kind `multi_modal_data` has, before they are decoded: rows of several count once."""
    return len(_several(kind, value))


def _pixels(item: Item) -> int:
    if isinstance(item, Image.Image):
        return item.width * item.height
    return item.size // 3 if isinstance(item, np.ndarray) else 0


def _several(kind: str, value: Any) -> Sequence[Any]:
    if value is None:
        return []
    if not isinstance(value, list) and not (isinstance(value, tuple) and kind != "audio"):
        return [value]
    if kind == "video" and value and all(_is_picture(one) for one in value):
        return [value]
    return value


def _is_picture(value: Any) -> bool:
    array = value if isinstance(value, np.ndarray) else None
    return isinstance(value, Image.Image) or (array is not None and array.ndim in (2, 3))


def _rows(kind: str, value: Any, name: str) -> list[Item] | None:
    """Items that came as rows; None for what is none."""
    if isinstance(value, Mapping):
        if f"{kind}_embeds" not in value:
            raise InvalidRequestError(f"{name} is a dict without {kind}_embeds. Give it, or the {kind} itself.")
        rows = as_array(value[f"{kind}_embeds"])
        if rows is None:
            raise InvalidRequestError(f"{name} has {kind}_embeds that are no tensor or array. Give rows of floats.")
        grids = value.get(f"{kind}_grid_thw", value.get("image_sizes"))
        return _split(rows, as_array(np.array(grids) if isinstance(grids, list | tuple) else grids), name)
    tensor = None if isinstance(value, np.ndarray) else as_array(value)
    if tensor is None or tensor.ndim not in (2, 3) or tensor.dtype.kind != "f":
        return None
    return _split(tensor, None, name)


def _split(rows: Array, grids: Array | None, name: str) -> list[Item]:
    """Rows of several items apart: by their first axis of three, or in proportion to what their grids hold."""
    if grids is None:
        return [as_embeddings(one, name) for one in (rows if rows.ndim == 3 else rows[None])]
    grids = grids.reshape(1, -1) if grids.ndim == 1 else grids
    if grids.ndim != 2 or not grids.size or grids.dtype.kind not in "iu" or grids.min() < 1:
        raise InvalidRequestError(f"{name} has a grid that is none. Give a row of counts above 0 for each item.")
    volumes = grids.astype(np.int64).prod(axis=1)
    ends = np.cumsum(volumes) * (len(rows) if rows.ndim == 2 else 0) // volumes.sum()
    pieces = list(rows) if rows.ndim == 3 else np.split(rows, ends[:-1])
    if len(pieces) != len(grids):
        raise InvalidRequestError(f"{name} has {len(pieces)} items and {len(grids)} grids. Give one for each.")
    return [as_embeddings(one, name, tuple(map(int, grid))) for one, grid in zip(pieces, grids, strict=True)]
