"""Octavo in place of vLLM: `import vllm` finds this where octavo.compat.vllm has put its folder on Python's path."""

from octavo.compat.modules import VERSION as __version__
from octavo.compat.modules import answer_submodules, module_names

__version_tuple__ = tuple(int(part) for part in __version__.partition("+")[0].split("."))

answer_submodules()
__getattr__, __all__ = module_names("")
