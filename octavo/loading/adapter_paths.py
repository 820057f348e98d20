"""From an adapter's name to its files: a folder, a GGUF file, or a hub's repository."""

from fnmatch import fnmatch
from pathlib import Path

from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ModelNotFoundError, shorten
from octavo.files import check_files, check_plain
from octavo.loading.hub import Wanted, from_huggingface, from_modelscope, hub_of
from octavo.lora.request import CONFIG, hub_name

TENSORS = ("adapter_model.safetensors", "adapter_model.bin")
"""An adapter's tensors, as PEFT writes them; the first that is there."""
TOKENIZER = ("tokenizer*", "added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt")
"""Of its tokenizer."""


def find_adapter(path: str, args: EngineArgs) -> Path:
    """The folder or the GGUF file of an adapter, downloaded if need be.

    Args:
        path: a folder, a GGUF file, or a name on the hub that `args` say, with a branch, tag or commit after an `@`.
        args: the engine's options.

    Raises ModelNotFoundError with what was tried, CheckpointError for what is there and no adapter.
    """
    try:
        local = Path(path).expanduser()
        status = local.stat()
    except (OSError, ValueError, RuntimeError):  # there is none, it could be no path, or that of an unknown user
        return _from_hub(path, args)
    if local.is_dir():
        return _checked(local)
    check_plain(local, status)
    if local.suffix != ".gguf":
        raise CheckpointError(f"{local} is a single file but not a .gguf; name the folder that holds {CONFIG}.")
    return local


def _from_hub(path: str, args: EngineArgs) -> Path:
    name = hub_name(path)
    if name is None:
        raise ModelNotFoundError(
            f"there is no {shorten(path, 200)}. Name a folder with {CONFIG}, a GGUF file, or a hub's adapter "
            "(owner/name)."
        )
    repo, revision = name
    if hub_of(args) == "modelscope":
        patterns = [CONFIG, *TENSORS, *TOKENIZER, "*.gguf"]
        return _checked(from_modelscope(repo, args, revision, patterns, ["*/*"], "adapter"))
    wanted = Wanted("adapter", files_to_download, [CONFIG], [CONFIG, *TENSORS, *TOKENIZER, "*.gguf"])
    return _checked(from_huggingface(repo, args, revision, wanted))


def files_to_download(files: list[str]) -> list[str]:
    """Of a repository's files those of an adapter: its config, one file of tensors, its tokenizer.

    Raises CheckpointError where it has no adapter.
    """
    if CONFIG in files:
        tensors = next((name for name in TENSORS if name in files), None)
        if tensors is None:
            raise CheckpointError(f"the repository has {CONFIG}, but neither {' nor '.join(TENSORS)}.")
        return [CONFIG, tensors, *(f for f in files if any(fnmatch(f, p) for p in TOKENIZER) and "/" not in f)]
    if ggufs := [f for f in files if f.endswith(".gguf") and "/" not in f]:
        return ggufs
    raise CheckpointError(
        f"the repository holds no adapter: neither {CONFIG} nor a GGUF file, but {shorten(', '.join(files[:8]), 200)}."
    )


def _checked(folder: Path) -> Path:
    """A folder that holds an adapter, or the GGUF file that is one."""
    check_files(folder)
    if (folder / CONFIG).is_file():
        return folder
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    several = f"several GGUF files ({', '.join(f.name for f in files[:8])}); name one of them"
    raise CheckpointError(f"{folder} holds {several if files else f'no adapter: it has no {CONFIG}'}.")
