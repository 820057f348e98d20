"""What kv_offload and vLLM's options of the same ask for, and what of them cannot be honoured."""

from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineArgs
from octavo.errors import ConfigError

GIB = 1 << 30


def transfer(**extra: Any) -> dict[str, Any]:
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


def folder_tier(**more: Any) -> dict[str, Any]:
    tiers = [{"type": "fs", "root_dir": "/tmp/x", "n_read_threads": 4, **more}]
    return transfer(spec_name="TieringOffloadingSpec", cpu_bytes_to_use=GIB, secondary_tiers=tiers)


ASKED: list[tuple[dict[str, Any], tuple[str | None, int, int] | None]] = [
    ({}, None),
    ({"kv_offloading_backend": "native"}, None),
    ({"kv_offload": "/tmp/x"}, ("/tmp/x", 16 * GIB, 0)),
    ({"kv_offload": "/tmp/x/../y", "kv_offload_disk": "1GiB"}, ("/tmp/y", GIB, 0)),
    ({"kv_offloading_size": 1.5}, (None, 16 * GIB, 3 * GIB // 2)),
    ({"kv_transfer_config": transfer(cpu_bytes_to_use=5e9, block_size=64)}, (None, 16 * GIB, 5 * 10**9)),
    ({"kv_transfer_config": folder_tier(), "kv_offload_disk": "2GiB"}, ("/tmp/x", 2 * GIB, GIB)),
]


@pytest.mark.parametrize(("options", "meant"), ASKED)
def test_what_is_asked_for(options: dict[str, Any], meant: tuple[str | None, int, int] | None) -> None:
    found = EngineArgs("x", **options).offload
    assert (None if found is None else (found.folder, found.disk_bytes, found.host_bytes)) == meant


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kv_offload": " "}, "names no folder"),
    ({"kv_offload": __file__}, "is not a folder"),
    ({"kv_offload_disk": "1GiB"}, "needs kv_offload"),
    ({"kv_offload": "/tmp/x", "kv_offload_disk": "much"}, "kv_offload_disk='much' is not a size"),
    ({"kv_offload": "/tmp/x", "enable_prefix_caching": False}, "enable_prefix_caching=False"),
    ({"kv_offloading_size": -1.0}, "kv_offloading_size=-1.0"),
    ({"kv_offloading_size": float("nan")}, "kv_offloading_size=nan"),
    ({"kv_offloading_size": 1.0, "kv_offloading_backend": "lmcache"}, "'lmcache' is not supported"),
    ({"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}}, "'NixlConnector'"),
    ({"kv_transfer_config": {"kv_role": "kv_both"}}, "kv_connector=None"),
    ({"kv_transfer_config": {**transfer(cpu_bytes_to_use=GIB), "kv_role": "kv_producer"}}, "'kv_producer'"),
    ({"kv_transfer_config": {**transfer(cpu_bytes_to_use=GIB), "kv_rol": "x"}}, "'kv_rol' is not supported"),
    ({"kv_transfer_config": transfer()}, "give cpu_bytes_to_use"),
    ({"kv_transfer_config": transfer(cpu_bytes_to_use="1GiB")}, "cpu_bytes_to_use='1GiB'"),
    ({"kv_transfer_config": transfer(num_cpu_blocks=100)}, "'num_cpu_blocks' is not supported"),
    ({"kv_transfer_config": transfer(cpu_bytes_to_use=GIB, eviction_policy="arc")}, "eviction_policy='arc'"),
    ({"kv_transfer_config": transfer(cpu_bytes_to_use=GIB, spec_name="Mine")}, "spec_name='Mine'"),
    ({"kv_transfer_config": transfer(cpu_bytes_to_use=GIB, secondary_tiers=[{}])}, "needs spec_name"),
    ({"kv_transfer_config": folder_tier(type="obj")}, "type='obj'"),
    ({"kv_transfer_config": folder_tier(root_dir=3)}, "root_dir=3"),
    ({"kv_transfer_config": folder_tier(bucket="b")}, "'bucket' is not supported"),
    ({"kv_transfer_config": folder_tier(), "kv_offload": "/tmp/z"}, "contradict"),
    ({"kv_transfer_config": transfer(cpu_bytes_to_use=GIB), "kv_offloading_size": 2.0}, "contradict"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineArgs("x", **options)


def test_no_folder_is_made_before_it_is_needed(tmp_path: Path) -> None:
    assert EngineArgs("x", kv_offload=str(tmp_path / "new")).offload is not None
    assert not (tmp_path / "new").exists()
