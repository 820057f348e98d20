"""What ranks take of an adapter: each its own part, and together what one alone has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.config import EngineArgs
from octavo.loading.adapter_shards import share_of_rank, with_magnitudes
from octavo.loading.model import LoadedModel, Slot, load_model
from octavo.ops import LowRank
from octavo.ops.native import runnable
from octavo.parts.linear_layer import Linear, magnitude_of
from octavo.parts.weight_adapter import WeightAdapter
from octavo.parts.weight_slots import Role, Shard
from tests.golden import case_named, write_model

SEGMENTS = {"q": 12, "k": 6, "v": 6}
BY_HEADS = [Shard(rows=((0, 6), (12, 15), (18, 21))), Shard(rows=((6, 12), (15, 18), (21, 24)))]
BY_INPUTS = [Shard(columns=((0, 4),)), Shard(columns=((4, 10),))]


def whole_numbers(*shape: int) -> Tensor:
    """So that sums are exact."""
    return torch.randint(-8, 9, shape).float()


def added(adapter: WeightAdapter, shape: tuple[int, ...]) -> Tensor:
    """What matrices of low rank add to a weight."""
    total = torch.zeros(shape)
    for part in adapter.low_rank:
        total[part.first : part.first + len(part.b)] += part.b @ part.a
    return total


def shares(adapter: WeightAdapter, slot: Slot, shards: list[Shard], is_table: bool = False) -> list[WeightAdapter]:
    last = len(shards) - 1
    return [share_of_rank(adapter, replace(slot, shard=s), is_table, i == 0, i == last) for i, s in enumerate(shards)]


@pytest.mark.parametrize("shards", [BY_HEADS, BY_INPUTS], ids=["outputs", "inputs"])
def test_low_rank_of_segments_and_of_the_whole(shards: list[Shard]) -> None:
    slot = Slot((24, 10), SEGMENTS, Role.MULTIPLIED)
    firsts = [(0, 24), (0, 12), (12, 6), (18, 6), (3, 1), (14, 8)]
    adapter = WeightAdapter([LowRank(f, whole_numbers(4, 10), whole_numbers(n, 4)) for f, n in firsts])
    want = added(adapter, slot.shape)
    for shard, share in zip(shards, shares(adapter, slot, shards), strict=True):
        assert added(share, shard.shape_of(slot.shape)).equal(shard.of(want))
        assert len(share.low_rank) <= len(firsts)
    fused = shares(WeightAdapter(adapter.low_rank[:1]), slot, shards)
    assert [part.first for share in fused for part in share.low_rank] == [0, 0]


def test_biases_and_lengths_go_with_outputs_and_to_the_first_of_those_that_are_summed() -> None:
    slot, nan = Slot((24, 10), SEGMENTS, Role.MULTIPLIED), float("nan")
    own = torch.cat([whole_numbers(12), torch.full((12,), nan)])
    adapter = WeightAdapter(lengths=own, bias=own + 1, added_bias=whole_numbers(24))
    for shard, share in zip(BY_HEADS, shares(adapter, slot, BY_HEADS), strict=True):
        for got, want in zip(
            (share.lengths, share.bias, share.added_bias), (own, own + 1, adapter.added_bias), strict=True
        ):
            assert got is not None
            assert want is not None
            torch.testing.assert_close(got, shard.of(want), rtol=0, atol=0, equal_nan=True)
    first, second = shares(replace(adapter, lengths=None, magnitude=own), slot, BY_INPUTS)
    assert first.bias is adapter.bias
    assert first.added_bias is adapter.added_bias
    assert second.bias is None
    assert second.added_bias is None
    assert first.magnitude is second.magnitude is own


@pytest.mark.parametrize("is_table", [False, True])
def test_more_tokens_than_the_model_has_are_the_last_ranks(is_table: bool) -> None:
    slot, weight = Slot((24, 10), {}, Role.HEAD), whole_numbers(27, 10)
    shards = [Shard(rows=((0, 16),)), Shard(rows=((16, 24),))]
    adapter = WeightAdapter(
        [LowRank(0, whole_numbers(2, 10), whole_numbers(27, 2))], weight=weight, bias=whole_numbers(27)
    )
    first, last = shares(replace(adapter, bias=None) if is_table else adapter, slot, shards, is_table)
    assert first.weight is not None
    assert last.weight is not None
    assert torch.cat([first.weight, last.weight]).equal(weight)
    assert first.more_rows == last.more_rows == 3
    assert [len(part.b) for share in (first, last) for part in share.low_rank] == [16, 11]
    if not is_table:
        assert first.bias is not None
        assert last.bias is not None
        assert adapter.bias is not None
        assert torch.cat([first.bias, last.bias]).equal(adapter.bias)


def loaded_case(name: str, folder: Path, **options: Any) -> LoadedModel:
    args = EngineArgs(
        model=str(write_model(case_named(name), folder)), skip_tokenizer_init=True, enable_lora=True, **options
    )
    return load_model(args)


OPTIONS = [{"dtype": "float32"}, {"ops": "torch"}, {"quantization": "int8"}, {"dtype": "bfloat16"}]


@pytest.mark.parametrize("options", OPTIONS if runnable() else OPTIONS[1:2], ids=str)
@pytest.mark.parametrize(
    "name", ["GraniteMoeForCausalLM--1b-a400m", "GPT2LMHeadModel--gpt2", "LlamaForCausalLM--gqa-tied"]
)
def test_lengths_of_whole_rows_are_found_where_a_rank_has_some_columns(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    loaded = loaded_case(name, tmp_path, **options)
    linears = {path: m for path, m in loaded.model.named_modules() if isinstance(m, Linear) and path != "head"}
    some = dict([*linears.items()][1::3])
    weights, want = dict[str, WeightAdapter](), dict[str, Tensor]()
    for path, linear in some.items():
        low_rank = [LowRank(0, torch.randn(2, linear.inputs), torch.randn(linear.outputs, 2))]
        weights[path] = WeightAdapter(low_rank, lengths=torch.rand(linear.outputs) + 1)
        assert linear._packed is not None
        want[path] = magnitude_of(linear._packed, linear.outputs, weights[path])
        half = linear.inputs // 2
        loaded.places[f"{path}.weight"] = replace(
            loaded.places[f"{path}.weight"], shard=Shard(columns=((half, linear.inputs),))
        )
    found = with_magnitudes(weights, loaded)
    for path in weights:
        assert found[path].lengths is None
        assert found[path].magnitude is not None
        assert found[path].magnitude.equal(want[path])  # type: ignore[union-attr]


def test_lengths_of_a_tables_columns_are_found_where_a_rank_has_some_tokens(tmp_path: Path) -> None:
    loaded = loaded_case("LlamaForCausalLM--gqa-tied", tmp_path, dtype="float32")
    slot = loaded.places[f"{loaded.table}.weight"]
    tokens, width = slot.shape
    loaded.places[f"{loaded.table}.weight"] = replace(slot, shard=Shard(rows=((0, tokens // 2),)))
    table = loaded.model.tokens.of(torch.arange(tokens)).double()
    part = LowRank(0, torch.randn(2, width), torch.randn(tokens, 2))
    adapter = WeightAdapter([part], lengths=torch.rand(width) + 1)
    found = with_magnitudes({loaded.table: adapter}, loaded)[loaded.table]
    assert adapter.lengths is not None
    want = adapter.lengths / (table + (part.b @ part.a)).norm(dim=0)
    assert found.magnitude is not None
    torch.testing.assert_close(found.magnitude.double(), want, rtol=1e-5, atol=0)
    whole = replace(adapter, weight=torch.randn(tokens, width))
    found = with_magnitudes({loaded.table: whole}, loaded)[loaded.table]
    assert whole.weight is not None
    want = adapter.lengths / (whole.weight.double() + (part.b @ part.a)).norm(dim=0)
    assert found.magnitude is not None
    torch.testing.assert_close(found.magnitude.double(), want, rtol=1e-5, atol=0)
    by_rows = {"layers.0.mlp.down": WeightAdapter(lengths=torch.ones(3))}
    assert with_magnitudes(by_rows, loaded)["layers.0.mlp.down"].lengths is not None  # which needs no more than it has
