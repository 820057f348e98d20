"""Models with media against transformers' own modules: what tests of families share."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from octavo import LLM, SamplingParams
from octavo.architectures import find_architecture
from octavo.media.feature import Processed
from octavo.media.processor import read_processor_files
from tests.architectures.test_axial_towers import changed
from tests.golden import case_named, write_model

Prompt = dict[str, Any]
LIMITS = dict.fromkeys(("image", "video", "audio"), 4)
ARGUMENTS = {"image_patches": "pixel_values"}
"""What transformers' modules call features."""


BLIP2 = "Blip2ForConditionalGeneration--opt-2.7b"
QWEN2_VL = "Qwen2VLForConditionalGeneration--7b"
MLLAMA = "MllamaForConditionalGeneration--11b-vision"
IDEFICS3 = "Idefics3ForConditionalGeneration--8b-llama3"


def noise(*shape: int) -> Any:
    return np.random.default_rng(shape).integers(0, 255, shape, dtype=np.uint8)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(noise(height, width, 3))


def prompt(*parts: int | list[int], **media: list[Any]) -> Prompt:
    ids = [token for part in parts for token in (part if isinstance(part, list) else [part])]
    return {"prompt_token_ids": ids, **({"multi_modal_data": media} if media else {})}


def inputs(processed: Processed, more: list[int], values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tokens and features as transformers' modules take them."""
    ids = torch.tensor([processed.token_ids + more])
    arrays: dict[str, list[torch.Tensor]] = {}
    for feature in processed.features:
        for name, array in feature.data.items():
            arrays.setdefault(ARGUMENTS.get(name, name), []).append(torch.from_numpy(array.copy()))
    made: dict[str, torch.Tensor] = {"input_ids": ids}
    for name, each in arrays.items():
        if name == "pixel_values" and "image_sizes" in arrays:
            sides = [max(pixels.shape[axis] for pixels in each) for axis in (1, 2)]
            each = [torch.nn.functional.pad(p, (0, sides[1] - p.shape[2], 0, sides[0] - p.shape[1])) for p in each]
        made[name] = torch.stack(each)
    return made


def reference_of(row: str, values: dict[str, Any]) -> Any:
    """transformers' model of a config, with random weights."""
    torch.manual_seed(0)
    config_class = getattr(hf, row).config_class
    reference = getattr(hf, row)(config_class(**values)).eval()
    for path, parameter in reference.named_parameters():
        is_norm = ("norm" in path.lower() or "ln_" in path) and path.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.2)
    return reference


def before_placeholders(tokens: Iterable[int], placeholders: frozenset[int]) -> Iterator[int]:
    """The tokens of an answer up to one that transformers' modules would take for a place of media."""
    return itertools.takewhile(lambda token: token not in placeholders, tokens)


def agrees(
    name: str,
    change: dict[str, Any],
    prompts: list[Prompt],
    folder: Path,
    original: bool = True,
    settings: dict[str, Any] | None = None,
    seq_len: dict[str, Any] | None = None,
) -> None:
    """A golden case's model with a changed config and random weights answers as transformers' does."""
    case, row = case_named(name), name.split("--")[0]
    write_model(case, folder)
    (folder / "model.safetensors").unlink()
    values = {k: v for k, v in changed(case["config"], change).items() if k != "architectures"}
    reference = reference_of(row, values)
    if name == MLLAMA:  # whose layers' states transformers takes behind the layer, and all others before it
        tower = reference.model.vision_model
        tower.intermediate_layers_indices = [i - 1 for i in tower.intermediate_layers_indices]
    reference.save_pretrained(folder, save_original_format=original)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (settings or {})))
    if seq_len is not None:
        file = folder / "processor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | seq_len))
    saved = json.loads((folder / "config.json").read_text())
    llm = LLM(str(folder), dtype="float32", kv_cache_memory="32MiB", limit_mm_per_prompt=LIMITS)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=0, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    architecture = find_architecture([row])
    assert architecture.processor is not None
    processor = architecture.processor(architecture.config(saved))(
        read_processor_files(folder, saved), llm.engine.tokenizer
    )
    for given, output in zip(prompts, outputs, strict=True):
        media = {f"{kind}s": items for kind, items in given.get("multi_modal_data", {}).items()}
        processed, answer = processor(given["prompt_token_ids"], **media), output.outputs[0]
        more = list(before_placeholders(answer.token_ids, processor.placeholders()))
        assert output.prompt_token_ids == processed.token_ids
        with torch.inference_mode():
            arguments = INPUTS.get(name, inputs)(processed, more, saved)
            model = reference.language_model if name == BLIP2 and not media else reference
            logits = model(**arguments).logits
        expected = torch.log_softmax(logits[0].float(), -1)
        for i, token in enumerate(processed.token_ids[1:]):
            if token >= expected.shape[1]:
                continue
            assert output.prompt_logprobs[i + 1][token].logprob == pytest.approx(
                float(expected[i, token]), rel=3e-5, abs=1e-4
            )
        for row_of, step in zip(expected[len(processed.token_ids) - 1 :], answer.logprobs, strict=False):
            for token, entry in step.items():
                assert entry.logprob == pytest.approx(float(row_of[token]), rel=3e-5, abs=1e-4)


def qwen2_vl_inputs(processed: Processed, more: list[int], values: dict[str, Any]) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {"input_ids": torch.tensor([processed.token_ids + more])}
    for name in ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        arrays = [torch.from_numpy(f.data[name].copy()) for f in processed.features if name in f.data]
        if arrays:
            made[name] = torch.cat(arrays) if name.startswith("pixel") else torch.stack(arrays)
    ids = torch.tensor([processed.token_ids + [0] * len(more)])
    made["mm_token_type_ids"] = (ids == values["image_token_id"]).long() + 2 * (ids == values["video_token_id"])
    return made


def mllama_inputs(processed: Processed, more: list[int], values: dict[str, Any]) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {"input_ids": torch.tensor([processed.token_ids + more])}
    features = processed.features
    if not features:
        return made
    for name in features[0].data:
        made[name] = torch.from_numpy(np.stack([f.data[name] for f in features])).unsqueeze(0)
    made["aspect_ratio_ids"] = made["aspect_ratio_ids"].squeeze(-1)
    sees = torch.zeros(1, made["input_ids"].shape[1], len(features), len(features[0].data["aspect_ratio_mask"]))
    for i, feature in enumerate(features):
        begin, end = feature.visible
        sees[:, begin:end, i, : int(feature.data["aspect_ratio_mask"].sum())] = 1
    return {**made, "cross_attention_mask": sees.long()}


def idefics3_inputs(processed: Processed, more: list[int], values: dict[str, Any]) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {"input_ids": torch.tensor([processed.token_ids + more])}
    tiles = [f.data["pixel_values"] for f in processed.features]
    return {**made, "pixel_values": torch.from_numpy(np.concatenate(tiles))[None]} if tiles else made


INPUTS = {QWEN2_VL: qwen2_vl_inputs, MLLAMA: mllama_inputs, IDEFICS3: idefics3_inputs}
