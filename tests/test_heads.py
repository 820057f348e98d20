"""Heads that read hidden rows: they guess what the published formulas say, and no answer shows that they are there."""

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ConfigError
from octavo.executor import adapter_slots
from octavo.executor.head_drafting import HeadDrafter
from octavo.executor.medusa_drafting import MedusaDrafter
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult, SequenceStep
from tests import head_reference
from tests.golden import case_named, prompt_of, write_model
from tests.head_models import MTP, Case, eagle_head, medusa_heads, with_mtp, write_head
from tests.preemption import preempt_all, preempted
from tests.random_adapters import random_adapter, request
from tests.server.conftest import write_tiny
from tests.test_golden import opened
from tests.test_invariance import PARAMS, WAYS, bits
from tests.test_speculation import accepted, always, engine_of, executor_of, run

SPECULATION = {"method": "mtp", "num_speculative_tokens": 3}
LONG = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0, prompt_logprobs=0)
FORMULAS = {
    "DeepseekV3ForCausalLM--v3": head_reference.deepseek,
    "DeepseekV32ForCausalLM--v3.2": head_reference.deepseek,  # whose lists are as long as the texts
    "Qwen3NextForCausalLM--80b-a3b": head_reference.qwen3_next,
}


class Listener:
    """In the place of who guesses with a head, which notes what it is told and what it guesses."""

    def __init__(self, drafter: HeadDrafter | MedusaDrafter) -> None:
        self.drafter = drafter
        self.hidden: dict[int, dict[int, torch.Tensor]] = {}
        """By sequence and place."""
        self.guessed: dict[tuple[int, ...], list[int]] = {}
        """By the tokens so far."""
        self.sequences: dict[tuple[int, ...], int] = {}

    def read(
        self,
        steps: Seq[SequenceStep],
        states: Seq[SequenceState],
        results: Seq[SequenceResult],
        hidden: torch.Tensor,
    ) -> None:
        row = 0
        for step in steps:
            for place in range(step.start, step.start + len(step.token_ids)):
                self.hidden.setdefault(step.seq_id, {})[place] = hidden[row].clone()
                row += 1
        self.drafter.read(steps, states, results, hidden)

    def propose(self, states: Seq[SequenceState], counts: Seq[int]) -> list[list[int]]:
        made = self.drafter.propose(states, counts)
        for state, drafts in zip(states, made, strict=True):
            assert state.sampling is not None
            tokens = tuple(state.start.prompt_token_ids + state.sampling.output_token_ids)
            before = self.guessed.setdefault(tokens, drafts)
            count = min(len(before), len(drafts))  # near the end fewer are wanted
            assert before[:count] == drafts[:count]
            self.guessed[tokens] = max(before, drafts, key=len)
            self.sequences[tokens] = state.start.seq_id
        return made

    def end(self, seq_ids: Any) -> None:
        self.drafter.end(seq_ids)


def listened(case: Case, folder: Path, config: dict[str, Any] = SPECULATION, **options: Any) -> tuple[LLM, Listener]:
    """A model that guesses as much as it may, and who notes it."""
    llm = opened(case, folder, speculative_config=config, **options)
    always(llm.engine)
    executor = executor_of(llm.engine)
    assert isinstance(executor.drafter, HeadDrafter | MedusaDrafter)
    listener = executor.drafter = Listener(executor.drafter)  # type: ignore[assignment]
    assert isinstance(listener, Listener)
    return llm, listener


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 5, "block_size": 4}, {"ops": "torch"}], ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_guesses_are_those_of_the_formula(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """After prompts, after chunks of them, after wrong guesses, and one after another."""
    case = with_mtp(name)
    case["config"] |= {"rope_scaling": None, "index_topk": 4096}
    folder = write_model(case, tmp_path)
    llm, listener = listened(case, folder, **options)
    llm.generate([prompt_of(c) for c in case["cases"]], LONG, use_tqdm=False)
    weights = weights_of(folder)
    compare(listener, FORMULAS[name](case["config"], weights), weights, weights["lm_head.weight"])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor.double() for key, tensor in load_file(folder / "model.safetensors").items()}


