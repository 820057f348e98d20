"""What /metrics tells, with vLLM's names where the meaning is the same, under `octavo:`."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from octavo.client.request_counts import FIRST_TOKEN, PER_TOKEN, WHOLE, Observed
from octavo.engine.messages import Stats
from octavo.server.adapter_metrics import AdapterMetrics
from octavo.server.request_metrics import EndedRequests

COUNTERS: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("prompt_tokens", "Tokens of prompts", lambda s: s.prompt_tokens),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", lambda s: s.prompt_tokens),
    ("prefix_cache_hits", "Prompt tokens that the prefix cache had", lambda s: s.cached_tokens),
    (
        "external_prefix_cache_queries",
        "Prompt tokens looked up outside of the KV cache (kv_offload)",
        lambda s: s.outside_queries,
    ),
    ("external_prefix_cache_hits", "Prompt tokens that were found there, and read", lambda s: s.outside_hits),
    ("kv_offload_stored_bytes", "Bytes of blocks that were written there", lambda s: s.stored_bytes),
    ("kv_offload_loaded_bytes", "Bytes of blocks that were read there", lambda s: s.loaded_bytes),
    ("num_preemptions", "Sequences that were preempted and recomputed", lambda s: s.preemptions),
    ("spec_decode_num_drafts", "Times that a sequence had guessed tokens computed", lambda s: s.num_drafts),
    ("spec_decode_num_draft_tokens", "Tokens that were guessed and computed", lambda s: s.num_draft_tokens),
    ("spec_decode_num_accepted_tokens", "Guessed tokens that were right", lambda s: sum(s.accepted_by_place)),
    ("media_items", "Pictures, films and sounds that towers have read", lambda s: s.num_media_items),
    ("media_cache_hits", "Pictures, films and sounds whose rows were there already", lambda s: s.feature_hits),
    (
        "mm_cache_queries",
        "Pictures, films and sounds whose rows were needed",
        lambda s: s.num_media_items + s.feature_hits,
    ),
    ("mm_cache_hits", "Pictures, films and sounds whose rows were there already", lambda s: s.feature_hits),
    ("media_tower_seconds", "Seconds that towers took", lambda s: s.media_seconds),
)
"""What engines count: names and texts, and what of their reports is meant."""


class TokenTimes(Collector):
    """Histograms of the time between two tokens. Counting, which each token does, costs next to nothing.

    Args:
        model: the name that clients know.
    """

    NAMES = ("time_per_output_token_seconds", "inter_token_latency_seconds")
    """That vLLM had, and that it has."""

    def __init__(self, model: str) -> None:
        self._model, self.observed = model, Observed(PER_TOKEN)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """As the registry tells them."""
        told = self.observed.histogram("", {})
        for name in self.NAMES:
            family = HistogramMetricFamily(f"octavo:{name}", "Between two tokens of a request", labels=["model_name"])
            family.add_metric([self._model], [*told.buckets.items()], told.sum)
            yield family


class Metrics:
    """Counts of one server. What its engines report has their numbers as a label: 0, and more with replicas.

    Args:
        model: the name that clients know.
        max_loras: most adapters in a step; None where none are served.
        max_model_len: most tokens of a request.
        about: what is known of the KV cache, as labels.
        also_vllm: tell all of it under vLLM's prefix too.
    """

    def __init__(
        self,
        model: str,
        max_loras: int | None = None,
        max_model_len: int = 1 << 20,
        about: Mapping[str, object] | None = None,
        also_vllm: bool = False,
    ) -> None:
        self.registry, self._also_vllm = CollectorRegistry(), also_vllm
        self.ended = EndedRequests(self.registry, model, max_model_len)
        self._tell_cache(model, about or {})
        self.adapters = None if max_loras is None else AdapterMetrics(self.registry, model, max_loras)
        self._model = model
        self._last: dict[int, Stats] = {}
        self._restarts: dict[int, int] = {}
        self._usage: dict[int, float] = {}
        self._reports: dict[int, tuple[Stats, int, int]] = {}
        """The last reports that are not counted yet, with blocks and restarts."""
        self.num_generated = 0
        """Tokens generated."""
        self._told_generated = 0

        def gauge(name: str, text: str, label: str = "engine") -> Gauge:
            return Gauge(f"octavo:{name}", text, ["model_name", label], registry=self.registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"octavo:{name}", text, ["model_name", "engine"], registry=self.registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            histogram = Histogram(f"octavo:{name}", text, ["model_name"], buckets=buckets, registry=self.registry)
            return histogram.labels(model)

        self.running = gauge("num_requests_running", "Sequences that are running")
        self.waiting = gauge("num_requests_waiting", "Sequences that are waiting")
        self.usage = gauge("kv_cache_usage_perc", "Share of the KV cache's blocks that sequences hold, from 0 to 1")
        self.up = gauge("engine_up", "1 while the engine runs")
        self.replicas = gauge("replicas", "Engines by state: running, starting, restarting, dead", "state")
        self._counters = [(counter(name, text), value) for name, text, value in COUNTERS]
        self.accepted_by_place = Counter(
            "octavo:spec_decode_num_accepted_tokens_per_pos",
            "Guessed tokens that were right, by their place after the last token",
            ["model_name", "engine", "position"],
            registry=self.registry,
        )
        self.restarts = counter("engine_restarts", "Times that the engine died and was restarted")
        self.generation_tokens = Counter(
            "octavo:generation_tokens", "Tokens generated", ["model_name"], registry=self.registry
        ).labels(model)
        self.finished = Counter(
            "octavo:request_success", "Requests that ended", ["model_name", "finished_reason"], registry=self.registry
        )
        self.first_token = seconds(
            "time_to_first_token_seconds", "From a request's arrival to its first token", FIRST_TOKEN
        )
        self.per_token = TokenTimes(model)
        self.registry.register(self.per_token)
        self.whole = seconds("e2e_request_latency_seconds", "From a request's arrival to its end", WHOLE)
        self.take(Stats(), 1, 0)

    def take(self, stats: Stats, num_blocks: int, restarts: int, engine: int = 0) -> None:
        """A report of an engine, which is counted when somebody asks for numbers: there is one with every step.

        Args:
            stats: its numbers, counted since its process began.
            num_blocks: blocks of its KV cache.
            restarts: how often it was started again.
            engine: its number.
        """
        before = self._reports.get(engine)
        if before is not None and before[2] != restarts:
            self._count(engine)  # of another process, whose counts would be lost
        self._reports[engine] = stats, num_blocks, restarts

    def _count_all(self) -> None:
        for engine in [*self._reports]:
            self._count(engine)
        new, self._told_generated = self.num_generated - self._told_generated, self.num_generated
        self.generation_tokens.inc(new)

    def _count(self, engine: int) -> None:
        """Count what an engine has reported."""
        stats, num_blocks, restarts = self._reports.pop(engine)
        labels = (self._model, str(engine))
        before = self._restarts.get(engine, 0)
        self.restarts.labels(*labels).inc(max(0, restarts - before))
        if restarts != before:  # another process, whose counts begin anew
            self._last[engine], self._restarts[engine] = Stats(), restarts
        last = self._last.get(engine, Stats())
        self.running.labels(*labels).set(stats.running)
        self.waiting.labels(*labels).set(stats.waiting)
        self._usage[engine] = stats.used_blocks / max(1, num_blocks)
        self.usage.labels(*labels).set(self._usage[engine])
        for counter, value in self._counters:
            counter.labels(*labels).inc(max(0, value(stats) - value(last)))
        for place, right in enumerate(stats.accepted_by_place):
            before = last.accepted_by_place[place] if last.accepted_by_place else 0
            self.accepted_by_place.labels(*labels, str(place)).inc(max(0, right - before))
        self._last[engine] = stats
        if self.adapters is not None:
            latest = self._last.values()
            self.adapters.take(
                sorted({name for one in latest for name in one.running_adapters}),
                sorted({name for one in latest for name in one.waiting_adapters}),
            )

    @property
    def latest(self) -> list[Stats]:
        """The last report of each engine."""
        self._count_all()
        return list(self._last.values())

    @property
    def cache_usage(self) -> float:
        """Share of the KV cache's blocks that sequences hold, of the engine that uses most."""
        self._count_all()
        return max(self._usage.values(), default=0.0)

    def take_states(self, states: list[str]) -> None:
        """How the engines are now, by their numbers."""
        for engine, state in enumerate(states):
            self.up.labels(self._model, str(engine)).set(state == "running")
        for state in ("starting", "running", "restarting", "dead"):
            self.replicas.labels(self._model, state).set(states.count(state))

    def end(self, reason: str, seconds: float) -> None:
        self.finished.labels(self._model, reason).inc()
        self.whole.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        self._count_all()
        own = generate_latest(self.registry)
        return own + _OWN_PREFIX.sub(rb"\1vllm:", own) if self._also_vllm else own

    def _tell_cache(self, model: str, about: Mapping[str, object]) -> None:
        """A gauge that is always 1, and says by its labels what is known of the KV cache."""
        labels = {"model_name": model, **{name: str(value) for name, value in about.items()}}
        text = "What is known of the KV cache"
        Gauge("octavo:cache_config_info", text, list(labels), registry=self.registry).labels(**labels).set(1)


_OWN_PREFIX = re.compile(rb"(?m)^(# HELP |# TYPE |)octavo:")


@dataclass
class RequestClock:
    """Times of one request, written into the metrics as its tokens come."""

    metrics: Metrics
    arrival: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    def on_tokens(self, count: int) -> None:
        """So many tokens have come."""
        now = time.monotonic()
        if not count:
            return
        if self.first is None:
            self.first = now
            self.metrics.first_token.observe(now - self.arrival)
        else:
            self.metrics.per_token.observed.add((now - self.last) / count)
        self.last = now
        self.tokens += count
        self.metrics.num_generated += count

    def end(self, reason: str) -> None:
        self.metrics.end(reason, time.monotonic() - self.arrival)
