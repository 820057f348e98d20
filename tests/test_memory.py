"""Memory: loading holds little beside the weights, and the KV cache takes what it fills."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import case_named

MEASURE = """
import resource, sys
from octavo.config import EngineArgs
from octavo.loading.model import load_model
from octavo.parts import Linear

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def load(path):
    return load_model(EngineArgs(model=path, dtype="bfloat16", skip_tokenizer_init=True))

load(sys.argv[1])  # libraries and backend are in memory now
before = peak()
model = load(sys.argv[2]).model
held = sum(p.numel() * p.element_size() for p in model.parameters())
held += sum(m.inputs * m.outputs * 2 for m in model.modules() if isinstance(m, Linear))
print((peak() - before) / held)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_peak_of_loading(tiny_folder: Path, tmp_path: Path) -> None:
    width, hidden, layers, vocab = 1024, 2816, 20, 32000
    names = {"q_proj": width, "k_proj": width, "v_proj": width, "o_proj": width}
    weights = {"model.embed_tokens.weight": torch.zeros(vocab, width, dtype=torch.bfloat16)}
    weights |= {"lm_head.weight": torch.zeros(vocab, width, dtype=torch.bfloat16)}
    weights |= {"model.norm.weight": torch.ones(width, dtype=torch.bfloat16)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        for name, rows in names.items():
            weights[f"{layer}.self_attn.{name}.weight"] = torch.zeros(rows, width, dtype=torch.bfloat16)
        for name, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden))):
            weights[f"{layer}.mlp.{name}_proj.weight"] = torch.zeros(*shape, dtype=torch.bfloat16)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{name}.weight"] = torch.ones(width, dtype=torch.bfloat16)
    config = case_named("LlamaForCausalLM--llama1-keys")["config"]
    config |= {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers, "vocab_size": vocab}
    config |= {"num_attention_heads": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", MEASURE, str(tiny_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.2


CACHE = """
import resource, sys
from octavo import LLM, SamplingParams
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
many = dict(max_num_seqs=100000, max_num_batched_tokens=100000)
llm = LLM(sys.argv[1], skip_tokenizer_init=True, kv_cache_memory="2GiB", **many)
assert llm.engine.executor.runner.shape.num_blocks > 50000
llm.generate([1, 2, 3], SamplingParams(max_tokens=8), use_tqdm=False)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_cache_is_touched_only_as_it_fills(tiny_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CACHE, str(tiny_folder)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 800  # MiB, libraries included
