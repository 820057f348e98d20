"""Every row, split among ranks, answers as its reference does; each rank holds its part of weights and states."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.architectures import find_architecture
from octavo.parts import CausalLM, Mamba2Mixer, PagedKV
from octavo.parts.split import Split, split_model
from octavo.parts.weight_slots import Role, Shard, WeightSlot, weight_slots
from tests.golden import CASES, case_named, config_of, read_case
from tests.rank_threads import ThreadBackend, run_ranks
from tests.test_golden import agrees

WHOLE = {"q_a", "kv_a", "to_latent", "from_latent", "a"}
"""Products before latents, and of experts' latents and of LoRAs, which every rank has. So it has an indexer."""
SAMPLE = {
    "ArcticForCausalLM--instruct",
    "BartForConditionalGeneration--base",
    "DeepseekV2ForCausalLM--lite",
    "FalconForCausalLM--7b",
    "FalconH1ForCausalLM--1.5b",
    "GraniteMoeHybridForCausalLM--4.0-h-tiny",
    "InternVLChatModel--mono-internvl",
    "JambaForCausalLM--mini",
    "Lfm2MoeForCausalLM--8b-a1b",
    "LlamaForCausalLM--gqa-tied",
    "Mamba2ForCausalLM--codestral-7b",
    "NemotronHForCausalLM--30b-latents",
    "RecurrentGemmaForCausalLM--2b",
    "MllamaForConditionalGeneration--11b-vision",
    "MPTForCausalLM--qk-ln",
    "OlmoeForCausalLM--1b-7b",
    "Phi3SmallForCausalLM--8k",
    "Qwen2VLForConditionalGeneration--7b",
}


def built(case: dict[str, Any]) -> CausalLM:
    """A case's model without weights."""
    config = config_of(case)
    architecture = find_architecture([case["row"]])
    with torch.device("meta"):
        return architecture.build(architecture.config(config))


def ranks_for(case: dict[str, Any]) -> int:
    """The fewest ranks that a case's heads can be divided among."""
    for size in (2, 3):
        try:
            split_model(built(case), Split(0, size))
        except ValueError:
            continue
        return size
    return 5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[] if p.stem in SAMPLE else pytest.mark.slow, id=p.stem) for p in CASES]
)
def test_ranks_give_reference_answers(path: Path, tmp_path: Path) -> None:
    case = read_case(path)

    def work(backend: ThreadBackend) -> None:
        agrees(case, tmp_path / str(backend.place.rank))

    run_ranks(ranks_for(case), work)


def test_the_sample_is_there() -> None:
    assert {path.stem for path in CASES} >= SAMPLE


@pytest.mark.parametrize(
    ("name", "size"),
    [("LlamaForCausalLM--gqa-tied", 4), ("MPTForCausalLM--qk-ln", 4), ("CohereForCausalLM--command-r-plus", 6)],
)
def test_more_ranks_than_key_heads(name: str, size: int, tmp_path: Path) -> None:
    case = case_named(name)
    run_ranks(size, lambda backend: agrees(case, tmp_path / str(backend.place.rank)))


def taken(slot: WeightSlot, dim: int) -> list[int]:
    """Which rows or columns a slot's rank has."""
    shard = slot.shard or Shard()
    ranges = (shard.rows, shard.columns)[dim]
    return list(range(slot.shape[dim]) if ranges is None else chain(*(range(*each) for each in ranges)))


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_each_rank_has_its_part(path: Path) -> None:
    """All ranks' parts of a weight are the whole, and of a layer's products no rank has more than its share."""
    case = read_case(path)
    size = ranks_for(case)
    whole, ranks = built(case), [built(case) for _ in range(size)]
    for rank, model in enumerate(ranks):
        split_model(model, Split(rank, size))
    slots = [weight_slots(model) for model in ranks]
    for name, slot in weight_slots(whole).items():
        own = [each[name] for each in slots]
        assert {each.shape for each in own} == {slot.shape}
        for dim in range(min(2, len(slot.shape))):
            assert set(chain(*(taken(each, dim) for each in own))) == set(range(slot.shape[dim]))
        owner = name.rpartition(".")[0].rpartition(".")[2]
        if (
            name.startswith("layers.")
            and slot.role is Role.MULTIPLIED
            and owner not in WHOLE
            and ".indexer." not in name
        ):
            assert all(each.shard is not None for each in own), name
            assert max(len(taken(each, 0)) * len(taken(each, 1)) for each in own) < 0.8 * slot.shape[0] * slot.shape[1]
    for state, *own_states in zip(whole.states, *(model.states for model in ranks), strict=True):
        if isinstance(state, PagedKV):
            heads = [own.num_kv_heads for own in own_states]
            assert heads == [max(1, state.num_kv_heads // size)] * size
        else:
            total = sum(own.bytes_per_request() for own in own_states)
            assert total == state.bytes_per_request() + repeated_bytes(whole, size)


def repeated_bytes(model: CausalLM, size: int) -> int:
    """What more ranks than there are groups of Mamba-2's heads remember twice: a group's last inputs of B and C."""
    sizes = next((module.sizes for module in model.modules() if isinstance(module, Mamba2Mixer)), None)
    repeats = 0 if sizes is None else max(0, size - sizes.num_groups)
    return 0 if sizes is None else repeats * 2 * sizes.state_size * (sizes.kernel - 1) * 4


def test_what_cannot_be_divided_is_an_error() -> None:
    model = built(case_named("LlamaForCausalLM--gqa-tied"))
    with pytest.raises(ValueError, match="heads cannot be divided among 7 ranks"):
        split_model(model, Split(0, 7))
