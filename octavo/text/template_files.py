"""The chat templates of a model folder."""

import os
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError, ConfigError, shorten
from octavo.files import check_files, read_json

ChatTemplates = dict[str, str]
"""Chat templates by name; the usual one is `default`."""


def read_templates(folder: Path, settings: dict[str, Any]) -> ChatTemplates:
    """The chat templates of a folder, in all the ways in which they are written.

    Files of their own (chat_template.jinja, additional_chat_templates/NAME.jinja) count over tokenizer_config.json;
    chat_template.json, which belongs to processors, counts where neither has one.
    """
    templates = _named_templates(settings.get("chat_template"), "tokenizer_config.json")
    files, named = {"default": folder / "chat_template.jinja"}, folder / "additional_chat_templates"
    if named.is_dir():
        check_files(named)
    files |= {p.name.removesuffix(".jinja"): p for p in sorted(named.glob("*.jinja"))}
    try:
        own = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"a chat template of {folder} is not readable: {error}") from error
    templates = own if "default" in own else {**templates, **own}
    processors = folder / "chat_template.json"
    if "default" not in templates and processors.is_file():
        templates = {**_named_templates(read_json(processors).get("chat_template"), processors.name), **templates}
    return templates


def given_template(value: str | os.PathLike[str]) -> str:
    """A template as people give it: the text of a file, or the text or name itself.

    Raises ConfigError for a path where no readable file is.
    """
    text = os.fspath(value)
    is_path = not isinstance(value, str) or ("{" not in text and "\n" not in text and os.path.sep in text)
    if not is_path and ("{" in text or "\n" in text or not Path(text).is_file()):
        return text
    try:
        check_files(Path(text).parent)
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the chat template {shorten(text)} is not readable: {error}") from error


def _named_templates(value: Any, file: str) -> ChatTemplates:
    """Templates as JSON has them: one text, a list of {name, template}, or an object of texts by name."""
    if not value:
        return {}
    if isinstance(value, str):
        return {"default": value}
    pairs = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        pairs = [(entry.get("name"), entry.get("template")) for entry in value]
    if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise CheckpointError(
            f"{file}: chat_template must be a text or a list of {{name, template}}, not {value!r:.80}."
        )
    return dict(pairs)
