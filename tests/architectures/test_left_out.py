"""Keys of media that a config may leave out, and what the vendors' code takes then."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import SamplingParams
from octavo.architectures import find_architecture
from octavo.media.processor import read_processor_files
from tests.architectures.media_references import picture
from tests.golden import case_named, prompt_of
from tests.test_golden import load

PHI3V = "Phi3VForCausalLM--phi-3-vision"
INTERNVL = "InternVLChatModel--internvl2-internlm2"


def answer(folder: Path, change: dict[str, Any]) -> list[int]:
    """Of a golden case's first prompt, with sections of the config changed; a key whose value is None is left out."""
    case = case_named(PHI3V)
    config = dict(case["config"])
    for section, values in change.items():
        merged = {**config[section], **values}
        config[section] = {key: value for key, value in merged.items() if value is not None}
    llm = load({**case, "config": config}, folder)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    tokens: list[int] = llm.generate([prompt_of(case["cases"][0])], params, use_tqdm=False)[0].outputs[0].token_ids
    return tokens


@pytest.mark.parametrize(
    ("section", "key", "default", "other"),
    [("embd_layer", "hd_transform_order", "glb_sub", "sub_glb"), ("img_processor", "layer_idx", -2, -3)],
)
def test_phi_3_vision(section: str, key: str, default: Any, other: Any, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    left_out, given, changed = (
        answer(folder, {section: {key: value}}) for folder, value in zip(folders, (None, default, other), strict=True)
    )
    assert left_out == given != changed


def test_what_phi_3_visions_tower_takes_for_granted_is_known() -> None:
    """An error about weights names the sizes that a config leaves out: those of the tower are among them."""
    architecture = find_architecture(["Phi3VForCausalLM"])
    config = architecture.config(case_named(PHI3V)["config"])
    with torch.device("meta"):
        architecture.build(config)
    assert "img_processor.vision_config.layer_norm_eps" in config.assumed


@pytest.mark.parametrize(("given", "tiles"), [({}, 1), ({"dynamic_image_size": True}, 6)])
def test_internvl(given: dict[str, Any], tiles: int, tmp_path: Path) -> None:
    case = case_named(INTERNVL)
    keys = ("dynamic_image_size", "use_thumbnail", "max_dynamic_patch", "min_dynamic_patch")
    config = {**{k: v for k, v in case["config"].items() if k not in keys}, **given}
    llm = load({**case, "config": config}, tmp_path)
    architecture = find_architecture(["InternVLChatModel"])
    assert architecture.processor is not None
    files = read_processor_files(tmp_path, config)
    processor = architecture.processor(architecture.config(config))(files, llm.engine.tokenizer)
    mark = llm.engine.tokenizer.encode("<image>", add_special_tokens=False)
    (feature,) = processor(mark, [picture(600, 400)]).features
    assert len(feature.data["pixel_values"]) == tiles
