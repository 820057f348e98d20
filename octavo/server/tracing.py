"""Traces of OpenTelemetry: a span for each request of the engine, with vLLM's attributes, sent to a collector."""

import asyncio
import importlib
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from octavo.errors import ConfigError, OctavoError, shorten
from octavo.outputs import RequestMetrics
from octavo.params import SamplingParams
from octavo.version import __version__

HEADERS = ("traceparent", "tracestate")
"""What says of an HTTP request which trace it is a part of (W3C Trace Context)."""
PROTOCOLS = {"grpc": "grpc", "http/protobuf": "http"}
"""Of OTLP, as OpenTelemetry's variables name them, and as its packages do."""
VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SEND_WITHIN = 5.0
"""Seconds that the last spans have to be sent at the server's end."""

_parent: ContextVar[dict[str, str] | None] = ContextVar("parent", default=None)


def note_parent(headers: Mapping[bytes, bytes]) -> None:
    """Note which trace an HTTP request with these headers is a part of, for what runs in this task from now on."""
    names = [name for name in HEADERS if name.encode() in headers]
    _parent.set({name: headers[name.encode()].decode("latin-1") for name in names} or None)


def check_endpoint(endpoint: str) -> None:
    """Raises ConfigError for what is no collector's URL, and for a protocol that there is not."""
    if urlsplit(endpoint).scheme not in ("http", "https", "grpc") or not urlsplit(endpoint).netloc:
        raise ConfigError(
            f"otlp_traces_endpoint={shorten(repr(endpoint))} is no collector's URL: give http://HOST:4318/v1/traces "
            "or grpc://HOST:4317."
        )
    protocol_of(endpoint)


def protocol_of(endpoint: str) -> str:
    """http or grpc: as OpenTelemetry's variables say, or else gRPC for a URL without a path. Raises ConfigError."""
    name = next((name for name in VARIABLES if os.environ.get(name)), None)
    if name is None:
        return "http" if urlsplit(endpoint).path.strip("/") else "grpc"
    said = os.environ[name]
    if said not in PROTOCOLS:
        raise ConfigError(f"{name}={shorten(repr(said))} is not there; it is one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[said]


def exporter_of(endpoint: str) -> Any:
    """What sends spans to a collector. Raises ConfigError where OpenTelemetry is not installed."""
    protocol = protocol_of(endpoint)
    module = _module(f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter", protocol)
    plain = {} if protocol == "http" or urlsplit(endpoint).scheme == "https" else {"insecure": True}
    return module.OTLPSpanExporter(endpoint=endpoint, **plain)


def _module(name: str, protocol: str = "http") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"otlp_traces_endpoint needs OpenTelemetry, and {name} cannot be imported ({error}): pip install "
            f"opentelemetry-sdk opentelemetry-exporter-otlp-proto-{protocol}"
        ) from error


class Traces:
    """Makes spans of requests that have ended, and hands them to a thread that sends them: nobody waits for it.

    Args:
        exporter: what sends them.
        model: the name that clients know.

    Raises ConfigError where OpenTelemetry is not installed.
    """

    def __init__(self, exporter: Any, model: str) -> None:
        sdk, self._api = _module("opentelemetry.sdk.trace"), _module("opentelemetry.trace")
        resources, export = _module("opentelemetry.sdk.resources"), _module("opentelemetry.sdk.trace.export")
        propagation = _module("opentelemetry.trace.propagation.tracecontext")
        resource = resources.Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(resources.Resource({"service.name": "octavo"}))
        self.provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self.provider.get_tracer("octavo", __version__)
        self._context, self._model = propagation.TraceContextTextMapPropagator(), model

    @classmethod
    def of(cls, endpoint: str | None, model: str) -> "Traces | None":
        """Those that a collector gets; None for no collector."""
        return None if endpoint is None else cls(exporter_of(endpoint), model)

    def generated(
        self, request_id: str, params: SamplingParams, times: RequestMetrics, num_prompt: int, num_generated: int,
        reason: str,
    ) -> None:  # fmt: skip
        """A request that generates has ended, for a reason or by the error that is on its way.

        Args:
            times: in seconds since the epoch.
            num_prompt: tokens of its prompt.
            num_generated: tokens of all its answers.
        """
        begun, first, last = times.first_scheduled_time, times.first_token_time, times.last_token_time
        values: dict[str, Any] = {
            "gen_ai.request.id": request_id,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.n": params.n,
            "gen_ai.usage.prompt_tokens": num_prompt,
            "gen_ai.usage.completion_tokens": num_generated,
            "gen_ai.response.finish_reasons": [reason],
            "gen_ai.latency.time_in_queue": _between(times.arrival_time, begun),
            "gen_ai.latency.time_to_first_token": _between(times.arrival_time, first),
            "gen_ai.latency.time_in_model_prefill": _between(begun, first),
            "gen_ai.latency.time_in_model_decode": _between(first, last),
            "gen_ai.latency.time_in_model_inference": _between(begun, last),
        }
        self._end(times.arrival_time, values)

    def pooled(self, request_id: str, seconds: float, num_prompt: int) -> None:
        """A pooling request has ended, which took so many `seconds`."""
        self._end(time.time() - seconds, {"gen_ai.request.id": request_id, "gen_ai.usage.prompt_tokens": num_prompt})

    def _end(self, start: float, values: dict[str, Any]) -> None:
        values |= {"gen_ai.response.model": self._model, "gen_ai.latency.e2e": _between(start, time.time())}
        span = self._tracer.start_span(
            "llm_request",
            context=self._context.extract(_parent.get() or {}),
            kind=self._api.SpanKind.SERVER,
            start_time=int(start * 1e9),
            attributes={name: value for name, value in values.items() if value is not None},
        )
        if isinstance(error := sys.exc_info()[1], OctavoError):
            span.set_status(self._api.Status(self._api.StatusCode.ERROR, shorten(error, 1000)))
        span.end()

    async def stop(self, within: float = SEND_WITHIN) -> None:
        """Send what is left, but wait no longer than that for a collector that does not answer."""
        thread = threading.Thread(target=self.provider.shutdown, name="octavo-spans", daemon=True)
        thread.start()
        deadline = time.monotonic() + within
        while thread.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


def _between(first: float | None, second: float | None) -> float | None:
    """Seconds from one time to another; None where one of them never came."""
    return None if first is None or second is None else max(0.0, second - first)