def compare(
    listener: Listener,
    head: head_reference.Head,
    weights: dict[str, torch.Tensor],
    to_vocabulary: torch.Tensor,
    combined: torch.Tensor | None = None,
) -> None:
    """Compare all guesses with those of a formula. `combined` is what makes one row of several."""
    table, compared = weights["model.embed_tokens.weight"], 0
    for tokens, drafts in listener.guessed.items():
        rows = listener.hidden[listener.sequences[tokens]]
        hidden = torch.stack([rows[place] for place in range(len(tokens) - 1)]).double()
        hidden = hidden if combined is None else hidden @ combined.T
        expected, margins = head_reference.guesses(head, to_vocabulary, table, list(tokens), hidden, len(drafts))
        sure = next((i for i, margin in enumerate(margins) if margin < 1e-3), len(margins))
        assert drafts[:sure] == expected[:sure]
        compared += sure
    assert compared > 60


@pytest.mark.parametrize("way", ["native", "torch", "bfloat16", "int8", "q4"])
@pytest.mark.parametrize("name", MTP)
def test_heads_leave_no_trace(name: str, way: str, tmp_path: Path) -> None:
    case, options = with_mtp(name), WAYS[way]
    folder, prompts = write_model(case, tmp_path), [prompt_of(c) for c in case["cases"]]
    expected = [bits(o) for o in opened(case, folder, **options).generate(prompts, LONG, use_tqdm=False)]
    llm, listener = listened(case, folder, **options)

    def run(some: list[Any]) -> list[Any]:
        return [bits(o) for o in llm.generate(some, LONG, use_tqdm=False)]

    assert run(prompts) == expected
    assert [run([p])[0] for p in prompts] == expected
    assert run(prompts * 3) == expected * 3
    done = preempted(llm, {str(i): (prompt, LONG) for i, prompt in enumerate(prompts * 2)}, after=3)
    assert [bits(done[str(i)]) for i in range(len(prompts) * 2)] == expected * 2
    assert len(listener.guessed) >= 3 * len(prompts)


@pytest.mark.parametrize("name", ["DeepseekV3ForCausalLM--v3", "MiMoV2FlashForCausalLM--flash"])
def test_a_cached_beginning_brings_the_keys_of_the_head(name: str, tmp_path: Path) -> None:
    """Guesses after it are those that are made where nothing is cached, for windows too."""
    case = with_mtp(name)
    folder, vocabulary = write_model(case, tmp_path), case["config"]["vocab_size"]
    begins = [(7 * i) % vocabulary for i in range(37)]
    prompts = [{"prompt_token_ids": [*begins[:length], last]} for length in (37, 36, 35, 24, 9) for last in (3, 4)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    llm, plain = listened(case, folder, block_size=4, enable_prefix_caching=False)
    expected = [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]
    llm, caching = listened(case, folder, block_size=4)
    assert [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)] == expected  # in one step
    outputs = [llm.generate(prompt, params, use_tqdm=False)[0] for prompt in prompts]
    assert [o.outputs[0].token_ids for o in outputs] == expected
    assert [o.num_cached_tokens for o in outputs] == [36, 36, 36, 36, 32, 32, 24, 24, 8, 8]
    assert {tokens: drafts for tokens, drafts in caching.guessed.items() if tokens in plain.guessed} == plain.guessed


def knowing(name: str) -> Case:
    """A model whose next token follows from the last one alone, and whose head sees that one."""
    case = with_mtp(name)
    for key, spec in case["tensors"].items():
        if key.removesuffix(".weight").endswith(("o_proj", "down_proj", "out_proj")):
            spec |= {"center": 0.0, "scale": 0.0}
        elif "norm" in key and "linear_attn" not in key:
            spec |= {"center": round(spec["center"]), "scale": 0.0}
    return case


