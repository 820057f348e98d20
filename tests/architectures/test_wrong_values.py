"""Wrong values in config.json: an error of ours while loading, or a model that answers. Never anything else."""

import copy
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM
from octavo.architectures import Config, all_architectures
from octavo.architectures.config_kinds import MAX_LAYERS
from octavo.architectures.rope_settings import position_limit
from octavo.errors import CheckpointError, InvalidRequestError, OctavoError
from octavo.loading.checkpoint import sound_config
from octavo.parts.weight_slots import weight_slots
from tests.architectures.published import build, recorded
from tests.golden import CASES, case_named, config_of, prompt_of, read_case, write_model
from tests.test_golden import answers, load

WRONG: list[Any] = [
    *("x", "", {}, {"a": 1}, [], ["x"], [1, -1], [[]], [None], True, False, None),
    *(0, 1, 3, -1, 0.5, 2.0, -0.5, float("nan"), float("inf"), -float("inf"), 1e300, 10**9, 10**30),
]
EVERY, EVERY_OF_COMMON = 2, 6
"""Of so many wrong values of a key one is tried in a row, another in the next; `make values` (--all-values) has all."""
COMMON_LOADED_IN = 4
"""In one of so many rows, wrong values of a common key are loaded."""
LOADED_BY_KEY = 1
"""How many wrong values of a key are loaded and must answer, of those that make a model of the same shape."""
ROWS: dict[str, list[Path]] = {}
_ROWS_WITH: dict[str, set[str]] = {}
for _path in CASES:
    _case = read_case(_path)
    ROWS.setdefault(_case["row"], []).append(_path)
    for _key in _case["config"]:
        _ROWS_WITH.setdefault(_key, set()).add(_case["row"])
COMMON = {key for key, rows in _ROWS_WITH.items() if len(rows) >= COMMON_LOADED_IN * EVERY_OF_COMMON}
"""Keys of the config.json of so many rows that each wrong value is tried in several of them."""


