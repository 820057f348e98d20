"""Errors of requests that several endpoints have."""

from octavo.errors import OctavoError


class NotFoundError(OctavoError):
    """What the client names is not here."""
