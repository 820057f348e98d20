"""Folders whose weights are quantized in a way that Octavo does not read: refused by its name, before any loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.architectures.config_kinds import OBJECT, check
from octavo.errors import UnsupportedModelError
from octavo.files import read_json

KEYS = ("quantization_config", "compression_config")
"""Of config.json; the second is how the first releases of compressed-tensors spell it."""
FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside it that tell of a quantization, and the method that writes them."""
TOLD_BY = {
    "load_in_8bit": "bitsandbytes",
    "load_in_4bit": "bitsandbytes",
    "quant_algo": "modelopt",
    "config_groups": "compressed-tensors",
    "quant_type": "torchao",
    "zero_point": "awq",
    "desc_act": "gptq",
}
"""Keys by which a quantization without a quant_method is known."""


def refuse_quantized(config: Mapping[str, Any], folder: Path) -> None:
    """Raise UnsupportedModelError where `config`, or a file of `folder`, says that the weights are quantized.

    Raises CheckpointError for a quantization_config that is no object.
    """
    for key in KEYS:
        settings = config.get(key)
        if settings is not None and check(key, settings, OBJECT):
            raise _unsupported(_method(settings, "a method that it does not name"), key, folder / "config.json")
    for name, writer in FILES.items():
        if (folder / name).is_file():
            raise _unsupported(_method(read_json(folder / name), writer), name, folder)


def _method(settings: Mapping[str, Any], otherwise: str) -> str:
    named = settings.get("quant_method")
    if isinstance(named, str) and named:
        return repr(named[:60])
    return next((repr(method) for key, method in TOLD_BY.items() if settings.get(key) is not None), otherwise)


def _unsupported(method: str, where: str, path: Path) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path}: the weights are quantized with {method} ({where}), which is not supported. Supported are folders of "
        "float32, bfloat16 and float16 weights, which quantization='int8' or 'q4' rounds as they load, and GGUF files. "
        "Take the model's folder without quantization, or a GGUF of it."
    )
