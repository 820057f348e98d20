"""Preemption when a test wants it."""

from octavo.engine.engine import Engine
from octavo.engine.sequence import Status


def preempt_all(engine: Engine) -> None:
    """Preempt everything that runs, as if blocks had run out."""
    for sequence in list(engine.scheduler.running):
        if sequence.status is Status.RUNNING:
            engine.scheduler.preempt(sequence)
