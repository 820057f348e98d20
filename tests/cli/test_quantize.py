"""`octavo quantize`: what it writes is read again, and is close to what was there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from octavo import LLM, SamplingParams
from octavo.cli.main import main
from octavo.loading.formats import folder_format
from octavo.loading.formats.quantized_tensor import QuantizedTensor
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.quantize_gguf import quantize_gguf
from octavo.parts import Names
from tests.golden import case_named, write_model


@pytest.mark.parametrize(("kind", "error"), [("q4", 0.04), ("int8", 0.003)])
def test_a_folder(kind: str, error: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path / "source")
    (source / "generation_config.json").write_text("{}")
    out = tmp_path / "out"
    assert main(["quantize", str(source), "--to", kind, str(out)]) == 0
    assert f"{out}: " in capsys.readouterr().out
    assert (out / "generation_config.json").exists()
    config = json.loads((out / "config.json").read_text())
    was, found = load_file(source / "model.safetensors"), folder_format(out, "auto", config).weights(Names({}))
    rounded = 0
    for name, weight in found:
        if isinstance(weight, QuantizedTensor):
            rounded += 1
            assert weight.stored() is not None
            extent = was[name].amax() - was[name].amin()
            assert float((weight.read() - was[name]).abs().max()) <= error * float(extent)
        else:
            assert torch.equal(weight.read(), was[name])
    assert rounded == 14  # seven of each layer
    llm = LLM(str(out), skip_tokenizer_init=True, kv_cache_memory="8MiB")
    (answer,) = llm.generate({"prompt_token_ids": [1, 2, 3]}, SamplingParams(max_tokens=3), use_tqdm=False)
    assert len(answer.outputs[0].token_ids) == 3


def test_experts_and_layers_that_lie_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stacks, and weights stored as [inputs, outputs], have no place in the format: they stay, and are named."""
    source = write_model(case_named("GPT2LMHeadModel--gpt2"), tmp_path / "source")
    assert main(["quantize", str(source), "--to", "int8", str(tmp_path / "out")]) == 0
    assert "stay as they are: " in capsys.readouterr().out
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: t.shape for name, t in tensors.items()} == {
        name: t.shape for name, t in load_file(source / "model.safetensors").items()
    }


def test_a_gguf_file_and_its_perplexity(smollm_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(smollm_file), "--to", "q8_0", str(out), "--text", str(text)]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    before, after = float(said["perplexity before"]), float(said["perplexity after"])
    assert after == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--to", "q5", "{out}"], "q5.*q4 or int8"),
        (["--to", "Q4_0", "{out}"], "must end in .gguf"),
        (["--to", "q4", "{out}/deeper/still"], "no folder"),
        (["--to", "q4", "{source}"], "there already"),
        (["--to", "q4", "{out}", "--text", "{out}/none"], "cannot be read"),
    ],
)
def test_what_cannot_be(arguments: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path / "source")
    given = [a.format(out=tmp_path / "out", source=source) for a in arguments]
    assert main(["quantize", str(source), *given]) != 0
    assert re.search(match, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_what_is_quantized_already(tmp_path: Path) -> None:
    source = write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path / "source")
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["quantize", str(source), "--to", "q4", str(first)]) == 0
    assert main(["quantize", str(first), "--to", "int8", str(second)]) != 0
    assert not second.exists()


def test_a_gguf_file_grows_with_each_tensor(smollm_file: Path, tmp_path: Path) -> None:
    """So that a bar moves, and no more than a tensor is in memory."""
    out, sizes, told = tmp_path / "out.gguf", list[int](), list[int]()

    def progress(count: int) -> None:
        sizes.append(out.stat().st_size)
        told.append(count)

    quantize_gguf(smollm_file, "Q4_0", out, progress)
    assert len(told) == len(GGUFFile(out).tensors)
    assert smollm_file.stat().st_size * 0.9 < sum(told) <= smollm_file.stat().st_size
    assert len(set(sizes)) > len(sizes) / 4  # the smallest are written together
    assert sizes[len(sizes) // 2] > sizes[0]


def test_a_gguf_file_of_another_alignment_and_one_that_fails(
    smollm_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGUFReader, GGUFWriter

    source = tmp_path / "source.gguf"
    writer = GGUFWriter(source, "llama")
    writer.add_custom_alignment(128)
    rows = np.arange(96, dtype=np.float32).reshape(3, 32)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_up.weight"):
        writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out = tmp_path / "out.gguf"
    quantize_gguf(source, "Q8_0", out, lambda count: None)
    found = {tensor.name: tensor for tensor in GGUFReader(out).tensors}
    np.testing.assert_array_equal(found["blk.0.attn_norm.weight"].data, rows)
    assert found["blk.0.ffn_up.weight"].tensor_type.name == "Q8_0"

    def fail(count: int) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        quantize_gguf(source, "Q8_0", tmp_path / "failed.gguf", fail)
    assert not (tmp_path / "failed.gguf").exists()
