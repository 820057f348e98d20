"""The documents' names of metrics are those that the server has."""

import json
import re
from pathlib import Path

from tests.server.running import Running

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


def test_numbers_follow_what_happens(tiny_server: Running) -> None:
    before = {
        n: tiny_server.metric(n) for n in ("generation_tokens_total", "prompt_tokens_total", "request_success_total")
    }
    tiny_server.post("/v1/completions", {"prompt": "four", "max_tokens": 5, "ignore_eos": True})
    assert tiny_server.metric("generation_tokens_total") == before["generation_tokens_total"] + 5
    assert tiny_server.metric("prompt_tokens_total") == before["prompt_tokens_total"] + 4
    assert tiny_server.metric("request_success_total") == before["request_success_total"] + 1
