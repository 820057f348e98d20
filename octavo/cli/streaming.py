"""One request's answer on the terminal, as it comes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.engine.engine import Engine
from octavo.outputs import RequestOutput
from octavo.params import RequestOutputKind, SamplingParams


@dataclass
class Answer:
    """A finished answer and its numbers."""

    output: RequestOutput
    texts: list[str]
    token_counts: list[int]
    first_token_seconds: float
    seconds: float


def stream_answer(engine: Engine, prompt: Any, params: SamplingParams, show: Callable[[str], None]) -> Answer:
    """Run one request, calling `show` with each new piece of its first answer. Ctrl-C aborts it and is raised on."""
    params = params.clone()
    params.output_kind = RequestOutputKind.DELTA
    start, first = time.perf_counter(), 0.0
    count = params.num_sequences
    texts, counts = [""] * count, [0] * count
    output = None
    engine.add_request("answer", prompt, params)
    try:
        while engine.has_work:
            for output in engine.step():
                assert isinstance(output, RequestOutput)
                first = first or time.perf_counter() - start
                for piece in output.outputs:
                    texts[piece.index] += piece.text
                    counts[piece.index] += len(piece.token_ids)
                    if piece.index == 0 and piece.text:
                        show(piece.text)
    except BaseException:
        engine.abort(["answer"])
        raise
    assert isinstance(output, RequestOutput)
    return Answer(output, texts, counts, first, time.perf_counter() - start)
