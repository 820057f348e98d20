"""Preemption when a test wants it."""

from collections.abc import Mapping
from typing import Any

from octavo import LLM
from octavo.engine.engine import Engine
from octavo.engine.sequence import Status


def preempt_all(engine: Engine) -> None:
    """Preempt everything that runs, as if blocks had run out."""
    for sequence in list(engine.scheduler.running):
        if sequence.status is Status.RUNNING:
            engine.scheduler.preempt(sequence)


def preempted(llm: LLM, requests: Mapping[str, tuple[Any, ...]], after: int) -> dict[str, Any]:
    """The last outputs of requests, each what `LLM.requests.add` takes after its id; all that runs is preempted once.

    Args:
        after: so many steps.
    """
    for name, request in requests.items():
        llm.requests.add(name, *request)
    done: dict[str, Any] = {}
    for step in range(400):
        done |= {output.request_id: output for output in llm.requests.step() if output.finished}
        if step == after:
            preempt_all(llm.engine)
    return done
