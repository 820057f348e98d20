"""GGUF: every architecture that has one answers as from its published checkpoint, and damaged files are refused."""

import random
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.architectures import all_architectures
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, OctavoError, UnsupportedModelError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_source import gguf_source
from octavo.loading.model import load_model
from octavo.ops.weight_kinds import WeightKind
from octavo.parts import Linear
from tests.golden import case_named, prompt_of, tensors, write_model
from tests.loading import gguf_encoders, gguf_hybrids, gguf_today
from tests.loading.gguf_models import KINDS, write_gguf

CASES = [
    "BaiChuanForCausalLM--7b",
    "BaichuanForCausalLM--baichuan-13b",
    "BloomForCausalLM--bloom",
    "ChatGLMModel--chatglm2-6b-keys",
    "ChatGLMModel--glm-4-9b",
    "CohereForCausalLM--command-r",
    "CohereForCausalLM--command-r-plus",
    "DbrxForCausalLM--dbrx",
    "DeciLMForCausalLM--7b-keys",
    "DeepseekForCausalLM--moe-16b",
    "DeepseekV2ForCausalLM--lite-keys",
    "DeepseekV2ForCausalLM--lite",
    "ExaoneForCausalLM--3.0",
    "FalconForCausalLM--11b-keys",
    "FalconForCausalLM--40b",
    "FalconForCausalLM--7b",
    "FalconMambaForCausalLM--7b",
    "GPT2LMHeadModel--with-masks",
    "GPTBigCodeForCausalLM--starcoder",
    "GPTNeoXForCausalLM--parallel",
    "GPTNeoXForCausalLM--sequential",
    "Gemma2ForCausalLM--9b",
    "Gemma3ForCausalLM--1b",
    "GemmaForCausalLM--2b",
    "GraniteForCausalLM--3.0",
    "GraniteMoeForCausalLM--1b-a400m",
    "InternLM2ForCausalLM--7b",
    "JAISLMHeadModel--30b-v3",
    "JambaForCausalLM--mini",
    "LlamaForCausalLM--gqa-tied",
    "LlamaForCausalLM--llama1-keys",
    "MPTForCausalLM--7b",
    "MPTForCausalLM--qk-ln",
    "MPTForCausalLM--storywriter-clip",
    "MambaForCausalLM--130m",
    "MiniCPM3ForCausalLM--4b",
    "MiniCPMForCausalLM--2b",
    "MixtralForCausalLM--8x7b",
    "NemotronForCausalLM--minitron",
    "OlmoForCausalLM--7b-clip",
    "OlmoeForCausalLM--1b-7b",
    "OrionForCausalLM--14b",
    "Phi3ForCausalLM--mini-128k-longrope",
    "Phi3ForCausalLM--mini-4k-window",
    "PhiForCausalLM--1_5",
    "PhiMoEForCausalLM--3.5-moe",
    "QWenLMHeadModel--7b",
    "Qwen2ForCausalLM--7b",
    "Qwen2MoeForCausalLM--a2.7b",
    "Qwen3ForCausalLM--0.6b-tied",
    "Qwen3MoeForCausalLM--30b-a3b",
    "StableLmForCausalLM--2-12b",
    "StableLmForCausalLM--3b-4e1t",
    "Starcoder2ForCausalLM--3b",
    "XverseForCausalLM--llama-body",
    *gguf_today.CASES,
    *gguf_hybrids.CASES,
]
NOT_IN_THE_FILE = (
    "query_pre_attn_scalar",
    "scale_emb",
    "scale_depth",
    "dim_model_base",
    "sliding_window",
    "swiglu_limit",
    *("image_token_id", "video_token_id", "audio_token_id"),
    *("attention_chunk_size", "floor_scale", "attn_scale", "attn_temperature_tuning", "no_rope_layers"),
    *("no_rope_layer_interval", "use_qk_norm"),
)
"""Config keys that llama.cpp's files of some architecture leave out, and its code has as constants."""


