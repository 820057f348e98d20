"""A line of numbers in the log every few seconds while there is work, as vLLM writes it."""

import asyncio
import logging
import time
from dataclasses import dataclass, field

from octavo.server.metrics import Metrics

log = logging.getLogger("octavo")

EVERY = 10.0
"""Seconds between two lines."""


@dataclass
class StatsLog:
    """Says what has been done since it last did.

    Args:
        metrics: where the counts are.
    """

    metrics: Metrics
    _at: float = field(default_factory=time.monotonic)
    _counts: tuple[int, int, int] = (0, 0, 0)

    def line(self) -> str | None:
        """What to log now; None where nothing was done and nothing runs."""
        latest, now = self.metrics.latest, time.monotonic()
        prompt, cached = sum(s.prompt_tokens for s in latest), sum(s.cached_tokens for s in latest)
        counts = (prompt, cached, self.metrics.num_generated)
        done = [max(0, new - old) for new, old in zip(counts, self._counts, strict=True)]
        seconds, self._at, self._counts = max(1e-9, now - self._at), now, counts
        running, waiting = sum(s.running for s in latest), sum(s.waiting for s in latest)
        if not (any(done) or running or waiting):
            return None
        hits = f"{done[1] / done[0]:.1%}" if done[0] else "none looked up"
        return (
            f"prompts: {done[0] / seconds:.1f} tokens/s, answers: {done[2] / seconds:.1f} tokens/s, "
            f"running: {running}, waiting: {waiting}, KV cache used: {self.metrics.cache_usage:.1%}, "
            f"prefix cache hits: {hits}"
        )

    async def run(self) -> None:
        """Log until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            if (line := self.line()) is not None:
                log.info("%s", line)
