"""Conversations with media, by published chat templates: parts where a template shows them, marks where it does not."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from octavo.errors import InvalidRequestError
from octavo.media.fetch import FetchPolicy, MediaFetcher
from octavo.params import SamplingParams
from octavo.text.chat_prompt import chat_prompt
from octavo.text.inputs import InputChecker
from octavo.text.media_chat import media_chat_prompt
from octavo.text.template_files import read_templates
from tests.media.cases import CASES, load, path_of, read_case
from tests.media.test_hostile import wav
from tests.text.test_media_prompts import checker_of, info_of

PARAMS = SamplingParams(max_tokens=4)
PICTURE = Image.fromarray(np.random.default_rng(5).integers(0, 256, (30, 40, 3), dtype=np.uint8))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ITEMS: dict[str, Any] = {
    "image": {"type": "image_pil", "image_pil": PICTURE},
    "video": {"type": "video", "video": np.zeros((2, 30, 40, 3), np.uint8)},
    "audio": {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(9000)).decode(), "format": "wav"}},
}


def png_url() -> str:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def prompt_of(
    checker: InputChecker,
    messages: list[dict[str, Any]],
    template: str | None = None,
    fetcher: MediaFetcher | None = None,
    **more: Any,
) -> Any:
    assert checker.tokenizer is not None
    fetcher = fetcher or MediaFetcher()
    return media_chat_prompt(checker.tokenizer, messages, checker.media, fetcher, template=template, **more)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_row_with_its_own_template_and_with_one_for_text(path: Path, tmp_path: Path) -> None:
    checker, processor = checker_of(path.stem, tmp_path, 4000)
    if checker.tokenizer is None:
        pytest.skip("its tokenizer is of another format")
    published = read_templates(tmp_path, {})
    for template in [*published.values(), CHATML]:
        for kind, most in processor.takes.items():
            items = [ITEMS[kind]] * (1 if most == 1 else 2)
            talk = [
                {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"},
                user({"type": "text", "text": "What?"}, items[0]),
            ]  # fmt: skip
            if len(items) > 1:
                talk += [{"role": "assistant", "content": "A thing."}, user(items[1], {"type": "text", "text": "And?"})]
            prompt = prompt_of(checker, talk, template)
            for text in ("Hello", "Hi!", "What?"):
                assert text in prompt["prompt"]
            if mark := processor.mark(kind):
                assert prompt["prompt"].count(mark) == 1 if "1" in mark else len(items)
            checked = checker.prompt(prompt, PARAMS)
            assert [f.kind for f in checked.features] == [kind] * len(items)


def test_parts_go_where_the_template_puts_them(tmp_path: Path) -> None:
    checker, _ = checker_of("Qwen2VLForConditionalGeneration--7b", tmp_path)
    (template,) = read_templates(tmp_path, {}).values()
    message = user({"type": "text", "text": "See "}, ITEMS["image"], {"type": "text", "text": " there."})
    text = prompt_of(checker, [message], template)["prompt"]
    assert "See <|vision_start|><|image_pad|><|vision_end|> there." in text
    plain = prompt_of(checker, [message], CHATML)["prompt"]
    assert "user\n<|vision_start|><|image_pad|><|vision_end|>\nSee \n there.<|im_end|>" in plain


def test_where_media_may_come_from(tmp_path: Path) -> None:
    checker, _ = checker_of("LlavaForConditionalGeneration--1.5", tmp_path)
    PICTURE.save(tmp_path / "a b.png")
    fetcher = MediaFetcher(FetchPolicy(folder=tmp_path))
    rows = np.ones((16, 8), np.float32)
    for part in (
        {"type": "image_url", "image_url": {"url": png_url()}},
        {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/a%20b.png"}},
        {"type": "image", "image": PICTURE},
        {"type": "image_embeds", "image_embeds": rows},
    ):
        prompt = prompt_of(checker, [user(part, "what?")], CHATML, fetcher=fetcher)
        assert len(checker.prompt(prompt, PARAMS).features) == 1


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (user({"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}), "image 1 leads to"),
        (user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "image 1 is a file"),
        (user(ITEMS["video"]), "LLaVA takes no video"),
        (user(ITEMS["audio"]), "LLaVA takes no audio"),
        (user(ITEMS["image"], ITEMS["image"], ITEMS["image"]), "3 image items; limit_mm_per_prompt allows 2"),
        (user({"type": "image_url"}), "image 1 has nothing in it"),
        (user({"type": "file", "file": {}}), "text and image, video, audio parts are supported"),
        ("Hello", "needs a role"),
        ({"content": []}, "needs a role"),
    ],
)
def test_what_is_refused(message: Any, says: str, tmp_path: Path) -> None:
    checker, _ = checker_of("LlavaForConditionalGeneration--1.5", tmp_path, limits={"image": 2})
    with pytest.raises(InvalidRequestError, match=says):
        prompt_of(checker, [message], CHATML)


def test_models_of_text_refuse_media_as_before(tmp_path: Path) -> None:
    tokenizer = load(read_case(path_of("LlavaForConditionalGeneration--1.5")), tmp_path).vocabulary.tokenizer
    assert tokenizer is not None
    with pytest.raises(InvalidRequestError, match="message 0: only text parts are supported"):
        chat_prompt(tokenizer, [user(ITEMS["image"])], template=CHATML)


def test_an_answer_that_is_continued_ends_in_text(tmp_path: Path) -> None:
    checker, _ = checker_of("LlavaForConditionalGeneration--1.5", tmp_path)
    options = {"add_generation_prompt": False, "continue_final_message": True}
    text = prompt_of(checker, [user(ITEMS["image"], "It is")], CHATML, **options)["prompt"]
    assert text.endswith("<image>\nIt is")
    with pytest.raises(InvalidRequestError, match="must end in text"):
        prompt_of(checker, [user("It is", ITEMS["image"])], CHATML, **options)


def test_what_a_model_takes_is_known_outside(tmp_path: Path) -> None:
    for name, takes, embeds in (
        ("Qwen2VLForConditionalGeneration--7b", {"image": None, "video": None}, ["image", "video"]),
        ("FuyuForCausalLM", {"image": 1}, []),
        ("UltravoxModel", {"audio": None}, ["audio"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        info = info_of(load(read_case(path_of(name)), folder), limits={"video": 1})
        assert info.takes == {**takes, **({"video": 1} if "video" in takes else {})}
        assert info.embeds == embeds
