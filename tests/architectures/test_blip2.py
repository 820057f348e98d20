"""BLIP-2 beyond its golden cases."""

import pytest

from octavo.architectures import find_architecture
from octavo.errors import UnsupportedModelError
from tests.architectures.published import build
from tests.golden import case_named


@pytest.mark.parametrize("changed", [{"model_type": "t5"}, {"model_type": "llama"}])
def test_other_text_is_refused_by_name(changed: dict[str, str]) -> None:
    config = case_named("Blip2ForConditionalGeneration--opt-2.7b")["config"]
    with pytest.raises(UnsupportedModelError, match=f"BLIP-2 with {changed['model_type']} "):
        build(find_architecture(config["architectures"]), {**config, "text_config": changed})
