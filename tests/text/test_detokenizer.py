"""Text as it comes: whole characters only, the same text as at once, and the same cost at every token."""

import pytest

from octavo import LLM, SamplingParams
from octavo.text.detokenizer import IncrementalDetokenizer, StopChecker
from octavo.text.tokenizer import FastTokenizer
from tests.instructions import instructions

TEXTS = [
    "Hello, world! It's 2024.",
    "Grüße aus Köln – schön, nicht?",
    "你好，世界。今天天气很好。",
    "family 👨‍👩‍👧‍👦 and flags 🇫🇷🇯🇵",
    "  leading, trailing  \n\n\ttabs ",
    "مرحبا بالعالم",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(smollm: LLM, text: str) -> None:
    tokenizer = smollm.engine.tokenizer
    detokenizer = IncrementalDetokenizer(tokenizer, tokenizer.encode("A prompt before:"), SamplingParams())
    pieces = [detokenizer.add(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_characters_are_held_back(smollm: LLM) -> None:
    tokenizer = smollm.engine.tokenizer
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1
    detokenizer = IncrementalDetokenizer(tokenizer, [], SamplingParams())
    assert [detokenizer.add(i) for i in ids] == [""] * (len(ids) - 1) + ["🙂"]


def test_broken_bytes_do_not_hold_up_the_rest(smollm: LLM) -> None:
    tokenizer = smollm.engine.tokenizer
    half = tokenizer.encode("🙂")[0]
    detokenizer = IncrementalDetokenizer(tokenizer, [], SamplingParams())
    text = "".join(detokenizer.add(i) for i in [half] * 20 + tokenizer.encode(" and then words"))
    assert text.endswith("and then words")
    assert len(detokenizer._window) < 10


def test_a_token_costs_the_same_however_long_the_text(smollm: LLM) -> None:
    tokenizer = smollm.engine.tokenizer
    ids = tokenizer.encode("The quick brown fox jumps over the lazy dog. ") * 1200
    detokenizer = IncrementalDetokenizer(tokenizer, [], SamplingParams())

    def of(first: int) -> int:
        return instructions(lambda: [detokenizer.add(token) for token in ids[first : first + 300]])

    begin = of(0)
    for token in ids[300:9900]:
        detokenizer.add(token)
    assert of(9900) <= begin * 1.1
    assert len(detokenizer._window) < 10


def test_sentencepiece_spaces() -> None:
    """A word's space shows when it follows text, though the first word of a text has none."""
    from tokenizers import Tokenizer, decoders, models

    inner = Tokenizer(models.BPE(vocab={"▁Hello": 0, "▁there": 1, "!": 2}, merges=[]))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = FastTokenizer(inner, {}, {})
    after_prompt = IncrementalDetokenizer(tokenizer, [0], SamplingParams())
    assert [after_prompt.add(i) for i in (1, 2, 0)] == [" there", "!", " Hello"]


def test_stop_checker() -> None:
    checker = StopChecker(["END", "\n\n"], include=False)
    assert checker.check("some text", 4) is None
    assert checker.check("some END", 1) == (5, "END")
    assert StopChecker(["END"], include=True).check("some END here", 9) == (8, "END")
    # Not again what was looked at before.
    assert checker.check("END of what was seen long ago", 3) is None
    assert [checker.withheld(t) for t in ("abc", "abE", "abEN", "ab\n", "EN D")] == [0, 1, 2, 1, 0]
