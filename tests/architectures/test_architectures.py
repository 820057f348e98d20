"""What architecture files share: configs, rotary scalings, lengths; and how small they are."""

import math
from pathlib import Path

import pytest
import torch

import octavo.architectures
from octavo.architectures import Config
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import position_limit
from octavo.errors import CheckpointError


def test_missing_key_is_named() -> None:
    config = Config({"architectures": ["X"], "hidden_size": 8, "head_dim": None})
    assert config.hidden_size == 8
    assert config.get("head_dim", 4) == 4
    assert config.first("a", "hidden_size") == 8
    with pytest.raises(CheckpointError, match="num_layers"):
        _ = config.num_layers


def test_rotary_scalings() -> None:
    plain = make_rope(Config({}), 8).table.frequencies[0]
    assert plain.tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])
    linear = make_rope(Config({"rope_scaling": {"type": "linear", "factor": 4.0}}), 8)
    torch.testing.assert_close(linear.table.frequencies[0], plain / 4)
    new = make_rope(Config({"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}), 4)
    assert new.table.frequencies[0].tolist() == pytest.approx([1.0, 0.1])
    factors = make_rope(Config({"rope_scaling": {"rope_type": "factors", "factors": [1.0, 2.0, 4.0, 8.0]}}), 8)
    torch.testing.assert_close(factors.table.frequencies[0], plain / torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    yarn = make_rope(Config({"rope_scaling": scaling, "max_position_embeddings": 16384}), 64)
    plain = make_rope(Config({}), 64).table.frequencies[0]
    assert yarn.table.frequencies[0, 0] == plain[0]
    assert yarn.table.frequencies[0, -1] == pytest.approx(float(plain[-1]) / 4)
    assert yarn.table.scales[0] == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({}, None),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, 4096),
    ],
)
def test_position_limit(values: dict[str, object], limit: int | None) -> None:
    assert position_limit(Config(values)) == limit


def test_an_architecture_is_a_page() -> None:
    """A family that needs more is asking for a part. One with a tower has that to say too."""
    for path in Path(octavo.architectures.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= (250 if "MediaTower" in text or "GridTower" in text else 160), path.name