def places(config: dict[str, Any], keys: set[tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """For each key that is read: its name, a copy of the config, and the object of the copy that it is in."""
    for path, key in sorted(keys):
        copied = copy.deepcopy(config)
        inside: Any = copied
        for part in path.replace("]", "").replace("[", ".").split("."):
            if part:
                if isinstance(inside, dict) and inside.get(part) is None:
                    inside[part] = {}
                inside = inside[int(part) if isinstance(inside, list) else part]
        yield path + key, copied, inside


def shapes(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Of the weights of the model that `config` makes. Raises CheckpointError, as loading does."""
    with sound_config(folder), torch.device("meta"):
        row = all_architectures()[config["architectures"][0]]
        made = row.config(config)
        model = row.build(made)
        position_limit(made)
    return {name: slot.shape for name, slot in weight_slots(model).items()}


def turn(row: str, key: str) -> int:
    """A number that differs from row to row."""
    return zlib.crc32(f"{row} {key}".encode())


def chosen(row: str, key: str) -> list[Any]:
    """The wrong values that a key has in a row's test."""
    every = EVERY_OF_COMMON if key in COMMON else EVERY
    return WRONG[turn(row, key) % every :: every]


def test_all_rows_together_have_all_values() -> None:
    for key in ("hidden_size", "rope_scaling.factor"):
        tried = [value for row in ROWS for value in chosen(row, key)]
        assert {*map(repr, tried)} == {*map(repr, WRONG)}


@pytest.mark.parametrize("row", ROWS)
def test_every_key_of_every_family(row: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    has_all = request.config.getoption("--all-values")
    tried, longest = set[tuple[str, str]](), 0
    for path in ROWS[row]:
        case = read_case(path)
        config = config_of(case)
        case, right = {**case, "config": config}, shapes(config, tmp_path)
        with recorded() as asked:
            build(all_architectures()[row], config)
            position_limit(all_architectures()[row].config(config))
        same_shape: dict[str, list[dict[str, Any]]] = {}
        for key, copied, inside in places(config, asked - tried):
            for wrong in WRONG if has_all else chosen(row, key):
                inside[key.rpartition(".")[2]] = wrong
                try:
                    if shapes(copied, tmp_path) == right:
                        same_shape.setdefault(key, []).append(copy.deepcopy(copied))
                except CheckpointError as error:
                    longest = max(longest, len(str(error)))
        tried |= asked
        for key, configs in same_shape.items():
            if key in COMMON and turn(row, key) // EVERY_OF_COMMON % COMMON_LOADED_IN and not has_all:
                continue
            for changed in configs[:LOADED_BY_KEY]:
                answers_or_refuses({**case, "config": changed}, tmp_path)
    assert longest < 1500


def answers_or_refuses(case: dict[str, Any], folder: Path) -> None:
    """Loading ends with an error of ours, or with a model that answers, if only that a prompt is too long for it."""
    try:
        llm = load(case, folder)
    except OctavoError:
        return
    try:
        if "output_token_ids" not in case["cases"][0]:
            llm.encode([prompt_of(c) for c in case["cases"]], use_tqdm=False)
            return
        outputs = answers(llm, case)
    except InvalidRequestError:
        return
    assert {o.outputs[0].finish_reason for o in outputs} == {"length"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hidden_act": 5}, "hidden_act is 5, and must be one of silu"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish', and must be one of silu"),
        ({"hidden_act": "swiglu"}, "swiglu"),
        ({"hidden_size": "64"}, "hidden_size is '64', and must be a whole number"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0"),
        (
            {"num_hidden_layers": 10**9},
            f"num_hidden_layers is {10**9}, and must be a whole number from 1 to {MAX_LAYERS}",
        ),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"num_key_value_heads": 3}, "3 key heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', and must be true or false"),
        ({"max_position_embeddings": float("inf")}, "max_position_embeddings is inf"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"dtype": 16}, "dtype is 16"),
        ({"vocab_size": "x" * 100000}, "vocab_size is 'xxx"),
        ({"architectures": [5]}, "architectures"),
    ],
)
def test_errors_name_the_key_and_what_is_expected(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(CheckpointError) as caught:
        LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory="8MiB")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("MixtralForCausalLM", {"num_hidden_layers": 1000, "num_local_experts": 1000}),
        ("StableLmForCausalLM", {"num_hidden_layers": 1000, "num_attention_heads": 4096}),
    ],
)
def test_too_many_pieces_are_refused_before_any_is_built(row: str, changed: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="more than any model has"):
        all_architectures()[row].config(changed)


@pytest.mark.parametrize("rotary_dim", [18, 64, 1 << 20])
def test_rotary_stays_inside_its_head(rotary_dim: int, tmp_path: Path) -> None:
    """The compiled core wrote behind the heads."""
    case = case_named("GPTJForCausalLM--6b")
    case["config"]["rotary_dim"] = rotary_dim
    with pytest.raises(CheckpointError, match="rotary pairs"):
        load(case, tmp_path)


def test_a_start_token_is_of_the_vocabulary(tmp_path: Path) -> None:
    case = case_named("BartForConditionalGeneration--base")
    case["config"]["decoder_start_token_id"] = 320000
    with pytest.raises(CheckpointError, match="decoder_start_token_id is 320000"):
        load(case, tmp_path)


def test_sizes_that_are_left_out_are_named(tmp_path: Path) -> None:
    case = case_named("LlamaForCausalLM--gqa-tied")
    del case["config"]["intermediate_size"]
    with pytest.raises(CheckpointError, match=r"leaves out .*intermediate_size \(11008\)"):
        load(case, tmp_path)


def test_nulls() -> None:
    """A null is the caller's own default; a key that must be there has its class's."""
    config = Config({"num_key_value_heads": None, "hidden_size": None}, {"num_key_value_heads": 8, "hidden_size": 64})
    assert config.get("num_key_value_heads", 4) == 4
    assert config.hidden_size == 64
