"""Folders of sentence-transformers: modules.json and the modules that it names."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from octavo.config import PoolerConfig
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.files import read_json, read_json_value
from octavo.loading.formats import PlainWeights, WeightFormat
from octavo.parts.pooled_layers import PooledDense, PooledNorm, UnitLength
from octavo.text.text_prompts import NO_PROMPTS, TextPrompts

WAYS = {
    "cls": "CLS",
    "max": "MAX",
    "mean": "MEAN",
    "mean_sqrt_len_tokens": "MEAN_SQRT_LEN",
    "weightedmean": "WEIGHTED_MEAN",
    "lasttoken": "LAST",
}
"""sentence-transformers' names of poolings, in the order in which those that are switched on lie side by side."""
FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean"}
FLAGS |= {f"pooling_mode_{name}": name for name in ("mean_sqrt_len_tokens",)}
FLAGS |= {"pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken"}
FUNCTIONS = {
    "Identity": None,
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
"""Modules of PyTorch that a Dense may have behind it, and what we call them."""
IDLE = ("Transformer", "Dropout")
"""What is the model itself, or does nothing but in training."""
POOLED, TOKENS = "sentence_embedding", "token_embeddings"
"""What modules change: one row, or in a folder without a pooling, as PyLate's of ColBERT, each token's."""


@dataclass
class SentenceModules:
    """What a folder says of embeddings."""

    pooling: PoolerConfig = field(default_factory=PoolerConfig)
    """None for what it does not say."""
    prompts: TextPrompts = NO_PROMPTS
    layers: list[nn.Module] = field(default_factory=list)
    """What pooled rows go through."""
    folders: dict[int, Path] = field(default_factory=dict)
    """Where the weights of some of these are."""

    @property
    def names(self) -> dict[str, str]:
        """Where the weights go."""
        return {
            f"{folder.name}/{name}": f"pooled.layers.{i}.{name}"
            for i, folder in self.folders.items()
            for name in ("linear", "residual", "norm")
        }

    @property
    def weights(self) -> list[tuple[WeightFormat, str]]:
        """The weights' files, and how the names in each begin."""
        return [(PlainWeights(folder, "auto"), f"{folder.name}/") for folder in self.folders.values()]


def sentence_modules(folder: Path, hidden_size: int) -> SentenceModules:
    """Read a model's folder; one without a modules.json says nothing.

    Args:
        hidden_size: of the rows that are pooled.

    Layers of a folder without a pooling are for each token, whose vectors have length one (ColBERT).

    Raises CheckpointError for damaged files or a path out of the folder, UnsupportedModelError for modules that Octavo
    does not have.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return SentenceModules()
    found, size, is_pooled = SentenceModules(), hidden_size, True
    modules = list(_modules(folder, path))
    changed = POOLED if any(kind == "Pooling" for kind, _ in modules) else TOKENS
    for kind, own in modules:
        if kind in IDLE:
            continue
        config = {} if own is None or not (own / "config.json").exists() else read_json(own / "config.json")
        if (name := config.get("module_input_name", changed)) not in (changed, POOLED) or config.get(
            "module_output_name", name
        ) != name:
            raise UnsupportedModelError(f"{path}: {kind} changes {str(name)[:60]!r}; only {changed} is supported.")
        if kind == "Pooling":
            ways = _ways(own, config)
            found.pooling.pooling_type = "+".join(ways)
            size, is_pooled = size * len(ways), bool(config.get("include_prompt", True))
        elif kind == "Normalize":
            found.layers.append(UnitLength())
        elif kind in ("Dense", "LayerNorm") and own is not None:
            made, size = _dense(own, config, size) if kind == "Dense" else (PooledNorm(size), size)
            found.folders[len(found.layers)] = own
            found.layers.append(made)
        else:
            raise UnsupportedModelError(
                f"{path} has a module {kind[:80]!r}, which Octavo does not have; Transformer, Pooling, Dense, "
                "LayerNorm, Normalize and Dropout are supported."
            )
    found.pooling.normalize = bool(found.layers) and isinstance(found.layers[-1], UnitLength)
    if found.pooling.normalize:  # the last may be switched off by a request
        found.layers.pop()
    if found.folders and changed == TOKENS:
        found.pooling.pooling_type, found.pooling.normalize = "ALL", True
    found.prompts = _prompts(folder, is_pooled)
    return found


def _modules(folder: Path, path: Path) -> Iterator[tuple[str, Path | None]]:
    """Each module's kind, and its own folder; None for the whole's."""
    try:
        listed = [(str(m["type"]).rpartition(".")[2], str(m.get("path", ""))) for m in read_json_value(path)]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a list of sentence-transformers modules: {error}") from error
    for kind, relative in listed:
        if len(Path(relative).parts) > 1 or ".." in Path(relative).parts or Path(relative).is_absolute():
            raise CheckpointError(f"{path} names {relative[:80]!r}, which is not a folder of its own.")
        yield kind, folder / relative if Path(relative).parts else None


def _ways(own: Path | None, config: dict[str, Any]) -> list[str]:
    """Ways of pooling, as the folder names them since version 6 (`pooling_mode`), or switches them on."""
    if own is None or not (own / "config.json").exists():
        raise CheckpointError("modules.json has a Pooling without a config.json in a folder of its own.")
    given = config.get("pooling_mode")
    if given is None:
        on = {FLAGS.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value is True}
        given = [name for name in WAYS if name in on] + sorted(on - WAYS.keys()) or ["mean"]
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(name in WAYS for name in names):
        raise UnsupportedModelError(
            f"{own / 'config.json'} asks for the pooling {str(given)[:80]}; {', '.join(WAYS)} are served. "
            "Choose one with override_pooler_config."
        )
    return [WAYS[name] for name in names]


def _dense(own: Path, config: dict[str, Any], size: int) -> tuple[PooledDense, int]:
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if inputs != size or not isinstance(outputs, int) or isinstance(outputs, bool) or not 0 < outputs <= 1 << 20:
        raise CheckpointError(
            f"{own / 'config.json'}: in_features {inputs!r} and out_features {outputs!r} do not fit the {size} values "
            "that come before."
        )
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    module, _, function = name.rpartition(".")
    if not module.startswith("torch.nn") or function not in FUNCTIONS:
        raise UnsupportedModelError(
            f"{own / 'config.json'}: the activation {name[:80]!r} is not known; {', '.join(FUNCTIONS)} are."
        )
    flags = config.get("bias", True), config.get("use_residual", False)
    return PooledDense(size, outputs, bool(flags[0]), FUNCTIONS[function], bool(flags[1])), outputs


def _prompts(folder: Path, are_pooled: bool) -> TextPrompts:
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.is_file() else {}
    given, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(given, dict) or not all(isinstance(text, str | None) for text in given.values()):
        raise CheckpointError(f"{path}: prompts must be an object of texts.")
    texts = {str(name): text for name, text in given.items() if text is not None}
    if default is not None and default not in texts:
        raise CheckpointError(f"{path}: default_prompt_name {str(default)[:80]!r} is none of its prompts.")
    return TextPrompts(texts=texts, default=default, are_pooled=are_pooled)
