"""Options of blocks that leave the KV cache and come back, by our names and by vLLM's."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import ConfigError, did_you_mean
from octavo.option_types import as_mapping
from octavo.sizes import parse_size

CONNECTOR = "OffloadingConnector"
SPECS = ("CPUOffloadingSpec", "TieringOffloadingSpec")
FILE_TIERS = ("fs", "fs_python")
"""What vLLM calls a folder of files."""
TAKEN: Mapping[str, tuple[Any, ...] | None] = {
    "kv_role": ("kv_both",),
    "engine_id": None,
    "kv_buffer_device": None,
    "kv_buffer_size": None,
    "kv_rank": (None, 0),
    "kv_parallel_size": (1,),
    "kv_ip": None,
    "kv_port": None,
    "enable_permute_local_kv": None,
    "kv_load_failure_policy": ("recompute",),
}
"""Keys of vLLM's kv_transfer_config that change nothing here, and which of their values may be given; None for any."""
TAKEN_EXTRA: Mapping[str, tuple[Any, ...] | None] = {
    "block_size": None,
    "eviction_policy": ("lru",),
    "store_threshold": (0, 1),
}
"""Likewise of its kv_connector_extra_config."""
TAKEN_TIER: Mapping[str, tuple[Any, ...] | None] = {"n_read_threads": None, "n_write_threads": None}
"""Likewise of a folder's."""
DISK = "16GiB"


@dataclass(frozen=True)
class KVOffloadConfig:
    """Where blocks are kept outside of the cache."""

    folder: str | None
    """None for no files."""
    disk_bytes: int
    """What all files in the folder may take together."""
    host_bytes: int
    """Host memory of all ranks together; 0 for none."""


def kv_offload_config(
    folder: str | None, disk: int | str | None, host_gib: float | None, backend: str | None, transfer: Any
) -> KVOffloadConfig | None:
    """What kv_offload, kv_offload_disk, kv_offloading_size, kv_offloading_backend and kv_transfer_config ask for; None
    where they ask for nothing.

    Raises ConfigError, which names what is wrong with them.
    """
    host = 0
    if host_gib is not None:
        if not 0 <= host_gib < math.inf:
            raise ConfigError(f"kv_offloading_size={host_gib!r} must be a number of GiB, 0 or more.")
        host = int(host_gib * (1 << 30))
    if backend not in (None, "native"):
        raise ConfigError(f"kv_offloading_backend={backend!r} is not supported; give native, or kv_offload.")
    if transfer:
        of_vllm, root = _transfer(transfer)
        if host and of_vllm and host != of_vllm:
            raise ConfigError("kv_offloading_size and cpu_bytes_to_use of kv_transfer_config contradict each other.")
        if folder is not None and root is not None and folder != root:
            raise ConfigError("kv_offload and the root_dir of kv_transfer_config contradict each other.")
        host, folder = host or of_vllm, folder if root is None else root
    if folder is not None and (not folder.strip() or "\0" in folder):
        raise ConfigError(f"kv_offload={folder!r} names no folder (is a variable unset?).")
    if folder is None and disk is not None:
        raise ConfigError("kv_offload_disk needs kv_offload, which names the folder.")
    if folder is None and not host:
        return None
    if folder is not None:
        folder = os.path.abspath(os.path.expanduser(folder))
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ConfigError(f"kv_offload={folder!r} is not a folder. Name one, which need not be there yet.")
    return KVOffloadConfig(folder, parse_size(DISK if disk is None else disk, "kv_offload_disk"), host)


def _transfer(given: Any) -> tuple[int, str | None]:
    """Bytes of host memory, and the folder, that vLLM's kv_transfer_config asks for."""
    where = "kv_transfer_config"
    values = {key.replace("-", "_"): value for key, value in as_mapping(given, where).items() if value is not None}
    connector = values.pop("kv_connector", None)
    if connector != CONNECTOR:
        raise ConfigError(
            f"{where}: kv_connector={connector!r} is not supported; prompts and answers are computed by one engine. "
            f"{CONNECTOR} keeps blocks of its cache."
        )
    extra = values.pop("kv_connector_extra_config", {})
    _check(values, TAKEN, where, ("kv_connector", "kv_connector_extra_config"))
    where = "kv_connector_extra_config"
    extra = {key: value for key, value in as_mapping(extra, where).items() if value is not None}
    host, spec, tiers = extra.pop("cpu_bytes_to_use", 0), extra.pop("spec_name", None), extra.pop("secondary_tiers", [])
    _check(extra, TAKEN_EXTRA, where, ("cpu_bytes_to_use", "spec_name", "secondary_tiers"))
    if type(host) not in (int, float) or not 0 <= host < math.inf:
        raise ConfigError(f"{where}: cpu_bytes_to_use={host!r} must be a number of bytes.")
    if spec not in (None, *SPECS):
        raise ConfigError(f"{where}: spec_name={spec!r} is not supported; give {' or '.join(SPECS)}.")
    if not isinstance(tiers, list) or len(tiers) > 1 or not all(isinstance(tier, dict) for tier in tiers):
        raise ConfigError(f"{where}: secondary_tiers may have one folder, of type 'fs'.")
    if tiers and spec != "TieringOffloadingSpec":
        raise ConfigError(f"{where}: secondary_tiers needs spec_name='TieringOffloadingSpec'.")
    if not host and not tiers:
        raise ConfigError(f"{where}: give cpu_bytes_to_use, bytes of host memory.")
    return int(host), _folder(tiers[0]) if tiers else None


def _folder(tier: dict[str, Any]) -> str:
    where = "secondary_tiers"
    values = dict(tier)
    kind, root = values.pop("type", None), values.pop("root_dir", None)
    if kind not in FILE_TIERS:
        raise ConfigError(f"{where}: type={kind!r} is not supported; give 'fs', a folder.")
    _check(values, TAKEN_TIER, where, ("type", "root_dir"))
    if not isinstance(root, str) or not root.strip():
        raise ConfigError(f"{where}: root_dir={root!r} must name a folder.")
    return root


def _check(
    values: Mapping[str, Any], taken: Mapping[str, tuple[Any, ...] | None], where: str, own: tuple[str, ...]
) -> None:
    """Raises ConfigError for a key, or a value, that cannot be honoured."""
    known = [*own, *taken]
    for key, value in values.items():
        if key not in taken:
            raise ConfigError(
                f"{where}: {str(key)[:80]!r} is not supported.{did_you_mean(str(key), known)} It takes "
                f"{', '.join(known)}."
            )
        allowed = taken[key]
        if allowed is not None and value not in allowed:
            raise ConfigError(f"{where}: {key}={value!r:.80} is not supported; give {allowed[-1]!r}, or leave it out.")
