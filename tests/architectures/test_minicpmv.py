"""MiniCPM-V beyond its golden cases: which version a config is of, and what its towers do with odd sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from octavo import SamplingParams
from octavo.architectures import find_architecture
from octavo.errors import CheckpointError, UnsupportedModelError
from tests.architectures.published import build
from tests.golden import case_named, prompt_of
from tests.test_golden import agrees, load

ROW = find_architecture(["MiniCPMV"])


@pytest.mark.parametrize(("version", "error"), [(4.5, UnsupportedModelError), ("new", CheckpointError)])
def test_other_versions_are_refused(version: Any, error: type[Exception]) -> None:
    config = case_named("MiniCPMV--minicpm-v-2_6")["config"]
    with pytest.raises(error, match=str(version)):
        build(ROW, {**config, "version": version})


@pytest.mark.parametrize("name", ["MiniCPMV--minicpm-v-2", "MiniCPMV--minicpm-llama3-v-2_5"])
def test_a_config_without_version(name: str, tmp_path: Path) -> None:
    case = case_named(name)
    case["config"].pop("version", None)
    agrees(case, tmp_path)


def test_the_published_config_names_the_tower_only() -> None:
    """2.0's has no vision_config: the tower is SigLIP's SO400M, without its last layer."""
    config = {k: v for k, v in case_named("MiniCPMV--minicpm-v-2")["config"].items() if k != "vision_config"}
    with torch.device("meta"):
        tower = ROW.build(ROW.config(config)).media
    assert len(tower.encoder.layers) == 26
    assert tower.positions.shape == (27 * 27, 1152)


@pytest.mark.parametrize("version", ["2", "2_6"])
def test_pictures_that_are_not_sliced(version: str, tmp_path: Path) -> None:
    """2.0 fills the last patches up with the mean colour, which is 0 when it is normalized; 2.6 does not see them."""
    case = case_named(f"MiniCPMV--minicpm-v-{version}")
    file = "preprocessor_config.json"
    case["files"][file] = case["files"][file].replace('"slice_mode": true', '"slice_mode": false')
    case["config"]["slice_mode"] = False
    prompt = prompt_of(case["cases"][0])
    grey = Image.new("RGB", (42, 56), (128, 128, 128))
    pictures = {"odd": Image.new("RGB", (33, 50)), "filled": grey, "cut": Image.new("RGB", (28, 42))}
    pictures["filled"].paste(pictures["odd"], (0, 0))
    llm, params = load(case, tmp_path), SamplingParams(temperature=0, max_tokens=4, logprobs=1, ignore_eos=True)
    prompts = [{**prompt, "multi_modal_data": {"image": picture}} for picture in pictures.values()]
    odd, filled, cut = (
        [next(iter(step.values())).logprob for step in output.outputs[0].logprobs]
        for output in llm.generate(prompts, params, use_tqdm=False)
    )
    same, other = (filled, cut) if version == "2" else (cut, filled)
    assert odd == pytest.approx(same, abs=0.01 if version == "2" else 0)
    assert odd != pytest.approx(other, abs=0.02)
