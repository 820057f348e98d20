"""Architectures from outside of the tree, and names that configs have for those inside."""

import subprocess
import sys
from pathlib import Path

import pytest

import octavo
from octavo.architectures import all_architectures, families, find_architecture, gguf_architectures
from octavo.architectures.families import INDEX, made_index
from octavo.errors import ConfigError, UnsupportedModelError


def test_aliases_name_the_same_row() -> None:
    for alias, name in (
        ("RWForCausalLM", "FalconForCausalLM"),
        ("QuantMixtralForCausalLM", "MixtralForCausalLM"),
        ("LLaMAForCausalLM", "LlamaForCausalLM"),
        ("PhimoeForCausalLM", "PhiMoEForCausalLM"),
        ("ChatGLMForConditionalGeneration", "ChatGLMModel"),
    ):
        assert all_architectures()[alias].name == name


def test_the_index_of_families_is_theirs() -> None:
    assert made_index() == INDEX.read_text(), "run `make docs`"


ALONE = """
import sys
from octavo.architectures import all_architectures, find_architecture, gguf_architectures
alone = find_architecture(["QuantMixtralForCausalLM"])
readers = [next(gguf_architectures(arch)).name for arch in ("llama", "gemma2")]
assert not {f"octavo.architectures.{family}" for family in ("whisper", "bert", "qwen2_vl")} & sys.modules.keys()
whole = all_architectures()
assert "octavo.architectures.whisper" in sys.modules and whole["QuantMixtralForCausalLM"] is alone
assert list(whole) == sorted(whole, key=lambda name: whole[name].home)
print(alone.name, *readers)
"""


def test_a_model_imports_its_own_family_alone() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["MixtralForCausalLM", "LlamaForCausalLM", "Gemma2ForCausalLM"], done.stderr


def test_what_the_index_lacks_is_looked_for_in_all_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_index", lambda: {"modules": {}, "gguf": {"gemma2": ["LlamaForCausalLM"]}})
    monkeypatch.setattr(families, "ARCHITECTURES", dict(all_architectures()))
    assert find_architecture(["RWForCausalLM"]).name == "FalconForCausalLM"
    assert [row.name for row in gguf_architectures("gemma2")] == ["Gemma2ForCausalLM"]


def test_classifiers_of_every_family_are_known() -> None:
    assert find_architecture(["GemmaForSequenceClassification"]).tasks == ("classify",)
    with pytest.raises(UnsupportedModelError):
        find_architecture(["NosuchForSequenceClassification"])


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="registered already"):
        octavo.register_architecture("LlamaForCausalLM")(lambda c: None)


def package(folder: Path, name: str, code: str) -> None:
    """A package with an entry point, as pip would have installed it."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[octavo.architectures]\n{name} = {name}:register\n")


def test_installed_packages_bring_architectures(tmp_path: Path) -> None:
    package(
        tmp_path,
        "good_plugin",
        "import octavo\n"
        "from octavo.architectures.llama import llama\n"
        "def register():\n    octavo.register_architecture('MyLlamaForCausalLM', about='Mine')(llama)\n",
    )
    package(tmp_path, "bad_plugin", "def register():\n    raise RuntimeError('broken')\n")
    done = subprocess.run(
        [sys.executable, "-m", "octavo", "models"],
        env={"PYTHONPATH": f"{tmp_path}:{Path(octavo.__file__).parents[1]}", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "MyLlamaForCausalLM" in done.stdout
    assert "bad_plugin = bad_plugin:register does not load (RuntimeError: broken)" in done.stderr
