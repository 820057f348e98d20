"""Heads of tokens in files of their own: bge-m3's sparse_linear.pt and colbert_linear.pt."""

from collections.abc import Iterator
from pathlib import Path

from octavo.architectures import Config
from octavo.errors import CheckpointError
from octavo.loading.formats import WeightFormat
from octavo.loading.pickled import pickled_tensors
from octavo.loading.tensor_source import TensorSource
from octavo.parts import Names
from octavo.parts.token_heads import TokenHeads

FILES = {"sparse": "sparse_linear.pt", "colbert": "colbert_linear.pt"}
NAMES = {f"{name}_linear": f"token_heads.{name}" for name in FILES}


class PickledFile(WeightFormat):
    """One file of PyTorch's, which holds a state dict."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self.path = path

    def tensors(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        return iter(pickled_tensors(self.path))


def token_heads(
    folder: Path, config: Config, hidden_size: int
) -> tuple[TokenHeads, list[tuple[WeightFormat, str]]] | None:
    """The heads that the folder has files for, with their weights; None where it has none.

    Raises CheckpointError for files that hold more than tensors, or no weight.
    """
    files = {name: folder / file for name, file in FILES.items() if (folder / file).is_file()}
    if not files:
        return None
    shapes = {name: {key: source.shape for key, source in pickled_tensors(path)} for name, path in files.items()}
    if "colbert" in files and len(shapes["colbert"].get("weight", ())) != 2:
        raise CheckpointError(f"{files['colbert']} holds no weight of a linear layer.")
    heads = TokenHeads(
        hidden_size,
        has_sparse="sparse" in files,
        vector_size=shapes["colbert"]["weight"][0] if "colbert" in files else None,
        first=config.get("bos_token_id"),
        last=next(iter(_tokens(config.get("eos_token_id"))), None),
    )
    return heads, [(PickledFile(path), f"{name}_linear.") for name, path in files.items()]


def _tokens(given: int | list[int] | None) -> list[int]:
    return given if isinstance(given, list) else [] if given is None else [given]
