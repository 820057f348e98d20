"""Ultravox as it is published: a projector, and the names of two other checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ModelNotFoundError
from octavo.loading.model_tokenizer import model_tokenizer
from tests.golden import case_named, tensors
from tests.test_golden import agrees

CASE = case_named("UltravoxModel--v0_3")
TEXT, AUDIO = "meta/llama", "openai/whisper"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The case whose parts are folders of their own, found by their names as on a hub."""
    hub = tmp_path / "hub"
    weights = tensors(CASE)
    text = {n.removeprefix("language_model."): w for n, w in weights.items() if n.startswith("language_model.")}
    audio = {"model.encoder." + n.removeprefix("audio_tower."): w for n, w in weights.items() if "audio_tower." in n}
    audio["model.decoder.embed_tokens.weight"] = next(iter(weights.values()))  # of no use here
    for name, section, own in ((TEXT, "text_config", text), (AUDIO, "audio_config", audio)):
        (hub / name).mkdir(parents=True)
        (hub / name / "config.json").write_text(json.dumps(CASE["config"][section]))
        save_file(own, hub / name / "model.safetensors")
    monkeypatch.chdir(hub)  # a folder that is called as a name on the hub is that
    config = {k: v for k, v in CASE["config"].items() if k not in ("text_config", "audio_config")}
    kept = {n: spec for n, spec in CASE["tensors"].items() if n.startswith("multi_modal_projector.")}
    return {**CASE, "config": {**config, "text_model_id": TEXT, "audio_model_id": AUDIO}, "tensors": kept}


def test_it_answers_as_the_whole(published: dict[str, Any], tmp_path: Path) -> None:
    agrees(published, tmp_path / "model")


def test_what_the_folder_has_itself_counts(published: dict[str, Any], tmp_path: Path) -> None:
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    tuned = {**published, "tensors": {**published["tensors"], name: CASE["tensors"][name]}}
    wrong = Path(TEXT) / "model.safetensors"
    weights = {
        n.removeprefix("language_model."): w for n, w in tensors(CASE).items() if n.startswith("language_model.")
    }
    weights[name.removeprefix("language_model.")] *= 2
    save_file(weights, wrong)
    agrees(tuned, tmp_path / "model")


@pytest.mark.parametrize("name", ["../secret", "/etc/x", "a/../../b", "x", "a/b/c", 5, ["a/b"]])
def test_a_config_chooses_no_path(published: dict[str, Any], tmp_path: Path, name: Any) -> None:
    published["config"]["text_model_id"] = name
    with pytest.raises(CheckpointError, match=r"text_model_id .* must be a name on a hub"):
        agrees(published, tmp_path / "model")


def test_one_that_is_not_found_is_named(published: dict[str, Any], tmp_path: Path) -> None:
    published["config"]["audio_model_id"] = "openai/nowhere"
    with pytest.raises(ModelNotFoundError, match="'openai/nowhere' as its audio_model_id"):
        agrees(published, tmp_path / "model", offline=True)


@pytest.mark.parametrize("how", ["by name", "by hf_overrides"])
def test_tokenizer_and_feature_extractor_come_along(how: str, published: dict[str, Any], tmp_path: Path) -> None:
    for name, text in published["files"].items():
        (Path(AUDIO if name.startswith("preprocessor") else TEXT) / name).write_text(text)
    options = dict[str, Any](offline=True)
    if how == "by hf_overrides":
        options["hf_overrides"] = {"text_model_id": str(Path(TEXT).resolve()), "audio_model_id": f"../hub/{AUDIO}"}
    agrees({**published, "files": {}}, tmp_path / "model", skip_tokenizer_init=False, **options)
    assert model_tokenizer(EngineArgs(model=str(tmp_path / "model"), **options)) is not None


def test_a_missing_tokenizers_checkpoint_is_named(published: dict[str, Any], tmp_path: Path) -> None:
    published["config"]["text_model_id"] = "meta/nowhere"
    with pytest.raises(ModelNotFoundError, match=r"as its text_model_id.*hf_overrides"):
        agrees({**published, "files": {}}, tmp_path / "model", offline=True)
    with pytest.raises(ModelNotFoundError, match=r"as its text_model_id.*hf_overrides"):
        model_tokenizer(EngineArgs(model=str(tmp_path / "model"), offline=True))
