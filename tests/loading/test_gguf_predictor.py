"""Layers of GGUF files that predict further tokens: they guess what those of the published checkpoint do."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from octavo import LLM
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ConfigError
from octavo.loading.folder_to_gguf import folder_to_gguf
from octavo.loading.gguf_file import GGUFFile
from tests.golden import case_named, prompt_of, tensors, write_model
from tests.head_models import MTP, Case, with_mtp
from tests.loading.gguf_models import write_gguf
from tests.loading.gguf_parts import Array
from tests.test_heads import LONG, SPECULATION, Listener, listened
from tests.test_invariance import bits
from tests.test_speculation import always, executor_of

NAMES = (
    "DeepseekV3ForCausalLM--v3",
    "Glm4MoeForCausalLM--4.5",
    "Glm4MoeLiteForCausalLM--4.7-flash",
    "Qwen3NextForCausalLM--80b-a3b",
    "Qwen3_5ForConditionalGeneration--9b-text",
)
NEXTN = ("enorm", "hnorm", "eh_proj", "shared_head_norm")
"""In the order of what is around a layer in `MTP`."""


def with_nextn(case: Case, name: str) -> dict[str, Any]:
    """How `write_gguf` writes the case with its layer: as one more, and what is around it by llama.cpp's names."""
    begins, layer_begins, outer, _ = MTP[name]
    config = {**case["config"], **case["config"].get("text_config", {})}
    count = config["num_hidden_layers"]
    plain = f"model.layers.{count}."
    begins, layer_begins = begins or plain, layer_begins or plain
    arrays, more = dict[str, Array](), dict[str, Array]()
    around = {f"{begins}{key}.weight": stored for key, stored in zip(outer, NEXTN, strict=True)}
    adds_one = "Qwen" in name
    for key, array in tensors(case).items():
        if key in around:
            is_norm = adds_one and array.ndim == 1
            more[f"blk.{count}.nextn.{around[key]}.weight"] = array + np.float32(1) if is_norm else array
        elif key.startswith(layer_begins):
            arrays[plain + key.removeprefix(layer_begins)] = array
        else:
            arrays[key] = array
    # Copies, which nobody reads.
    more[f"blk.{count}.nextn.embed_tokens.weight"] = np.zeros((1, 1), np.float32)
    more[f"blk.{count}.nextn.shared_head_head.weight"] = np.zeros((1, 1), np.float32)
    header: dict[str, Any] = {"block_count": count + 1, "nextn_predict_layers": 1}
    if adds_one:
        kinds = config.get("layer_types") or [
            "linear_attention" if (i + 1) % config.get("full_attention_interval", 4) else "full_attention"
            for i in range(count)
        ]
        header["attention.recurrent_layers"] = [kind == "linear_attention" for kind in kinds] + [False]
    return {"arrays": arrays, "more": more, "header": header}


def guesses(path: Path, **options: Any) -> tuple[LLM, Listener]:
    llm = LLM(
        str(path),
        dtype="float32",
        skip_tokenizer_init=True,
        kv_cache_memory="16MiB",
        speculative_config=SPECULATION,
        **options,
    )
    always(llm.engine)
    executor = executor_of(llm.engine)
    listener = executor.drafter = Listener(executor.drafter)  # type: ignore[arg-type,assignment]
    assert isinstance(listener, Listener)
    return llm, listener


@pytest.mark.parametrize("name", NAMES)
def test_guesses_are_those_of_the_published_layer(name: str, tmp_path: Path) -> None:
    case = with_mtp(name)
    path = write_gguf(case, tmp_path / "model.gguf", **with_nextn(case, name))
    prompts = [prompt_of(c) for c in case["cases"]]
    published, own = listened(case, write_model(case, tmp_path / "model"))
    published.generate(prompts, LONG, use_tqdm=False)
    llm, listener = guesses(path)
    outputs = llm.generate(prompts, LONG, use_tqdm=False)
    both = listener.guessed.keys() & own.guessed.keys()
    assert len(both) > 10
    assert {tokens: listener.guessed[tokens] for tokens in both} == {tokens: own.guessed[tokens] for tokens in both}
    plain = LLM(str(path), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="16MiB")
    assert [bits(o) for o in plain.generate(prompts, LONG, use_tqdm=False)] == [bits(o) for o in outputs]


def test_quantized_layers_leave_no_trace(tmp_path: Path) -> None:
    case = with_mtp("Glm4MoeForCausalLM--4.5")
    kind, written = gguf.GGMLQuantizationType.Q8_0, with_nextn(case, "Glm4MoeForCausalLM--4.5")
    path = write_gguf(case, tmp_path / "model.gguf", kind, **written)
    prompts = [prompt_of(c) for c in case["cases"]]
    plain = LLM(str(path), skip_tokenizer_init=True, kv_cache_memory="16MiB")
    expected = [bits(o) for o in plain.generate(prompts, LONG, use_tqdm=False)]
    llm = LLM(str(path), skip_tokenizer_init=True, kv_cache_memory="16MiB", speculative_config=SPECULATION)
    always(llm.engine)
    assert [bits(o) for o in llm.generate(prompts * 2, LONG, use_tqdm=False)] == expected * 2
    assert llm.engine.speculation is not None
    assert llm.engine.speculation.num_draft_tokens > 30


def test_files_without_them(tmp_path: Path) -> None:
    """The error says so, and so it does of a part that is missing."""
    plain = case_named("Glm4MoeForCausalLM--4.5")
    path = write_gguf(plain, tmp_path / "plain.gguf")
    options = {"skip_tokenizer_init": True, "speculative_config": SPECULATION}
    with pytest.raises(ConfigError, match=r"plain\.gguf has no layer that predicts further tokens"):
        LLM(str(path), **options)
    case = with_mtp("Glm4MoeForCausalLM--4.5")
    written = with_nextn(case, "Glm4MoeForCausalLM--4.5")
    del written["more"]["blk.3.nextn.enorm.weight"]
    path = write_gguf(case, tmp_path / "broken.gguf", **written)
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.3\.enorm\.weight"):
        LLM(str(path), **options)


def test_a_written_file_has_the_layer(tmp_path: Path) -> None:
    """Of a folder that has it; where only config.json says so, the file is written without."""
    case = with_mtp("Glm4MoeForCausalLM--4.5")
    for own, is_there in ((case, True), (case_named("Glm4MoeForCausalLM--4.5"), False)):
        folder, out = write_model(own, tmp_path / f"model-{is_there}"), tmp_path / f"{is_there}.gguf"
        folder_to_gguf(EngineArgs(str(folder), skip_tokenizer_init=True), "F32", out, lambda count: None)
        file = GGUFFile(out)
        assert (file.layers, file.value("block_count")) == (3, 3 + is_there)
        assert ("blk.3.nextn.eh_proj.weight" in file.tensors) == is_there
    prompts = [prompt_of(c) for c in case["cases"]]
    published, own_guesses = listened(case, tmp_path / "model-True")
    expected = [bits(o) for o in published.generate(prompts, LONG, use_tqdm=False)]
    llm, listener = guesses(tmp_path / "True.gguf")
    assert [bits(o) for o in llm.generate(prompts, LONG, use_tqdm=False)] == expected
    assert listener.guessed == own_guesses.guessed