@pytest.mark.parametrize("name", MTP)
def test_a_head_that_knows_is_right(name: str, tmp_path: Path) -> None:
    case = knowing(name)
    folder, prompts = write_model(case, tmp_path), [prompt_of(c) for c in case["cases"]]
    weights = load_file(folder / "model.safetensors")
    names = ("eh_proj.weight", "mtp.fc.weight", "linear_proj.0.weight")
    (projection,) = [key for key in weights if key.endswith(names)]
    size = len(weights[projection])
    weights[projection] = torch.cat([torch.eye(size), torch.zeros(size, size)], 1)
    save_file(weights, folder / "model.safetensors")
    llm, listener = listened(case, folder)
    for temperature in (0, 0.7):
        listener.guessed.clear()
        params = SamplingParams(temperature=temperature, seed=5, max_tokens=13, ignore_eos=True)
        llm.generate(prompts, params, use_tqdm=False)
    assert accepted(llm.engine) == llm.engine.speculation.num_draft_tokens > 30


def test_what_overflows_in_the_head_is_no_failure(tmp_path: Path) -> None:
    case = with_mtp("Glm4MoeForCausalLM--4.5")
    case["tensors"]["model.layers.3.enorm.weight"] |= {"center": 3e38, "scale": 0.0}
    folder, prompts = write_model(case, tmp_path), [prompt_of(c) for c in case["cases"]]
    expected = [bits(o) for o in opened(case, folder).generate(prompts, PARAMS, use_tqdm=False)]
    llm, listener = listened(case, folder)
    assert [bits(o) for o in llm.generate(prompts * 2, PARAMS, use_tqdm=False)] == expected * 2
    assert not any(listener.guessed.values())
    for paged in executor_of(llm.engine).runner.caches.paged:
        assert paged is not None
        assert torch.isfinite(paged.keys).all()


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 5, "block_size": 4}, {"ops": "torch"}], ids=str)
@pytest.mark.parametrize(("method", "draft_vocab"), [("eagle", 0), ("eagle3", 0), ("eagle3", 100)])
def test_guesses_of_eagle(method: str, draft_vocab: int, options: dict[str, Any], tmp_path: Path) -> None:
    """Of rows after the last norm, or of three depths; of tokens of the head's own."""
    case, own = case_named("Glm4MoeForCausalLM--4.5"), tmp_path / "head"
    head = eagle_head(case["config"], method, draft_vocab, reads=(1, 0, 2))
    folder, head_folder = write_model(case, tmp_path / "model"), write_head(head, own)
    prompts = [prompt_of(c) for c in case["cases"]]
    expected = [bits(o) for o in opened(case, folder, **options).generate(prompts, LONG, use_tqdm=False)]
    config = {"method": method, "model": str(head_folder), "num_speculative_tokens": 3}
    llm, listener = listened(case, folder, config, **options)
    assert [bits(o) for o in llm.generate(prompts, LONG, use_tqdm=False)] == expected
    weights, head_weights = weights_of(folder), weights_of(head_folder)
    formula = (head_reference.eagle if method == "eagle" else head_reference.eagle3)(head["config"], head_weights)
    to_vocabulary = head_weights.get("lm_head.weight", weights["lm_head.weight"])
    if draft_vocab:
        rows = torch.full((case["config"]["vocab_size"], to_vocabulary.shape[1]), torch.nan, dtype=torch.float64)
        rows[torch.arange(draft_vocab) * (len(rows) // draft_vocab)] = to_vocabulary
        to_vocabulary = rows
    compare(listener, formula, weights, to_vocabulary, head_weights["fc.weight"] if method == "eagle3" else None)
    assert [bits(o) for o in llm.generate(prompts * 3, LONG, use_tqdm=False)] == expected * 3


@pytest.mark.parametrize(("by_authors", "own_vocab"), [(True, 0), (False, 0), (False, 150)])
def test_guesses_of_medusa(by_authors: bool, own_vocab: int, tmp_path: Path) -> None:
    """`head(x + silu(W x))` of the row that the last token was chosen from, for each place after the next."""
    case, own = case_named("Qwen2ForCausalLM--7b"), tmp_path / "heads"
    heads, folder = medusa_heads(case["config"], by_authors, own_vocab), write_model(case, tmp_path / "model")
    write_model(heads, own)
    stored, tokens = load_file(own / "model.safetensors"), torch.arange(case["config"]["vocab_size"])
    if by_authors:
        torch.save(stored, own / "medusa_lm_head.pt")
        (own / "model.safetensors").unlink()
    if own_vocab:
        tokens = 2 * torch.arange(own_vocab)
        save_file({**stored, "token_map": tokens}, own / "model.safetensors")
    prompts = [prompt_of(c) for c in case["cases"]]
    expected = [bits(o) for o in opened(case, folder).generate(prompts, LONG, use_tqdm=False)]
    config = {"method": "medusa", "model": str(own), "num_speculative_tokens": 4}
    llm, listener = listened(case, folder, config)
    assert [bits(o) for o in llm.generate(prompts, LONG, use_tqdm=False)] == expected
    w = {key: tensor.double() for key, tensor in stored.items()}
    compared = 0
    for so_far, drafts in listener.guessed.items():
        row = listener.hidden[listener.sequences[so_far]][len(so_far) - 2].double()
        for place, draft in enumerate(drafts):
            x = row
            for layer in range(2):
                at = f"{place}.{layer}.linear" if by_authors else f"blocks.{place}.layers.{layer}"
                x = x + torch.nn.functional.silu(w[f"{at}.weight"] @ x + w.get(f"{at}.bias", 0))
            best = (w[f"{place}.2.weight" if by_authors else f"lm_heads.{place}.weight"] @ x).topk(2)
            if best.values[0] - best.values[1] > 1e-3:
                assert draft == int(tokens[best.indices[0]])
                compared += 1
    assert compared > 40
    assert max(map(len, listener.guessed.values())) == 3
    assert [bits(o) for o in llm.generate(prompts * 3, LONG, use_tqdm=False)] == expected * 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], dict[str, Any]]:
    """A model with a tokenizer, the folders of heads for it by method, and its answers without them."""
    folder = tmp_path_factory.mktemp("heads")
    model = write_tiny(folder / "tiny")
    config = case_named("LlamaForCausalLM--gqa-tied")["config"]
    heads = {
        "eagle": write_head(eagle_head(config, "eagle"), folder / "eagle"),
        "eagle3": write_head(eagle_head(config, "eagle3", 64, reads=(0, 1)), folder / "eagle3"),
        "medusa": write_model(medusa_heads(config, by_authors=False), folder / "medusa"),
    }
    return model, heads, run(engine_of(model))[0]


