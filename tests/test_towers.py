"""What towers make of an item is the same to the last bit whatever other items they read with it, for every row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.media.feature import MediaFeature
from tests.golden import CASES, case_named, has_media, prompt_of, read_case
from tests.media.cases import load as load_processor
from tests.media.cases import media
from tests.test_golden import load
from tests.test_invariance import WAYS

WITH_MEDIA = [path for path in CASES if has_media(read_case(path))]
PARAMS = SamplingParams(temperature=0, max_tokens=4, logprobs=1, ignore_eos=True)


def features(case: dict[str, Any], folder: Path) -> list[list[MediaFeature]]:
    """The features of each of a case's prompts."""
    processor = load_processor(case, folder)
    return [processor(prompt["prompt_token_ids"], **media(prompt)).features for prompt in case["cases"]]


def compute(llm: LLM, items: list[MediaFeature]) -> list[Tensor]:
    """The rows of each item, read together, kind by kind."""
    runner = llm.engine.executor.runner
    rows: dict[int, Tensor] = {}
    with torch.inference_mode(), runner.backend.computing():
        for kind in {item.kind for item in items}:
            own = [i for i, item in enumerate(items) if item.kind == kind]
            data = [{name: torch.from_numpy(a.copy()) for name, a in items[i].data.items()} for i in own]
            rows |= dict(zip(own, runner.model.media(kind, data), strict=True))
    return [rows[i] for i in range(len(items))]


@pytest.mark.parametrize("way", ["native", "torch", "bfloat16"])
@pytest.mark.parametrize("path", WITH_MEDIA, ids=lambda p: p.stem)
def test_items_do_not_see_each_other(path: Path, way: str, tmp_path: Path) -> None:
    case = read_case(path)
    items = [item for prompt in features(case, tmp_path) for item in prompt]
    llm = load(case, tmp_path, **WAYS[way])
    alone = [compute(llm, [item])[0] for item in items]
    assert all(len(rows) == item.num_rows or item.cross_rows for rows, item in zip(alone, items, strict=True))
    for chosen in (items, items[::-1], items * 3):
        expected = [alone[next(i for i, item in enumerate(items) if item is one)] for one in chosen]
        assert all(torch.equal(got, want) for got, want in zip(compute(llm, chosen), expected, strict=True))


def as_rows(item: MediaFeature, rows: Tensor, given: Any) -> dict[str, Any]:
    """An item as a prompt has it whose rows were computed elsewhere."""
    kind, grid = item.kind, f"{item.kind}_grid_thw"
    if grid in item.data:
        return {f"{kind}_embeds": rows, grid: torch.from_numpy(item.data[grid].copy()).view(1, 3)}
    sizes = {"image_sizes": [[given.height, given.width]]} if kind == "image" else {}
    return {f"{kind}_embeds": rows, **sizes}


@pytest.mark.parametrize("path", WITH_MEDIA, ids=lambda p: p.stem)
def test_rows_in_place_of_media_are_answered_alike(path: Path, tmp_path: Path) -> None:
    case = read_case(path)
    embeds = load_processor(case, tmp_path).embeds
    prompts = [prompt for prompt in case["cases"] if any(prompt.get(f"{kind}s") for kind in embeds)]
    if not prompts or "output_token_ids" not in prompts[0]:
        pytest.skip("takes the media themselves only")
    llm = load(case, tmp_path)
    for prompt, items in zip(prompts, features({**case, "cases": prompts}, tmp_path), strict=True):
        data = prompt_of(prompt)["multi_modal_data"]
        for kind in embeds & data.keys():
            own = [item for item in items if item.kind == kind]
            data[kind] = [as_rows(*each) for each in zip(own, compute(llm, own), data[kind], strict=True)]
        both = [prompt_of(prompt), {**prompt_of(prompt), "multi_modal_data": data}]
        first, second = llm.generate(both, PARAMS, use_tqdm=False)
        assert first.prompt_token_ids == second.prompt_token_ids
        assert first.outputs[0].token_ids == second.outputs[0].token_ids
        assert first.outputs[0].logprobs == second.outputs[0].logprobs


def test_placeholders_need_not_be_in_the_token_table(tmp_path: Path) -> None:
    case = case_named("LlavaForConditionalGeneration--1.5-7b")
    own, other = case["config"]["image_token_index"], 5000
    moved = {**case, "config": {**case["config"], "image_token_index": other}, "cases": []}
    for of in case["cases"]:
        ids = {key: [other if i == own else i for i in of[key]] for key in ("prompt_token_ids", "expanded_token_ids")}
        moved["cases"].append({**of, **ids})
    llm = load(moved, tmp_path)
    params = [SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)] * len(case["cases"])
    outputs = llm.generate([prompt_of(of) for of in moved["cases"]], params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs] == [of["output_token_ids"][:4] for of in case["cases"]]
    with pytest.raises(InvalidRequestError, match="holds 5000"):
        llm.generate({"prompt_token_ids": [3, other]}, params[0], use_tqdm=False)
