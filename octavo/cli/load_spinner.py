"""What is shown on a terminal while a model loads."""

import contextlib
import itertools
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
TURN = 0.1
"""Seconds that a frame is shown."""


@contextlib.contextmanager
def loading(model: str) -> Iterator[None]:
    """A spinner with the seconds that it takes, until the block ends; nothing where nobody watches.

    It is a bar without an end, so that bars of downloads and of weights have their places below it.
    """
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    with tqdm(desc=f"Loading {model}", bar_format="{desc} ({elapsed})", leave=False, dynamic_ncols=True) as bar:

        def turn() -> None:
            for frame in itertools.cycle(FRAMES):
                bar.set_description_str(f"{frame} Loading {model}")
                if ended.wait(TURN):
                    return

        thread = threading.Thread(target=turn, name="octavo-spinner", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
