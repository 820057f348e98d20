"""Models with towers, loaded for text alone."""

from pathlib import Path

import pytest

from octavo import SamplingParams
from tests.golden import case_named, prompt_of
from tests.test_golden import load


@pytest.mark.parametrize(
    "name",
    [
        "Blip2ForConditionalGeneration--opt-2.7b",
        "ChatGLMModel--glm-4v",
        "QWenLMHeadModel--qwen-vl",
        "MiniCPMV--minicpm-v-2",
    ],
)
def test_text_is_answered_without_the_tower(name: str, tmp_path: Path) -> None:
    case = case_named(name)
    llm = load(case, tmp_path, limit_mm_per_prompt={"image": 0})
    assert llm.engine.executor.runner.model.media is None
    text = case["cases"][-1]
    (output,) = llm.generate(prompt_of(text), SamplingParams(temperature=0, max_tokens=16, ignore_eos=True))
    assert output.outputs[0].token_ids == text["output_token_ids"]
