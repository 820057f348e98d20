"""Folders written as GGUF files: read again they are the same models, and what a file cannot say is refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from octavo import LLM, SamplingParams
from octavo.cli.main import main
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.loading.folder_to_gguf import folder_to_gguf
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_from_tokenizer import SAMPLES
from octavo.loading.gguf_splits import SPLITS
from octavo.loading.gguf_tokenizer import gguf_tokenizer
from octavo.loading.same_model import difference
from octavo.text.tokenizer import load_tokenizer
from tests.golden import case_named, write_model

PROMPT = {"prompt_token_ids": [5, 7, 11, 13, 17, 19, 23, 29, 31]}
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, prompt_logprobs=0)
SCALAR = {"query_pre_attn_scalar": 24}
"""Of Gemma 2 and 3 a file does not say it: it is the head's size, in all but the largest."""
CASES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM--gqa-tied": {},
    "LlamaForCausalLM--llama3-rope": {},
    "LlamaForCausalLM--llama1-keys": {},
    "InternLMForCausalLM--7b": {},
    "MistralForCausalLM--v0.1-window": {"sliding_window": None},
    "MixtralForCausalLM--8x7b": {},
    "Qwen2ForCausalLM--7b": {},
    "Qwen2MoeForCausalLM--a2.7b": {},
    "Qwen3ForCausalLM--0.6b-tied": {},
    "Qwen3MoeForCausalLM--30b-a3b": {},
    "GemmaForCausalLM--2b": {},
    "Gemma2ForCausalLM--9b": SCALAR,
    "Gemma3ForCausalLM--1b": SCALAR,
    "GraniteForCausalLM--3.0": {},
    "Phi3ForCausalLM--mini-128k-longrope": {},
    "Phi3ForCausalLM--mini-4k-window": {},
    "SmolLM3ForCausalLM--3b": {},
    "Olmo2ForCausalLM--7b": {},
    "OlmoeForCausalLM--1b-7b": {},
    "CohereForCausalLM--command-r-plus": {},
    "Cohere2ForCausalLM--command-r7b": {},
    "Glm4ForCausalLM--4-32b-0414": {},
    "Glm4MoeForCausalLM--4.5": {},
    "DeepseekForCausalLM--moe-16b": {},
    "GPT2LMHeadModel--gpt2": {},
    "GPTNeoXForCausalLM--parallel": {},
    "BloomForCausalLM--bloom": {},
    "StableLmForCausalLM--3b-4e1t": {},
    "Starcoder2ForCausalLM--3b": {},
    "NemotronForCausalLM--minitron": {},
    "PhiForCausalLM--1_5": {},
}


def folder_of(name: str, folder: Path, **config: Any) -> Path:
    case = case_named(name)
    return write_model({**case, "config": {**case["config"], **config}}, folder)


def answer(path: Path) -> tuple[list[float], list[int]]:
    """Log-probabilities of a prompt, and what comes after it."""
    llm = LLM(str(path), skip_tokenizer_init=True, dtype="float32", kv_cache_memory="8MiB", ops="torch")
    (output,) = llm.generate(PROMPT, PARAMS, use_tqdm=False)
    entries = zip((output.prompt_logprobs or [])[1:], PROMPT["prompt_token_ids"][1:], strict=True)
    return [entry[i].logprob for entry, i in entries if entry], list(output.outputs[0].token_ids)


