"""Prompts with media, checked at the boundary: what crosses to the engine, and what is refused."""

import importlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from octavo.errors import CheckpointError, ConfigError, InvalidRequestError
from octavo.media.feature import unpack
from octavo.media.model_media import MediaInfo, ModelMedia, describe_media
from octavo.media.processor import Processor
from octavo.params import PoolingParams, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt
from octavo.text.inputs import InputChecker
from tests.media.cases import CASES, load, media, path_of, read_case

PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8))
PARAMS = SamplingParams(max_tokens=4)


def info_of(processor: Processor, **changes: Any) -> MediaInfo:
    given: dict[str, Any] = {"limits": {}, "options": {}, "io_options": {}, **changes}
    return describe_media(type(processor), processor.files, **given)


def checker_of(name: str, folder: Path, length: int = 2000, **changes: Any) -> tuple[InputChecker, Processor]:
    """A checker of the case's model, whose media have crossed to another process, and the processor itself."""
    processor = load(read_case(path_of(name)), folder)
    crossed = msgspec.msgpack.decode(msgspec.msgpack.encode(info_of(processor, **changes)), type=MediaInfo)
    tokenizer = processor.vocabulary.tokenizer
    return InputChecker(tokenizer, 1000, length, 20, media=ModelMedia(crossed, tokenizer)), processor


def as_data(case: dict[str, Any]) -> dict[str, Any]:
    return {kind[:-1]: items for kind, items in media(case).items() if items}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_the_engine_gets_is_what_the_processor_made(path: Path, tmp_path: Path) -> None:
    checker, processor = checker_of(path.stem, tmp_path)
    for case in read_case(path)["cases"]:
        given = as_data(case)
        if "audio" in given:
            given["audio"] = [(sound.samples, sound.rate) for sound in given["audio"]]
        prompt = {"prompt_token_ids": case["prompt_token_ids"], "multi_modal_data": given}
        checked = checker.prompt(prompt, PARAMS)
        crossed = msgspec.msgpack.decode(msgspec.msgpack.encode(checked), type=CheckedPrompt)
        want = processor(case["prompt_token_ids"], **media(case))
        assert crossed.token_ids == want.token_ids
        assert len(crossed.features) == len(want.features)
        for feature, made in zip(crossed.features, want.features, strict=True):
            assert (feature.kind, feature.digest, feature.visible) == (made.kind, made.digest, made.visible)
            assert feature.takes == (None if made.takes is None else bytes(made.takes))
            if made.visible is None:
                assert (feature.offset, feature.length) == (made.offset, made.length)
            else:
                assert feature.offset is None
                assert feature.length == made.cross_rows > 0
            assert isinstance(feature.data, bytes)
            data = unpack(feature.data)
            assert data.keys() == made.data.keys()
            for name, array in data.items():
                np.testing.assert_array_equal(array, made.data[name])
        if want.positions is None:
            assert crossed.positions is None
        else:
            assert crossed.positions is not None
            values = np.frombuffer(crossed.positions.data, np.int64).reshape(crossed.positions.axes, -1)
            np.testing.assert_array_equal(values, want.positions)


def test_text_is_tokenized_by_the_familys_rule(tmp_path: Path) -> None:
    checker, processor = checker_of("LlavaForConditionalGeneration--1.5", tmp_path)
    checked = checker.prompt({"prompt": "a <image> b", "multi_modal_data": {"image": PICTURE}}, PARAMS)
    assert checked.text == "a <image> b"
    assert checked.token_ids.count(processor.token("image")) == 16
    assert checked.token_ids[0] == 1
    bare = {"prompt": "a <image> b", "multi_modal_data": {"image": PICTURE}, "add_special_tokens": False}
    assert checker.prompt(bare, PARAMS).token_ids == checked.token_ids[1:]


@pytest.mark.parametrize("name", ["MolmoForCausalLM--molmo-7b-d", "LlavaForConditionalGeneration--1.5-7b"])
def test_text_alone_is_tokenized_by_the_same_rule(name: str, tmp_path: Path) -> None:
    """Molmo's begins with a token and a space, with a picture or without."""
    for limits in ({}, {"image": 0}):
        checker, _ = checker_of(name, tmp_path, limits=limits)
        for case in read_case(path_of(name))["cases"]:
            if not any(media(case).values()):
                assert checker.prompt(case["prompt"], PARAMS).token_ids == case["prompt_token_ids"]


def test_a_prefix_that_sees_both_ways_does_so_without_a_picture(tmp_path: Path) -> None:
    checker, _ = checker_of("PaliGemma", tmp_path)
    assert checker.prompt([2, 30, 40], PARAMS).both_ways == [(0, 3)]
    checked = checker.prompt({"prompt_token_ids": [2, 30, 40], "multi_modal_data": {"image": PICTURE}}, PARAMS)
    assert checked.both_ways == [(0, len(checked.token_ids))]
    closed, _ = checker_of("PaliGemma", tmp_path, limits={"image": 0})
    assert closed.prompt([2, 30, 40], PARAMS).both_ways == [(0, 3)]