@pytest.mark.parametrize("method", ["eagle", "eagle3", "medusa"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 5, "max_num_seqs": 2},
        {"kv_cache_memory": "256KiB"},
        {"block_size": 1},
    ],
    ids=str,
)
def test_requests_of_all_kinds(method: str, options: dict[str, Any], tiny: tuple[Path, Any, Any]) -> None:
    """Grammars, penalties, several answers, stop strings; few blocks, and preempted again and again."""
    model, heads, expected = tiny
    config = {"method": method, "model": str(heads[method]), "num_speculative_tokens": 3}
    engine = engine_of(model, speculative_config=config, **options)
    always(engine)
    assert run(engine)[0] == expected
    assert engine.speculation is not None
    assert engine.speculation.num_draft_tokens > 0
    engine = engine_of(model, speculative_config=config, **options)
    done, _ = run(engine, lambda step: preempt_all(engine) if step % 5 == 0 and step < 60 else None)
    assert done == expected


def test_up_to_the_longest_sequence(tiny: tuple[Path, Any, Any]) -> None:
    """Guesses end where tables of blocks do."""
    model, heads, _ = tiny
    answers = []
    for config in ({}, {"method": "eagle", "model": str(heads["eagle"]), "num_speculative_tokens": 9}):
        options = {"kv_cache_memory": "16MiB", "max_model_len": 24, "block_size": 1, "dtype": "float32"}
        llm = LLM(str(model), speculative_config=config, **options)
        if config:
            always(llm.engine)
        params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, logprobs=0)
        outputs = llm.generate(["a", "abcdefghij"], params, use_tqdm=False)
        answers.append([(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs])
    assert answers[0] == answers[1]
    assert len(answers[0][0][0]) == 23


def test_a_head_beside_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_slots, "load_adapter", random_adapter)
    case = case_named("LlamaForCausalLM--gqa-tied")
    head = write_head(eagle_head(case["config"], "eagle3", reads=(0, 1)), tmp_path / "head")
    folder, prompts = write_model(case, tmp_path / "model"), [prompt_of(c) for c in case["cases"]] * 3
    adapters = [(None, request("a", tmp_path), request("b", tmp_path))[i % 3] for i in range(len(prompts))]
    options = {"enable_lora": True, "max_loras": 2}
    plain = opened(case, folder, **options)
    expected = [bits(o) for o in plain.generate(prompts, LONG, lora_request=adapters, use_tqdm=False)]
    llm, listener = listened(case, folder, {"method": "eagle3", "model": str(head)}, **options)
    assert [bits(o) for o in llm.generate(prompts, LONG, lora_request=adapters, use_tqdm=False)] == expected
    assert any(listener.guessed.values())


