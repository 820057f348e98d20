"""From a model's name to its files: a folder, a .gguf file, a hub, or a PyPI package that carries a GGUF."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ConfigError, ModelNotFoundError
from octavo.files import check_files, check_plain
from octavo.loading.gguf_reader import PART_NAME
from octavo.loading.hub import Wanted, from_huggingface, from_modelscope, hub_of
from octavo.loading.pypi import from_pypi

TEXT_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
SKIPPED = ("original/*", "*/*.safetensors", "*/*.bin", "onnx/*", "*optimizer*", "*scheduler*")
NATIVE = "consolidated*.safetensors"
"""Weights of Mistral's own format, of which many repositories have a copy beside the usual ones."""
OF_MODULE = re.compile(r"(\d+_\w+)/(model\.safetensors|pytorch_model\.bin)")
"""Weights of a module of sentence-transformers, in a folder of its own."""
CONFIGS = ("config.json", "params.json")
"""What says that a folder is a model: the usual file, and that of Mistral's own format."""


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files lie on this disk: a folder, or one GGUF file."""

    path: Path
    mmproj: Path | None = None
    """A GGUF file beside a GGUF model, with its tower and projector."""

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()


def cache_folder() -> Path:
    """Octavo's own cache: `$XDG_CACHE_HOME/octavo`, or `~/.cache/octavo`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo"


def find_model(args: EngineArgs) -> ModelFiles:
    """The files of `args.model`, downloaded if need be.

    Raises ModelNotFoundError with what was tried, CheckpointError where a folder holds no model.
    """
    files = _find(args.model, args, args.revision, weights=True)
    return replace(files, mmproj=_find_mmproj(files, args))


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def find_other(name: object, key: str, args: EngineArgs, *, weights: bool = True) -> ModelFiles:
    """The files of a checkpoint that another one's config names under `key`, on the same hub and by the same options.

    Raises CheckpointError for what is no name on a hub: a config may not choose a path of this machine, though a user
    may, with hf_overrides. No code of such a checkpoint is fetched.
    """
    is_users = isinstance(name, str) and args.hf_overrides.get(key) == name
    if not isinstance(name, str) or not (is_users or HUB_NAME.fullmatch(name)):
        raise CheckpointError(
            f"config.json: {key} is {str(name)[:80]!r}, and must be a name on a hub, such as openai/whisper-small."
        )
    remedy = f"Its folder can be given with hf_overrides={{{key!r}: '/path/to/it'}}."
    try:
        found = _find(name, replace(args, trust_remote_code=False), None, weights=weights)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"config.json names the checkpoint {name!r} as its {key}: {error} {remedy}") from error
    if found.is_gguf:
        raise CheckpointError(f"{key} {name!r} is a GGUF file; a folder with config.json is needed. {remedy}")
    return found


def _find_mmproj(files: ModelFiles, args: EngineArgs) -> Path | None:
    """The file with the tower of a GGUF model: the one that is named, or that in the folder that is named."""
    if args.mmproj is not None:
        if not files.is_gguf:
            raise ConfigError(f"mmproj goes with a GGUF model, and {files.path} is none. Leave it out.")
        path = Path(args.mmproj).expanduser()
        if not path.is_file():
            raise ModelNotFoundError(f"mmproj: there is no file {path.absolute()}.")
        check_plain(path, path.stat())
        return _check_model_file(path)
    if not files.is_gguf or args.model.endswith(".gguf"):
        return None
    found = {f.name: f for f in sorted(files.path.parent.glob("mmproj*.gguf")) if f.is_file()}
    names = list(found) if len(found) == 1 else _with_quant(list(found), "F16")
    if len(found) > 1 and len(names) != 1:
        some = ", ".join(list(found)[:8])
        raise CheckpointError(f"{files.path.parent} holds several files for pictures ({some}); name one with mmproj.")
    return found[names[0]] if names else None


def find_tokenizer(args: EngineArgs) -> ModelFiles | None:
    """The files of `args.tokenizer`, or None where the model's own serve."""
    if args.tokenizer is None or args.tokenizer == args.model:
        return None
    return _find(args.tokenizer, args, args.tokenizer_revision, weights=False)


def _find(name: str, args: EngineArgs, revision: str | None, *, weights: bool) -> ModelFiles:
    if name.startswith("pypi:"):
        return ModelFiles(from_pypi(name.removeprefix("pypi:"), args, cache_folder()))
    path, (repo, _, quant) = Path(name).expanduser(), name.partition(":")
    try:
        status = path.stat()
    except (OSError, ValueError):  # there is none, or it could be no path
        status = None
    if status is not None and path.is_dir():
        return _files(path, weights)
    if status is not None:
        check_plain(path, status)
        return ModelFiles(_check_model_file(path))
    if quant and os.path.isdir(folder := Path(repo).expanduser()):
        return _files(folder, weights, quant)
    if _looks_like_a_path(name):
        raise ModelNotFoundError(
            f"model {name!r} was not found: tried the path {path.absolute()}. Give an existing folder or .gguf file, "
            "or a hub name such as Qwen/Qwen2-0.5B-Instruct."
        )
    fetch = _from_modelscope if hub_of(args) == "modelscope" else _from_hub
    return _files(fetch(repo, args, revision, quant, weights), weights, quant)


