"""What ranks read of a checkpoint: each its own part, and together what one alone has."""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.config import EngineArgs
from octavo.errors import CheckpointError
from octavo.loading.checkpoint import open_checkpoint
from octavo.loading.formats.plain import safetensors_tensors
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_source import gguf_source
from octavo.loading.model import load_model
from octavo.loading.pickled import pickled_tensors
from octavo.loading.precision import choose_precision
from octavo.loading.tensor_source import TensorInMemory, TensorSource, TransformedTensor
from octavo.loading.weight_loader import WeightLoader
from octavo.ops import PackedLinear, select_backend
from octavo.ops.native import runnable
from octavo.ops.weight_kinds import NOT_OF_GGUF, WeightKind
from octavo.parts import alternating, gate_second, grouped_qkv, transposed
from octavo.parts.weight_slots import Role, Shard, WeightSlot
from tests.golden import CASES, case_named, read_case, write_model
from tests.loading.gguf_models import write_gguf
from tests.ops.stored import FLOATS, random_rows

SHARDS = [
    Shard(),
    Shard(rows=((0, 17),)),
    Shard(rows=((5, 9), (0, 2), (30, 40))),
    Shard(columns=((256, 512),)),
    Shard(columns=((3, 50), (300, 301))),
    Shard(rows=((8, 16), (24, 25)), columns=((32, 64), (480, 512))),
    Shard(rows=((7, 7),)),
    Shard(columns=((0, 0),)),
]
"""Of a tensor [40, 512]."""


def check_parts(source: TensorSource, shards: list[Shard] = SHARDS) -> None:
    """Parts of a source hold what a shard takes of the whole, in the whole's own dtype."""
    whole, stored = source.read(), source.stored()
    for shard in shards:
        part = source.part(shard)
        want = shard.of(whole)
        assert part.shape == want.shape
        assert part.read().dtype == want.dtype
        assert part.read().equal(want)
        target = torch.full(part.shape, torch.nan, dtype=torch.float64)
        part.copy_to(target)
        assert target.equal(want.double())
        if stored is None or not want.numel():
            continue
        rows = part.stored()
        if stored.data.is_floating_point():
            assert rows is not None
            assert rows.data.equal(shard.of(stored.data))
        elif rows is not None:
            assert rows.kind == stored.kind
            assert rows.width == want.shape[1]
            assert len(rows.data) == len(want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parts_of_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"w": torch.randn(40, 512).to(dtype)}, tmp_path / "m.safetensors")
    ((_, source),) = safetensors_tensors(tmp_path / "m.safetensors")
    check_parts(source)
    assert source.part(SHARDS[1]).part(Shard(rows=((16, 17),))).read().equal(source.read()[16:17])


@pytest.mark.parametrize("new", [True, False])
def test_parts_of_pickled_tensors(tmp_path: Path, new: bool) -> None:
    state = {
        "plain": torch.randn(40, 512),
        "turned": torch.randn(512, 40).bfloat16().t(),
        "within": torch.randn(90, 700)[10:90:2, 100:612],
        "stack": torch.randn(3, 40, 512),
    }
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=new)
    sources = dict(pickled_tensors(tmp_path / "m.bin"))
    for name in ("plain", "turned", "within"):
        check_parts(sources[name])
    assert sources["stack"].part(Shard(rows=((1, 2),))).read().equal(state["stack"][1:2])
    part = sources["stack"].part(Shard(rows=((1, 2),)))
    (tmp_path / "m.bin").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cut short"):
        part.read()


def gguf_of(path: Path, tensors: dict[str, tuple["np.ndarray[Any, Any]", WeightKind]]) -> GGUFFile:
    writer = gguf.GGUFWriter(path, "llama")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path)


