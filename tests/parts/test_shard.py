"""What one rank takes of a tensor."""

import torch
from torch import nn

from octavo.parts.weight_slots import Shard, shard_parameter, weight_slots


def test_a_shard_takes_ranges_of_rows_and_columns() -> None:
    tensor = torch.arange(24.0).view(4, 6)
    shard = Shard(rows=((3, 4), (0, 2)), columns=((1, 3), (5, 6)))
    assert shard.of(tensor).tolist() == [[19, 20, 23], [1, 2, 5], [7, 8, 11]]
    assert shard.shape_of((4, 6)) == (3, 3)
    assert Shard(rows=((1, 1),)).shape_of((4, 6, 2)) == (0, 6, 2)
    assert Shard().of(tensor).equal(tensor)


def test_a_parameter_of_a_split_part_keeps_its_whole_shape_in_the_slot() -> None:
    with torch.device("meta"):
        norm = nn.LayerNorm(8)
    shard_parameter(norm, "weight", Shard(rows=((4, 8),)))
    slots = weight_slots(norm)
    assert norm.weight.shape == (4,)
    assert slots["weight"].shape == (8,)
    assert slots["weight"].shard == Shard(rows=((4, 8),))
    assert slots["bias"].shard is None
