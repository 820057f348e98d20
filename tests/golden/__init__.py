"""Golden cases: tiny models in published formats, and what their reference implementations answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from octavo.architectures.mistral_params import mistral_config
from octavo.tools.recipe import media, values, write_model

__all__ = ["CASES", "case_named", "config_of", "has_media", "prompt_of", "read_case", "tensors", "write_model"]

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


def read_case(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def config_of(case: dict[str, Any]) -> dict[str, Any]:
    """The values of a case's config.json; of a params.json, those that it means."""
    config: dict[str, Any] = case["config"]
    return mistral_config(config) if case.get("config_file") == "params.json" else config


def has_media(case: dict[str, Any]) -> bool:
    """Whether some of its prompts have pictures, films or sounds."""
    return any(key in prompt for prompt in case["cases"] for key in ("images", "videos", "audios"))


def prompt_of(case: dict[str, Any]) -> dict[str, Any]:
    """One of a case's prompts, as `LLM.generate` takes it."""
    prompt: dict[str, Any] = {"prompt_token_ids": case["prompt_token_ids"]}
    if "encoder_prompt_token_ids" in case:
        return {"encoder_prompt": {"prompt_token_ids": case["encoder_prompt_token_ids"]}, "decoder_prompt": prompt}
    if data := media(case):
        prompt["multi_modal_data"] = data
    return prompt


def case_named(name: str) -> dict[str, Any]:
    return read_case(Path(__file__).parent / "cases" / f"{name}.json")


def tensors(case: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: values(name, spec) for name, spec in case["tensors"].items()}
