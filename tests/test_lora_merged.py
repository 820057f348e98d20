"""Adapters that do more than matrices of low rank of linear layers: against checkpoints with them merged in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from octavo import LoRARequest
from octavo.tools.recipe import noise, write_model
from tests.adapters import BEGINNING, Tensors, save_adapter
from tests.golden import CASES, read_case, tensors
from tests.test_golden import load, opened
from tests.test_lora import answers

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "peft_version": "0.21.2"}
SCALE = 2.0


def base_case(name: str) -> dict[str, Any]:
    return read_case(next(path for path in CASES if path.stem == name))


def drawn(name: str, *shape: int, scale: float = 0.3) -> "np.ndarray[Any, Any]":
    return np.float32(scale) * noise(name, shape)


def check_merged(
    case: dict[str, Any], folder: Path, config: dict[str, Any], adapter: Tensors, merged: Tensors, **changed: Any
) -> None:
    """The base with the adapter answers as the checkpoint `merged` does, whose config has `changed` values."""
    llm = load(case, folder / "base", enable_lora=True)
    named = {BEGINNING + name: value for name, value in adapter.items()}
    request = LoRARequest("own", 1, str(save_adapter(folder / "own", {**CONFIG, **config}, named)))
    got, bare = answers(llm, case, request), answers(llm, case, None)
    where = write_model({**case, "config": {**case["config"], **changed}}, folder / "merged")
    (weights,) = where.glob("*.safetensors")
    save_file({n: np.ascontiguousarray(t) for n, t in merged.items()}, weights, metadata={"format": "pt"})
    want = answers(opened(case, where), case, None)
    assert max(np.abs(g - w).max() for g, w in zip(got, want, strict=True)) < 2e-4
    assert max(np.abs(g - b).max() for g, b in zip(got, bare, strict=True)) > 1e-2


def test_parameters_of_two_axes_within_each_other(tmp_path: Path) -> None:
    """DBRX: the first of three parameters of one module is the innermost, and all have the same sizes."""
    case, adapter = base_case("DbrxForCausalLM--published-keys"), Tensors()
    merged = Tensors(tensors(case))
    for name in list(merged):
        owner, _, leaf = name.rpartition(".")
        if not owner.endswith("experts.mlp"):
            continue
        depth = {"w1": 2, "v1": 1, "w2": 0}[leaf]
        a, b = drawn(f"{name}/a", 4, merged[name].shape[1]), drawn(f"{name}/b", len(merged[name]), 4)
        module = "transformer." + owner.removeprefix("transformer.") + ".base_layer" * depth
        adapter |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        merged[name] = merged[name] + SCALE * b @ a
    assert adapter
    targets = ["experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2"]
    check_merged(case, tmp_path, {"target_parameters": targets}, adapter, merged)


@pytest.mark.parametrize("version", ["0.21.2", "0.18.1", None])
def test_stacks_of_experts_in_both_orders(version: str | None, tmp_path: Path) -> None:
    """PEFT before 0.19 has a stack's outputs where its inputs are now; sizes tell, but of a square one."""
    case, adapter = base_case("GraniteMoeForCausalLM--1b-a400m"), Tensors()
    merged = Tensors(tensors(case))
    for name in list(merged):
        if "put_linear" not in name:
            continue
        experts, outputs, inputs = merged[name].shape
        a, b = drawn(f"{name}/a", experts, 4, inputs), drawn(f"{name}/b", experts, outputs, 4)
        merged[name] = merged[name] + SCALE * b @ a
        if version != "0.21.2":
            a, b = b.transpose(0, 2, 1), a.transpose(0, 2, 1)
        module = name.rpartition(".block_sparse_moe")[0] + ".block_sparse_moe.experts"
        module += ".base_layer" if "input" in name else ""
        adapter[f"{module}.lora_A.weight"] = np.ascontiguousarray(a.reshape(experts * 4, -1))
        adapter[f"{module}.lora_B.weight"] = np.ascontiguousarray(b.transpose(1, 2, 0).reshape(b.shape[1], -1))
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    check_merged(case, tmp_path, {"target_parameters": targets, "peft_version": version}, adapter, merged)


@pytest.mark.parametrize("name", ["MambaForCausalLM--130m", "JambaForCausalLM--mini"])
def test_all_biases_and_convolutions(name: str, tmp_path: Path) -> None:
    """bias="all" has those of convolutions as well."""
    case, adapter = base_case(name), Tensors()
    merged = Tensors(tensors(case))
    for tensor in list(merged):
        if tensor.endswith(("bias", "0.mixer.conv1d.weight")):
            merged[tensor] = adapter[tensor] = merged[tensor] + drawn(f"{tensor}/own", *merged[tensor].shape)
    assert any("conv1d" in tensor for tensor in adapter)
    check_merged(case, tmp_path, {"bias": "all"}, adapter, merged)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["LlamaForCausalLM--llama3-rope", "GPTJForCausalLM--6b"])
