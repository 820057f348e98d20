"""The tokenizer of a model, wherever its files are."""

from octavo.config import EngineArgs
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_tokenizer import gguf_tokenizer
from octavo.loading.model_files import ModelFiles, find_model, find_tokenizer
from octavo.text.tokenizer import Tokenizer, load_tokenizer


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
        return load_tokenizer(chosen.path, args.trust_remote_code)
    return gguf_tokenizer(gguf if gguf is not None and chosen == files else GGUFFile(chosen.path))
