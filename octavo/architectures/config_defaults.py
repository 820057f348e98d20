"""What each family's published config class takes for keys that a config.json leaves out.

defaults.json has them by the name of the family's language model, and tests/architectures/test_defaults.py compares
them with transformers' classes. Those of families that transformers does not have are from the configuration file that
is published with their weights. Not in it: keys that a class computes of others, a rotary base of 10000 and a share of
1, and sizes where one name has several classes (Baichuan's 7B and 13B).
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

_SAME = {
    "MPNetForMaskedLM": "MPNetModel",
    "BartModel": "BartForConditionalGeneration",
    "Gemma2Model": "Gemma2ForCausalLM",
    "LlamaForSequenceClassification": "LlamaForCausalLM",
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen2ForSequenceClassification": "Qwen2ForCausalLM",
    "Qwen2ForRewardModel": "Qwen2ForCausalLM",
    "Qwen3ForSequenceClassification": "Qwen3ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}


@cache
def _table() -> dict[str, dict[str, Any]]:
    stored: dict[str, dict[str, Any]] = json.loads((files("octavo.architectures") / "defaults.json").read_text())
    return stored


def defaults_of(name: str) -> Mapping[str, Any]:
    """The defaults of architecture `name`; none for one that is not of the tree."""
    family = name.partition("ForSequenceClassification")[0].partition("ForTokenClassification")[0]
    found = (_table().get(each) for each in (_SAME.get(name, name), f"{family}Model"))
    return next((defaults for defaults in found if defaults), {})
