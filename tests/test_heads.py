"""Heads that read hidden rows: they guess what the published formulas say, and no answer shows that they are there."""

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError, ConfigError
from octavo.executor.head_drafting import HeadDrafter
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult, SequenceStep
from tests import head_reference
from tests.golden import case_named, prompt_of, write_model
from tests.head_models import MTP, Case, with_mtp
from tests.preemption import preempted
from tests.test_golden import opened
from tests.test_invariance import PARAMS, WAYS, bits
from tests.test_speculation import accepted, always, executor_of

SPECULATION = {"method": "mtp", "num_speculative_tokens": 3}
LONG = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0, prompt_logprobs=0)
FORMULAS = {
    "DeepseekV3ForCausalLM--v3": head_reference.deepseek,
    "Qwen3NextForCausalLM--80b-a3b": head_reference.qwen3_next,
}


class Listener:
    """A HeadDrafter's place, which notes what it is told and what it guesses."""

    def __init__(self, drafter: HeadDrafter) -> None:
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
    assert isinstance(executor.drafter, HeadDrafter)
    listener = executor.drafter = Listener(executor.drafter)  # type: ignore[assignment]
    assert isinstance(listener, Listener)
    return llm, listener


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 5, "block_size": 4}, {"ops": "torch"}], ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_guesses_are_those_of_the_formula(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """After prompts, after chunks of them, after wrong guesses, and one after another."""
    case = with_mtp(name)
    case["config"]["rope_scaling"] = None
    folder = write_model(case, tmp_path)
    llm, listener = listened(case, folder, **options)
    llm.generate([prompt_of(c) for c in case["cases"]], LONG, use_tqdm=False)
    weights = {key: tensor.double() for key, tensor in load_file(folder / "model.safetensors").items()}
    head, to_vocabulary = FORMULAS[name](case["config"], weights)
    table, compared = weights["model.embed_tokens.weight"], 0
    for tokens, drafts in listener.guessed.items():
        rows = listener.hidden[listener.sequences[tokens]]
        hidden = torch.stack([rows[place] for place in range(len(tokens) - 1)]).double()
        expected, margins = head_reference.guesses(head, to_vocabulary, table, list(tokens), hidden, len(drafts))
        sure = next((i for i, margin in enumerate(margins) if margin < 1e-3), len(margins))
        assert drafts[:sure] == expected[:sure]
        compared += sure
    assert compared > 60


@pytest.mark.parametrize("way", ["native", "torch", "bfloat16", "int8"])
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
        if key.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight")):
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
    with pytest.raises(ConfigError, match="is computed by one process"):
        opened(case, folder, speculative_config=SPECULATION, tensor_parallel_size=2)
