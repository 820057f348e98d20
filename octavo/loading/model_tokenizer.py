"""The tokenizer of a model, wherever its files are."""

from pathlib import Path

from octavo.architectures import find_architecture
from octavo.config import EngineArgs
from octavo.errors import UnsupportedModelError
from octavo.files import read_json
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_tokenizer import gguf_tokenizer
from octavo.loading.model_files import ModelFiles, find_model, find_other, find_tokenizer
from octavo.text.tokenizer import Tokenizer, load_tokenizer

TOKENIZERS = ("tokenizer.json", "tekken.json", "tokenizer.model", "*.tiktoken", "vocab.*", "tokenizer_config.json")
"""Files of which a folder with a tokenizer has one."""


def model_tokenizer(
    args: EngineArgs, files: ModelFiles | None = None, gguf: GGUFFile | None = None
) -> Tokenizer | None:
    """The tokenizer that `args` names, or the model's own; None with skip_tokenizer_init.

    Args:
        files, gguf: the model's, where they were found and read already.

    Raises the errors of octavo.errors for files that are missing or damaged.
    """
    if args.skip_tokenizer_init:
        return None
    own = find_tokenizer(args)
    files = files or (find_model(args) if own is None else None)
    chosen = own or files
    assert chosen is not None
    if not chosen.is_gguf:
        folder = chosen.path if own is not None else _folder(chosen.path, args)
        return load_tokenizer(folder, args.trust_remote_code and folder == chosen.path)
    return gguf_tokenizer(gguf if gguf is not None and chosen == files else GGUFFile(chosen.path))


def _folder(own: Path, args: EngineArgs) -> Path:
    """Where the tokenizer of a model folder is: in it, or with the checkpoint that its config names."""
    file = own / "config.json"
    if any(found for name in TOKENIZERS for found in own.glob(name)) or not file.is_file():
        return own
    values = {**read_json(file), **args.hf_overrides}
    names = values.get("architectures")
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return own
    try:
        others = find_architecture(names).others
    except UnsupportedModelError:  # the model's loader says so
        return own
    keys = (key for key, other in others.items() if other.has_tokenizer and other.is_named(key, values))
    key = next(keys, None)
    return own if key is None else find_other(values[key], key, args, weights=False).path
