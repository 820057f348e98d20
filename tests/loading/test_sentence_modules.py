"""Folders of sentence-transformers: what is read of them, what is refused. Golden cases hold the answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from octavo import LLM, PoolerConfig, PoolingParams
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, InvalidRequestError, OctavoError, UnsupportedModelError
from octavo.loading.model_files import _files_to_download
from octavo.loading.sentence_modules import sentence_modules
from octavo.parts.pooled_layers import PooledDense, PooledNorm, UnitLength
from tests.golden import case_named, write_model
from tests.test_golden import load, opened

IDENTITY = "torch.nn.modules.linear.Identity"


def folder(path: Path, *kinds: str, **configs: dict[str, Any]) -> Path:
    """A modules.json of these kinds, each with its config."""
    listed = [
        {"path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.x.{kind}"} for i, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(listed))
    for i, kind in enumerate(kinds):
        if i:
            (path / f"{i}_{kind}").mkdir()
            (path / f"{i}_{kind}" / "config.json").write_text(json.dumps(configs.get(kind, {})))
    return path


@pytest.mark.parametrize(
    ("config", "ways"),
    [
        ({"pooling_mode": "mean"}, "MEAN"),
        ({"pooling_mode": ["lasttoken", "cls"]}, "LAST+CLS"),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_mean_tokens": False}, "MEAN_SQRT_LEN"),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_cls_token": True}, "CLS+WEIGHTED_MEAN"),
        ({"word_embedding_dimension": 64}, "MEAN"),
    ],
)
def test_every_spelling_of_poolings(tmp_path: Path, config: dict[str, Any], ways: str) -> None:
    found = sentence_modules(folder(tmp_path, "Transformer", "Pooling", Pooling=config), 64)
    assert found.pooling.pooling_type == ways
    assert found.pooling.normalize is False


def test_layers_come_in_their_order_and_the_last_length_is_a_request_s(tmp_path: Path) -> None:
    kinds = ("Transformer", "Pooling", "Normalize", "Dense", "Dropout", "LayerNorm", "Normalize")
    dense = {"in_features": 64, "out_features": 8, "activation_function": IDENTITY}
    found = sentence_modules(folder(tmp_path, *kinds, Dense=dense), 64)
    assert [type(layer) for layer in found.layers] == [UnitLength, PooledDense, PooledNorm]
    assert found.pooling.normalize is True
    assert {name: place for name, place in found.names.items() if "linear" in name or "norm" in name} == {
        "3_Dense/linear": "pooled.layers.1.linear",
        "3_Dense/norm": "pooled.layers.1.norm",
        "5_LayerNorm/linear": "pooled.layers.2.linear",
        "5_LayerNorm/norm": "pooled.layers.2.norm",
    }


@pytest.mark.parametrize(
    ("kinds", "configs", "error", "says"),
    [
        (("Transformer", "WeightedLayerPooling"), {}, UnsupportedModelError, "WeightedLayerPooling"),
        (("Transformer", "Pooling"), {"Pooling": {"pooling_mode": "median"}}, UnsupportedModelError, "median"),
        (("Transformer", "Pooling"), {"Pooling": {"pooling_mode": []}}, UnsupportedModelError, "pooling"),
        (
            ("Transformer", "Dense"),
            {"Dense": {"in_features": 32, "out_features": 8}},
            CheckpointError,
            "in_features 32",
        ),
        (
            ("Transformer", "Dense"),
            {"Dense": {"in_features": 64, "out_features": True}},
            CheckpointError,
            "out_features",
        ),
        (
            ("Transformer", "Dense"),
            {"Dense": {"in_features": 64, "out_features": 8, "activation_function": "os.system"}},
            UnsupportedModelError,
            "os.system",
        ),
        (
            ("Transformer", "Pooling", "Normalize"),
            {"Normalize": {"module_input_name": "token_embeddings"}},
            UnsupportedModelError,
            "token_embeddings",
        ),
    ],
)
def test_what_is_unknown_or_does_not_fit_is_named(
    tmp_path: Path, kinds: tuple[str, ...], configs: dict[str, Any], error: type[OctavoError], says: str
) -> None:
    with pytest.raises(error, match=says):
        sentence_modules(folder(tmp_path, *kinds, **configs), 64)


@pytest.mark.parametrize("path", ["../other", "/etc", "a/b"])
def test_modules_lie_in_the_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"path": path, "type": "x.Pooling"}]))
    with pytest.raises(CheckpointError, match="not a folder of its own"):
        sentence_modules(tmp_path, 64)


def test_weights_of_modules_are_downloaded() -> None:
    files = ["config.json", "model.safetensors", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"]
    files += ["3_Dense/pytorch_model.bin", "onnx/model.safetensors", "1_Pooling/config.json"]
    chosen = _files_to_download(files, "", EngineArgs(model="owner/name"), True)
    assert {f for f in chosen if not f.endswith("json")} == {
        "model.safetensors",
        "2_Dense/model.safetensors",
        "3_Dense/pytorch_model.bin",
    }


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(case_named("Gemma3TextModel--two-dense-layers"), tmp_path_factory.mktemp("prompted"))


def test_prompts_by_name(prompted: LLM) -> None:
    named, written, plain, ids = prompted.embed(
        ["w7 w8", "w20 w21 w22 w7 w8", {"prompt": "w7 w8"}, {"prompt_token_ids": [1, 7, 8, 2]}],
        [PoolingParams(prompt_name="query"), PoolingParams(), PoolingParams(), PoolingParams()],
        use_tqdm=False,
    )
    assert named.outputs.embedding == written.outputs.embedding
    assert plain.outputs.embedding == ids.outputs.embedding != named.outputs.embedding
    (other,) = prompted.embed("w7 w8", prompt_name="query", use_tqdm=False)
    assert other.outputs.embedding == named.outputs.embedding
    with pytest.raises(InvalidRequestError, match=r"prompt_name='querry' is none .* document, query.* mean query"):
        prompted.embed("w7", prompt_name="querry", use_tqdm=False)
    with pytest.raises(InvalidRequestError, match="not token ids"):
        prompted.embed([[1, 7, 8]], prompt_name="query", use_tqdm=False)


def test_a_request_may_leave_the_length_as_it_is(prompted: LLM) -> None:
    wishes = [PoolingParams(), PoolingParams(normalize=False), PoolingParams(use_activation=False)]
    unit, raw, bare = prompted.embed(["w7 w8"] * 3, wishes, use_tqdm=False)
    given = np.array(raw.outputs.embedding)
    assert bare.outputs.embedding == raw.outputs.embedding
    assert abs(np.linalg.norm(given) - 1) > 0.01
    np.testing.assert_allclose(given / np.linalg.norm(given), unit.outputs.embedding, rtol=1e-5)


def test_a_dense_layer_without_its_weights_is_named(tmp_path: Path) -> None:
    case = case_named("Gemma3TextModel--two-dense-layers")
    write_model(case, tmp_path)
    (tmp_path / "3_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="3_Dense"):
        LLM(str(tmp_path), task="embedding", kv_cache_memory="8MiB")


COLBERT = {"in_features": 64, "out_features": 12, "bias": False, "activation_function": IDENTITY, "use_residual": False}


@pytest.mark.parametrize("more", [{}, {"module_input_name": "token_embeddings"}], ids=["PyLate", "newer"])
def test_layers_of_a_folder_without_a_pooling_are_for_each_token(tmp_path: Path, more: dict[str, Any]) -> None:
    case = case_named("BertModel--minilm-mean")
    model = write_model(case, tmp_path / "model")
    for one in model.glob("*_*/config.json"):
        one.unlink()
        one.parent.rmdir()
    (model / "modules.json").unlink(missing_ok=True)
    plain = opened(case, model, override_pooler_config=PoolerConfig(pooling_type="ALL"))
    size = case["config"]["hidden_size"]
    weight = torch.randn(12, size, generator=torch.Generator().manual_seed(1))
    folder(model, "Transformer", "Dense", Dense={**COLBERT, "in_features": size, **more})
    save_file({"linear.weight": weight}, model / "1_Dense" / "model.safetensors")
    llm = opened(case, model)
    texts: list[Any] = [[5, 6, 7], [8, 9, 10, 11], [6, 12], [30] * 20]
    hidden = [o.outputs.data for o in plain.encode(texts, PoolingParams(normalize=False), use_tqdm=False)]
    want = [torch.nn.functional.normalize(rows @ weight.T, dim=-1) for rows in hidden]
    for params in (PoolingParams(), PoolingParams(task="token_embed")):
        for output, rows in zip(llm.encode(texts, params, use_tqdm=False), want, strict=True):
            torch.testing.assert_close(output.outputs.data, rows, atol=1e-5, rtol=1e-5)
