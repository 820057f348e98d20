"""The programs and the page for those who add models."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from octavo import LLM, parts
from octavo.tools import compare, golden
from octavo.tools.recipe import write_model
from tests.golden import read_case
from tests.test_golden import TOLERANCE, answers

PROMPT = [5, 17, 40, 3, 99]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Qwen2 without weights."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 160,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_case_is_made_and_octavo_answers_it(folder: Path, tmp_path: Path) -> None:
    assert golden.main([str(folder), "--out", str(tmp_path), "--tokens", "4", "--variant", "new"]) == 0
    case = read_case(tmp_path / "Qwen2ForCausalLM--new.json")
    assert "lm_head.weight" not in case["tensors"]  # tied
    llm = LLM(str(write_model(case, tmp_path / "model")), dtype="float32", skip_tokenizer_init=True)
    for output, want in zip(answers(llm, case), case["cases"], strict=True):
        assert output.outputs[0].token_ids == want["output_token_ids"]
        for step, top in zip(output.outputs[0].logprobs, want["top_logprobs"], strict=True):
            assert all(step[t].logprob == pytest.approx(v, abs=TOLERANCE) for t, v in top)


def test_a_folder_without_a_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main([str(tmp_path)]) == 1
    assert f"{tmp_path} has no config.json" in capsys.readouterr().err


def test_a_folder_without_weights_is_compared_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(folder)]) == 0
    assert "layer 1" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_the_layer_at_fault_is_seen(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(golden.skeleton(folder, "x"), tmp_path / "model")
    same = compare.compare(model, PROMPT)
    assert len(same.layers) == 3  # the embedding, and all layers but the last
    assert max([*same.layers, same.logprobs]) < TOLERANCE

    # What transformers reads differs from what Octavo reads from the second layer on.
    weights = load_file(model / "model.safetensors")
    reference = compare.reference

    def other(path: Path, trust: bool) -> object:
        changed = {**weights, "model.layers.1.mlp.down_proj.weight": weights["model.layers.1.mlp.down_proj.weight"] * 2}
        save_file(changed, model / "model.safetensors", metadata={"format": "pt"})
        try:
            return reference(path, trust)
        finally:
            save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "reference", other)
        assert compare.main([str(model), "--prompt", "5 17 40"]) == 0
        found = compare.compare(model, PROMPT)
    assert max(found.layers[:2]) < TOLERANCE < 0.01 < found.layers[2]
    assert "layer 1" in capsys.readouterr().out


@pytest.mark.parametrize("name", parts.__all__)
def test_the_page_names_every_part(name: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "adding-a-model.md"
    assert f"`{name}`" in page.read_text()
