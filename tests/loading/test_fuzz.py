"""Damaged files: loading ends with an error of ours, or with a model that answers something; never otherwise."""

import random
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo import LLM, SamplingParams
from octavo.errors import OctavoError
from octavo.ops.native import NativeBackend
from octavo.ops.weight_kinds import WeightKind
from tests.ops.stored import QUANTIZED, random_rows

WIDTH, HEADS, VOCAB = 256, 4, 64
PARAMS = SamplingParams(temperature=0, max_tokens=3, detokenize=False)


def write_sound(path: Path) -> None:
    """One layer of Llama, its weights in one kind after the other."""
    generator = torch.Generator().manual_seed(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = {"token_embd.weight": VOCAB, "output.weight": VOCAB} | {f"blk.0.{n}.weight": WIDTH for n in names}
    for i, (name, rows) in enumerate(shapes.items()):
        kind = QUANTIZED[i % len(QUANTIZED)]
        stored = random_rows(kind, rows, WIDTH, generator)[0].data.numpy()
        writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType(kind))
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, torch.ones(WIDTH).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "model.gguf"
    write_sound(path)
    return path


def answers(path: Path) -> bool:
    """Whether it loads. Whatever it answers then, it answers each request."""
    try:
        llm = LLM(str(path), skip_tokenizer_init=True, kv_cache_memory="4MiB", max_model_len=32)
    except OctavoError:
        return False
    outputs = llm.generate([[1, 2, 3], [4]], PARAMS, use_tqdm=False)
    assert all(o.outputs[0].finish_reason in ("length", "stop", "error") for o in outputs)
    return True


def test_the_sound_one_answers(sound: Path) -> None:
    assert answers(sound)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["header", "anywhere", "cut", "many"]))
def test_damaged_files(sound: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str) -> None:
    data, rng = bytearray(sound.read_bytes()), random.Random(seed)
    header = 2000  # metadata and tensor descriptions
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    for _ in range({"header": 1, "anywhere": 3, "cut": 0, "many": 40}[kind]):
        at = rng.randrange(len(data) if kind == "anywhere" else header)
        data[at] = rng.choice([0, 1, 255, 127, 128, data[at] ^ 1 << rng.randrange(8)])
    path = tmp_path_factory.mktemp("damaged") / "model.gguf"
    path.write_bytes(data)
    answers(path)
    path.unlink()


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(list(WeightKind)),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    tokens=st.integers(1, 12),
)
def test_any_bits_can_be_packed(kind: WeightKind, rows: int, blocks: int, seed: int, tokens: int) -> None:
    """Scales that are not numbers, codes out of a writer's range: all are some weight."""
    from octavo.ops.native import Library, runnable
    from octavo.ops.stored_rows import StoredRows

    native = NativeBackend(Library(runnable()[0]))
    generator = torch.Generator().manual_seed(seed)
    stored, _ = random_rows(kind, rows, 256 * blocks, generator)
    noise = torch.randint(0, 256, stored.data.view(torch.uint8).shape, dtype=torch.uint8, generator=generator)
    noise = StoredRows(kind, stored.width, noise.view(stored.data.dtype))
    linear = native.stored_linear([noise])
    out = linear(torch.randn(tokens, stored.width, generator=generator))
    assert out.shape == (tokens, rows)
    assert linear.rows(torch.tensor([0, rows - 1]), torch.float32).shape == (2, stored.width)
    for into in (WeightKind.Q8_0, WeightKind.Q4_1):
        again = native.stored_linear([native.quantize(linear.rows(torch.arange(rows), torch.float32), into)])
        assert again(torch.zeros(1, stored.width)).shape == (1, rows)
