"""What the error for an unknown architecture says of the nearest that there is."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from octavo.architectures import find_architecture, nearest
from octavo.errors import UnsupportedModelError

FILES = {
    "llama/modeling_llama.py": "\nclass LlamaForCausalLM(Base):\n    pass\n",
    "gemma2/modeling_gemma2.py": "\nclass Gemma2ForCausalLM(Base):\n    pass\n",
    "other/modeling_other.py": "\nclass OtherForCausalLM(Base):\n    pass\n",
    "other/modular_other.py": "from ..middle.modeling_middle import MiddleLayer\n",
    "middle/modeling_middle.py": "\nclass MiddleForCausalLM(Base):\n    pass\n",
    "middle/modular_middle.py": (
        "from ..gemma2.modeling_gemma2 import Gemma2Norm\n"
        "from ..llama.modeling_llama import (\n    LlamaAttention,\n    LlamaMLP,\n)\n"
    ),
    "lonely/modeling_lonely.py": "\nclass LonelyForThings(Base):\n    pass\n",
}


@pytest.fixture(autouse=True)
def transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    spec = ModuleSpec("transformers", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(nearest, "find_spec", lambda name: spec)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("OtherForCausalLM", "in models/other. Nearest to it here: LlamaForCausalLM, Gemma2ForCausalLM."),
        ("LonelyForThings", "in models/lonely. `octavo models`"),
        ("LlamaForCausalML", "Octavo has. Did you mean LlamaForCausalLM"),
        ("Other(", "Octavo has. `octavo models`"),
        ("../../llama", "Octavo has. `octavo models`"),
    ],
)
def test_what_is_said(name: str, says: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        find_architecture([name])
    assert says in str(error.value)
    assert "docs/adding-a-model.md" in str(error.value)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModelError, match="Did you mean LlamaForCausalLM"):
        find_architecture(["LlamaForCausalML"])
