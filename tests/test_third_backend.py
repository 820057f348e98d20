"""A backend that nobody knows of serves where it is chosen: nothing above octavo.ops asks which one computes."""

from pathlib import Path

import pytest
import torch

from octavo.loading import model as loading
from tests.counting_backend import CountingBackend
from tests.golden import case_named
from tests.test_golden import agrees

CASES = {
    "LlamaForCausalLM--llama1-keys": {"attend", "gated_linear", "rms_norm"},
    "MixtralForCausalLM--8x7b": {"attend", "experts", "route", "gated", "weighted_sum"},
    "FalconMambaForCausalLM--7b": {"make_state", "plan_recurrent", "convolve", "scan"},
    "DeepseekV2ForCausalLM--lite": {"head_linear", "join_rope", "store", "attend_stored"},
    "DeepseekV32ForCausalLM--v3.2": {"join_rope", "store", "select_keys", "attend_stored"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_golden_case(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CountingBackend(torch.device("cpu"))
    monkeypatch.setattr(loading, "select_backend", lambda device, preference: backend)
    agrees(case_named(name), tmp_path)
    asked = {"linear", "finite", "sample", "add", "record_decode"}
    if "Mamba" not in name:
        asked |= {"make_cache", "block_bytes", "plan_attention"}
    assert asked | CASES[name] <= set(backend.calls)
