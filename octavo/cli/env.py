"""`octavo env`: what a report about a problem or a measurement should say of the machine."""

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from octavo.loading.packed_copies import copies_folder, copies_limit
from octavo.ops import host_memory, select_backend
from octavo.ops.cpu_binding import describe_nodes
from octavo.sizes import format_size
from octavo.version import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "gguf", "numpy")


def processor() -> str:
    """The processor's name, and what tells generations of one name apart."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    name = facts.get("model name") or facts.get("Model") or platform.processor() or platform.machine()
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else name


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


@torch.inference_mode()
def linear_is_batch_invariant(dtype: torch.dtype) -> bool:
    """Whether rows of a product come out the same alone and among others, tried on this machine."""
    generator = torch.Generator().manual_seed(0)
    backend = select_backend("cpu")
    for width, outputs in ((576, 960), (1536, 576), (2048, 2048)):
        kernel = backend.linear(torch.randn(outputs, width, generator=generator).to(dtype))
        x = torch.randn(96, width, generator=generator).to(dtype)
        together = kernel(x)
        if any(not torch.equal(kernel(x[:n]), together[:n]) for n in (1, 2, 3, 7, 16, 31, 64)):
            return False
    return True


def packed_weights() -> str:
    """Where packed weights are kept for the next start, and how much."""
    folder, limit = copies_folder(), copies_limit()
    sizes = [path.stat().st_size for path in folder.glob("*")] if folder.is_dir() else []
    return f"{folder} ({format_size(sum(sizes))} of {format_size(limit)})" if limit else "none are kept"


def describe() -> dict[str, Any]:
    """The facts, by name."""
    backend, dtypes = select_backend("cpu"), {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {
        "octavo": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "NUMA nodes": describe_nodes(backend.threads),
        "threads": backend.threads,
        "operations": backend.name,
        "packed weights": packed_weights(),
        "memory free": format_size(host_memory.available()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **_versions(),
        **{f"linear {n} batch-invariant": linear_is_batch_invariant(d) for n, d in dtypes.items()},
    }


def run(namespace: argparse.Namespace) -> int:
    facts = describe()
    if namespace.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:34s} {value}")
    return 0
