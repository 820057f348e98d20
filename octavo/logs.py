"""Where Octavo's log goes."""

import logging
import sys


def log_to_stderr(
    name: str = "octavo", line: str = "octavo: %(message)s", *, level: int = logging.INFO, if_unset: bool = False
) -> None:
    """Write a logger's lines to stderr.

    Args:
        name: the logger, and all below it.
        line: how one looks, as logging.Formatter takes it.
        level: the least important that are written.
        if_unset: change nothing where the program has set up logging itself.
    """
    logger = logging.getLogger(name)
    if if_unset and (logger.handlers or logging.getLogger().handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(line))
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = "." not in name  # what is below has lines of its own