@pytest.mark.parametrize("name", CASES)
def test_the_same_model_is_read_again(name: str, tmp_path: Path) -> None:
    folder, out = folder_of(name, tmp_path / "model", **CASES[name]), tmp_path / "model.gguf"
    read = list[int]()
    kept = folder_to_gguf(EngineArgs(model=str(folder), skip_tokenizer_init=True), "F32", out, read.append)
    assert kept == []
    assert sum(read) > 0
    (logprobs, tokens), (wanted, wanted_tokens) = answer(out), answer(folder)
    assert tokens == wanted_tokens
    assert logprobs == pytest.approx(wanted, abs=2e-4)


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    folder, out = folder_of("LlamaForCausalLM--gqa-tied", tmp_path / "model"), tmp_path / "model.gguf"
    assert main(["quantize", str(folder), "--to", "Q8_0", "--skip-tokenizer-init", str(out)]) == 0
    reader = gguf.GGUFReader(out)
    found = {tensor.name: tensor for tensor in reader.tensors}
    own = load_file(folder / "model.safetensors")
    assert len(found) == len(own)
    weight = own["model.layers.1.mlp.up_proj.weight"].float().numpy()
    stored = found["blk.1.ffn_up.weight"]
    assert stored.tensor_type == gguf.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(stored.data, gguf.quants.quantize(weight, stored.tensor_type))
    assert found["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert reader.get_field("llama.embedding_length").contents() == own["model.norm.weight"].shape[0]


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("MistralForCausalLM--v0.1-window", {}, "window"),
        ("LlamaForCausalLM--gqa-tied", {"hidden_act": "gelu"}, "would be another model: layers.0.mlp"),
        ("LlamaForCausalLM--linear-rope-bias", {}, "has_bias"),
        ("Gemma2ForCausalLM--9b", {"query_pre_attn_scalar": 99}, "attn.scale"),
        ("BertModel--minilm-mean", {}, "no language model"),
        ("MambaForCausalLM--130m", {}, "A_log"),
    ],
)
def test_what_a_file_does_not_say_is_refused(name: str, config: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder, out = folder_of(name, tmp_path / "model", **config), tmp_path / "model.gguf"
    with pytest.raises(UnsupportedModelError, match=match):
        folder_to_gguf(EngineArgs(model=str(folder), skip_tokenizer_init=True), "F16", out, lambda _: None)
    assert not out.exists()


def test_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    folder, out = folder_of("LlamaForCausalLM--gqa-tied", tmp_path / "model"), tmp_path / "model.gguf"
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"], tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks model\.embed_tokens\.weight"):
        folder_to_gguf(EngineArgs(model=str(folder), skip_tokenizer_init=True), "F16", out, lambda _: None)
    assert not out.exists()


def test_differences_of_models() -> None:
    def model(size: int, rate: float) -> nn.Module:
        made = nn.Sequential(nn.Linear(4, size), nn.Dropout(rate))
        made.table = [torch.arange(4.0) * rate]  # type: ignore[assignment]
        made.step = lambda x: x * rate  # type: ignore[assignment]
        return made

    assert difference(model(3, 0.5), model(3, 0.5)) is None
    assert "0" in str(difference(model(3, 0.5), model(5, 0.5)))
    assert difference(model(3, 0.5), model(3, 0.25)) is not None
    assert difference(nn.ReLU(), nn.Tanh()) == "the model (ReLU, Tanh)"


def train(folder: Path, is_bytes: bool, size: int) -> None:
    """Writes a tokenizer of `size` tokens: byte-level as Llama 3's, or with bytes for what is unknown as Llama 2's."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<unk>", "<s>", "</s>", "<|im_end|>"]
    if is_bytes:
        inner = Tokenizer(models.BPE(ignore_merges=True))
        pattern = Regex(SPLITS["llama3"].patterns[0])
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), bytes_of])
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        inner.decoder = decoders.Sequence(steps)
        special += [f"<0x{i:02X}>" for i in range(256)]
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([SAMPLES[0], SAMPLES[1]] * 3, trainer)
    settings = json.loads(inner.to_str())
    settings["added_tokens"] = [t for t in settings["added_tokens"] if not t["content"].startswith("<0x")]
    inner = Tokenizer.from_str(json.dumps(settings))
    inner.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    inner.save(str(folder / "tokenizer.json"))
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


@pytest.mark.parametrize("is_bytes", [True, False], ids=["byte-level", "sentencepiece"])
def test_the_tokenizer_comes_with_it(is_bytes: bool, tmp_path: Path) -> None:
    folder, out = folder_of("LlamaForCausalLM--gqa-tied", tmp_path / "model"), tmp_path / "model.gguf"
    rows = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    train(folder, is_bytes, rows - 3)
    own = load_tokenizer(folder, False)
    assert main(["quantize", str(folder), "--to", "F16", str(out)]) == 0
    file = GGUFFile(out)
    found = gguf_tokenizer(file)
    for text in (*SAMPLES, "one<|im_end|>two <tool>three"):
        assert found.encode(text) == own.encode(text)
        ids = own.encode(text, False)
        assert found.decode(ids, skip_special_tokens=False) == own.decode(ids, skip_special_tokens=False)
    assert file.vocabulary is not None
    assert file.vocabulary.tokens[-1] == f"[PAD{rows - 1}]"
    assert (found.bos_token_id, found.eos_token_id) == (own.bos_token_id, own.eos_token_id)
    assert found.chat_templates == own.chat_templates


def test_a_tokenizer_that_files_have_no_place_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer, models

    folder, out = folder_of("LlamaForCausalLM--gqa-tied", tmp_path / "model"), tmp_path / "model.gguf"
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
    assert main(["quantize", str(folder), "--to", "F16", str(out)]) != 0
    assert "WordLevel is not written as GGUF. Leave it out with --skip-tokenizer-init" in capsys.readouterr().err
    assert not out.exists()
