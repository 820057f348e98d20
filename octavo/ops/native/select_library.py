"""Which of the compiled libraries serves."""

import functools
import logging

from octavo.ops.native.library import Library, built, runnable
from octavo.ops.native.self_test import useful_tiles

log = logging.getLogger("octavo")


def _with_useful_tiles(library: Library) -> Library:
    """The library, which takes tiles where they are right and faster: they were never run where it was made."""
    if any(library.tiles):
        tiles = library.set_tiles(useful_tiles(library))
        names = {"quantized weights": tiles.codes, "bfloat16's": tiles.bf16, "attention": tiles.attention}
        served = ", ".join(name for name, serves in names.items() if serves) or "nothing"
        log.info("the compiled core for %s takes tiles for %s, as its self-test has found", library.name, served)
    return library


@functools.cache
def load() -> Library | None:
    """The best library for this processor, or None, with one line that says why."""
    try:
        candidates = runnable()
    except OSError as error:
        log.warning("the compiled core does not load (%s); the PyTorch reference computes, which is slower", error)
        return None
    for name in candidates:
        try:
            return _with_useful_tiles(Library(name))
        except OSError as error:
            log.warning("the compiled core for %s does not load (%s)", name, error)
    reason = "there is no compiled core (was there a C++ compiler at installation?)"
    if names := built():
        reason = f"the core was compiled for {', '.join(names)} alone, and this processor runs none of these"
    log.warning("%s; the PyTorch reference computes, which is slower. Install Octavo again on this machine", reason)
    return None
