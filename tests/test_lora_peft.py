"""PEFT's own adapters, as it saves them, give PEFT's own answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, LoRARequest, SamplingParams
from tests.server.conftest import write_tiny

peft = pytest.importorskip("peft")
PROMPT = [*range(40, 60)]


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "lora_alpha": 3},
        {"target_modules": r".*\.(1)\..*(k|v)_proj", "use_rslora": True, "bias": "lora_only"},
        {
            "target_modules": ["o_proj"],
            "rank_pattern": {"layers.0.self_attn.o_proj": 3},
            "modules_to_save": ["up_proj"],
        },
    ],
    ids=["all-linear", "dora", "regex", "saved"],
)
def test_answers_are_pefts(config: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_tiny(tmp_path / "tiny")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, init_lora_weights=False, **config)).eval()
    model.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([PROMPT])).logits[0, -1], -1)
    llm = LLM(str(folder), enable_lora=True, dtype="float32", kv_cache_memory="8MiB", max_logprobs=-1)
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
    (output,) = llm.generate(
        PROMPT, params, lora_request=LoRARequest("a", 1, str(tmp_path / "adapter")), use_tqdm=False
    )
    assert output.outputs[0].logprobs is not None
    for token, logprob in output.outputs[0].logprobs[0].items():
        assert logprob.logprob == pytest.approx(float(expected[token]), abs=1e-4)
