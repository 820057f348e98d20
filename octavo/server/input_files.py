"""Files within a request of /v1/responses: texts, which the model reads as such."""

import base64
import binascii
from typing import Any

from octavo.server.body import BodyError
from octavo.text.text_files import fenced

NAME = "file.txt"
"""Of a file that says none."""


def file_text(part: dict[str, Any], place: str) -> str:
    """The text of an `input_file`: its `file_data`, base64 by itself or as a data URL, under its `filename`.

    Raises BodyError for a file that lies elsewhere, and for one that is no UTF-8 text.
    """
    data, name = part.get("file_data"), part.get("filename") or NAME
    if not isinstance(name, str):
        raise BodyError("it must be text.", f"{place}.filename")
    if not isinstance(data, str):
        raise BodyError("a file's text must be in file_data, in base64; file_id and file_url are not supported.", place)
    if data.startswith("data:"):
        head, comma, data = data.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BodyError("a data URL must be in base64: data:text/plain;base64,...", f"{place}.file_data")
    try:
        text = base64.b64decode(data, validate=True).decode("utf-8-sig")
    except binascii.Error as error:
        raise BodyError(f"it is not base64: {error}.", f"{place}.file_data") from error
    except UnicodeDecodeError as error:
        raise BodyError(
            "it is no UTF-8 text, and other files are not read. Send a picture as input_image, and a document as text.",
            f"{place}.file_data",
        ) from error
    return fenced(name, text)
