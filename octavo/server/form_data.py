"""Forms with files (multipart/form-data, RFC 7578), read from a body that is whole and bounded already."""

import re
from dataclasses import dataclass

from octavo.errors import InvalidRequestError
from octavo.server.body import MediaTypeError

MAX_PARTS = 32
MAX_HEADER = 4096
"""Bytes of a part's headers."""
_BOUNDARY = re.compile(r"""boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))""", re.IGNORECASE)
_NAME = re.compile(rb"""[;\s]name="([^"\r\n]{0,200})\"""")
_FILENAME = re.compile(rb"""filename="([^"\r\n]{0,1000})\"""", re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:\s*form-data\s*;(.*)$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class FormPart:
    """A field of a form, or a file."""

    data: bytes
    is_file: bool
    filename: str = ""
    """As the client calls it: any text."""

    def text(self, name: str) -> str:
        """A field's value. Raises InvalidRequestError for a file, and for what is not UTF-8."""
        try:
            if not self.is_file:
                return self.data.decode()
        except UnicodeDecodeError:
            pass
        raise InvalidRequestError(f"{name} must be text in UTF-8.")


def read_form(content_type: str, body: bytes) -> dict[str, FormPart]:
    """The parts of a form by name; of equal names the last counts. Where a name ends in [], all are joined by commas.

    Raises MediaTypeError for a body of another type, InvalidRequestError for one that is malformed.
    """
    found = _BOUNDARY.search(content_type)
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data" or found is None:
        given = content_type[:100] or "nothing"
        raise MediaTypeError(f"the body must be a form: send Content-Type: multipart/form-data, not {given}.")
    mark = b"\r\n--" + (found[1] or found[2]).encode()
    pieces = (b"\r\n" + body).split(mark, MAX_PARTS + 2)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        what = f"has more than {MAX_PARTS} parts" if len(pieces) > MAX_PARTS + 2 else "has no end"
        raise InvalidRequestError(f"the form {what}.")
    form: dict[str, FormPart] = {}
    for piece in pieces[1:-1]:
        head, blank, data = piece.partition(b"\r\n\r\n")
        disposition = _DISPOSITION.search(head[:MAX_HEADER].replace(b"\r\n", b"\n"))
        name = None if disposition is None else _NAME.search(b";" + disposition[1])
        if not blank or len(head) > MAX_HEADER or disposition is None or name is None:
            raise InvalidRequestError("the form has a part without a name.")
        filename = _FILENAME.search(disposition[1])
        called = "" if filename is None else filename[1].decode("utf-8", "replace")
        part = FormPart(data, b"filename" in disposition[1].lower(), called)
        key = name[1].decode("utf-8", "replace")
        if key.endswith("[]") and key in form:
            part = FormPart(form[key].data + b"," + data, part.is_file or form[key].is_file)
        form[key] = part
    return form
