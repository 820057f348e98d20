"""Checkpoints that are incomplete, damaged, hostile or of another model: each refused by name."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.architectures import all_architectures
from octavo.errors import CheckpointError, ModelNotFoundError, OctavoError, UnsupportedModelError
from tests.golden import CASES, case_named, read_case, tensors, write_model

ROWS = {read_case(p)["row"]: p for p in CASES}


def load(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="16MiB", **options)


def answer(llm: LLM) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    return llm.generate({"prompt_token_ids": [1, 2, 3]}, params, use_tqdm=False)[0].outputs[0].token_ids


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(case_named("LlamaForCausalLM--linear-rope-bias"), tmp_path / "model")


def change(folder: Path, edit: Any) -> None:
    weights = dict(load_file(folder / "model.safetensors"))
    edit(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("row", sorted(ROWS))
def test_every_row_refuses_a_checkpoint_that_does_not_fit(row: str, tmp_path: Path) -> None:
    folder = write_model(read_case(ROWS[row]), tmp_path)
    (file,) = folder.glob("*.safetensors")
    sound = dict(load_file(file))
    name = next(n for n in sorted(sound) if ".0." in n and sound[n].ndim == 2 and "mask" not in n)
    for edit, what in (
        (lambda w: w.pop(name), "missing"),
        (lambda w: w.update({"model.layers.0.surprise.weight": np.zeros(3, np.float32)}), "no place"),
        (lambda w: w.update({name: np.zeros((5, 7), np.float32)}), "wrong shape"),
    ):
        weights = dict(sound)
        edit(weights)
        save_file(weights, file)
        with pytest.raises(CheckpointError, match=what) as caught:
            load(folder)
        assert (name if what != "no place" else "surprise") in str(caught.value)


def test_sharded_and_pickled_answer_alike(model: Path, tmp_path: Path) -> None:
    want = answer(load(model))
    weights = load_file(model / "model.safetensors")
    names = sorted(weights)
    sharded = write_model(case_named("LlamaForCausalLM--linear-rope-bias"), tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({n: weights[n] for n in part}, sharded / file)
        index |= dict.fromkeys(part, file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert answer(load(sharded)) == want

    pickled = write_model(case_named("LlamaForCausalLM--linear-rope-bias"), tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({n: torch.from_numpy(w) for n, w in weights.items()}, pickled / "pytorch_model.bin")
    assert answer(load(pickled)) == want
    assert answer(load(pickled, load_format="pt")) == want

    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load(sharded)


def test_index_may_not_leave_its_folder(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="refused"):
        load(model)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/octavo-was-here").touch, ())


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused(model: Path, zipped: bool) -> None:
    (model / "model.safetensors").unlink()
    target = model / "pytorch_model.bin"
    if zipped:
        torch.save({"model.norm.weight": Bomb()}, target)
    else:
        target.write_bytes(pickle.dumps({"model.norm.weight": Bomb()}))
    with pytest.raises(CheckpointError, match="refused"):
        load(model)
    assert not Path("/tmp/octavo-was-here").exists()


def test_truncated_weights(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load(model)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("architectures"), "does not say its architecture"),
        (lambda c: c.update(architectures=["LamaForCausalLM"]), "Did you mean .*LlamaForCausalLM"),
        (lambda c: c.pop("hidden_size"), "hidden_size"),
        (lambda c: c.update(rope_scaling={"rope_type": "spiral"}), "spiral"),
    ],
)
def test_config_errors(model: Path, edit: Any, message: str) -> None:
    config = json.loads((model / "config.json").read_text())
    edit(config)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(OctavoError, match=message):
        load(model)


def test_config_that_is_not_json(model: Path) -> None:
    (model / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        load(model)


def test_folder_without_config_or_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load(model)
    (model / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither config\.json nor"):
        load(model)


@pytest.mark.parametrize("name", ["./nosuch", "/nosuch/model", "a/b/c", "nosuch.gguf"])
def test_path_that_does_not_exist_says_what_was_tried(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="tried the path"):
        LLM(name)


def test_offline_says_how_to_go_on() -> None:
    with pytest.raises(ModelNotFoundError, match="give its folder's path"):
        LLM("nosuchowner/nosuchmodel", offline=True)


def test_tokenizer_code_needs_trust(model: Path) -> None:
    config = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(UnsupportedModelError, match="trust_remote_code"):
        LLM(str(model), kv_cache_memory="16MiB")


def test_new_spellings_of_config_keys(model: Path, tmp_path: Path) -> None:
    """transformers 5 writes rope_parameters and dtype."""
    want = answer(load(model))
    config = json.loads((model / "config.json").read_text())
    scaling = config.pop("rope_scaling")
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), **scaling}
    config["dtype"] = config.pop("torch_dtype")
    (model / "config.json").write_text(json.dumps(config))
    assert answer(load(model)) == want


def test_gpt2_with_and_without_prefix(tmp_path: Path) -> None:
    case = case_named("GPT2LMHeadModel--gpt2")
    bare = write_model(case, tmp_path / "bare")
    prefixed = write_model(case, tmp_path / "prefixed")
    save_file({f"transformer.{n}": w for n, w in tensors(case).items()}, prefixed / "model.safetensors")
    assert answer(load(bare)) == answer(load(prefixed))


def test_a_tied_head_may_be_stored(tmp_path: Path) -> None:
    folder = write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path)
    want = answer(load(folder))
    change(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].copy()}))
    assert answer(load(folder)) == want


def test_aliases_are_registered() -> None:
    assert all_architectures()["LLaMAForCausalLM"].build is all_architectures()["LlamaForCausalLM"].build


@pytest.mark.parametrize("name", ["model.layers.3.eh_proj.weight", "model.layers.4.mlp.x.weight", "mtp.norm"])
@pytest.mark.parametrize("case", ["Glm4MoeForCausalLM--4.5", "DeepseekV32ForCausalLM--v3.2"])
def test_layers_that_predict_further_tokens_are_left_out(name: str, case: str, tmp_path: Path) -> None:
    """Whatever they hold: none of it is read. Layers of the model remain checked."""
    folder = write_model(case_named(case), tmp_path)
    (file,) = folder.glob("*.safetensors")
    save_file({**load_file(file), name: np.zeros(3, np.float32)}, file)
    load(folder)
    save_file({**load_file(file), "model.layers.2.eh_proj.weight": np.zeros(3, np.float32)}, file)
    with pytest.raises(CheckpointError, match="eh_proj"):
        load(folder)
