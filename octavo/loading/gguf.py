"""GGUF files: metadata and tensors.

The header is parsed here: the `gguf` package takes seconds for a large vocabulary. Its tables of types and its map of
tensor names serve the rest. The file is treated as hostile: every length is checked
against the file's size before it is believed.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from octavo.errors import CheckpointError

if TYPE_CHECKING:
    from octavo.loading.gguf_source import GGUFSource

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_NUMPY = {"B": "u1", "b": "i1", "H": "<u2", "h": "<i2", "I": "<u4", "i": "<i4", "f": "<f4", "?": "?", "Q": "<u8"}
_NUMPY |= {"q": "<i8", "d": "<f8"}


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in the file. `shape` is in PyTorch's order (rows first)."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    nbytes: int


class _Reader:
    """Takes values off the file, one after the other."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self.size = data, path, 0, len(data)

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a sound GGUF file: {what}. Download it again.")

    def take(self, count: int) -> bytes:
        if count < 0 or count > self.size - self.at:
            raise self.fail(f"it ends at byte {self.size}, inside a value that begins at {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth > 4:
            raise self.fail(f"value type {kind} at byte {self.at} is unknown")
        item, count = self.scalar("I"), self.scalar("Q")
        if count > self.size:
            raise self.fail(f"an array of {count} values at byte {self.at} is longer than the file")
        if item in _SCALARS:
            code = _SCALARS[item]
            return np.frombuffer(self.take(count * struct.calcsize("<" + code)), dtype=_NUMPY[code]).tolist()
        if item == _STRING:
            return self._strings(count)
        return [self.value(item, depth + 1) for _ in range(count)]

    def _strings(self, count: int) -> list[str]:
        """A vocabulary has a hundred thousand strings: the loop is flat for speed."""
        data, at, size, out = self.data, self.at, self.size, []
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise self.fail(f"it ends at byte {size}, inside a list of strings")
            length = unpack(data, at)[0]
            at += 8
            if length > size - at:
                raise self.fail(f"it ends at byte {size}, inside a string that begins at {at}")
            out.append(data[at : at + length].decode("utf-8", errors="replace"))
            at += length
        self.at = at
        return out


class GGUFFile:
    """A GGUF file's metadata and tensors.

    Raises CheckpointError, naming the file and what is wrong, for anything that is not a sound GGUF.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            if file.read(4) != _MAGIC:
                raise CheckpointError(f"{path} is not a GGUF file (it does not begin with GGUF).")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = _Reader(self._map, path)
        reader.take(4)
        version = reader.scalar("I")
        if version not in (2, 3):
            raise reader.fail(f"version {version} is unknown (2 and 3 are read)")
        tensors, pairs = reader.scalar("Q"), reader.scalar("Q")
        if tensors > reader.size or pairs > reader.size:
            raise reader.fail("its counts are larger than the file")
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = reader.string()
            self.metadata[key] = reader.value(reader.scalar("I"))
        self.tensors = self._read_tensors(reader, tensors)

    def _read_tensors(self, reader: _Reader, count: int) -> dict[str, GGUFTensor]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        described = []
        for _ in range(count):
            name, dims = reader.string(), reader.scalar("I")
            if dims > 8:
                raise reader.fail(f"tensor {name!r} has {dims} dimensions")
            shape = tuple(reversed([reader.scalar("Q") for _ in range(dims)]))
            described.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise reader.fail(f"general.alignment is {alignment!r}")
        start = -(-reader.at // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in described:
            try:
                block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            except (ValueError, KeyError):
                raise reader.fail(f"tensor {name!r} has the unknown type {kind}") from None
            values = 1
            for length in shape:
                values *= length
            if (shape and shape[-1] % block) or values > reader.size * block:
                raise reader.fail(f"tensor {name!r} has the impossible shape {list(shape)}")
            nbytes = values // block * block_bytes
            if start + offset + nbytes > reader.size:
                raise reader.fail(f"it is cut short: tensor {name!r} reaches beyond its end")
            tensors[name] = GGUFTensor(name, shape, kind, start + offset, nbytes)
        return tensors

    def source(self, name: str) -> "GGUFSource":
        from octavo.loading.gguf_source import GGUFSource  # it needs torch, which those who read a header do without

        return GGUFSource(self._map, self.tensors[name])

    @property
    def arch(self) -> str:
        arch = self.metadata.get("general.architecture")
        if not isinstance(arch, str):
            raise CheckpointError(f"{self.path} does not say its architecture (general.architecture).")
        return arch

    def value(self, key: str, default: Any = None) -> Any:
        """Metadata of the file's own architecture: `value("block_count")` is `llama.block_count`."""
        return self.metadata.get(f"{self.arch}.{key}", default)


_KEYS: dict[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers", "n_layer", "num_layers"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attention.clamp_kqv": ("clip_qkv",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_shared_count": ("n_shared_experts",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "expert_weights_norm": ("norm_topk_prob",),
    "leading_dense_block_count": ("first_k_dense_replace",),
}
"""Metadata of a file's architecture to the names that published configs have for it."""


def _turning_share(file: GGUFFile) -> float | None:
    """The share of a head that rotary turns, where it is not all of it."""
    turning, heads = file.value("rope.dimension_count"), file.value("attention.head_count")
    if not turning or not isinstance(heads, int) or not heads:
        return None
    width = file.value("attention.key_length") or file.value("embedding_length") // heads
    return None if turning == width else float(turning / width)


def shared_config(file: GGUFFile) -> dict[str, Any]:
    """The config.json keys that most architectures share, from the metadata."""
    value, config = file.value, dict[str, Any]()
    for key, names in _KEYS.items():
        config |= dict.fromkeys(names, value(key))
    config |= {
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "partial_rotary_factor": _turning_share(file),
        "rope_theta": value("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else None,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
    }
    return {k: v for k, v in config.items() if v is not None} | {"sliding_window": config["sliding_window"]}


def _rope_scaling(file: GGUFFile) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        return {"rope_type": "factors", "factors": file.source("rope_freqs.weight").read().tolist()}
    if "rope_factors_long.weight" in file.tensors:
        short, long = (file.source(f"rope_factors_{kind}.weight").read().tolist() for kind in ("short", "long"))
        return {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": file.value("rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": file.value(
                "rope.scaling.original_context_length", file.value("context_length")
            ),
        }
    kind = file.value("rope.scaling.type")
    if kind in (None, "none"):
        return None
    return {
        "rope_type": kind,
        "factor": file.value("rope.scaling.factor", 1.0),
        "original_max_position_embeddings": file.value("rope.scaling.original_context_length"),
    }


def name_map(arch: str, layers: int) -> Any:
    """The gguf package's map of published names for an architecture.

    Made from a copy of what its class knows: it writes one architecture's exceptions over the others' names.
    """
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if arch not in kinds:
        raise CheckpointError(f"GGUF architecture {arch!r} is not known to the gguf package that is installed.")

    class Map(gguf.TensorNameMap):  # type: ignore[misc]
        block_mappings_cfg: ClassVar[dict[Any, Any]] = dict(gguf.TensorNameMap.block_mappings_cfg)

    return Map(kinds[arch], layers)


def tensor_names(arch: str, layers: int, published: Iterator[str], prefix: str) -> Mapping[str, str]:
    """llama.cpp's name of a tensor's module to the published template (with `{i}` filled in and `{e}` kept).

    `published` are the name table's left sides, and `prefix` what some checkpoints leave out of them. Made with the
    gguf package's own map from published names.
    """
    table, found = name_map(arch, layers), {}
    for template in published:
        for layer in range(layers) if "{i}" in template else (0,):
            name = template.replace("{i}", str(layer))
            # llama.cpp keeps a layer's experts in one tensor, named without their number.
            known = name.replace(".{e}", "")
            for spelled in (known, known.removeprefix(prefix)):
                if (key := table.get_name(spelled, try_suffixes=(".weight", ".bias"))) is not None:
                    found[key] = name
                    break
    return found
