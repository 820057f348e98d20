"""One request's answer on the terminal, as it comes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.client.local_client import LocalRequests
from octavo.engine.messages import Failed
from octavo.errors import OctavoError
from octavo.lora import LoRARequest
from octavo.outputs import RequestOutput
from octavo.params import RequestOutputKind, SamplingParams


@dataclass
class Answer:
    """A finished answer and its numbers."""

    output: RequestOutput
    texts: list[str]
    token_counts: list[int]
    finish_reasons: list[str | None]
    stop_reasons: list[int | str | None]
    first_token_seconds: float
    seconds: float

    def cut_at(self, index: int) -> int | None:
        """Tokens at which an answer was cut because it may have no more; None for one that came to its end."""
        return self.token_counts[index] if self.finish_reasons[index] == "length" else None

    def check(self) -> None:
        """Raises OctavoError for an answer that failed."""
        for finish, reason in zip(self.finish_reasons, self.stop_reasons, strict=True):
            if finish == "error":
                raise OctavoError(str(reason))


def limit_hit(num_tokens: int, params: SamplingParams, option: str, other: str) -> str:
    """How an answer that was cut after `num_tokens` may be longer."""
    if params.max_tokens is not None and num_tokens >= params.max_tokens:
        return f"; {option} allows more."
    return f": the model's length, which {other} limits."


def stream_answer(
    requests: LocalRequests,
    prompt: Any,
    params: SamplingParams,
    show: Callable[[str], None],
    adapter: LoRARequest | None = None,
) -> Answer:
    """Run one request, calling `show` with each new piece of its first answer. Ctrl-C aborts it and is raised on."""
    params = params.clone()
    params.output_kind = RequestOutputKind.DELTA
    start, first = time.perf_counter(), 0.0
    count = params.num_sequences
    texts, counts = [""] * count, [0] * count
    finish_reasons: list[str | None] = [None] * count
    stop_reasons: list[int | str | None] = [None] * count
    output = None
    requests.add("answer", prompt, params, adapter=adapter)
    try:
        while requests.has_work:
            for output in requests.step():
                if isinstance(output, Failed):
                    raise output.exception()
                assert isinstance(output, RequestOutput)
                first = first or time.perf_counter() - start
                for piece in output.outputs:
                    texts[piece.index] += piece.text
                    counts[piece.index] += len(piece.token_ids)
                    finish_reasons[piece.index] = piece.finish_reason
                    stop_reasons[piece.index] = piece.stop_reason
                    if piece.index == 0 and piece.text:
                        show(piece.text)
    except BaseException:
        requests.abort(["answer"])
        raise
    assert isinstance(output, RequestOutput)
    return Answer(output, texts, counts, finish_reasons, stop_reasons, first, time.perf_counter() - start)