def _files(folder: Path, weights: bool, quant: str = "") -> ModelFiles:
    check_files(folder)
    return ModelFiles(_check_folder(folder, quant) if weights else folder)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith(("/", ".", "~", "\\")) or name.count("/") > 1 or name.endswith((".gguf", ".safetensors"))


def _check_model_file(path: Path) -> Path:
    if path.suffix != ".gguf":
        raise CheckpointError(f"{path} is a single file but not a .gguf; give the folder that holds config.json.")
    return path


def _check_folder(folder: Path, quant: str = "") -> Path:
    """The folder itself if it has a config.json or params.json, else the GGUF file in it, or the first of its parts."""
    if any((folder / name).is_file() for name in CONFIGS) and not quant:
        return folder
    files = sorted(folder.glob("*.gguf")) or sorted(folder.glob("*/*.gguf"))
    # One of each set of parts: which of them is missing is for the reader of the file to say.
    sets = {gguf_set(f.name): f for f in reversed(files) if f.is_file() and not f.name.startswith("mmproj")}
    files = [sets[name] for name in _with_quant(sorted(sets), quant)]
    if len(files) == 1:
        return files[0]
    if files:
        some = ", ".join(f.name for f in files[:8])
        raise CheckpointError(f"{folder} holds several GGUF files ({some}); name one of them.")
    held = ", ".join(sorted(f.name for f in folder.iterdir())[:8]) or "nothing"
    if quant:
        raise CheckpointError(f"{folder} has no GGUF file with {quant[:60]!r} in its name (it holds {held}).")
    raise CheckpointError(
        f"{folder} is not a model: it has neither config.json nor a .gguf file, nor Mistral's params.json (it holds "
        f"{held}). Give the folder that was downloaded or saved as a whole."
    )


def is_native(load_format: str, files: Collection[str]) -> bool:
    """Whether a model of these files is to be read in Mistral's own format."""
    only = [f for f in CONFIGS if f in files] == ["params.json"]
    return load_format == "mistral" or (only and load_format in ("auto", "safetensors"))


def gguf_set(name: str) -> str:
    """What all parts of a split GGUF file have in common, or the whole name."""
    part = PART_NAME.fullmatch(name)
    return f"{part[1]}.gguf of {part[3]}" if part else name


def _with_quant(names: list[str], quant: str) -> list[str]:
    """The names that say `quant`: as a word (F16 is not BF16, and Q4_K not Q4_K_M), or anywhere if none does so."""
    word = re.compile(rf"(?<![a-z0-9]){re.escape(quant.lower())}(?![a-z0-9_])")
    return [n for n in names if word.search(n.lower())] or [n for n in names if quant.lower() in n.lower()]


def _of_modules(files: Collection[str]) -> list[str]:
    """Weights of sentence-transformers' modules, a file of each, and bge-m3's heads."""
    heads = [f for f in files if f in ("sparse_linear.pt", "colbert_linear.pt")]
    return heads + list({m[1]: f for f in sorted(files, reverse=True) if (m := OF_MODULE.fullmatch(f))}.values())


def _files_to_download(files: list[str], quant: str, args: EngineArgs, weights: bool) -> list[str]:
    """Of a repository's files those to download: texts, and one kind of weights."""
    kept = [f for f in files if not any(fnmatch(f, p) for p in (*SKIPPED, "consolidated*"))]
    patterns = [*TEXT_FILES, "*.py"] if args.trust_remote_code else TEXT_FILES
    texts = [f for f in kept if any(fnmatch(f, p) for p in patterns)]
    if not weights:
        return texts
    if not quant and is_native(args.load_format, files) and (native := [f for f in files if fnmatch(f, NATIVE)]):
        return texts + native
    kinds = {"auto": ("safetensors", "bin", "gguf"), "pt": ("bin",)}.get(args.load_format, (args.load_format,))
    for kind in ("gguf",) if quant else kinds:
        if matching := _with_quant([f for f in kept if f.endswith("." + kind)], quant):
            return texts + matching + ([] if quant else _of_modules(files))
    raise CheckpointError(
        f"the repository has no weights in the requested format ({'GGUF ' + quant if quant else args.load_format}). "
        f"It holds {', '.join(files[:8])}."
    )


def _from_hub(repo: str, args: EngineArgs, revision: str | None, quant: str, weights: bool) -> Path:
    wanted = Wanted(
        "model",
        lambda files: _files_to_download(files, quant, args, weights),
        CONFIGS,
        [*TEXT_FILES, "*.gguf"],
    )
    return from_huggingface(repo, args, revision, wanted)


def _from_modelscope(repo: str, args: EngineArgs, revision: str | None, quant: str, weights: bool) -> Path:
    patterns = [*TEXT_FILES, *(["*.py"] if args.trust_remote_code else [])]
    native = args.load_format == "mistral"
    if weights:
        patterns += [f"*{quant}*.gguf"] if quant else [NATIVE] if native else ["*.safetensors", "*.bin"]
    skipped = [*SKIPPED, *([] if native else ["consolidated*"])]
    folder = from_modelscope(repo, args, revision, patterns, skipped)
    if weights and not (quant or native) and is_native(args.load_format, os.listdir(folder)):
        return _from_modelscope(repo, replace(args, load_format="mistral"), revision, quant, weights)
    return folder
