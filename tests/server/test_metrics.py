"""The documents' names of metrics are those that the server has."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.server.running import Running, server

DOCS = Path(__file__).parents[2] / "docs"


def test_dashboard_and_document_name_what_there_is(tiny_server: Running) -> None:
    tiny_server.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
    there = set(re.findall(r"^octavo:(\w+?)(?:_bucket|_sum|_count)?(?:{| )", tiny_server.get("/metrics").text, re.M))
    document = (DOCS / "monitoring.md").read_text()
    rows = "\n".join(line for line in document.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`(\w+)`", rows.replace("`finished_reason`", "")))
    assert named <= there
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    asked = " ".join(t["expr"] for p in dashboard["panels"] for t in p["targets"])
    used = {re.sub(r"_bucket$", "", name) for name in re.findall(r"octavo:(\w+)", asked)}
    assert used
    assert used <= there


VLLM = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "cache_config_info",
    "request_success_total",
    "mm_cache_queries_total",
    "mm_cache_hits_total",
]
HISTOGRAMS = {
    "request_prompt_tokens": 4,
    "request_generation_tokens": 10,
    "request_params_n": 2,
    "request_params_max_tokens": 5,
    "time_to_first_token_seconds": None,
    "inter_token_latency_seconds": None,
    "e2e_request_latency_seconds": None,
    "request_queue_time_seconds": None,
    "request_inference_time_seconds": None,
    "request_prefill_time_seconds": None,
    "request_decode_time_seconds": None,
}


def test_under_the_names_of_vllm(tiny_model: Path) -> None:
    """What its own dashboard and tests ask for."""
    with server(str(tiny_model), "--kv-cache-memory", "64MiB", "--metrics-prefix", "vllm") as running:
        running.post("/v1/completions", {"prompt": "four", "max_tokens": 5, "ignore_eos": True, "n": 2, "seed": 1})
        text = running.get("/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert {name for name in families if name.startswith("octavo:")} == {
            name.replace("vllm:", "octavo:") for name in families if name.startswith("vllm:")
        }
        for name in VLLM:
            assert f"vllm:{name.removesuffix('_total')}" in families
        for name, total in HISTOGRAMS.items():
            values = {sample.name: sample.value for sample in families[f"vllm:{name}"].samples}
            assert values[f"vllm:{name}_count"] >= 1
            assert total is None or values[f"vllm:{name}_sum"] == total


def test_numbers_follow_what_happens(tiny_server: Running) -> None:
    before = {
        n: tiny_server.metric(n) for n in ("generation_tokens_total", "prompt_tokens_total", "request_success_total")
    }
    tiny_server.post("/v1/completions", {"prompt": "four", "max_tokens": 5, "ignore_eos": True})
    assert tiny_server.metric("generation_tokens_total") == before["generation_tokens_total"] + 5
    assert tiny_server.metric("prompt_tokens_total") == before["prompt_tokens_total"] + 4
    assert tiny_server.metric("request_success_total") == before["request_success_total"] + 1