@pytest.mark.parametrize("name", CASES)
def test_answers_as_the_published_checkpoint(name: str, tmp_path: Path) -> None:
    case = case_named(name)
    path = write_gguf(case, tmp_path / "model.gguf")
    config = {**case["config"], **case["config"].get("text_config", {})}
    overrides = {k: config[k] for k in NOT_IN_THE_FILE if config.get(k) is not None}
    if case["row"] == "BaichuanForCausalLM":  # its 40 layers tell 13B
        overrides |= {"max_position_embeddings": None}
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="16MiB", hf_overrides=overrides)
    for want in case["cases"]:
        params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=0)
        answer = llm.generate({"prompt_token_ids": want["prompt_token_ids"]}, params, use_tqdm=False)[0].outputs[0]
        assert answer.token_ids == want["output_token_ids"]
        got = [step[token].logprob for step, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        np.testing.assert_allclose(got, [top[0][1] for top in want["top_logprobs"]], atol=1e-4)


@pytest.mark.parametrize("name", gguf_encoders.CASES)
def test_embeddings_and_scores_as_of_the_published_checkpoint(name: str, tmp_path: Path) -> None:
    """The pooling is the file's own; what it does not say of scores, and of constants of llama.cpp's, is added."""
    case = case_named(name)
    config, task = case["config"], "embed" if "embedding" in case["cases"][0] else "classify"
    overrides = {key: config[key] for key in gguf_encoders.NOT_IN_THE_FILE if config.get(key) is not None}
    path = write_gguf(case, tmp_path / "model.gguf")
    options = {"dtype": "float32", "skip_tokenizer_init": True, "kv_cache_memory": "16MiB"}
    llm = LLM(str(path), task=task, hf_overrides=overrides, **options)
    for want in case["cases"]:
        ask = llm.embed if task == "embed" else llm.classify
        (output,) = ask([{"prompt_token_ids": want["prompt_token_ids"]}], use_tqdm=False)
        got = output.outputs.embedding if task == "embed" else output.outputs.probs
        expected = np.array(want.get("embedding", want.get("scores")))
        if task == "embed":  # llama.cpp's are of length one
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_encoder_decoder_as_the_published_checkpoint(tmp_path: Path) -> None:
    case = case_named("T5ForConditionalGeneration--flan-t5")
    overrides = {"relative_attention_max_distance": case["config"]["relative_attention_max_distance"]}
    path = write_gguf(case, tmp_path / "model.gguf")
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="16MiB", hf_overrides=overrides)
    for want in case["cases"]:
        params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=0)
        answer = llm.generate(prompt_of(want), params, use_tqdm=False)[0].outputs[0]
        assert answer.token_ids == want["output_token_ids"]


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q8_0])
def test_projections_that_are_one_tensor_are_read_in_their_parts(
    kind: gguf.GGMLQuantizationType | None, tmp_path: Path
) -> None:
    """As llama.cpp's converter may write them; quantized rows stay as they are."""
    case = case_named("Qwen3MoeForCausalLM--30b-a3b")
    apart = write_gguf(case, tmp_path / "apart.gguf", kind)
    fused = write_gguf(case, tmp_path / "fused.gguf", kind, is_fused=True)
    prompt = {"prompt_token_ids": case["cases"][-1]["prompt_token_ids"]}
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    answers = []
    for path in (apart, fused):
        llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="16MiB")
        answers.append(llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].logprobs)
    assert answers[0] == answers[1]


def test_reranker_scores_by_yes_and_no(tmp_path: Path) -> None:
    """llama.cpp keeps the two rows of the head: the score is the probability of the first."""
    case = case_named("Qwen3ForCausalLM--0.6b-tied")
    named = tensors(case)
    rows = named["model.embed_tokens.weight"][[7, 9]]
    path = write_gguf(case, tmp_path / "m.gguf", arrays=named, more={"cls.output.weight": rows})
    options = {"dtype": "float32", "skip_tokenizer_init": True, "kv_cache_memory": "16MiB"}
    prompt = {"prompt_token_ids": case["cases"][-1]["prompt_token_ids"]}
    llm = LLM(str(write_model(case, tmp_path / "folder")), max_logprobs=320, **options)
    params = SamplingParams(max_tokens=1, logprobs=320)
    step = llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].logprobs[0]
    yes, no = (np.exp(step[token].logprob) for token in (7, 9))
    (output,) = LLM(str(path), **options).classify([prompt], use_tqdm=False)
    np.testing.assert_allclose(output.outputs.probs, [yes / (yes + no)], atol=1e-5)


FUSED = [n for n in CASES if n.startswith(("MPT", "Falcon", "GPTNeoX", "Phi3", "Bloom", "Jamba", "Mamba", "ChatGLM"))]


@pytest.mark.parametrize("name", FUSED)
def test_weights_of_fused_projections_are_used_as_they_are(name: str, tmp_path: Path) -> None:
    """One tensor of the file for what a module has in segments, with the weights in the file's own kinds."""
    case = case_named(name)
    llm = LLM(str(write_gguf(case, tmp_path / "m.gguf")), skip_tokenizer_init=True, kv_cache_memory="16MiB")
    want = case["cases"][-1]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    prompt = {"prompt_token_ids": want["prompt_token_ids"]}
    assert llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids == want["output_token_ids"][:4]


REORDERED = [
    n for n in CASES if n.startswith(("GPT2", "JAIS", "LlamaForCausalLM--gqa", "Falcon", "Mixtral", "Qwen3_5"))
]


