"""Logits processors of a server: named by a flag, with values that requests bring."""

from pathlib import Path

import httpx

from tests.server.running import server

SERVED = """
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

class Target(LogitsProcessor):
    @classmethod
    def validate_params(cls, params):
        if not isinstance((params.extra_args or {}).get("target", 0), int):
            raise ValueError("target must be a token id")
    def __init__(self, vllm_config, device, is_pin_memory):
        self.targets = {}
    def is_argmax_invariant(self): return False
    def update_state(self, batch_update):
        process_dict_updates(self.targets, batch_update, lambda params, _, __: (params.extra_args or {}).get("target"))
    def apply(self, logits):
        for place, target in self.targets.items():
            logits[place] = torch.full_like(logits[place], -torch.inf).index_fill(0, torch.tensor(target), 0.0)
        return logits
"""


def test_values_of_requests(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SERVED)
    flags = ["--kv-cache-memory", "64MiB", "--served-model-name", "tiny", "--logits-processors", "mine:Target"]
    packages = Path(__file__).parents[2] / "octavo" / "compat" / "packages"
    path = f"{tmp_path}:{packages}:{Path(__file__).parents[2]}"
    with server(str(tiny_model), *flags, PYTHONPATH=path) as running:
        body = {"model": "tiny", "prompt": "Hello", "max_tokens": 3, "temperature": 0, "logprobs": 0}

        def answer(**more: object) -> httpx.Response:
            return httpx.post(f"{running.url}/v1/completions", json={**body, **more}, timeout=60)

        plain = answer().json()["choices"][0]["text"]
        changed = answer(vllm_xargs={"target": 7}).json()["choices"][0]["text"]
        assert changed == "(" * 3 != plain
        refused = answer(vllm_xargs={"target": "x"})
        assert refused.status_code == 400
        assert "target must be a token id" in refused.json()["error"]["message"]
