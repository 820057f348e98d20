"""What tells a model's files, its options and the code from others: of what is kept for later starts of the same."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from octavo.architectures import Architecture
from octavo.config import EngineArgs
from octavo.loading.checkpoint import Checkpoint
from octavo.loading.precision import Precision
from octavo.ops import Backend
from octavo.version import __version__

log = logging.getLogger("octavo")

HEAD = 1 << 16
"""Bytes of each of the model's files that are looked at, beside what the system says of it."""
CODE = ("architectures", "loading", "ops", "parts")
"""Packages that decide how weights are laid out."""
CACHE_CODE = (*CODE, "executor", "media")
"""Those that decide what is in the caches."""
NO_MATTER = frozenset(
    [
        "model",
        "threads",
        "tokenizer",
        "hub",
        "revision",
        "tokenizer_revision",
        "hf_token",
        "download_dir",
        "offline",
        "trust_remote_code",
        "skip_tokenizer_init",
        "generation_config",
        "override_generation_config",
        "data_parallel_size",
        "data_parallel_rank",
        "distributed_executor_backend",
        "cpu_bind",
        "distributed_timeout_seconds",
        "seed",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_step_ms",
        "kv_cache_memory",
        "packed_cache",
        "feature_cache_memory",
        "gpu_memory_utilization",
        "enable_prefix_caching",
        "kv_offload",
        "kv_offload_disk",
        "kv_offloading_size",
        "kv_offloading_backend",
        "kv_transfer_config",
        "scheduling_policy",
        "limit_mm_per_prompt",
        "allowed_local_media_path",
        "allowed_media_domains",
        "media_fetch_timeout",
        "enable_lora",
        "max_loras",
        "max_lora_rank",
        "max_cpu_loras",
        "spec_method",
        "spec_model",
        "spec_tokens",
        "logits_processors",
        "max_logprobs",
        "logprobs_mode",
        "override_pooler_config",
        "runner",
        "convert",
    ]
)
"""Options that decide no bit of what is in the caches. Whatever else there is, or will be, counts."""


def is_known(checkpoint: Checkpoint) -> bool:
    """Whether `code_state` tells when the code of a model's architecture has changed: of a plugin's nothing does."""
    return checkpoint.architecture.home.startswith(f"{Architecture.__module__.rpartition('.')[0]}.")


def files_state(checkpoint: Checkpoint) -> list[Any]:
    """What tells all that the weights are read from. Raises OSError."""
    return [_file_state(path) for path in weights_files(checkpoint)]


def config_state(checkpoint: Checkpoint) -> str:
    """A digest of a model's config."""
    return hashlib.blake2b(as_text(checkpoint.config.values).encode()).hexdigest()


def code_state(packages: Iterable[str] = CODE) -> list[int]:
    """What changes with the code, for those who work on it: a version's number stays the same."""
    root = Path(__file__).parents[1]
    states = [path.stat() for package in packages for path in (root / package).rglob("*.py")]
    return [len(states), sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)]


def as_text(values: Any) -> str:
    """JSON in one order."""
    return json.dumps(values, sort_keys=True, default=repr)


def cache_state(
    args: EngineArgs, checkpoint: Checkpoint, task: str, precision: Precision, backend: Backend
) -> str | None:
    """A text of all that the bytes in the caches depend on, beside tokens and how caches are laid out.

    None where it cannot be known.
    """
    if not is_known(checkpoint):
        return None
    options = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.name not in NO_MATTER}
    device = torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else backend.device.type
    try:
        return as_text(
            {
                "files": files_state(checkpoint),
                "config": config_state(checkpoint),
                "asked": [task, repr(precision), type(checkpoint.weights).__name__, options],
                "octavo": [__version__, *code_state(CACHE_CODE)],
                # Libraries of other processors' products, or other numbers of threads, may sum in another order.
                "computed": [
                    type(backend).__name__,
                    backend.packed_layout,
                    backend.sum_order,
                    device,
                    backend.threads,
                ],
                "torch": [torch.__version__, torch.backends.cpu.get_cpu_capability()],
            }
        )
    except OSError as error:
        log.warning("the model's files cannot be looked at: %s", error)
        return None


def weights_files(checkpoint: Checkpoint) -> list[Path]:
    """All that the weights are read from."""
    if checkpoint.gguf is not None:
        towers = checkpoint.mmproj.file.paths if checkpoint.mmproj is not None else []
        return [*checkpoint.gguf.paths, *towers]
    folders = [checkpoint.files.path, *checkpoint.other_folders]
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]


def _file_state(path: Path) -> list[Any]:
    """What tells a file from others, and from what it was before."""
    with open(path, "rb") as file:
        state, head = os.fstat(file.fileno()), hashlib.blake2b(file.read(HEAD)).hexdigest()
    return [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns, head]