@pytest.mark.parametrize("kind", [kind for kind in WeightKind if kind < NOT_OF_GGUF], ids=lambda k: k.name)
def test_parts_of_gguf_tensors(tmp_path: Path, kind: WeightKind, generator: torch.Generator) -> None:
    rows = [random_rows(kind, 40, 512, generator)[0].data for _ in range(3)]
    data = [r.view(torch.uint8).numpy() if kind in FLOATS else r.numpy() for r in rows]
    file = gguf_of(tmp_path / "m.gguf", {"w": (data[0], kind), "stack": (np.stack(data), kind)})
    for source in (gguf_source(file, "w"), gguf_source(file, "stack").item(2)):
        check_parts(source)
    source = gguf_source(file, "w")
    on_borders, within = source.part(SHARDS[3]).stored(), source.part(SHARDS[4]).stored()
    assert on_borders is not None
    assert (within is None) == (kind not in FLOATS)
    file = gguf_of(tmp_path / "cut.gguf", {"w": (on_borders.data.view(torch.uint8).numpy(), kind)})
    assert gguf_source(file, "w").read().equal(source.read()[:, 256:])


def turned(w: Tensor) -> Tensor:
    return w.t()


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed("w").transform or turned,
    "turned": turned,
    "grouped": grouped_qkv("w", 2, 2, 5).transform or turned,
    "alternating": alternating("w").transform or turned,
    "gate-second": gate_second("w").transform or turned,
    "turned-halves": lambda w: torch.cat(w.t().chunk(2)[::-1]),
    "first-rows": lambda w: w[2:],
    "exp": torch.exp,
    "row-lengths": lambda w: w / w.norm(dim=1, keepdim=True),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("stored", ["floats", "q8_0"])
def test_parts_of_what_is_changed(tmp_path: Path, name: str, stored: str, generator: torch.Generator) -> None:
    shape = (512, 40) if name.startswith(("trans", "turned")) else (40, 512)
    shards = SHARDS if name != "first-rows" else [s for s in SHARDS if not s.rows or s.rows[-1][1] < 38]
    if stored == "floats":
        source: TensorSource = TensorInMemory(torch.randn(shape))
    else:
        if shape[1] % 32:
            shape = (512, 64)
        data = random_rows(WeightKind.Q8_0, *shape, generator)[0].data.numpy()
        source = gguf_source(gguf_of(tmp_path / "m.gguf", {"w": (data, WeightKind.Q8_0)}), "w")
    check_parts(TransformedTensor(source, TRANSFORMS[name]), shards)
    twice = TransformedTensor(TransformedTensor(source, TRANSFORMS[name]), lambda w: w.flip(0))
    check_parts(twice, shards)


class Counting(TensorInMemory):
    """Says which rows and columns are read."""

    def __init__(self, tensor: Tensor, read: list[Shard]) -> None:
        super().__init__(tensor)
        self._read = read

    def read(self) -> Tensor:
        self._read.append(Shard())
        return super().read()

    def part(self, shard: Shard) -> TensorSource:
        self._read.append(shard)
        return TensorInMemory(shard.of(self.tensor))


def test_what_moves_rows_or_turns_a_weight_reads_no_more_than_it_takes() -> None:
    read: list[Shard] = []
    source = Counting(torch.randn(40, 16), read)
    grouped = TransformedTensor(source, TRANSFORMS["grouped"])  # of each of two key heads: queries, key, value
    grouped.part(Shard(rows=((0, 10), (20, 25), (30, 35)))).read()
    assert read == [Shard(rows=((0, 20),))]
    read.clear()
    TransformedTensor(source, turned).part(Shard(rows=((4, 8),), columns=((0, 10),))).read()
    assert read == [Shard(rows=((0, 10),), columns=((4, 8),))]
    read.clear()
    TransformedTensor(source, TRANSFORMS["turned-halves"]).part(Shard(rows=((0, 4),))).read()
    assert read == [Shard(columns=((8, 12),))]


# --- the loader