@pytest.mark.parametrize("name", REORDERED)
def test_every_quantized_layer_is_kept_as_it_is(name: str, tmp_path: Path) -> None:
    """Transposed, merged and stacked ones included: none is held in floats."""
    path = write_gguf(case_named(name), tmp_path / "m.gguf", gguf.GGMLQuantizationType.Q8_0)
    loaded = load_model(EngineArgs(model=str(path), skip_tokenizer_init=True))
    if not loaded.backend.capabilities.weight_kinds:
        pytest.skip("the reference computes with floats")
    layers = [m for m in loaded.model.modules() if isinstance(m, Linear) and m.inputs % 32 == 0 and not m.exact]
    assert layers
    for layer in layers:
        assert {part.kind for part in layer._packed.parts} == {WeightKind.Q8_0}


def test_arctic_has_experts_in_every_layer(tmp_path: Path) -> None:
    """llama.cpp knows no other Arctic: compared with the published form of such a model."""
    case = case_named("ArcticForCausalLM--top1")
    case["config"] |= {"moe_layer_frequency": 1, "num_hidden_layers": 1}
    kept = {n: t for n, t in case["tensors"].items() if ".layers." not in n or ".layers.1." in n}
    case["tensors"] = {n.replace(".layers.1.", ".layers.0."): t for n, t in kept.items()}
    prompt = [{"prompt_token_ids": case["cases"][-1]["prompt_token_ids"]}]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    answers = []
    for path in (write_model(case, tmp_path / "folder"), write_gguf(case, tmp_path / "model.gguf")):
        llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="16MiB")
        answers.append(llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].logprobs)
    assert answers[0] == answers[1]


def test_every_row_that_claims_a_format_is_tried() -> None:
    of_encoders = [*gguf_encoders.CASES, "T5ForConditionalGeneration", "Qwen3ForSequenceClassification"]
    of_encoders += ["BertForSequenceClassification"]  # as which RoBERTa's are read
    tried = {name.partition("--")[0] for name in (*CASES, *of_encoders)} | {"ArcticForCausalLM"}
    claimed = {a.name: a.gguf.arch if a.gguf else a.read_as for a in all_architectures().values()}
    assert {name for name, arch in claimed.items() if arch} == tried
    assert {n: claimed[n] for n in tried if n in KINDS} == {n: KINDS[n].arch for n in tried if n in KINDS}


QUANTIZABLE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32"]


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_quantized_tensors_are_what_the_package_says(kind: str, tmp_path: Path) -> None:
    case = case_named("LlamaForCausalLM--gqa-tied")
    quantization = gguf.GGMLQuantizationType[kind]
    path = write_gguf(case, tmp_path / "model.gguf", quantization)
    file = GGUFFile(path)
    weight = tensors(case)["model.layers.0.mlp.up_proj.weight"]
    want = gguf.quants.dequantize(gguf.quants.quantize(weight, quantization), quantization)
    got = gguf_source(file, "blk.0.ffn_up.weight").read()
    assert torch.equal(got, torch.from_numpy(np.asarray(want, dtype=np.float32)))


def test_every_type_that_the_package_can_read(tmp_path: Path) -> None:
    """Types without a quantizer there are given random bytes: reading them is all that is asked."""
    rng = np.random.default_rng(0)
    read = 0
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, size), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        writer = gguf.GGUFWriter(tmp_path / f"{kind.name}.gguf", "llama")
        raw = rng.integers(0, 60, (3, size * 2), dtype=np.uint8)
        writer.add_tensor("x", raw, raw_dtype=kind)
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        got = gguf_source(GGUFFile(tmp_path / f"{kind.name}.gguf"), "x").read().numpy()
        np.testing.assert_array_equal(got, gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(3, block * 2))
        read += 1
    assert read > 15


def test_metadata_round_trip(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("words", ["a", "ü", ""])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_float32("half", 0.5)
    writer.add_bool("yes", True)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    got = GGUFFile(tmp_path / "m.gguf").metadata
    assert (got["words"], got["numbers"], got["half"], got["yes"]) == (["a", "ü", ""], [1, -2, 3], 0.5, True)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Cut anywhere, or with bytes changed in its header: a CheckpointError that names the file, or a sound model."""
    sound = write_gguf(case_named("LlamaForCausalLM--gqa-tied"), tmp_path / "sound.gguf").read_bytes()
    broken = tmp_path / "broken.gguf"
    rng = random.Random(1)
    header = sound.index(b"blk.0") + 600
    refused = 0
    for _ in range(300):
        data = bytearray(sound)
        if rng.random() < 0.4:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(header)] = rng.randrange(256)
        broken.write_bytes(data)
        try:
            file = GGUFFile(broken)
            for name in file.tensors:
                gguf_source(file, name).read()
        except CheckpointError:  # and nothing else: no IndexError, no MemoryError, no crash
            refused += 1
    assert refused > 100


def test_unknown_architecture_names_those_there_are(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "rwkv6")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"rwkv6.*llama"):
        LLM(str(tmp_path / "m.gguf"))


def test_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK not really")
    with pytest.raises(OctavoError, match="does not begin with GGUF"):
        LLM(str(tmp_path / "m.gguf"))
