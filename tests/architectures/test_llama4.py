"""Llama 4's experts as released, in one tensor a layer, and one by one as quantized checkpoints have them."""

import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.golden import case_named, write_model
from tests.test_golden import answers, opened


def test_experts_stored_one_by_one(tmp_path: Path) -> None:
    case = case_named("Llama4ForConditionalGeneration--scout-text")
    together, apart = (write_model(case, tmp_path / name) for name in ("together", "apart"))
    weights = dict[str, np.ndarray]()
    for name, tensor in load_file(apart / "model.safetensors").items():
        if not (found := re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name)):
            weights[name] = tensor
            continue
        for i, expert in enumerate(tensor):
            parts = np.split(expert.T, 2) if found[2] == "gate_up" else [expert.T]
            for part, rows in zip(("gate", "up") if len(parts) == 2 else ("down",), parts, strict=True):
                weights[f"{found[1]}.{i}.{part}_proj.weight"] = np.ascontiguousarray(rows)
    save_file(weights, apart / "model.safetensors")
    one, other = (
        [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in answers(opened(case, folder), case)]
        for folder in (together, apart)
    )
    assert one == other