def in_parts(slot: WeightSlot, number: int, count: int, by_columns: bool, unit: int = 32) -> Shard | None:
    """One of several ranks' shares: of rows segment by segment, or of columns in multiples of `unit`."""
    if not slot.shape or slot.role is Role.ADDED:
        return None
    if by_columns and len(slot.shape) == 2:
        return Shard(columns=(part_of(slot.shape[1], number, count, unit),))
    ranges, first = list[tuple[int, int]](), 0
    for size in slot.segments.values() or [slot.shape[0]]:
        begin, end = part_of(size, number, count, 1)
        ranges.append((first + begin, first + end))
        first += size
    return Shard(rows=tuple(ranges))


def part_of(size: int, number: int, count: int, unit: int) -> tuple[int, int]:
    unit = unit if size >= unit * count else 1
    step = -(-size // (count * unit)) * unit
    return min(size, number * step), min(size, (number + 1) * step)


class Rank:
    """One of several, that loads a checkpoint by shards of every weight; `weights` is what it has then.

    Args:
        split: gives a slot's shard.
    """

    def __init__(self, args: EngineArgs, split: Callable[[WeightSlot], Shard | None]) -> None:
        checkpoint = open_checkpoint(args)
        self.backend = select_backend(args.device, args.ops)
        self.precision = choose_precision(args, checkpoint.config, self.backend, checkpoint.weights)
        with torch.device("meta"):
            model = checkpoint.architecture.build(checkpoint.config)
        if checkpoint.architecture.tasks[0] == "embedding":
            model.drop_head()
        self.shards: dict[str, Shard | None] = {}
        self.weights: dict[str, Tensor] = {}
        self.kinds: dict[str, set[WeightKind]] = {}
        slots_of = model.weight_slots_in

        def split_slots(dtype: torch.dtype, round_media: bool = False) -> dict[str, WeightSlot]:
            slots = slots_of(dtype, round_media)
            for path, slot in slots.items():
                self.shards[path] = slot.shard = split(slot)
                slot.load = self._keeping(path)
            return slots

        model.weight_slots_in = split_slots  # type: ignore[method-assign]
        names = checkpoint.weights.names(model.names)
        WeightLoader(model, names, self.precision, self.backend).load(checkpoint.weights.weights(names), "it")

    def _keeping(self, path: str) -> Callable[[Tensor | PackedLinear], None]:
        def keep(weight: Tensor | PackedLinear) -> None:
            if not isinstance(weight, Tensor):
                self.kinds[path] = {part.kind for part in getattr(weight, "parts", ())}
                weight = weight.rows(torch.arange(outputs_of(weight)), torch.float32)
            self.weights[path] = weight

        return keep


def outputs_of(weight: PackedLinear) -> int:
    return int(weight.outputs) if hasattr(weight, "outputs") else len(weight.weight)  # type: ignore[attr-defined]


def put_together(ranks: list[Rank], path: str, like: Tensor) -> Tensor:
    whole = torch.full_like(like, torch.nan)
    for rank in ranks:
        shard = rank.shards[path] or Shard()
        ids = [
            torch.cat([torch.arange(a, b) for a, b in (ranges or ((0, size),))])
            for ranges, size in zip((shard.rows, shard.columns), like.shape, strict=False)
        ]
        whole[torch.meshgrid(*ids, indexing="ij")] = rank.weights[path].to(like.dtype)
    return whole


def check_ranks(args: EngineArgs, count: int, by_columns: bool, unit: int = 32) -> list[Rank]:
    """The ranks, which have together, bit for bit, what one alone has."""
    alone = Rank(args, lambda slot: None)
    ranks = [
        Rank(args, partial(in_parts, number=n, count=count, by_columns=by_columns, unit=unit)) for n in range(count)
    ]
    assert alone.weights.keys() == ranks[0].weights.keys()
    for path, want in alone.weights.items():
        if want.dim():
            assert put_together(ranks, path, want).equal(want), path
    return ranks


BY_ROW = {path.stem.partition("--")[0]: path for path in reversed(CASES)}
"""A case of each row."""


@pytest.mark.parametrize("row", BY_ROW)
def test_ranks_have_together_what_one_has(row: str, tmp_path: Path) -> None:
    case = read_case(BY_ROW[row])
    args = EngineArgs(model=str(write_model(case, tmp_path)), dtype="float32", ops="torch", skip_tokenizer_init=True)
    check_ranks(args, 2, by_columns=False)
    check_ranks(args, 3, by_columns=True)


needs_core = pytest.mark.skipif(not runnable(), reason="the reference computes with floats")


def llama(folder: Path, hidden_size: int = 256, intermediate_size: int = 512, layers: int = 1, **config: Any) -> Path:
    """A small random Llama, whose rows have whole blocks of every kind."""
    case = case_named("LlamaForCausalLM--llama1-keys")
    sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers}
    case["config"] |= {
        **sizes,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden_size // 4,
        **config,
    }
    case["tensors"] = {}
    vocab, kv = case["config"]["vocab_size"], hidden_size // 2
    shapes = {"model.embed_tokens": (vocab, hidden_size), "lm_head": (vocab, hidden_size), "model.norm": (hidden_size,)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{n}_proj": (hidden_size, hidden_size) for n in "qo"}
        shapes |= {f"{layer}self_attn.{n}_proj": (kv, hidden_size) for n in "kv"}
        shapes |= {f"{layer}mlp.{n}_proj": (intermediate_size, hidden_size) for n in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj": (hidden_size, intermediate_size)}
        shapes |= {f"{layer}{n}_layernorm": (hidden_size,) for n in ("input", "post_attention")}
    case["config"]["tie_word_embeddings"] = False
    case["tensors"] = {f"{n}.weight": {"shape": list(s), "center": 0.0, "scale": 0.1} for n, s in shapes.items()}
    return write_model(case, folder)


@needs_core
@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "q4"}], ids=str
)
def test_ranks_pack_and_round_what_they_take(tmp_path: Path, options: dict[str, Any]) -> None:
    args = EngineArgs(model=str(llama(tmp_path)), skip_tokenizer_init=True, **options)
    for by_columns in (False, True):
        check_ranks(args, 2, by_columns)
        check_ranks(args, 3, by_columns)


