"""What /metrics tells of adapters."""

import contextlib

from prometheus_client import CollectorRegistry, Counter, Gauge

MOST_NAMES = 200
"""Adapters that are counted by themselves."""
OTHERS = "_others"
"""Stands for those beyond them, and for those that are not served any more."""


class AdapterMetrics:
    """Requests and tokens by adapter, and which adapters run and wait.

    Counts of an adapter go when it is unloaded: names may come and go, and none of them stays.

    Args:
        registry: has the metrics.
        model: the name that clients know.
        max_loras: most adapters in a step.
    """

    def __init__(self, registry: CollectorRegistry, model: str, max_loras: int) -> None:
        self._model, self._max_loras = model, max_loras
        self._names: set[str] = set()
        self._running: list[str] = []
        self._waiting: list[str] = []

        def counter(name: str, text: str) -> Counter:
            return Counter(f"octavo:{name}", text, ["model_name", "lora_name"], registry=registry)

        self._requests = counter("lora_requests", "Requests of each adapter that ended")
        self._prompt_tokens = counter("lora_prompt_tokens", "Tokens of the prompts of each adapter")
        self._generation_tokens = counter("lora_generation_tokens", "Tokens generated with each adapter")
        self._info = Gauge(
            "octavo:lora_requests_info",
            "Adapters of requests that run and that wait; the value is the time",
            ["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
            registry=registry,
        )

    def on_change(self, name: str, is_served: bool) -> None:
        """An adapter is served from now on, or no longer."""
        if not is_served:
            self._names.discard(name)
            for counter in (self._requests, self._prompt_tokens, self._generation_tokens):
                with contextlib.suppress(KeyError):  # it has counted nothing
                    counter.remove(self._model, name)
        elif len(self._names) < MOST_NAMES:
            self._names.add(name)

    def end(self, name: str, prompt_tokens: int, generated: int) -> None:
        """A request of an adapter has ended."""
        labels = (self._model, name if name in self._names else OTHERS)
        self._requests.labels(*labels).inc()
        self._prompt_tokens.labels(*labels).inc(prompt_tokens)
        self._generation_tokens.labels(*labels).inc(generated)

    def take(self, running: list[str], waiting: list[str]) -> None:
        """Names of adapters of requests that run and wait now: one series of the gauge, in the place of the last."""
        self._info.clear()
        self._info.labels(str(self._max_loras), ",".join(waiting[:MOST_NAMES]), ",".join(running)).set_to_current_time()
