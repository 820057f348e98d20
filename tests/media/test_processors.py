"""What all processors do alike: places in a prompt, options, limits, rows instead of items, digests, bad files."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from octavo.errors import CheckpointError, InvalidRequestError
from octavo.media.feature import Embeddings, pack, unpack
from octavo.media.processor import Processor, ProcessorFiles
from octavo.media.processors.internvl import InternVLProcessor
from octavo.media.sounds import Sound
from octavo.text.template_files import ChatTemplates
from octavo.text.tokenizer import FastTokenizer
from tests.media.cases import CASES, load, media, path_of, read_case

ROWS = sorted({path.stem.split("--")[0] for path in CASES})


def some_picture(edge: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(edge).integers(0, 256, (edge, edge + 9, 3), dtype=np.uint8))


def first_with_media(case: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in case["cases"] if any(media(c).values()))


@pytest.mark.parametrize("row", ROWS)
def test_what_a_row_does_not_take_is_refused_by_name(row: str, tmp_path: Path) -> None:
    case = read_case(path_of(row))
    processor, ids = load(case, tmp_path), first_with_media(case)["prompt_token_ids"]
    items: dict[str, Any] = {
        "image": some_picture(), "video": np.zeros((2, 30, 30, 3), np.uint8),
        "audio": Sound(np.zeros(9000, np.float32), 16000),
    }  # fmt: skip
    for kind, item in items.items():
        if kind not in processor.takes:
            with pytest.raises(InvalidRequestError, match=f"{processor.family} takes no {kind}"):
                processor(ids, **{f"{kind}s": [item]})
        elif processor.takes[kind] == 1:
            with pytest.raises(InvalidRequestError, match=f"2 {kind} items; {processor.family} takes 1"):
                processor(ids, **{f"{kind}s": [item, item]})
        if kind in processor.takes and kind not in processor.embeds:
            with pytest.raises(InvalidRequestError, match="takes no embeddings"):
                processor(ids, **{f"{kind}s": [Embeddings(np.ones((2, 4), np.float32))]})
        if kind in processor.takes and processor.takes[kind] is None:
            with pytest.raises(InvalidRequestError, match=r"places for|too short"):
                processor(ids, **{f"{kind}s": [item] * 9})
            limited = load(case, tmp_path, limits={kind: 0})
            with pytest.raises(InvalidRequestError, match="limit_mm_per_prompt allows 0"):
                limited(ids, **{f"{kind}s": [item]})


@pytest.mark.parametrize("row", ROWS)
def test_text_alone_is_left_as_it_is(row: str, tmp_path: Path) -> None:
    processor = load(read_case(path_of(row)), tmp_path)
    assert processor([3, 5, 4]).token_ids == [3, 5, 4]
    assert processor([3, 5, 4]).features == []


@pytest.mark.parametrize("row", ROWS)
def test_features_are_where_they_say(row: str, tmp_path: Path) -> None:
    case = read_case(path_of(row))
    processor = load(case, tmp_path)
    for want in case["cases"]:
        processed = processor(want["prompt_token_ids"], **media(want))
        end = 0
        for feature in processed.features:
            assert end <= feature.offset
            end = feature.offset + feature.length
            assert end <= len(processed.token_ids)
            assert len(feature.digest) == 32
            if feature.takes is not None:
                assert len(feature.takes) == feature.length
                assert feature.takes[0]
                assert feature.takes[-1]
                assert not feature.takes.all()
            for array in feature.data.values():
                assert array.dtype in (np.float32, np.int64)
                assert np.isfinite(array).all()


@pytest.mark.parametrize("row", ROWS)
def test_rows_take_the_place_of_what_they_were_made_of(row: str, tmp_path: Path) -> None:
    """A prompt with an item's rows is the prompt with the item."""
    case = read_case(path_of(row))
    processor = load(case, tmp_path)
    for want in case["cases"]:
        given = media(want)
        if not any(given.values()) or not all(k[:-1] in processor.embeds for k, items in given.items() if items):
            continue
        whole = processor(want["prompt_token_ids"], **given)
        rows: dict[str, list[Any]] = {"images": [], "videos": [], "audios": []}
        for feature in whole.features:
            grid = feature.data.get(f"{feature.kind}_grid_thw", np.array([]))
            if row == "MiniCPMV":
                grid = np.array(given["images"][len(rows["images"])].size[::-1])
            values = np.full((feature.num_rows, 8), len(rows["images"]), np.float32)
            rows[f"{feature.kind}s"].append(Embeddings(values, tuple(map(int, grid))))
        again = processor(want["prompt_token_ids"], **rows)
        assert again.token_ids == whole.token_ids
        np.testing.assert_array_equal(again.positions, whole.positions)
        for one, other in zip(again.features, whole.features, strict=True):
            assert (one.kind, one.offset, one.length, one.num_rows) == (
                other.kind,
                other.offset,
                other.length,
                other.num_rows,
            )
            assert one.digest != other.digest
            assert len(one.data["embeddings"]) == one.num_rows


