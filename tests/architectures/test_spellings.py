"""One model under every spelling that its config has had: transformers 5's, transformers 4's, and older ones."""

import copy
from pathlib import Path
from typing import Any

import pytest

from octavo.architectures import Config, all_architectures
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import position_limit
from octavo.errors import CheckpointError, OctavoError, UnsupportedModelError
from octavo.parts import BidirectionalAttention
from tests.architectures.published import PUBLISHED
from tests.golden import CASES, case_named, read_case
from tests.test_golden import agrees, answers, load

OF_PUBLISHED = [path for path in CASES if read_case(path)["row"] in PUBLISHED]
LONG = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def with_config(name: str, **changed: Any) -> dict[str, Any]:
    """A golden case whose config has other values; those that are None are left out."""
    case = case_named(name)
    case["config"] = {k: v for k, v in {**case["config"], **changed}.items() if v is not None}
    return case


def rewritable(config: dict[str, Any]) -> dict[str, Any]:
    """A copy whose values the config class takes: it is strict about 0.0 for 0, and 1 for 1.0."""
    config = copy.deepcopy(config)
    config.get("attn_config", {}).pop("attn_pdrop", None)
    if "moe_normalize_expert_weights" in (experts := config.get("ffn_config", {})):
        experts["moe_normalize_expert_weights"] = float(experts["moe_normalize_expert_weights"])
    return config


@pytest.mark.parametrize("path", OF_PUBLISHED, ids=lambda p: p.stem)
def test_as_transformers_5_writes_it(path: Path, tmp_path: Path) -> None:
    """Loaded into the config class and written again: what moved and was renamed is found."""
    case = read_case(path)
    if case["config"]["model_type"].startswith(("RefinedWeb", "nomic_bert")):
        pytest.skip("its class reads n_head and n_layer no longer")
    written = PUBLISHED[case["row"]].from_dict(rewritable(case["config"])).to_dict()
    assert "torch_dtype" not in written
    case["config"] = {**written, "architectures": case["config"]["architectures"]}
    agrees(case, tmp_path)


@pytest.mark.parametrize("path", OF_PUBLISHED, ids=lambda p: p.stem)
def test_without_what_the_class_takes_anyway(path: Path, tmp_path: Path) -> None:
    case = read_case(path)
    defaults = {"rope_theta": 10000.0, **all_architectures()[case["row"]].defaults}
    kept = {k: v for k, v in case["config"].items() if k not in defaults or v != defaults[k]}
    assert kept != case["config"]
    case["config"] = kept
    agrees(case, tmp_path)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("GPT2LMHeadModel--gpt2", {"n_embd": "hidden_size", "n_head": "num_attention_heads"}),
        ("GPT2LMHeadModel--gpt2", {"n_layer": "num_hidden_layers", "n_positions": "max_position_embeddings"}),
        ("GPTJForCausalLM--6b", {"n_embd": "hidden_size", "n_layer": "num_hidden_layers"}),
        ("BloomForCausalLM--bloom", {"hidden_size": "n_embed", "n_layer": "num_hidden_layers"}),
        ("DbrxForCausalLM--dbrx", {"d_model": "hidden_size", "n_heads": "num_attention_heads"}),
        ("MPTForCausalLM--7b", {"d_model": "hidden_size", "n_layers": "num_hidden_layers"}),
        ("MixtralForCausalLM--8x7b", {"num_local_experts": "num_experts"}),
        ("OlmoeForCausalLM--1b-7b", {"num_experts": "num_local_experts"}),
        ("DeepseekV2ForCausalLM--lite", {"n_routed_experts": "num_experts"}),
        ("GPTNeoXForCausalLM--pythia-with-buffers", {"rotary_pct": "partial_rotary_factor"}),
        ("StableLmForCausalLM--3b-4e1t", {"partial_rotary_factor": "rope_pct", "layer_norm_eps": "norm_eps"}),
        ("NemotronForCausalLM--minitron", {"partial_rotary_factor": "rope_percent"}),
        ("PhiForCausalLM--1_5", {"partial_rotary_factor": "rotary_emb_fraction"}),
        ("QWenLMHeadModel--7b", {"rotary_emb_base": "rope_theta"}),
        ("BartForConditionalGeneration--base", {"encoder_layers": "num_hidden_layers"}),
        ("BartForConditionalGeneration--base", {"encoder_attention_heads": "num_attention_heads"}),
    ],
)
def test_older_names(name: str, changed: dict[str, str], tmp_path: Path) -> None:
    case = case_named(name)
    case["config"] = {changed.get(k, k): v for k, v in case["config"].items() if k not in changed.values()}
    assert set(changed.values()) <= set(case["config"])
    agrees(case, tmp_path)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("LlamaForCausalLM--gqa-tied", {"rope_parameters": {"full_attention": {"rope_theta": 10000.0}}}),
        (
            "MistralForCausalLM--v0.1-window",
            {"rope_theta": None, "rope_parameters": {"sliding_attention": {"rope_theta": 10000.0}}},
        ),
        (
            "Gemma2ForCausalLM--9b",
            {
                "rope_theta": None,
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                },
            },
        ),
        (
            "Phi3ForCausalLM--mini-4k-window",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
        ),
        ("LlamaForCausalLM--linear-rope-bias", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("LlamaForCausalLM--linear-rope-bias", {"rope_parameters": {"rope_type": "linear", "factor": 4}}),
        ("LlamaForCausalLM--gqa-tied", {"rope_scaling": {"type": "default"}}),
        ("LlamaForCausalLM--gqa-tied", {"rope_scaling": {}, "rope_parameters": {"rope_type": None}}),
        ("InternLM2ForCausalLM--chat-7b-dynamic", {"rope_scaling": {"rope_type": "dynamic", "factor": 2}}),
    ],
)
def test_shapes_of_rope_dictionaries(name: str, changed: dict[str, Any], tmp_path: Path) -> None:
    agrees(with_config(name, **changed), tmp_path)


