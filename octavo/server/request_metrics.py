"""What /metrics tells of requests that have ended: their tokens, and where their time went."""

from prometheus_client import CollectorRegistry, Histogram

from octavo.outputs import RequestMetrics

SECONDS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
ANSWERS = (1, 2, 5, 10, 20)


def token_buckets(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 and so on, up to the longest that there may be."""
    steps = (step * 10**power for power in range(len(str(most))) for step in (1, 2, 5))
    return [step for step in steps if step <= most] or [1]


class EndedRequests:
    """Histograms of requests that generate, a value for each that has ended.

    Args:
        registry: has the metrics.
        model: the name that clients know.
        max_model_len: most tokens of a request.
    """

    def __init__(self, registry: CollectorRegistry, model: str, max_model_len: int) -> None:
        tokens = token_buckets(max_model_len)

        def histogram(name: str, text: str, buckets: "tuple[float, ...] | list[int]") -> Histogram:
            made = Histogram(f"octavo:{name}", text, ["model_name"], buckets=buckets, registry=registry)
            return made.labels(model)

        self._prompt = histogram("request_prompt_tokens", "Tokens of a request's prompt", tokens)
        self._generated = histogram("request_generation_tokens", "Tokens of a request's answers", tokens)
        self._n = histogram("request_params_n", "Answers that a request asks for", ANSWERS)
        self._longest = histogram("request_params_max_tokens", "Most tokens of an answer, as a request says", tokens)
        self._queue = histogram("request_queue_time_seconds", "From a request's arrival to its first step", SECONDS)
        self._prefill = histogram("request_prefill_time_seconds", "From the first step to the first token", SECONDS)
        self._decode = histogram("request_decode_time_seconds", "From the first token to the last", SECONDS)
        self._inference = histogram("request_inference_time_seconds", "From the first step to the last token", SECONDS)

    def end(self, times: RequestMetrics, prompt: int, generated: int, n: int, longest: int | None) -> None:
        """A request has ended.

        Args:
            times: its times.
            prompt: tokens of its prompt.
            generated: tokens of all its answers.
            n: how many answers it asked for.
            longest: its max_tokens.
        """
        self._prompt.observe(prompt)
        self._generated.observe(generated)
        self._n.observe(n)
        if longest is not None:
            self._longest.observe(longest)
        begun, first, last = times.first_scheduled_time, times.first_token_time, times.last_token_time
        if begun is None or first is None or last is None:
            return  # it has ended before its first token
        self._queue.observe(max(0.0, begun - times.arrival_time))
        self._prefill.observe(max(0.0, first - begun))
        self._decode.observe(max(0.0, last - first))
        self._inference.observe(max(0.0, last - begun))
