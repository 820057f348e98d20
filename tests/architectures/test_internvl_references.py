"""InternVL2 and H2OVL against transformers' modules, with texts, towers and settings that no golden case has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from octavo import LLM, SamplingParams
from octavo.architectures import find_architecture
from octavo.media.processor import read_processor_files
from tests.golden import case_named

pytestmark = pytest.mark.slow

FILES = case_named("InternVLChatModel--internvl2-internlm2")["files"]
VOCABULARY, CONTEXT, SIDE, PATCH = 276, 263, 56, 14
TEXT: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 1024}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": PATCH, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
VISION |= {"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False}
WHOLE = {"downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, "max_dynamic_patch": 4}
SIZES = [(100, 30), (31, 160), (57, 55), (113, 111), (1, 50), (224, 224)]
TOWER_NAMES = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "encoder.layer.": "encoder.layers.",
    "attention.projection_layer": "attn.proj",
    "attention.": "attn.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_": "ls",
}


def randomized(module: nn.Module) -> nn.Module:
    for name, parameter in module.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.1 if is_norm else 0.2)
    return module.eval()


class Reference:
    """transformers' InternViT and text model, and what the vendor's model has between them.

    Args:
        whole: the config as published, with its sections.
        text: the text model.
    """

    def __init__(self, whole: dict[str, Any], text: Any) -> None:
        torch.manual_seed(1)
        c, self.whole, vision = whole["vision_config"], whole, whole["vision_config"]
        given = {
            "attention_bias": vision["qkv_bias"],
            "use_qk_norm": vision["qk_normalization"],
            "image_size": [c["image_size"]] * 2,
        }
        config = InternVLVisionConfig(**{**vision, **given}, use_absolute_position_embeddings=True)
        size, inner = c["hidden_size"], text.config.hidden_size
        merged = int(size / whole["downsample_ratio"] ** 2)
        projector = nn.Sequential(nn.LayerNorm(merged), nn.Linear(merged, inner), nn.GELU(), nn.Linear(inner, inner))
        self.text, self.tower, self.projector = (randomized(x) for x in (text, InternVLVisionModel(config), projector))

    def tensors(self) -> dict[str, Tensor]:
        """As the vendor publishes them."""
        made = {f"language_model.{name}": w for name, w in self.text.state_dict().items()}
        if self.text.config.tie_word_embeddings:
            del made["language_model.lm_head.weight"]
        made |= {f"mlp1.{name}": w for name, w in self.projector.state_dict().items()}
        tower = dict(self.tower.state_dict())
        for name in [name for name in tower if ".q_proj." in name]:
            qkv = [tower.pop(name.replace("q_proj", f"{each}_proj")) for each in "qkv"]
            tower[name.replace("q_proj", "qkv")] = torch.cat(qkv)
        for name, w in tower.items():
            for new, published in TOWER_NAMES.items():
                name = name.replace(new, published)
            if not name.startswith("layernorm"):
                made[f"vision_model.{name}"] = w
        return {name: w.contiguous() for name, w in made.items()}

    def rows(self, pixels: Tensor) -> Tensor:
        """`[rows, hidden_size]` of tiles `[tiles, 3, side, side]`."""
        states = [self.tower.embeddings(pixels)]
        for layer in self.tower.encoder.layer:
            states.append(layer(states[-1]))
        x = states[self.whole["select_layer"]][:, 1:]
        tiles, ratio, side = len(x), self.whole["downsample_ratio"], int(x.shape[1] ** 0.5)
        x = x.reshape(tiles, side, int(side * ratio), int(x.shape[2] / ratio)).permute(0, 2, 1, 3)
        x = x.reshape(tiles, int(side * ratio), int(side * ratio), int(x.shape[3] / ratio))
        x = x if self.whole["ps_version"] == "v1" else x.permute(0, 2, 1, 3)
        return self.projector(x.reshape(-1, x.shape[-1]))

    def logprobs(self, token_ids: list[int], tiles: list[Any]) -> Tensor:
        tokens = torch.tensor(token_ids)
        x = self.text.get_input_embeddings()(tokens)
        if tiles:
            x[tokens == CONTEXT] = self.rows(torch.from_numpy(np.concatenate(tiles)))
        return torch.log_softmax(self.text(inputs_embeds=x[None]).logits[0].float(), -1)


def write(folder: Path, reference: Reference, values: dict[str, Any]) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(reference.tensors(), folder / "model.safetensors")


def agrees(
    folder: Path, text: Any, row: str = "InternVLChatModel", vision: dict[str, Any] | None = None, **whole: Any
) -> None:
    """A random model with this text and tower, as the vendor publishes it, answers as transformers' modules do."""
    values = {"architectures": [row], "model_type": "internvl_chat", **WHOLE, **whole}
    values["vision_config"] = {**VISION, **(vision or {})}
    values["llm_config"] = {**text.config.to_dict(), "architectures": [type(text).__name__]}
    reference = Reference(values, text)
    write(folder, reference, values)
    llm = LLM(str(folder), dtype="float32", kv_cache_memory="32MiB")
    pictures = [Image.fromarray(noise(height, width)) for width, height in SIZES]
    mark = llm.engine.tokenizer.encode("<image>", add_special_tokens=False)
    prompts: list[dict[str, Any]] = [{"prompt_token_ids": [1, 68, 35]}]
    for group in [*([one] for one in pictures), pictures[1:4]]:
        places = [token for i in range(len(group)) for token in (*mark, 70 + i)]
        prompts.append({"prompt_token_ids": [1, 68, *places, 35], "multi_modal_data": {"image": group}})
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    architecture = find_architecture([row])
    files = read_processor_files(folder, values)
    assert architecture.processor is not None
    processor = architecture.processor(architecture.config(values))(files, llm.engine.tokenizer)
    for prompt, output in zip(prompts, outputs, strict=True):
        processed = processor(prompt["prompt_token_ids"], prompt.get("multi_modal_data", {}).get("image", ()))
        assert output.prompt_token_ids == processed.token_ids
        with torch.inference_mode():
            tiles = [item.data["pixel_values"] for item in processed.features]
            expected = reference.logprobs(processed.token_ids, tiles)
        for i, token in enumerate(processed.token_ids[1:]):
            assert output.prompt_logprobs[i + 1][token].logprob == pytest.approx(float(expected[i, token]), abs=5e-5)