def test_null_rope_scaling(tmp_path: Path) -> None:
    case = case_named("LlamaForCausalLM--gqa-tied")
    case["config"] |= {"rope_scaling": None, "rope_parameters": None}
    agrees(case, tmp_path)


FIVES = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8, "rope_theta": 500.0, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize("beside", [{}, {"rope_theta": 20.0, "partial_rotary_factor": 1.0}])
def test_rope_scaling_replaces_rope_parameters(beside: dict[str, Any]) -> None:
    """As transformers has it; the base and the share stay where nothing else in the file says them."""
    c = Config({"rope_parameters": FIVES, "rope_scaling": {"type": "linear", "factor": 2.0}, **beside})
    found = make_rope(c, 8).table.frequencies[0]
    base, pairs = (20.0, 4) if beside else (500.0, 2)
    assert found.tolist() == pytest.approx([base ** (-i / pairs) / 2 for i in range(pairs)])
    assert position_limit(c.replace(max_position_embeddings=64)) == 128


@pytest.mark.parametrize("spelling", ["rope_theta", "rope_parameters"])
def test_a_null_base_or_share_is_the_family_s(spelling: str) -> None:
    nulls = {"rope_theta": None, "partial_rotary_factor": None}
    for name, base in (("StableLmForCausalLM", 1e4), ("MixtralForCausalLM", 1e6)):
        row = all_architectures()[name]
        found = make_rope(row.config(nulls if spelling == "rope_theta" else {spelling: nulls}), 64).table.frequencies[0]
        pairs = int(32 * row.defaults.get("partial_rotary_factor", 1.0))
        assert found.tolist() == pytest.approx([base ** (-i / pairs) for i in range(pairs)])


@pytest.mark.parametrize("kind", ["su", "longrope", "yarn"])
def test_every_name_of_longrope(kind: str, tmp_path: Path) -> None:
    case = case_named("Phi3ForCausalLM--mini-128k-longrope")
    case["config"]["rope_scaling"]["type"] = kind
    agrees(case, tmp_path)


def test_longrope_of_a_fraction(tmp_path: Path) -> None:
    """Phi-4-mini's kind of config: half of each head is rotated, and the tables are half as long."""
    case = case_named("Phi3ForCausalLM--mini-128k-longrope")
    table = case["config"]["rope_scaling"]
    share = {key: values[::2] for key, values in table.items() if key.endswith("factor")}
    five = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, **share}
    four = {"rope_scaling": {"type": "longrope", **share}, "partial_rotary_factor": 0.5}
    found = []
    for i, changed in enumerate((four, {"rope_scaling": None, "rope_parameters": five, "partial_rotary_factor": None})):
        case["config"] = with_config("Phi3ForCausalLM--mini-128k-longrope", **changed)["config"]
        found.append([o.outputs[0].logprobs for o in answers(load(case, tmp_path / str(i)), case)])
    assert found[0] == found[1]


LAYERED = {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 20.0}}


def test_layers_of_two_types_turn_by_their_own() -> None:
    c = Config({"rope_parameters": LAYERED})
    for layer, base in (("full_attention", 500.0), ("sliding_attention", 20.0)):
        found = make_rope(c, 4, layer=layer, layers=LAYERED).table.frequencies[0]
        assert found.tolist() == pytest.approx([1.0, base**-0.5])


