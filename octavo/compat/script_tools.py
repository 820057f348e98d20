"""`vllm.utils`: small things that scripts take from there."""

import random
import resource
import socket
import uuid
from collections.abc import Sequence

import numpy as np
import torch


def random_uuid() -> str:
    """32 random hexadecimal digits."""
    return uuid.uuid4().hex


class Counter:
    """Counts up, each time it is asked."""

    def __init__(self, start: int = 0) -> None:
        self.counter = start

    def __next__(self) -> int:
        self.counter += 1
        return self.counter - 1

    def reset(self) -> None:
        self.counter = 0


def get_open_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def set_ulimit(target_soft_limit: int = 65535) -> None:
    """Let this process have so many open files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = target_soft_limit if hard == resource.RLIM_INFINITY else min(target_soft_limit, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def print_embeddings(embeds: Sequence[float], prefix: str = "Embeddings") -> None:
    """Print the beginning of a vector, and how long it is."""
    shown = f"{str(list(embeds[:4]))[:-1]}, ...]" if len(embeds) > 4 else str(embeds)
    print(f"{prefix}: {shown} (size={len(embeds)})")


def set_random_seed(seed: int | None) -> None:
    """Seed Python's, numpy's and torch's own random numbers; the engine's are its option `seed`."""
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
