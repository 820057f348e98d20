"""Adapters as users name them. The class of a request is at the place where vLLM has it, too."""

from octavo.lora.request import CONFIG, AdapterNotFoundError, AdapterRef, LoRARequest, refer

__all__ = ["CONFIG", "AdapterNotFoundError", "AdapterRef", "LoRARequest", "refer"]