def test_windowed_layers_of_gemma_2_and_qwen_2_turn_by_their_own() -> None:
    import torch

    for name, changed in (
        ("Gemma2ForCausalLM--9b", {}),
        ("Qwen2ForCausalLM--7b", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}),
    ):
        config = with_config(name, rope_theta=None, rope_parameters=LAYERED, **changed)["config"]
        row = all_architectures()[config["architectures"][0]]
        with torch.device("meta"):
            model = row.build(row.config(config))
        for layer in model.layers:
            attention = layer.attn
            base = 20.0 if attention.state.window else 500.0
            pairs = attention.head_dim // 2
            assert float(attention.rope.table.frequencies[0, 1]) == pytest.approx(base ** (-1 / pairs))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rope_parameters": LAYERED}, "sliding_attention"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 20.0}}}, "sliding_attention"),
        ({"rope_parameters": {"full_attention": None}}, "full_attention"),
        ({"rope_parameters": {"chunked_attention": {"rope_theta": 20.0}}}, "chunked_attention"),
        ({"rope_parameters": {"of_my_own": {"rope_theta": 20.0}}}, "of_my_own"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 50.0}, "rope_theta": 20.0}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "rope_thetta": 20.0}}, "rope_thetta"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "low_freq_factor": 1.0}}, "low_freq_factor"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "mrope"),
        ({"rope_scaling": {"rope_type": "of_my_own"}}, "of_my_own"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}, "above"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "pairs"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"type": 5}}, "type"),
        ({"partial_rotary_factor": 0.01}, "share"),
    ],
)
def test_what_a_rope_dictionary_may_not_have(changed: dict[str, Any], says: str) -> None:
    config = with_config("LlamaForCausalLM--gqa-tied", rope_theta=None, **changed)["config"]
    row = all_architectures()["LlamaForCausalLM"]
    with pytest.raises((CheckpointError, UnsupportedModelError), match=says):
        row.build(row.config(config))


def _layered(config: dict[str, Any]) -> dict[str, Any]:
    """With a dictionary of layers' types where the text model's keys are."""
    if "text_config" not in config or "hidden_size" in config:
        return {**config, "rope_parameters": LAYERED}
    text = {k: v for k, v in config["text_config"].items() if k not in ("rope_theta", "rope_scaling")}
    return {**config, "text_config": {**text, "rope_parameters": LAYERED}}


@pytest.mark.parametrize("path", OF_PUBLISHED, ids=lambda p: p.stem)
def test_no_family_passes_over_a_nested_dictionary(path: Path) -> None:
    """With bases that are nobody's default: an error, or the base of the layer's own type; never 10000."""
    import torch

    config = {k: v for k, v in read_case(path)["config"].items() if k not in ("rope_theta", "rope_scaling")}
    row = all_architectures()[read_case(path)["row"]]
    try:
        with torch.device("meta"):
            model = row.build(row.config(_layered(config)))
    except OctavoError:
        return
    for module in model.modules():
        rope = getattr(module, "rope", None)
        if rope is None or "attn_config" in config or row.name == "GPTJForCausalLM":
            continue
        pairs = rope.table.frequencies.shape[1]
        window = module.window if isinstance(module, BidirectionalAttention) else module.state.window
        base = 20.0 if window else 500.0
        assert float(rope.table.frequencies[0, 1]) == pytest.approx(base ** (-1 / pairs))


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ({"max_position_embeddings": 64, "rope_scaling": LONG}, 256),  # Qwen2.5's recipe
        ({"max_position_embeddings": 256, "rope_scaling": LONG}, 256),  # DeepSeek's
        ({"max_position_embeddings": 64, "rope_parameters": LONG}, 256),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 256),
        ({"max_position_embeddings": 512, "rope_scaling": LONG}, 512),
        (
            {"max_position_embeddings": 64, "original_max_position_embeddings": 32, "rope_scaling": LONG},
            128,
        ),
        (
            {"max_position_embeddings": 256, "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 64}},
            256,
        ),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": {**LONG, "rope_type": "longrope"}}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": {**LONG, "rope_type": "llama3"}}, 64),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "default"}}, 64),
        ({"max_position_embeddings": 64, "rope_parameters": {"full_attention": LONG, "sliding_attention": {}}}, 64),
        ({"max_position_embeddings": 64, "rope_parameters": {"full_attention": LONG}}, 256),
        ({"max_position_embeddings": 32768, "seq_length": 8192}, 8192),  # Qwen's own code stretches beyond that
        ({"max_sequence_length": 2048}, 2048),
        ({"n_ctx": 1024}, 1024),
        ({}, None),
    ],
)
def test_how_long_a_model_is(values: dict[str, Any], length: int | None) -> None:
    assert position_limit(Config(values)) == length


def test_yarn_by_the_recipe_answers_beyond_the_old_length(tmp_path: Path) -> None:
    case = with_config("Qwen2ForCausalLM--7b", max_position_embeddings=64, rope_scaling=LONG)
    llm = load(case, tmp_path)
    assert llm.engine.max_model_len == 256