@needs_core
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ3_S", "BF16"])
def test_ranks_keep_what_is_stored(tmp_path: Path, kind: str, generator: torch.Generator) -> None:
    args = EngineArgs(
        model=str(stored_llama(tmp_path / "m.gguf", WeightKind[kind], generator)), skip_tokenizer_init=True
    )
    for by_columns in (False, True):
        for rank in check_ranks(args, 2, by_columns, unit=256):
            assert (
                rank.kinds["layers.0.attn.qkv.weight"] == rank.kinds["layers.0.mlp.down.weight"] == {WeightKind[kind]}
            )


@needs_core
def test_what_is_cut_within_blocks_becomes_floats(tmp_path: Path, generator: torch.Generator) -> None:
    args = EngineArgs(
        model=str(stored_llama(tmp_path / "m.gguf", WeightKind.Q6_K, generator)), skip_tokenizer_init=True
    )
    ranks = [Rank(args, partial(in_parts, number=n, count=3, by_columns=True)) for n in range(3)]
    alone = Rank(args, lambda slot: None)
    for path in ("layers.0.attn.qkv.weight", "layers.0.mlp.down.weight"):
        want = alone.weights[path]
        assert put_together(ranks, path, want).equal(want.half().float())
        assert ranks[0].kinds[path] == {WeightKind.F16}


