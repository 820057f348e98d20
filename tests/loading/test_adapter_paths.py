"""Names of adapters to files: folders, GGUF files, hubs; and what requests know them by."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineArgs
from octavo.errors import CheckpointError, InvalidRequestError, ModelNotFoundError, OctavoError
from octavo.loading.adapter_paths import files_to_download, find_adapter
from octavo.lora import LoRARequest, refer
from tests.loading.fake_hub import COMMIT, serve

FIND = """
import json, sys
from octavo.config import EngineArgs
from octavo.errors import OctavoError
from octavo.loading.adapter_paths import find_adapter
path, options = json.loads(sys.argv[1])
try:
    print(find_adapter(path, EngineArgs(**options)))
except OctavoError as error:
    print(type(error).__name__, error)
"""
ARGS = EngineArgs(model="x")


def find(endpoint: str, home: Path, path: str, **options: Any) -> str:
    """What a fresh process finds, with this hub and cache."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", FIND, json.dumps([path, {"model": "x", **options}])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_hub_download_then_offline(tmp_path: Path) -> None:
    names = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    folder = write(tmp_path / "published", *names, "adapter_model.bin", "optimizer.pt", "evil.py", "README.md")
    home = tmp_path / "home"
    with serve(folder, "owner/tiny") as (endpoint, seen):
        found = Path(find(endpoint, home, "owner/tiny@v2", hf_token="secret").strip())
        assert found.name == COMMIT
        assert {p.name for p in found.iterdir()} == set(names)
        assert any(authorization == "Bearer secret" for _, authorization in seen)
        assert "no revision 'v9'" in find(endpoint, home, "owner/tiny@v9")
        said = find(endpoint, home, "owner/other")
        assert "adapter 'owner/other' was not found" in said
        assert "Check the spelling" in said
    assert find(endpoint, home, "owner/tiny@v2").strip() == str(found)  # the hub is gone
    assert find(endpoint, home, "owner/tiny@v2", offline=True).strip() == str(found)
    assert "ModelNotFoundError" in find(endpoint, home, "owner/tiny@main", offline=True)


def test_gguf_adapter_on_a_hub(tmp_path: Path) -> None:
    folder = write(tmp_path / "published", "adapter-f16.gguf", "config.json")
    with serve(folder, "owner/tiny") as (endpoint, _):
        assert find(endpoint, tmp_path / "home", "owner/tiny").strip().endswith(f"{COMMIT}/adapter-f16.gguf")


def test_which_files_are_fetched() -> None:
    config = "adapter_config.json"
    assert files_to_download([config, "adapter_model.bin", "x.py", "1/tokenizer.json"]) == [config, "adapter_model.bin"]
    with pytest.raises(CheckpointError, match="neither adapter_model"):
        files_to_download([config, "README.md"])
    with pytest.raises(CheckpointError, match=r"no adapter.*model"):
        files_to_download(["config.json", "model.safetensors"])


def test_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        return str(folder)

    module: Any = types.ModuleType("modelscope.hub.snapshot_download")
    module.snapshot_download = snapshot_download
    for name in ("modelscope", "modelscope.hub"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert find_adapter("owner/tiny@v1", EngineArgs(model="x", hub="modelscope")) == folder
    assert (calls[0]["repo"], calls[0]["revision"]) == ("owner/tiny", "v1")
    assert "*.py" not in calls[0]["allow_file_pattern"]


def test_folders_and_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "adapter_config.json", "adapter_model.safetensors")
    assert find_adapter(str(folder), ARGS) == folder
    gguf = write(tmp_path / "b", "a.gguf") / "a.gguf"
    assert find_adapter(str(gguf), ARGS) == gguf
    assert find_adapter(str(gguf.parent), ARGS) == gguf
    write(gguf.parent, "b.gguf")
    for path, words in (
        (gguf.parent, "several GGUF files"),
        (write(tmp_path / "c", "config.json"), "no adapter_config.json"),
        (folder / "adapter_config.json", "not a .gguf"),
        (Path("/dev/zero"), "is a device"),
    ):
        with pytest.raises(CheckpointError, match=words):
            find_adapter(str(path), ARGS)


@pytest.mark.parametrize("path", ["/nowhere", "./a/b", "a/b/c", "x", "~nobody-at-all/x", "../a", "a" * 5000, "\0", "~"])
def test_paths_where_no_adapter_is(path: str) -> None:
    with pytest.raises((ModelNotFoundError, CheckpointError)):
        find_adapter(path, ARGS)
    with pytest.raises(InvalidRequestError):
        refer(LoRARequest("a", 1, path))


def test_links(tmp_path: Path) -> None:
    """As in a hub's cache, files may lie elsewhere; what would be read without end, or is not there, may not."""
    real = write(tmp_path / "real", "adapter_config.json", "adapter_model.safetensors")
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "adapter_config.json").symlink_to(real / "adapter_config.json")
    (folder / "adapter_model.safetensors").symlink_to(real / "adapter_model.safetensors")
    assert find_adapter(str(folder), ARGS) == folder
    before = refer(LoRARequest("a", 1, str(folder)))
    assert refer(LoRARequest("a", 2, str(folder))).digest == before.digest
    (real / "adapter_model.safetensors").write_text("{} ")
    assert refer(LoRARequest("a", 1, str(folder))).digest != before.digest
    (folder / "adapter_model.bin").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="device"):
        find_adapter(str(folder), ARGS)
    (folder / "adapter_model.bin").unlink()
    (folder / "adapter_model.bin").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError):
        find_adapter(str(folder), ARGS)
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        refer(LoRARequest("a", 1, str(folder)))


def test_keywords_of_vllms_class(tmp_path: Path) -> None:
    given = LoRARequest("a", 1, lora_local_path=str(tmp_path), base_model_name="b", load_inplace=True)
    assert given.lora_path == str(tmp_path)
    assert given == LoRARequest("a", 1, tmp_path)  # type: ignore[arg-type]
    assert LoRARequest(lora_name="a", lora_int_id=1, lora_path="x", long_lora_max_len=None).path == "x"
    for name, value in (("long_lora_max_len", 4096), ("tensorizer_config_dict", {}), ("scale", 2.0)):
        with pytest.raises(OctavoError, match=name):
            LoRARequest("a", 1, "x", **{name: value})
