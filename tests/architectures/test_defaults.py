"""Keys that a config.json leaves out are what the published config class takes for them."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from octavo.architectures import all_architectures
from octavo.architectures.config_keys import KEYS
from octavo.architectures.config_spellings import SPELLINGS
from octavo.architectures.rope_settings import position_limit
from tests.architectures.published import PUBLISHED, build, class_defaults, recorded
from tests.golden import CASES, config_of, read_case

ARCHITECTURES = all_architectures()
TWO_LAYERS = {"num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_kv_shared_layers": 0}
LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
HAS_NO_DEFAULT = {
    "ChameleonForConditionalGeneration": {
        "vocabulary_map": {f"IMGIMG{str(code).translate(LETTERS)}Z": code + 4 for code in range(8192)}
    },
    "MolmoForCausalLM": {"layer_norm_type": "rms"},
    "BaichuanForCausalLM": {
        "vocab_size": 64000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
    },
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 2},
    "Qwen2VLForConditionalGeneration": {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
    "Qwen2_5_VLForConditionalGeneration": {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
}


def flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[tuple[str, str], Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield (path, key), value


def wrong(defaults: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Ours and the class's, where they differ."""
    theirs = dict(flat(published))
    ours = {("", "rope_theta"): 10000.0, ("", "partial_rotary_factor"): 1.0, **dict(flat(defaults))}
    return {
        path + key: (value, theirs[path, key])
        for (path, key), value in ours.items()
        if (path, key) in theirs and theirs[path, key] != value
    }


def read_by(name: str) -> set[tuple[str, str]]:
    """All keys that the family reads of its golden cases, and of a config that leaves everything out."""
    cases = [case for path in CASES if (case := read_case(path))["row"] == name]
    with recorded() as asked:
        for values in [TWO_LAYERS | HAS_NO_DEFAULT.get(name, {}), *map(config_of, cases)]:
            build(ARCHITECTURES[name], {"architectures": [name], **values})
            position_limit(ARCHITECTURES[name].config(values))
    return asked


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_config_class_s(name: str) -> None:
    assert wrong(ARCHITECTURES[name].defaults, class_defaults(PUBLISHED[name])) == {}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_that_is_read_has_the_class_s_default(name: str) -> None:
    have = {key for key, _ in flat(ARCHITECTURES[name].defaults)} | {("", "rope_theta"), ("", "partial_rotary_factor")}
    asked = {(path, other) for path, key in read_by(name) for other in (key, *SPELLINGS.get(key, ()))}
    needed = {key for key, value in flat(class_defaults(PUBLISHED[name])) if value is not None}
    assert (asked & needed) - have == set()


def test_a_wrong_default_is_found() -> None:
    published = class_defaults(PUBLISHED["MixtralForCausalLM"])
    right = ARCHITECTURES["MixtralForCausalLM"].defaults
    assert wrong({**right, "rope_theta": 10000.0}, published) == {"rope_theta": (10000.0, 1e6)}
    assert wrong({**right, "num_key_value_heads": 32}, published) == {"num_key_value_heads": (32, 8)}
    assert "rope_theta" in wrong({k: v for k, v in right.items() if k != "rope_theta"}, published)


@pytest.mark.parametrize("name", sorted({a.name for a in ARCHITECTURES.values()}))
def test_every_key_that_is_read_is_of_a_known_kind(name: str) -> None:
    assert {key for _, key in read_by(name)} - set(KEYS) == set()


def test_families_that_transformers_lacks_have_defaults_too() -> None:
    assert {a.name for a in ARCHITECTURES.values() if not a.defaults} == set()


def test_a_function_registered_again_keeps_its_defaults() -> None:
    for name, like in (("LlamaModel", "LlamaForCausalLM"), ("Qwen2Model", "Qwen2ForCausalLM")):
        assert ARCHITECTURES[name].defaults == ARCHITECTURES[like].defaults
