"""BLIP-2 beyond its golden cases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from octavo import LLM, SamplingParams
from octavo.architectures import find_architecture
from octavo.errors import UnsupportedModelError
from octavo.media.processor import read_processor_files
from octavo.media.processors.blip2 import Blip2Processor
from tests.architectures.published import build
from tests.golden import case_named

TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 96, "vocab_size": 300}
TEXT |= {"max_position_embeddings": 128, "word_embed_proj_dim": 64}
VISION = {"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 3}
VISION |= {"image_size": 70, "patch_size": 14}
QFORMER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 5, "num_attention_heads": 3}
QFORMER |= {"encoder_hidden_size": 36}
PREPROCESSOR = {"size": {"height": 70, "width": 70}, "do_resize": True, "do_normalize": True}
IDS = [2, 5, 7, 99, 120]


@pytest.mark.parametrize("changed", [{"model_type": "t5"}, {"model_type": "llama"}])
def test_other_text_is_refused_by_name(changed: dict[str, str]) -> None:
    config = case_named("Blip2ForConditionalGeneration--opt-2.7b")["config"]
    with pytest.raises(UnsupportedModelError, match=f"BLIP-2 with {changed['model_type']} "):
        build(find_architecture(config["architectures"]), {**config, "text_config": changed})


def test_text_with_embeddings_of_another_size_is_refused() -> None:
    """Nothing says which of the two sizes a picture's rows would have."""
    config = case_named("Blip2ForConditionalGeneration--opt-2.7b")["config"]
    changed = {**config, "text_config": {**config["text_config"], "word_embed_proj_dim": 32}}
    with pytest.raises(UnsupportedModelError, match="word_embed_proj_dim"):
        build(find_architecture(config["architectures"]), changed)


@pytest.mark.parametrize(
    ("text", "vision", "qformer"),
    [
        ({}, {}, {}),
        ({}, {"qkv_bias": False, "hidden_act": "quick_gelu"}, {"cross_attention_frequency": 3, "hidden_act": "relu"}),
        ({"do_layer_norm_before": False}, {"layer_norm_eps": 1e-3}, {"layer_norm_eps": 1e-3}),
    ],
    ids=["usual", "flags", "norms"],
)
def test_as_transformers_5_saves_it(
    text: dict[str, Any], vision: dict[str, Any], qformer: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = transformers.Blip2Config(
        text_config={"model_type": "opt", **TEXT, **text},
        vision_config={**VISION, **vision},
        qformer_config={**QFORMER, **qformer},
        num_query_tokens=5,
        image_token_index=299,
    )
    reference = transformers.Blip2ForConditionalGeneration(config).eval()
    for name, parameter in reference.named_parameters():
        is_scale = "norm" in name.lower() and name.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_scale else 0.0, 0.3)
    reference.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 91, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)

    llm = LLM(str(tmp_path), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="16MiB")
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True)
    prompt = {"prompt_token_ids": IDS, "multi_modal_data": {"image": picture}}
    answer = llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]

    processor = Blip2Processor(read_processor_files(tmp_path, json.loads((tmp_path / "config.json").read_text())))
    processed = processor(IDS, images=[picture])
    ids = torch.tensor([processed.token_ids + answer.token_ids])
    values = torch.from_numpy(processed.features[0].data["pixel_values"])[None]
    with torch.no_grad():
        logits = reference(pixel_values=values, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    expected = logits[0, len(processed.token_ids) - 1 : -1].log_softmax(-1)
    assert expected.argmax(-1).tolist() == answer.token_ids
    for step, row in zip(answer.logprobs, expected, strict=True):
        for token, entry in step.items():
            assert entry.logprob == pytest.approx(float(row[token]), abs=5e-5)
