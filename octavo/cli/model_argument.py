"""The model as an argument of its own, where others follow it: `octavo generate MODEL PROMPT`."""

import argparse
import mimetypes
from pathlib import Path

from octavo.cli.flags import take_model
from octavo.errors import InvalidRequestError, shorten
from octavo.loading.model_files import CONFIGS, HUB_NAME


def names_model(text: str) -> bool:
    """Whether an argument names a model rather than being a text or a file to work on: a folder with a model in it, a
    .gguf file, `pypi:PACKAGE`, or `owner/name` on a hub, with or without `:QUANTIZATION`."""
    if text.startswith("pypi:"):
        return True
    name = text.partition(":")[0]
    try:
        for folder in (Path(text).expanduser(), Path(name).expanduser()):
            if folder.is_dir():
                held = any((folder / one).is_file() for one in CONFIGS)
                return held or any(folder.glob("*.gguf")) or any(folder.glob("*/*.gguf"))
        is_file = Path(text).expanduser().is_file()
    except (OSError, RuntimeError):  # a text that could be no path, or of somebody's home who is not there
        return False
    if text.endswith(".gguf"):
        return is_file or not any(map(str.isspace, text))
    kind = (mimetypes.guess_type(text)[0] or "").partition("/")[0]
    return not is_file and kind not in ("audio", "video") and HUB_NAME.fullmatch(name) is not None


def after_model(namespace: argparse.Namespace, words: list[str]) -> list[str]:
    """What follows the model among a command's arguments: all, where --model says it or the first names none."""
    if words and not is_said(namespace) and names_model(words[0]):
        take_model(namespace, words[0])
        return words[1:]
    return words


def text_after_model(namespace: argparse.Namespace, words: list[str], dest: str = "model") -> str | None:
    """The one text after a model's name, which may be left out; None for none.

    Raises InvalidRequestError for more than that, as of a text without quotes.
    """
    if len(words) < 2:
        return next(iter(after_model(namespace, words) if dest == "model" else words), None)
    if len(words) > 2:
        raise InvalidRequestError(
            f"there are {len(words)} arguments: give a model and a text, or the text alone. Put a text of several "
            f'words in quotes: "{words[0]} {words[1]} ...".'
        )
    if dest == "model" and "/" not in words[0] and not names_model(words[0]):
        raise InvalidRequestError(
            f'{shorten(repr(words[0]))} names no model. Put a text of several words in quotes: "{words[0]} {words[1]}".'
        )
    take_model(namespace, words[0], dest)
    return words[1]


def is_said(namespace: argparse.Namespace) -> bool:
    """Whether --model is among the flags of the command line."""
    return hasattr(namespace, "model") and "model" not in getattr(namespace, "of_file", ())
