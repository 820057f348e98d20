"""Which of the compiled libraries serves."""

import functools
import logging

from octavo.ops.native.library import Library, built, runnable
from octavo.ops.native.self_test import self_test

log = logging.getLogger("octavo")

SELF_TESTED = "amx"
"""It was never run where it was made, and is chosen where its self-test finds it right and faster."""


def _tried(library: Library, name: str) -> Library:
    """The library, or the one named where that serves better."""
    before = Library(name)
    chosen, other = (library, before) if self_test(library, before) else (before, library)
    log.info("the compiled core for %s serves; it was tested beside the one for %s", chosen.name, other.name)
    other.set_threads(1)
    return chosen


@functools.cache
def load() -> Library | None:
    """The best library for this processor, or None, with one line that says why."""
    try:
        candidates = iter(runnable())
    except OSError as error:
        log.warning("the compiled core does not load (%s); the PyTorch reference computes, which is slower", error)
        return None
    for name in candidates:
        try:
            library = Library(name)
        except OSError as error:
            log.warning("the compiled core for %s does not load (%s)", name, error)
            continue
        return _tried(library, next(candidates)) if name == SELF_TESTED else library
    reason = "there is no compiled core (was there a C++ compiler at installation?)"
    if names := built():
        reason = f"the core was compiled for {', '.join(names)} alone, and this processor runs none of these"
    log.warning("%s; the PyTorch reference computes, which is slower. Install Octavo again on this machine", reason)
    return None
