"""How a folder says that its weights are quantized, and with which method."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Quantization:
    """What a folder says of its weights."""

    method: str | None
    """None where it names none, and none is known by its keys."""
    settings: Mapping[str, Any]
    key: str
    """The key or file that says so."""
    path: Path
    """Where that is."""


def quantization_of(config: Mapping[str, Any], folder: Path) -> Quantization | None:
    """What `config`, or a file of `folder`, says of a quantization; None for plain weights.

    Raises CheckpointError for a quantization_config that is no object.
    """
    for key in KEYS:
        settings = config.get(key)
        if settings is not None and check(key, settings, OBJECT):
            return Quantization(_method(settings, None), settings, key, folder / "config.json")
    for name, writer in FILES.items():
        if (folder / name).is_file():
            settings = read_json(folder / name)
            return Quantization(_method(settings, writer), settings, name, folder)
    return None


ALSO = {"intel/auto-round": "auto-round", "gptqmodel": "gptq", "modelopt_fp4": "modelopt", "modelopt_mixed": "modelopt"}
"""Other names of methods."""


def _method(settings: Mapping[str, Any], writer: str | None) -> str | None:
    method = settings.get("quant_method")
    if isinstance(method, str) and method:
        return ALSO.get(method.lower(), method.lower())[:60]
    return next((method for key, method in TOLD_BY.items() if settings.get(key) is not None), writer)


def unsupported(quantization: Quantization, supported: Iterable[str]) -> UnsupportedModelError:
    method = "a method that it does not name" if quantization.method is None else repr(quantization.method)
    return UnsupportedModelError(
        f"{quantization.path}: the weights are quantized with {method} ({quantization.key}), which is not supported. "
        f"Supported are {', '.join(sorted(supported))}; folders of float32, bfloat16 and float16 weights, which "
        "quantization='int8' or 'q4' rounds as they load; and GGUF files. Take the model in one of these."
    )
