"""Mistral's tekken.json: texts become the tokens that mistral_common makes of them, as golden cases say."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import CheckpointError
from octavo.text.chat_prompt import render_chat
from octavo.text.tokenizer import load_tokenizer
from tests.golden import case_named

CASE = case_named("PixtralForConditionalGeneration--mistral-native")
IMAGE, BREAK, END = 10, 12, 13


def tokenizer(folder: Path, change: Any = None) -> Any:
    file = json.loads(CASE["files"]["tekken.json"])
    if change is not None:
        change(file)
    (folder / "tekken.json").write_text(json.dumps(file))
    return load_tokenizer(folder, False)


def without_pictures(ids: list[int]) -> list[int]:
    """Tokens of a written-out prompt, one placeholder a picture."""
    kept: list[int] = []
    for i in ids:
        if i == END:
            kept.append(IMAGE)
        elif i not in (IMAGE, BREAK):
            kept.append(i)
    return kept


@pytest.mark.parametrize("number", range(len(CASE["cases"])))
def test_texts_are_the_tokens_of_the_reference(number: int, tmp_path: Path) -> None:
    case, own = CASE["cases"][number], tokenizer(tmp_path)
    ids = case["prompt_token_ids"]
    assert own.encode(case["prompt"]) == (without_pictures(ids) if case.get("pre_expanded") else ids)
    assert own.decode(own.encode(case["prompt"], add_special_tokens=False), skip_special_tokens=False) == case["prompt"]
    assert own.bos_token_id == 1
    assert own.eos_token_id == 2


def test_bytes_of_any_text_come_back(tmp_path: Path) -> None:
    own = tokenizer(tmp_path)
    for text in ("Grüße, 世界! \n\t 🎈", "a  b   c", "\u0000\u007f", "[INST] is a token"):
        assert own.decode(own.encode(text, add_special_tokens=False), skip_special_tokens=False) == text


def more(*tokens: str) -> Any:
    """A change that adds tokens, in this order."""

    def change(file: dict[str, Any]) -> None:
        for text in tokens:
            rank = len(file["vocab"])
            file["vocab"].append({"rank": rank, "token_bytes": base64.b64encode(text.encode()).decode()})
        special = file["config"]["default_num_special_tokens"]
        file["config"]["default_vocab_size"] = len(file["vocab"]) + special

    return change


def test_a_piece_that_is_a_token_is_that_one(tmp_path: Path) -> None:
    """As tiktoken has it, even where no merges lead to it, or others come first."""
    own = tokenizer(tmp_path, more("ab", "bc", "abc", "xyzw"))
    first = own.vocab_size - 4
    assert own.encode("xyzw", add_special_tokens=False) == [first + 3]
    assert own.encode("abc xyz", add_special_tokens=False)[0] == first + 2


def test_special_tokens_keep_their_ids(tmp_path: Path) -> None:
    """An ordinary token may be spelled as one of them."""
    own = tokenizer(tmp_path, more("s>", "<s>", "[IMG]"))
    assert own.bos_token_id == 1
    assert own.encode("<s>[IMG]", add_special_tokens=False) == [1, IMAGE]


def test_lowest_ranks_are_merged_first(tmp_path: Path) -> None:
    """Of "abcd" with ab, bc, cd and abc among the ranks, in this order: ab, then cd."""
    own = tokenizer(tmp_path, more("ab", "bc", "cd", "abc"))
    assert [own.decode([i]) for i in own.encode("abcd", add_special_tokens=False)] == ["ab", "cd"]
    assert [own.decode([i]) for i in own.encode("bcd", add_special_tokens=False)] == ["bc", "d"]


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.pop("config"),
        lambda file: file["vocab"][3].update(token_bytes="?"),
        lambda file: file["vocab"][3].update(rank=10**9),
        lambda file: file.update(vocab=None),
        lambda file: file["config"].update(default_num_special_tokens=10**9),
        lambda file: file["config"].update(pattern="("),
    ],
)
def test_a_damaged_file_is_an_error(change: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tekken"):
        tokenizer(tmp_path, change)


def test_conversations(tmp_path: Path) -> None:
    own = tokenizer(tmp_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What?"},
    ]
    text = render_chat(own, messages, add_generation_prompt=True)
    assert text == "<s>[INST]Hi[/INST]Hello</s>[INST]Be brief.\n\nWhat?[/INST]"