def test_a_head_that_has_more_tokens_and_matrices(name: str, dora: bool, tmp_path: Path) -> None:
    """Tables grown before training: their own rows are beside the matrices; GPT-J's head has a bias."""
    case = base_case(name)
    base = tensors(case)
    table = next(n for n in base if "embed_tokens" in n or "wte" in n)
    adapter, merged = Tensors(), Tensors(base)
    for module, key in ((table.removesuffix(".weight"), table), ("lm_head", "lm_head.weight")):
        whole = np.concatenate([base[key], drawn(f"{key}/more", 3, base[key].shape[1])])
        tokens, size = whole.shape
        adapter[f"{module}.base_layer.weight"] = whole
        a, b = drawn(f"{key}/a", 4, size), drawn(f"{key}/b", tokens, 4)
        if module == "lm_head":
            adapter |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        else:
            adapter |= {
                f"{module}.lora_embedding_A": np.ascontiguousarray(b.T),
                f"{module}.lora_embedding_B": np.ascontiguousarray(a.T),
            }
        merged[key] = whole + SCALE * b @ a
        if dora:
            along = 1 if module == "lm_head" else 0
            lengths = np.linalg.norm(whole, axis=along) * (1 + drawn(f"{key}/m", whole.shape[1 - along]))
            end = ".weight" if module == "lm_head" else ""
            adapter[f"{module}.lora_magnitude_vector{end}"] = lengths
            merged[key] *= np.expand_dims(lengths / np.linalg.norm(merged[key], axis=along), along)
    if "lm_head.bias" in base:
        merged["lm_head.bias"] = np.concatenate([base["lm_head.bias"], drawn("bias/more", 3)])
        adapter["lm_head.base_layer.bias"] = merged["lm_head.bias"]
    check_merged(case, tmp_path, {"use_dora": dora}, adapter, merged, vocab_size=len(merged[table]))


def test_a_whole_table_leaves_a_tied_head_as_it_was(tmp_path: Path) -> None:
    case = base_case("LlamaForCausalLM--gqa-tied")
    base = tensors(case)
    table = base["model.embed_tokens.weight"]
    own = table + drawn("own", *table.shape)
    merged = {**base, "model.embed_tokens.weight": own, "lm_head.weight": table}
    adapter = {"model.embed_tokens.weight": own}
    check_merged(case, tmp_path, {}, adapter, merged, tie_word_embeddings=False)


@pytest.mark.parametrize("ids", [[7, 3], {"embed_tokens": [7, 3]}, {"embed_tokens": [7, 3], "lm_head": [7, 3]}])
def test_rows_of_a_tied_table_are_the_heads(ids: Any, tmp_path: Path) -> None:
    case = base_case("LlamaForCausalLM--gqa-tied")
    merged = Tensors(tensors(case))
    rows = drawn("rows", 2, merged["model.embed_tokens.weight"].shape[1])
    merged["model.embed_tokens.weight"][[7, 3]] = rows
    adapter = {"model.embed_tokens.token_adapter.trainable_tokens_delta": rows}
    if isinstance(ids, dict):  # PEFT writes both where tables have grown
        adapter["lm_head.token_adapter.trainable_tokens_delta"] = rows.copy()
    check_merged(case, tmp_path, {"trainable_token_indices": ids}, adapter, merged)


def test_rows_of_a_head(tmp_path: Path) -> None:
    case = base_case("LlamaForCausalLM--llama3-rope")
    merged = Tensors(tensors(case))
    rows = drawn("rows", 2, merged["lm_head.weight"].shape[1])
    merged["lm_head.weight"][[7, 3]] = rows
    adapter = {"lm_head.token_adapter.trainable_tokens_delta": rows}
    check_merged(case, tmp_path, {"trainable_token_indices": {"lm_head": [7, 3]}}, adapter, merged)


def test_alphas_of_parameters_go_by_their_own_names(tmp_path: Path) -> None:
    """A router is a parameter of two axes in newer classes; its patterns have `.weight` at their end."""
    case = base_case("MixtralForCausalLM--8x7b")
    merged, adapter = Tensors(tensors(case)), Tensors()
    for name in list(merged):
        if "moe.gate." in name:
            a, b = drawn(f"{name}/a", 4, merged[name].shape[1]), drawn(f"{name}/b", len(merged[name]), 4)
            merged[name] = merged[name] + 5.0 * b @ a
            module = name.removesuffix(".weight").replace("block_sparse_moe", "mlp")
            adapter |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    config = {"target_parameters": ["mlp.gate.weight"], "alpha_pattern": {"mlp.gate": 3, r"gate\.weight": 20}}
    check_merged(case, tmp_path, config, adapter, merged)
