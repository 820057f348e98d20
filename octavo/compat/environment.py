"""`vllm.envs`: vLLM's environment variables, as far as they mean something here."""

import os
from collections.abc import Callable
from typing import Any


def _switch(name: str, default: bool) -> bool:
    return os.environ.get(name, "1" if default else "0").strip().lower() in ("1", "true", "yes", "on")


_ALWAYS: dict[str, Any] = {"VLLM_USE_V1": True, "VLLM_BATCH_INVARIANT": True, "VLLM_TARGET_DEVICE": "cpu"}
"""What holds here whatever the environment says."""
_SWITCHES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": False,
    "VLLM_USE_MODELSCOPE": False,
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": False,
    "VLLM_DO_NOT_TRACK": True,
    "VLLM_NO_USAGE_STATS": True,
    "VLLM_SERVER_DEV_MODE": False,
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": False,
}
_TEXTS: dict[str, str | None] = {
    "VLLM_API_KEY": None,
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CACHE_ROOT": os.path.expanduser("~/.cache/octavo"),
    "VLLM_ATTENTION_BACKEND": None,
    "VLLM_HOST_IP": "",
}
_NUMBERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "VLLM_CPU_KVCACHE_SPACE": (int, "0"),
    "VLLM_IMAGE_FETCH_TIMEOUT": (float, "10"),
    "VLLM_PORT": (int, "0"),
}


def variable(name: str) -> Any:
    """A variable's value. Raises AttributeError for one that means nothing here."""
    if name in _ALWAYS:
        return _ALWAYS[name]
    if name in _SWITCHES:
        return _switch(name, _SWITCHES[name])
    if name in _TEXTS:
        return os.environ.get(name, _TEXTS[name])
    if name in _NUMBERS:
        kind, default = _NUMBERS[name]
        return kind(os.environ.get(name, default))
    raise AttributeError(f"vllm.envs.{name} means nothing to Octavo.")
