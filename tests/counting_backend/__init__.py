"""A third backend: it counts what it is asked for, and has the reference compute it."""

from tests.counting_backend.backend import CountingBackend

__all__ = ["CountingBackend"]
