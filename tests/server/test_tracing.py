"""Traces of OpenTelemetry: a span for each request, as a collector gets it."""

import asyncio
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ConfigError, OctavoError
from octavo.outputs import RequestMetrics
from octavo.params import SamplingParams
from octavo.server.server_options import ServerOptions
from octavo.server.tracing import Traces, exporter_of, note_parent, protocol_of
from tests.server.running import Running, server

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "ignore_eos": True}
LATENCIES = ("e2e", "time_in_queue", "time_to_first_token", "time_in_model_prefill", "time_in_model_decode")


class Collector:
    """Takes spans by OTLP over HTTP, at a port of its own."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def take(self, path: str, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {a.key: a.value.string_value for a in resource.resource.attributes}
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append({"span": span, "service": about["service.name"], **_values(span)})

    def of(self, request_id: str) -> dict[str, Any] | None:
        """The span of a request, of a completion that of its first prompt; None before it has come."""
        ids = (request_id, f"{request_id}-0")
        return next((span for span in self.spans if span["gen_ai.request.id"] in ids), None)


def _values(span: Any) -> dict[str, Any]:
    values = {}
    for one in span.attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        values[one.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return values


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="its package of the group otel is not there")
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(tiny_model: Path, collector: Collector) -> Iterator[Running]:
    options = ("--kv-cache-memory", "64MiB", "--served-model-name", "tiny", "--otlp-traces-endpoint", collector.url)
    with server(str(tiny_model), *options, OTEL_BSP_SCHEDULE_DELAY="50") as running:
        yield running


def test_a_collector_gets_a_span_of_each_request(traced: Running, collector: Collector) -> None:
    asked = {**CHAT, "temperature": 0.5, "top_p": 0.9}
    answer = traced.post("/v1/chat/completions", asked, headers={"traceparent": TRACEPARENT}).json()
    traced.until(lambda: collector.of(answer["id"]) is not None)
    span = collector.of(answer["id"])
    assert span is not None
    assert (span["span"].name, span["service"], span["span"].kind) == ("llm_request", "octavo", 2)
    assert (span["span"].trace_id.hex(), span["span"].parent_span_id.hex()) == (TRACE, PARENT)
    assert span["gen_ai.usage.prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert span["gen_ai.usage.completion_tokens"] == 5
    names = ("temperature", "top_p", "max_tokens", "n")
    assert [span[f"gen_ai.request.{name}"] for name in names] == [0.5, 0.9, 5, 1]
    assert span["gen_ai.response.finish_reasons"] == ["length"]
    assert all(span[f"gen_ai.latency.{name}"] >= 0 for name in LATENCIES)
    assert span["gen_ai.latency.time_in_model_inference"] <= span["gen_ai.latency.e2e"]
    assert span["span"].end_time_unix_nano > span["span"].start_time_unix_nano


def test_streams_have_spans_and_traces_of_their_own(traced: Running, collector: Collector) -> None:
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 3, "ignore_eos": True, "stream": True}
    ids = []
    for headers in ({}, {"traceparent": "00-" + "0" * 32 + "-x"}, {"traceparent": "\xe9", "tracestate": "a" * 5000}):
        sent = {name: value.encode("latin-1") for name, value in headers.items()}
        text = traced.post("/v1/completions", body, headers=sent).text
        ids.append(text.partition('"id":"')[2].partition('"')[0])
    traced.until(lambda: all(collector.of(one) is not None for one in ids))
    spans = [collector.of(one) for one in ids]
    assert len({span["span"].trace_id for span in spans if span is not None}) == 3
    assert all(span is not None and not span["span"].parent_span_id for span in spans)


def test_what_is_left_is_sent_at_the_end(tiny_model: Path, collector: Collector) -> None:
    with server(str(tiny_model), "--kv-cache-memory", "64MiB", "--otlp-traces-endpoint", collector.url) as running:
        answer = running.post("/v1/completions", {"prompt": "abc", "max_tokens": 2}).json()
    assert collector.of(answer["id"]) is not None


class Kept:
    """An exporter that keeps spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def export(self, spans: Any) -> None:
        self.spans += spans

    def shutdown(self) -> None:
        pass


def test_spans_of_what_has_failed_and_of_pooling() -> None:
    pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not there")
    kept = Kept()
    traces = Traces(kept, "m")
    note_parent({b"traceparent": TRACEPARENT.encode(), b"other": b"x"})
    try:
        raise OctavoError("no memory")
    except OctavoError:
        traces.generated("one", SamplingParams(max_tokens=None), RequestMetrics(time.time() - 2), 7, 0, "abort")
    note_parent({})
    traces.pooled("two", 0.5, 9)
    asyncio.run(traces.stop())
    failed, pooled = sorted(kept.spans, key=lambda span: str(span.attributes["gen_ai.request.id"]))
    assert (failed.status.is_ok, failed.status.description) == (False, "no memory")
    assert f"{failed.parent.trace_id:032x}" == TRACE
    assert "gen_ai.latency.time_to_first_token" not in failed.attributes
    assert "gen_ai.request.max_tokens" not in failed.attributes
    assert failed.attributes["gen_ai.latency.e2e"] == pytest.approx(2, abs=1)
    assert pooled.parent is None
    assert pooled.attributes["gen_ai.usage.prompt_tokens"] == 9
    assert pooled.attributes["gen_ai.latency.e2e"] == pytest.approx(0.5, abs=0.1)


def test_nobody_waits_for_a_collector_that_does_not_answer() -> None:
    pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not there")
    answers = threading.Event()

    class Silent(Kept):
        def export(self, spans: Any) -> None:
            answers.wait(60)

    traces = Traces(Silent(), "m")
    for _ in range(3000):  # more than are kept for it
        traces.pooled("one", 0.1, 1)
    asyncio.run(traces.stop(within=0.1))
    assert not answers.is_set()
    answers.set()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match="pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"):
        exporter_of("http://127.0.0.1:4318/v1/traces")


@pytest.mark.parametrize("url", ["localhost", "localhost:4317", "ftp://a/b", "", "http://"])
def test_what_is_no_collector_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no collector's URL: give"):
        ServerOptions(otlp_traces_endpoint=url)


def test_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    assert protocol_of("http://a:4318/v1/traces") == "http"
    assert protocol_of("http://a:4317") == protocol_of("grpc://a:4317/") == "grpc"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    assert protocol_of("http://a:4317") == "http"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json")
    with pytest.raises(ConfigError, match="'http/json' is not there; it is one of grpc, http/protobuf"):
        ServerOptions(otlp_traces_endpoint="http://a:4317")