def test_digests_follow_content_and_processing(tmp_path: Path) -> None:
    case = read_case(path_of("InternVLChatModel--internvl2"))
    processor = load(case, tmp_path)
    lone, pair = case["cases"][0]["prompt_token_ids"], case["cases"][1]["prompt_token_ids"]
    a, b = some_picture(40), some_picture(41)

    def digests(ids: list[int], *pictures: Any, **options: Any) -> list[bytes]:
        return [f.digest for f in processor(ids, images=pictures, options=options).features]

    assert digests(lone, a) == digests(lone, a.copy())
    assert len({*digests(lone, a), *digests(lone, b), *digests(lone, a, max_dynamic_patch=2)}) == 3
    assert digests(lone, a, max_dynamic_patch=2) == digests(lone, a, max_dynamic_patch=2)
    assert digests(pair, a, b) == digests(pair, b, a)[::-1]
    pixels = np.asarray(a)
    square = Image.fromarray(pixels.reshape(pixels.shape[1], pixels.shape[0], 3))
    assert digests(lone, a) != digests(lone, square)


@pytest.mark.parametrize(
    ("row", "options", "says"),
    [
        ("Phi3VForCausalLM--phi", {"num_crop": 3}, "num_crop"),
        ("Phi3VForCausalLM--phi", {"num_crops": 10**9}, "Give 1 to 64"),
        ("Phi3VForCausalLM--phi", {"num_crops": 0}, "Give 1 to 64"),
        ("Phi3VForCausalLM--phi", {"num_crops": True}, "Give 1 to 64"),
        ("Phi3VForCausalLM--phi", {"num_crops": "4"}, "Give 1 to 64"),
        ("Idefics3ForConditionalGeneration", {"do_image_splitting": 1}, "False to True"),
        ("LlavaForConditionalGeneration--1.5", {"size": {}}, "it has none"),
        ("Qwen2VLForConditionalGeneration--7b", {"max_pixels": 1 << 40}, "max_pixels"),
    ],
)
def test_options_are_checked(row: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    case = read_case(path_of(row))
    want = first_with_media(case)
    with pytest.raises(InvalidRequestError, match=says):
        load(case, tmp_path)(want["prompt_token_ids"], **media(want), options=options)


def test_options_change_what_is_made(tmp_path: Path) -> None:
    for row, options, fewer in (
        ("Phi3VForCausalLM--phi", {"num_crops": 16}, False),
        ("InternVLChatModel--internvl2", {"max_dynamic_patch": 1}, True),
        ("Idefics3ForConditionalGeneration", {"do_image_splitting": False}, True),
        ("MiniCPMV--minicpm-v-2_6", {"use_image_id": False}, True),
        ("Qwen2VLForConditionalGeneration--7b", {"max_pixels": 28 * 28, "min_pixels": 28 * 28}, True),
        ("MolmoForCausalLM--molmo-7b-d", {"max_crops": 12}, False),
    ):
        case = read_case(path_of(row))
        want, processor = first_with_media(case), load(case, tmp_path / row)
        picture = [some_picture(90)]
        plain, changed = (processor(want["prompt_token_ids"], images=picture, options=o) for o in (None, options))
        assert (len(changed.token_ids) < len(plain.token_ids)) == fewer, row
        assert changed.features[0].digest != plain.features[0].digest


# Placeholders that are text


def merging_tokenizer(extra: list[str], merges: list[str]) -> FastTokenizer:
    """A byte-level tokenizer that joins what placeholders begin and end with to their neighbours."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(m.replace(" ", "") for m in merges)]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [tuple(m.split(" ")) for m in merges]))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in extra])
    return FastTokenizer(inner, {}, ChatTemplates({}))


def test_placeholders_whose_tokens_reach_into_the_text() -> None:
    tokenizer = merging_tokenizer(["<img>", "</img>", "<IMG_CONTEXT>"], ["> Ċ", "Ġ <", "Ġ< i", "g e", "x <"])
    config = read_case(path_of("InternVLChatModel--internvl2"))["config"]
    processor = InternVLProcessor(ProcessorFiles(config), tokenizer)
    for text in ("é <image>\nx<image> end", "<image><image>", "\n<image>\n\n<image>\n", "日本<image>語<image>"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        processed = processor(ids, images=[Image.new("RGB", (9, 9)), Image.new("RGB", (9, 9))])
        written = tokenizer.decode(processed.token_ids, skip_special_tokens=False)
        one = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
        assert written == text.replace("<image>", one)
    with pytest.raises(InvalidRequestError, match="0 places for image items, and 1 are given"):
        processor(tokenizer.encode("none", add_special_tokens=False), images=[some_picture()])


def test_numbered_placeholders_take_their_own_picture(tmp_path: Path) -> None:
    processor = load(read_case(path_of("Phi3VForCausalLM--phi")), tmp_path)
    encode: Any = processor.vocabulary.encode
    wide = Image.fromarray(np.zeros((40, 90, 3), np.uint8))
    tall = Image.fromarray(np.zeros((90, 40, 3), np.uint8))
    one, other = (
        processor(encode(t), images=[wide, tall]) for t in ("<|image_1|>a<|image_2|>", "<|image_2|>a<|image_1|>")
    )
    sizes = [[f.data["image_sizes"].tolist() for f in p.features] for p in (one, other)]
    assert sizes[0] == sizes[1][::-1]
    assert sizes[0][0] != sizes[0][1]
    for text in ("<|image_1|><|image_1|>", "<|image_2|><|image_3|>", "<|image_0|><|image_1|>", "<|image_1|>"):
        with pytest.raises(InvalidRequestError, match="places for image"):
            processor(encode(text), images=[wide, tall])


def test_paligemma_puts_bos_behind_the_picture(tmp_path: Path) -> None:
    processor = load(read_case(path_of("PaliGemma")), tmp_path)
    picture = [280] * 16
    for prompt, want in (
        ([2, 50, 51], [*picture, 2, 50, 51, 5]),
        ([50, 51], [*picture, 2, 50, 51, 5]),
        ([2, 280, 50], [*picture, 2, 50, 5]),
        ([2, 49, 280, 50], [49, *picture, 2, 50, 5]),
    ):
        assert processor(prompt, images=[some_picture()]).token_ids == want


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_bad_configurations_are_errors_that_name_the_family(row: str, tmp_path: Path) -> None:
    """Whatever one value of a checkpoint's files is replaced by: a CheckpointError, or what works or refuses."""
    case = read_case(path_of(row))
    want = first_with_media(case)
    for where in ("config", "preprocessor_config.json"):
        text = case["files"].get(where, "{}")
        original = case["config"] if where == "config" else json.loads(text) if isinstance(text, str) else text
        for key in original:
            if key in ("vocabulary_map", "architectures", "model_type", "auto_map"):
                continue
            for value in (None, 0, -1, "x", [], {}, 1 << 40):
                changed = {**original, key: value}
                other = (
                    {**case, "config": changed}
                    if where == "config"
                    else {**case, "files": {**case["files"], where: changed}}
                )
                with contextlib.suppress(CheckpointError, InvalidRequestError):
                    load(other, tmp_path)(want["prompt_token_ids"], **media(want))


def test_a_processor_without_its_tokenizer_says_so() -> None:
    config = read_case(path_of("InternVLChatModel--internvl2"))["config"]
    with pytest.raises(CheckpointError, match="<img>"):
        InternVLProcessor(ProcessorFiles(config))
    assert issubclass(InternVLProcessor, Processor)


@pytest.mark.parametrize("path", CASES, ids=[p.stem for p in CASES])
def test_a_prompt_as_text_gives_the_cases_tokens(path: Path, tmp_path: Path) -> None:
    case = read_case(path)
    if "tokenizer.json" not in case["files"]:
        pytest.skip("Mistral's tokenizer")
    processor = load(case, tmp_path)
    for want in case["cases"]:
        if "prompt" in want:
            assert processor.encode(want["prompt"]) == want["prompt_token_ids"]


@pytest.mark.parametrize("row", ROWS)
def test_marks_are_where_items_belong(row: str, tmp_path: Path) -> None:
    """Text with a mark for each item is a prompt for these items."""
    if row == "PixtralForConditionalGeneration":
        pytest.skip("Mistral's tokenizer")
    processor = load(read_case(path_of(row)), tmp_path)
    for kind, most in processor.takes.items():
        count = min(most or 2, 2)
        item: Any = {
            "image": Image.new("RGB", (30, 30)), "video": np.zeros((2, 30, 30, 3), np.uint8),
            "audio": Sound(np.zeros(9000, np.float32), 16000),
        }[kind]  # fmt: skip
        text = "\n".join(processor.mark(kind, n + 1) for n in range(count))
        processed = processor(processor.encode(f"{text}\nWhat?"), **{f"{kind}s": [item] * count})
        assert [f.kind for f in processed.features] == [kind] * count


def test_arrays_survive_as_bytes(tmp_path: Path) -> None:
    case = read_case(path_of("MllamaForConditionalGeneration--11b"))
    want = first_with_media(case)
    (feature,) = load(case, tmp_path)(want["prompt_token_ids"], **media(want)).features
    again = unpack(pack(feature.data))
    assert again.keys() == feature.data.keys()
    for name, array in feature.data.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


def test_glm4v_positions(tmp_path: Path) -> None:
    """Begin-of-image p, all patches p + 1, end-of-image p + 2, and on from there."""
    case = read_case(path_of("ChatGLMModel"))
    processed = load(case, tmp_path)([1, 259, 263, 0, 264, 50, 51], images=[some_picture()])
    assert processed.positions is not None
    assert processed.positions.tolist() == [[0, 1, 2, *[3] * 9, 4, 5, 6]]
    assert load(case, tmp_path)([1, 259, 50]).positions is None


@pytest.mark.parametrize(
    ("vision", "settings"),
    [
        ({"supported_aspect_ratios": [[1, 1], [2, 1], [1, 2]]}, {}),
        ({"supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 2], [2, 1], [3, 1], [4, 1]]}, {}),
        ({"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}, {}),
        ({}, {"max_image_tiles": 3}),
    ],
    ids=str,
)
def test_mllama_canvases_must_agree(vision: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    """The tower has learned rows by a canvas' number, which processor and config must count alike."""
    case = read_case(path_of("MllamaForConditionalGeneration--11b-vision"))
    config = {**case["config"], "vision_config": {**case["config"]["vision_config"], **vision}}
    with pytest.raises(CheckpointError, match="supported_aspect_ratios"):
        load({**case, "config": config}, tmp_path, settings)


def test_films_have_sizes_of_their_own(tmp_path: Path) -> None:
    """Where a folder has a file for them, as transformers writes it. A request's options count for both."""
    case = read_case(path_of("Qwen2VLForConditionalGeneration--7b"))
    film = next(c for c in case["cases"] if c.get("videos") and not c.get("images"))
    (tmp_path / "own").mkdir()
    sizes = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28}}
    (tmp_path / "own" / "video_preprocessor_config.json").write_text(json.dumps(sizes))
    plain, own = load(case, tmp_path / "plain"), load(case, tmp_path / "own")

    def grid(processor: Processor, kind: str, want: dict[str, Any], **options: int) -> list[int]:
        made = processor(want["prompt_token_ids"], **media(want), options=options)
        return made.features[0].data[f"{kind}_grid_thw"].tolist()

    assert grid(plain, "video", film) == [3, 4, 6]
    assert grid(own, "video", film) == [3, 2, 2]
    assert grid(own, "video", film, max_pixels=28 * 28 * 6) == [3, 4, 6]
    assert grid(own, "image", case["cases"][0]) == grid(plain, "image", case["cases"][0])


def test_whisper_refuses_what_it_would_not_hear(tmp_path: Path) -> None:
    whisper = load(read_case(path_of("WhisperForConditionalGeneration--tiny")), tmp_path)
    heard = whisper.mel.window // 2  # at half of its rate
    ids = [whisper.start]
    assert whisper(ids, audios=[Sound(np.zeros(heard, np.float32), whisper.mel.rate // 2)]).features
    with pytest.raises(InvalidRequestError, match=r"lasts \d+\.\d s, and Whisper hears \d+ s at once"):
        whisper(ids, audios=[Sound(np.zeros(heard + whisper.mel.rate, np.float32), whisper.mel.rate // 2)])