def noise(height: int, width: int) -> Any:
    return np.random.default_rng((height, width)).integers(0, 255, (height, width, 3), dtype=np.uint8)


def qwen2(**changed: Any) -> Any:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**{**TEXT, **changed}))


def phi3(**changed: Any) -> Any:
    return hf.Phi3ForCausalLM(hf.Phi3Config(**{**TEXT, "pad_token_id": 0, **changed}))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("InternVLChatModel", lambda: qwen2()),
        ("InternVLChatModel", lambda: qwen2(tie_word_embeddings=True)),
        ("InternVLChatModel", lambda: phi3()),
        ("InternVLChatModel", lambda: phi3(sliding_window=16)),
        ("InternVLChatModel", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT))),
        ("InternVLChatModel", lambda: hf.MistralForCausalLM(hf.MistralConfig(**{**TEXT, "sliding_window": 16}))),
        ("H2OVLChatModel", lambda: hf.MistralForCausalLM(hf.MistralConfig(**{**TEXT, "sliding_window": None}))),
        ("H2OVLChatModel", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT))),
    ],
    ids=["qwen2", "tied", "phi3", "phi3-window", "llama", "mistral", "h2ovl-mistral", "h2ovl-llama"],
)
def test_texts(row: str, text: Any, tmp_path: Path) -> None:
    agrees(tmp_path, text(), row, use_msac=row == "H2OVLChatModel", max_dynamic_patch=6)


@pytest.mark.parametrize(
    "vision",
    [
        {"norm_type": "rms_norm"},
        {"qk_normalization": True, "qkv_bias": False},
        {"qk_normalization": True, "norm_type": "rms_norm", "num_hidden_layers": 1},
        {"image_size": 28},
        {"image_size": 84},
        {"num_attention_heads": 4, "intermediate_size": 80, "hidden_act": "gelu_pytorch_tanh"},
    ],
    ids=str,
)
def test_towers(vision: dict[str, Any], tmp_path: Path) -> None:
    agrees(tmp_path, qwen2(), vision=vision, force_image_size=SIDE)


@pytest.mark.parametrize(
    "whole",
    [
        {"select_layer": -2},
        {"select_layer": 1},
        {"select_layer": 0},
        {"ps_version": "v1"},
        {"downsample_ratio": 0.25},
        {"downsample_ratio": 1.0},
        {"use_thumbnail": False},
        {"dynamic_image_size": False},
        {"min_dynamic_patch": 3, "max_dynamic_patch": 6},
        {"force_image_size": 28},
        {"force_image_size": 84, "max_dynamic_patch": 2},
    ],
    ids=str,
)
def test_settings(whole: dict[str, Any], tmp_path: Path) -> None:
    if whole.get("force_image_size") == 84:
        whole = {**whole, "downsample_ratio": 1.0}
    agrees(tmp_path, qwen2(), **whole)
