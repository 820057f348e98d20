"""Weight formats: a file for each way in which checkpoints store weights.

To add one for quantized folders: a file with a PlainWeights that says which `suffixes` make a weight, and gives of them
a TensorSource whose `stored()` has the rows that backends multiply with, and whose `read()` has floats; and its
quant_method in `QUANTIZED`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from octavo.loading.formats.awq import AWQWeights
from octavo.loading.formats.bitsandbytes import BitsAndBytesWeights
from octavo.loading.formats.compressed_tensors import CompressedTensorsWeights
from octavo.loading.formats.fp8 import FP8Weights
from octavo.loading.formats.gguf import GGUFWeights
from octavo.loading.formats.gptq import GPTQWeights
from octavo.loading.formats.hqq import HQQWeights
from octavo.loading.formats.joined import JoinedWeights, WeightsBeside
from octavo.loading.formats.modelopt import ModelOptWeights
from octavo.loading.formats.mxfp4 import MXFP4Weights
from octavo.loading.formats.plain import PlainWeights
from octavo.loading.formats.quantization_config import quantization_of, unsupported
from octavo.loading.formats.torchao import TorchAOWeights
from octavo.loading.formats.weight_format import WeightFormat

__all__ = [
    "QUANTIZED",
    "GGUFWeights",
    "JoinedWeights",
    "PlainWeights",
    "WeightFormat",
    "WeightsBeside",
    "folder_format",
]


def _auto_round(folder: Path, load_format: str, settings: Mapping[str, Any]) -> WeightFormat:
    """AutoRound writes what others read: GPTQ's tensors, or AWQ's."""
    format = AWQWeights if "awq" in str(settings.get("packing_format", "")) else GPTQWeights
    return format(folder, load_format, settings)


QUANTIZED: dict[str, Callable[[Path, str, Mapping[str, Any]], WeightFormat]] = {
    "auto-round": _auto_round,
    "awq": AWQWeights,
    "bitsandbytes": BitsAndBytesWeights,
    "compressed-tensors": CompressedTensorsWeights,
    "fbgemm_fp8": FP8Weights,
    "fp8": FP8Weights,
    "gptq": GPTQWeights,
    "hqq": HQQWeights,
    "modelopt": ModelOptWeights,
    "mxfp4": lambda folder, load_format, settings: MXFP4Weights(folder, load_format),
    "torchao": TorchAOWeights,
}
"""By quant_method: makes a format of the folder, load_format and the quantization's settings."""


def folder_format(folder: Path, load_format: str, config: Mapping[str, Any]) -> WeightFormat:
    """The format of the weights in a folder whose config.json has the values `config`.

    Raises UnsupportedModelError where they are quantized in a way that is not in QUANTIZED, and CheckpointError for
    settings of another type.
    """
    quantization = quantization_of(config, folder)
    if quantization is None:
        return PlainWeights(folder, load_format)
    if quantization.method not in QUANTIZED:
        raise unsupported(quantization, QUANTIZED)
    return QUANTIZED[quantization.method](folder, load_format, quantization.settings)