def stored_llama(path: Path, kind: WeightKind, generator: torch.Generator) -> Path:
    """A file as llama.cpp writes it, with random bits in the matrices."""
    folder = llama(path.with_suffix(""), hidden_size=512, intermediate_size=1024)
    case = {"row": "LlamaForCausalLM", "config": json.loads((folder / "config.json").read_text())}
    arrays = {n: t.numpy() for n, t in load_file(folder / "model.safetensors").items()}
    plain = GGUFFile(write_gguf(case, path.with_suffix(".plain"), arrays=arrays))
    writer = gguf.GGUFWriter(path, "llama")
    for key in plain.metadata:
        if key.startswith("llama."):
            value = plain.metadata[key]
            writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(key, value)
    for name, tensor in plain.tensors.items():
        if len(tensor.shape) == 2:
            rows = random_rows(kind, *tensor.shape, generator)[0].data
            data = rows.view(torch.uint8).numpy()
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType(kind))
        else:
            writer.add_tensor(name, gguf_source(plain, name).read().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("row", ["DbrxForCausalLM", "GraniteMoeForCausalLM", "GPT2LMHeadModel"])
def test_ranks_read_pickles_and_files_in_parts(row: str, tmp_path: Path) -> None:
    case = read_case(BY_ROW[row])
    folder = write_model(case, tmp_path)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    for number, some in enumerate((names[::2], names[1::2])):
        torch.save({n: state[n] for n in some}, folder / f"pytorch_model-{number}.bin")
    args = EngineArgs(model=str(folder), dtype="float32", ops="torch", skip_tokenizer_init=True)
    check_ranks(args, 2, by_columns=False)
    check_ranks(args, 2, by_columns=True)


@pytest.mark.parametrize("row", ["GPT2LMHeadModel", "LlamaForCausalLM", "MixtralForCausalLM", "FalconForCausalLM"])
def test_ranks_have_together_what_one_has_of_a_gguf(row: str, tmp_path: Path) -> None:
    path = write_gguf(read_case(BY_ROW[row]), tmp_path / "m.gguf", gguf.GGMLQuantizationType.Q8_0)
    args = EngineArgs(model=str(path), skip_tokenizer_init=True)
    check_ranks(args, 2, by_columns=False)
    if not runnable():
        check_ranks(args, 2, by_columns=True)


def test_misshapen_tensors_are_named_as_without_ranks(tmp_path: Path) -> None:
    folder = llama(tmp_path)
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(100, 256)
    del state["model.layers.0.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    args, said = EngineArgs(model=str(folder), skip_tokenizer_init=True), list[str]()
    for split in (lambda slot: None, partial(in_parts, number=1, count=2, by_columns=False)):
        with pytest.raises(CheckpointError) as caught:
            Rank(args, split)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "k_proj.weight [100, 256] (expected: [128, 256])" in said[0]
    assert "1 tensors missing: model.layers.0.mlp.up_proj.weight" in said[0]


def test_rows_of_a_shard_follow_the_segments(tmp_path: Path) -> None:
    args = EngineArgs(model=str(llama(tmp_path)), skip_tokenizer_init=True)
    crossed = Shard(rows=((0, 8), (256, 264), (8, 16)))
    with pytest.raises(ValueError, match="do not follow its segments"):
        Rank(args, lambda slot: crossed if set(slot.segments) == {"q", "k", "v"} else None)
    spanning = Shard(rows=((200, 300), (500, 512)))
    rank = Rank(args, lambda slot: spanning if set(slot.segments) == {"q", "k", "v"} else None)
    want = Rank(args, lambda slot: None).weights["layers.0.attn.qkv.weight"]
    assert rank.weights["layers.0.attn.qkv.weight"].equal(spanning.of(want))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_more_pages_are_read_than_a_rank_takes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.zeros(4096, 2048)}, path)
    ((_, source),) = safetensors_tensors(path)
    part = source.part(Shard(rows=((1024, 2048),))).read()
    assert resident(path) < 1 << 20
    assert part.sum() == 0
    assert resident(path) < part.nbytes + (4 << 20)  # large pages


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_a_gguf_file_do_not_stay_when_its_weights_are_packed(
    tmp_path: Path, generator: torch.Generator
) -> None:
    path = stored_llama(tmp_path / "m.gguf", WeightKind.Q8_0, generator)
    loaded = load_model(EngineArgs(model=str(path), skip_tokenizer_init=True))
    assert loaded.weight_bytes > 1 << 20
    assert resident(path) < 1 << 18


def resident(path: Path) -> int:
    """Bytes of a file's maps that this process has looked at."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total
