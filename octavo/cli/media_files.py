"""Pictures, films and sounds that are named on the terminal."""

import argparse
from pathlib import Path
from typing import Any

from octavo.config import MEDIA_KINDS
from octavo.errors import InvalidRequestError
from octavo.media.limits import DEFAULT_LIMITS
from octavo.media.model_media import ModelMedia
from octavo.media.sources import read_media_file
from octavo.text.media_marks import mark_media

Parts = list[dict[str, Any]]
"""Parts of a message's content: `{"type": kind, kind: bytes}`."""


def named_media(namespace: argparse.Namespace) -> Parts:
    """The files of --image, --video and --audio. Raises InvalidRequestError for one that cannot be read."""
    names = {kind: getattr(namespace, kind, None) or [] for kind in MEDIA_KINDS}
    return [media_part(kind, path) for kind in MEDIA_KINDS for path in names[kind]]


def media_part(kind: str, path: str) -> dict[str, Any]:
    """A file as a part of a message. Raises InvalidRequestError where it cannot be read."""
    return {"type": kind, kind: read_media_file(Path(path).expanduser(), DEFAULT_LIMITS, f"--{kind}")}


def check_parts(parts: Parts, media: ModelMedia | None) -> None:
    """Raises InvalidRequestError for media that the model does not take."""
    if not parts:
        return
    if media is None:
        raise InvalidRequestError(f"--{parts[0]['type']} has no effect: this model takes text only. Leave it out.")
    media.check(by_kind(parts))


def by_kind(parts: Parts) -> dict[str, list[bytes]]:
    """Parts as `multi_modal_data`."""
    data: dict[str, list[bytes]] = {}
    for part in parts:
        data.setdefault(part["type"], []).append(part[part["type"]])
    return data


def raw_prompt(text: str, parts: Parts, media: ModelMedia) -> dict[str, Any]:
    """A prompt without a chat template: the family's marks stand before the text, unless it has them."""
    message = {"role": "user", "content": [*({"type": part["type"]} for part in parts), {"type": "text", "text": text}]}
    (marked,) = mark_media([message], media.mark)
    return {"prompt": marked["content"], "multi_modal_data": by_kind(parts)}
