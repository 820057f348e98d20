"""A tiny LLaVA by way of LLM: one picture in all ways in which it may be given, and the model without its tower."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from octavo import LLM, SamplingParams
from octavo.config import EngineArgs
from octavo.errors import ConfigError, InvalidRequestError
from octavo.media.feature import unpack
from octavo.params import BeamSearchParams
from tests.golden import CASES, case_named, has_media, prompt_of, read_case, write_model

CASE = "LlavaForConditionalGeneration--1.5-7b"
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=2)
TEXT = "USER: <image>\nWhat is this? ASSISTANT:"
OPTIONS: dict[str, Any] = {"dtype": "float32", "kv_cache_memory": "32MiB", "max_model_len": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llava")
    write_model(case_named(CASE), made / "model")
    picture().save(made / "photo.png")
    return made


@pytest.fixture(scope="module")
def llava(folder: Path) -> LLM:
    return LLM(str(folder / "model"), allowed_local_media_path=str(folder), **OPTIONS)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def png() -> bytes:
    file = io.BytesIO()
    picture().save(file, "PNG")
    return file.getvalue()


def bits(output: Any) -> Any:
    answer = output.outputs[0]
    return answer.token_ids, [{t: e.logprob for t, e in step.items()} for step in answer.logprobs]


def ask(llm: LLM, *pictures: Any, text: str = TEXT) -> Any:
    data = {"image": list(pictures) if len(pictures) != 1 else pictures[0]}
    return bits(llm.generate({"prompt": text, "multi_modal_data": data}, PARAMS, use_tqdm=False)[0])


def test_one_picture_in_all_its_forms(llava: LLM, folder: Path) -> None:
    want = ask(llava, picture())
    assert ask(llava, picture(1)) != want
    for same in (np.asarray(picture()), str(folder / "photo.png"), folder / "photo.png", png(), [picture()]):
        assert ask(llava, same) == want
    parts = [
        {"type": "image_pil", "image_pil": picture()},
        {"type": "image", "image": picture()},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png()).decode()}"}},
        {"type": "image_url", "image_url": {"url": (folder / "photo.png").as_uri()}},
    ]
    talks = [[{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}] for part in parts]
    answers = [bits(output) for output in llava.chat(talks, PARAMS, use_tqdm=False)]
    assert answers == answers[:1] * len(parts)
    with pytest.raises(InvalidRequestError, match="prompt 1: image"):
        llava.generate([TEXT, {"prompt": TEXT, "multi_modal_data": {"image": b"none"}}], PARAMS, use_tqdm=False)
    assert not llava.requests.has_work


def test_what_the_tower_gives_may_be_given(llava: LLM) -> None:
    import torch

    checked = llava.engine.checker.prompt({"prompt": TEXT, "multi_modal_data": {"image": picture()}}, PARAMS)
    tower = llava.engine.executor.runner.model.media  # type: ignore[attr-defined]
    data = {name: torch.from_numpy(array.copy()) for name, array in unpack(bytes(checked.features[0].data)).items()}
    (rows,) = tower("image", [data])
    want = ask(llava, picture())
    assert ask(llava, {"image_embeds": rows}) == want
    assert ask(llava, rows[None]) == want
    part = {"type": "image_embeds", "image_embeds": rows}
    talk = [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]
    seen = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What is this?"}]}
    ]
    both = llava.chat([talk, seen], PARAMS, use_tqdm=False)
    assert bits(both[0]) == bits(both[1])
    with pytest.raises(InvalidRequestError, match="image has embeddings of 5 values, and this model's have 64"):
        ask(llava, {"image_embeds": rows[:, :5]})
    assert ask(llava, picture()) == want


def test_beams_keep_their_picture(llava: LLM) -> None:
    def best(seed: int) -> Any:
        prompt = {"prompt": TEXT, "multi_modal_data": {"image": picture(seed)}}
        return llava.beam_search(prompt, BeamSearchParams(beam_width=1, max_tokens=6, ignore_eos=True))[0].sequences[0]

    beam = best(0)
    count = len(beam.tokens) - 6
    assert beam.tokens[count:] == ask(llava, picture())[0]
    assert best(1).tokens != beam.tokens


def test_without_its_tower_it_answers_texts(llava: LLM, folder: Path) -> None:
    closed = LLM(str(folder / "model"), limit_mm_per_prompt={"image": 0}, **OPTIONS)
    assert closed.engine.executor.runner.model.media is None  # type: ignore[attr-defined]
    texts = ["USER: Hello ASSISTANT:", "What"]
    answers = [[bits(o) for o in llm.generate(texts, PARAMS, use_tqdm=False)] for llm in (llava, closed)]
    assert answers[0] == answers[1]
    with pytest.raises(InvalidRequestError, match="limit_mm_per_prompt allows 0"):
        ask(closed, picture())


def test_domains_and_limits_in_all_their_spellings() -> None:
    for domains in (["a.org", "*.b.org"], "a.org,*.b.org", ["a.org, *.b.org"]):
        assert EngineArgs(allowed_media_domains=domains).allowed_media_domains == ["a.org", "*.b.org"]  # type: ignore[arg-type]
    for limits in (
        {"image": 2, "video": 0},
        '{"image": 2, "video": 0}',
        "image=2,video=0",
        {"image": {"count": 2}, "video": 0},
    ):
        assert EngineArgs(limit_mm_per_prompt=limits).media_limits == {"image": 2, "video": 0}  # type: ignore[arg-type]


WITH_MEDIA = [path for path in CASES if has_media(read_case(path))]


@pytest.mark.parametrize("path", WITH_MEDIA, ids=lambda path: path.stem)
def test_every_row_answers_texts_without_its_tower(path: Path, tmp_path: Path) -> None:
    """As the reference does where its case has such a prompt, and as the whole model where it has none."""
    case = read_case(path)
    write_model(case, tmp_path)
    kinds = {"image": 0, "video": 0, "audio": 0}
    task = "generate" if "output_token_ids" in case["cases"][0] else "embedding"
    options = {**OPTIONS, "max_model_len": case.get("max_model_len", 256), "task": task}
    if case["row"] == "WhisperForConditionalGeneration":
        with pytest.raises(ConfigError, match="says nothing without one"):
            LLM(str(tmp_path), limit_mm_per_prompt=kinds, **options)
        return
    closed = LLM(str(tmp_path), limit_mm_per_prompt=kinds, **options)
    assert closed.engine.executor.runner.model.media is None  # type: ignore[attr-defined]
    texts = [c for c in case["cases"] if not any(c.get(key) for key in ("images", "videos", "audios"))]
    for want in texts if task == "generate" else []:
        params = PARAMS.clone()
        params.max_tokens = len(want["output_token_ids"])
        (output,) = closed.generate(prompt_of(want), params, use_tqdm=False)
        assert output.outputs[0].token_ids == want["output_token_ids"]
    if not texts or task == "embedding":
        whole, prompt = LLM(str(tmp_path), **options), {"prompt_token_ids": [5, 6, 7, 8]}
        if task == "generate":
            answers = [bits(llm.generate(prompt, PARAMS, use_tqdm=False)[0]) for llm in (whole, closed)]
        else:
            answers = [llm.embed(prompt, use_tqdm=False)[0].outputs.embedding for llm in (whole, closed)]
        assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit_mm_per_prompt": {"picture": 1}}, "no kind 'picture'"),
        ({"limit_mm_per_prompt": {"image": -1}}, "0 or more"),
        ({"limit_mm_per_prompt": {"image": "one"}}, "0 or more"),
        ({"limit_mm_per_prompt": "image"}, "must be a dict"),
        ({"limit_mm_per_prompt": 3}, "must be a dict"),
        ({"mm_processor_kwargs": {"num_crops": 4}}, "num_crops"),
        ({"media_io_kwargs": {"video": {"frames": 4}}}, "frames"),
        ({"media_io_kwargs": {"video": 4}}, "must be a dict"),
        ({"allowed_local_media_path": "/no/such/folder"}, "no folder"),
    ],
)
def test_options_are_checked(folder: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LLM(str(folder / "model"), **OPTIONS, **options)
    assert LLM(str(folder / "model"), limit_mm_per_prompt='{"image": {"count": 2}}', **OPTIONS).engine.info.media
