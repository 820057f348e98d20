"""Which layers list keys themselves, in every spelling, and what a config of sparse attention must not say."""

import re
from typing import Any

import pytest
import torch

from octavo.architectures import Config
from octavo.architectures.deepseek_v32 import glm_moe_dsa, list_types
from octavo.errors import OctavoError
from octavo.parts import CausalLM, SparseLatentAttention
from tests.golden import case_named

LAYERS = 7
CASE = case_named("GlmMoeDsaForCausalLM--5")


def letters(**values: Any) -> str:
    return "".join(kind[0] for kind in list_types(Config({"num_hidden_layers": LAYERS, **values})))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "fffffff"),
        ({"index_topk_freq": 1, "index_skip_topk_offset": 5}, "fffffff"),
        ({"index_topk_freq": 4}, "ffsssfs"),
        ({"index_topk_freq": 3, "index_skip_topk_offset": 3}, "fffssfs"),
        ({"index_topk_pattern": "FSSFFSS", "index_topk_freq": 2}, "fssffss"),
        ({"index_topk_pattern": ["full", *["shared"] * 6]}, "fssssss"),
        ({"indexer_types": [*["full"] * 6, "shared"], "index_topk_pattern": "FSSSSSS"}, "ffffffs"),
    ],
)
def test_which_layers_list_keys(values: dict[str, Any], expected: str) -> None:
    assert letters(**values) == expected


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"indexer_types": ["full"]}, "indexer_types has 1 types for 3 layers"),
        ({"index_topk_pattern": "SFF"}, "index_topk_pattern has the first layer share"),
        ({"index_topk_freq": 3, "index_skip_topk_offset": 0}, "index_topk_freq has the first layer share"),
        ({"index_topk_pattern": "FXF"}, "index_topk_pattern has 'X'"),
        ({"index_topk_pattern": 5}, "index_topk_pattern is 5"),
        ({"index_topk": 0}, "index_topk is 0"),
        ({"index_head_dim": 6}, "index_head_dim is 6"),
        ({"q_lora_rank": None}, "q_lora_rank is null"),
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types has 1 types for 3 layers"),
    ],
)
def test_wrong_configs(values: dict[str, Any], named: str) -> None:
    with torch.device("meta"), pytest.raises(OctavoError, match=re.escape(named)):
        glm_moe_dsa(Config({**CASE["config"], **values}))


def attentions(model: CausalLM) -> list[SparseLatentAttention]:
    return [m for m in model.modules() if isinstance(m, SparseLatentAttention)]


def test_lists_are_dropped_by_their_last_reader() -> None:
    """And kept for nobody where none reads them."""
    config = {**CASE["config"], "num_hidden_layers": 6, "index_topk_pattern": "FSSFFS"}
    with torch.device("meta"):
        layers = attentions(glm_moe_dsa(Config(config)))
    assert [layer.indexer is not None for layer in layers] == [True, False, False, True, True, False]
    assert [bool(layer.keeps) for layer in layers] == [True, False, False, False, True, False]
    assert [layer.is_last_reader for layer in layers if layer.indexer is None] == [False, True, True]
    assert layers[1].mixes == layers[2].mixes == layers[0].keeps != layers[4].keeps == layers[5].mixes


def test_indexers_of_layers_that_share_may_be_stored() -> None:
    with torch.device("meta"):
        names = glm_moe_dsa(Config({**CASE["config"], "index_topk_pattern": "FSF"})).names
    assert names.is_ignored("model.layers.1.self_attn.indexer.wk.weight")
    assert not names.is_ignored("model.layers.2.self_attn.indexer.wk.weight")