def prompt(data: Any = None, **more: Any) -> dict[str, Any]:
    return {"prompt": "<image> what?", "multi_modal_data": {"image": PICTURE} if data is None else data, **more}


@pytest.mark.parametrize(
    ("given", "params", "says"),
    [
        (prompt({"video": np.zeros((2, 8, 8, 3), np.uint8)}), PARAMS, "LLaVA takes no video"),
        (prompt({"images": PICTURE}), PARAMS, "no kind 'images'. Did you mean image"),
        (prompt({"image": [PICTURE, PICTURE]}), PARAMS, "2 image items; limit_mm_per_prompt allows 1"),
        (prompt({"image": b"no picture"}), PARAMS, "image"),
        (prompt([PICTURE]), PARAMS, "must be a dict"),
        (prompt(prompt="none"), PARAMS, "0 places for image items"),
        (prompt(mm_processor_kwargs={"num_crops": 4}), PARAMS, "no mm_processor_kwargs 'num_crops'"),
        (prompt(mm_processor_kwargs=[1]), PARAMS, "must be a dict"),
        (prompt(multi_modal_uuids={"image": ["a", "b"]}), PARAMS, "another number of image items"),
        (prompt(multi_modal_uuids=3), PARAMS, "another number"),
        (prompt(), SamplingParams(truncate_prompt_tokens=8), "truncate_prompt_tokens would cut"),
        (prompt(), PoolingParams(truncate_prompt_tokens=-1), "truncate_prompt_tokens would cut"),
        (prompt(prompt="<image>" + "x" * 90), PARAMS, "maximum context length is 100 tokens.*prompt has"),
        ({"multi_modal_data": {"image": PICTURE}}, PARAMS, "needs prompt or prompt_token_ids"),
        ({"prompt_token_ids": [5000], "multi_modal_data": {"image": PICTURE}}, PARAMS, "5000, outside"),
    ],
)
def test_what_is_refused(given: dict[str, Any], params: Any, says: str, tmp_path: Path) -> None:
    checker, _ = checker_of("LlavaForConditionalGeneration--1.5", tmp_path, 100, limits={"image": 1})
    with pytest.raises(InvalidRequestError, match=says):
        checker.prompt(given, params)
    checker.prompt(prompt(multi_modal_uuids={"image": "a"}), PARAMS)


def test_too_many_items_are_refused_before_any_is_decoded(tmp_path: Path) -> None:
    checker, _ = checker_of("FuyuForCausalLM", tmp_path)
    with pytest.raises(InvalidRequestError, match="2 image items; Fuyu takes 1"):
        checker.prompt(prompt({"image": [b"no picture", b"neither"]}), PARAMS)


def test_a_closed_model_says_so_and_serves_text(tmp_path: Path) -> None:
    checker, _ = checker_of("LlavaForConditionalGeneration--1.5", tmp_path, limits={"image": 0})
    assert checker.prompt("text", PARAMS).features == []
    with pytest.raises(InvalidRequestError, match="limit_mm_per_prompt allows 0"):
        checker.prompt(prompt(), PARAMS)
    assert checker.prompt({"prompt": "text", "multi_modal_data": {"image": None}}, PARAMS).features == []


def test_without_a_tokenizer_media_say_that_they_need_it(tmp_path: Path) -> None:
    processor = load(read_case(path_of("FuyuForCausalLM")), tmp_path)
    checker = InputChecker(None, 1000, 500, 20, media=ModelMedia(info_of(processor)))
    assert checker.prompt([4, 5], PARAMS).token_ids == [4, 5]
    with pytest.raises(InvalidRequestError, match="tokenizer"):
        checker.prompt({"prompt_token_ids": [4, 5], "multi_modal_data": {"image": PICTURE}}, PARAMS)


def test_settings_of_all_prompts_and_of_one(tmp_path: Path) -> None:
    name, ids = "Qwen2VLForConditionalGeneration--7b", None
    ids = read_case(path_of(name))["cases"][0]["prompt_token_ids"]
    least = {"min_pixels": 28 * 28, "max_pixels": 28 * 28}
    plain, _ = checker_of(name, tmp_path)
    small, _ = checker_of(name, tmp_path, options=least)
    given = {"prompt_token_ids": ids, "multi_modal_data": {"image": PICTURE}}
    lengths = [len(c.prompt(given, PARAMS).token_ids) for c in (plain, small)]
    assert lengths[1] < lengths[0]
    assert len(plain.prompt({**given, "mm_processor_kwargs": least}, PARAMS).token_ids) == lengths[1]
    with pytest.raises(ConfigError, match="num_crops"):
        checker_of(name, tmp_path, options={"num_crops": 3})


def test_only_processors_are_made_of_a_name(tmp_path: Path) -> None:
    made = info_of(load(read_case(path_of("FuyuForCausalLM")), tmp_path))
    module, _, name = made.processor.partition(":")
    assert getattr(importlib.import_module(module), name).family == "Fuyu"
    with pytest.raises(CheckpointError, match="no processor"):
        ModelMedia(msgspec.structs.replace(made, processor="os:system"))
