"""One file a family: from a published config to a composition of parts, and the published names of its tensors."""

from octavo.architectures.families import (
    all_architectures,
    find_architecture,
    gguf_architectures,
    register_architecture,
)
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import Architecture, architecture

__all__ = [
    "Architecture",
    "Config",
    "GGUFFormat",
    "all_architectures",
    "architecture",
    "find_architecture",
    "gguf_architectures",
    "register_architecture",
]
