"""What requests came to, counted where their outputs are made, as `LLM.get_metrics` tells it: by vLLM's names."""

import bisect
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.outputs import PoolingRequestOutput, RequestMetrics, RequestOutput

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
WHOLE = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
"""Bounds of histograms: seconds, and numbers of tokens."""


@dataclass
class Metric:
    """One metric with its labels."""

    name: str
    labels: dict[str, str]


@dataclass
class Counter(Metric):
    """A number that only goes up."""

    value: int


@dataclass
class Vector(Metric):
    """Counters in a row."""

    values: list[int]


@dataclass
class Gauge(Metric):
    """A number that goes up and down."""

    value: float


@dataclass
class Histogram(Metric):
    """Observations: how many were at most each bound, which are texts, "+Inf" for all."""

    count: int
    sum: float
    buckets: dict[str, int]


@dataclass
class Observed:
    """Observations under fixed bounds."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def histogram(self, name: str, labels: dict[str, str]) -> Histogram:
        """As it is told."""
        buckets, total = dict[str, int](), 0
        for bound, count in zip([*map(float, self.bounds), None], self.counts, strict=True):
            total += count
            buckets["+Inf" if bound is None else str(bound)] = total
        return Histogram(name, labels, total, self.sum, buckets)


class RequestCounts:
    """Counts of the requests of one client of an engine."""

    def __init__(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
        self.ended: Tally[str] = Tally()
        self.seconds = {
            "time_to_first_token_seconds": Observed(FIRST_TOKEN),
            "request_time_per_output_token_seconds": Observed(PER_TOKEN),
            "e2e_request_latency_seconds": Observed(WHOLE),
            "request_prompt_tokens": Observed(TOKENS),
            "request_generation_tokens": Observed(TOKENS),
        }

    def take(self, output: RequestOutput | PoolingRequestOutput[Any], lengths: Sequence[int]) -> None:
        """A request's last output, and how many tokens each of its answers has in all."""
        read = len(output.prompt_token_ids or [])
        self.prompt_tokens += read
        self.cached_tokens += output.num_cached_tokens or 0
        self.seconds["request_prompt_tokens"].add(read)
        if not isinstance(output, RequestOutput):
            self.ended["stop"] += 1
            return
        self.generated_tokens += sum(lengths)
        for answer in output.outputs:
            self.ended[answer.finish_reason or "abort"] += 1
        for length in lengths:
            self.seconds["request_generation_tokens"].add(length)
        if output.metrics is not None:
            self._time(output.metrics, max(lengths, default=0))

    def _time(self, times: RequestMetrics, length: int) -> None:
        first, last = times.first_token_time, times.last_token_time
        if times.finished_time is not None:
            self.seconds["e2e_request_latency_seconds"].add(times.finished_time - times.arrival_time)
        if first is not None:
            self.seconds["time_to_first_token_seconds"].add(first - times.arrival_time)
        if first is not None and last is not None and length > 1:
            self.seconds["request_time_per_output_token_seconds"].add((last - first) / (length - 1))

    def snapshot(
        self, model: str, gauges: dict[str, float], counters: dict[str, int], accepted_by_place: list[int]
    ) -> list[Metric]:
        """All of them now.

        Args:
            model: the label `model_name`.
            gauges: what only the engine knows, by names without `vllm:`.
            counters: the same of what only goes up.
            accepted_by_place: drafts that were right, by place; empty without speculation.
        """
        labels = {"model_name": model, "engine": "0"}
        counters = {
            **counters,
            "prefix_cache_queries": self.prompt_tokens,
            "prefix_cache_hits": self.cached_tokens,
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generated_tokens,
        }
        return [
            *(Gauge(f"vllm:{name}", labels, value) for name, value in gauges.items()),
            *(Counter(f"vllm:{name}", labels, value) for name, value in counters.items()),
            *(
                Counter("vllm:request_success", {**labels, "finished_reason": reason}, self.ended[reason])
                for reason in ("stop", "length", "abort", "error")
            ),
            *(
                [Vector("vllm:spec_decode_num_accepted_tokens_per_pos", labels, list(accepted_by_place))]
                if accepted_by_place
                else []
            ),
            *(observed.histogram(f"vllm:{name}", labels) for name, observed in self.seconds.items()),
        ]