def test_an_eagle_that_knows_is_right(tmp_path: Path) -> None:
    case = knowing("Glm4MoeForCausalLM--4.5")
    folder, size = write_model(case, tmp_path / "model"), case["config"]["hidden_size"]
    head = eagle_head(case["config"], "eagle")
    own = write_head(head, tmp_path / "head")
    weights = load_file(own / "model.safetensors")
    for key in ("layers.0.self_attn.o_proj.weight", "layers.0.mlp.down_proj.weight"):
        weights[key] = torch.zeros_like(weights[key])
    weights["fc.weight"] = torch.cat([torch.eye(size), torch.zeros(size, size)], 1)
    save_file(weights, own / "model.safetensors")
    llm, _ = listened(case, folder, {"method": "eagle", "model": str(own)})
    llm.generate([prompt_of(c) for c in case["cases"]], LONG, use_tqdm=False)
    assert accepted(llm.engine) == llm.engine.speculation.num_draft_tokens > 15


def test_heads_of_other_models(tiny: tuple[Path, Any, Any], tmp_path: Path) -> None:
    """An error names what is wrong, and both sizes."""
    model, heads, _ = tiny
    config = case_named("LlamaForCausalLM--gqa-tied")["config"]

    def refused(method: str, folder: Path, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            engine_of(model, speculative_config={"method": method, "model": str(folder)})

    for key, other in (("hidden_size", 32), ("vocab_size", 400)):
        folder = write_head(eagle_head({**config, key: other}, "eagle"), tmp_path / key)
        refused("eagle", folder, f"{key} is {other}, and the model's is {config[key]}")
    few = write_head(eagle_head(config, "eagle3", reads=(0, 1, 7)), tmp_path / "few")
    refused("eagle3", few, "reads rows before the layers 0, 1, 7, and the model has 2 layers")
    wrong = write_head(eagle_head(config, "eagle3", 64, reads=(0, 1)), tmp_path / "wrong")
    weights = load_file(wrong / "model.safetensors")
    save_file({**weights, "d2t": torch.full((64,), 1000)}, wrong / "model.safetensors")
    refused("eagle3", wrong, "d2t has tokens beyond the model's vocabulary of 320")
    del weights["d2t"]
    save_file(weights, wrong / "model.safetensors")
    refused("eagle3", wrong, "draft_vocab_size is 64, and the model's vocabulary is of 320")
    refused("eagle", heads["eagle3"], "does not fit its config")
    refused("medusa", heads["eagle"], "num_heads")
    refused("eagle", tmp_path / "nowhere", "nowhere")
    for key in ("dtype", "quantization"):
        with pytest.raises(ConfigError, match=f"{key}='bfloat16': a head is held as the model is"):
            EngineArgs("m", speculative_config={"method": "eagle", "model": "x", key: "bfloat16"})


def test_layers_that_are_not_there(tmp_path: Path) -> None:
    plain = case_named("LlamaForCausalLM--gqa-tied")
    with pytest.raises(ConfigError, match=r"'mtp': LlamaForCausalLM .* has no layer"):
        opened(plain, write_model(plain, tmp_path / "llama"), speculative_config=SPECULATION)
    case = with_mtp("DeepseekV3ForCausalLM--v3")
    del case["tensors"]["model.layers.3.eh_proj.weight"]
    case["tensors"]["model.layers.3.enorm.weight"]["shape"] = [5]
    folder = write_model(case, tmp_path / "deepseek")
    with pytest.raises(CheckpointError, match=r"missing: model.layers.3.eh_proj.weight.*model.layers.3.enorm.weight"):
        opened(case, folder, speculative_config=SPECULATION)
    opened(case, folder)
