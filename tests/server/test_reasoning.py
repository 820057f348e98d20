"""What a model thinks is told apart from its answer, however the text is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.server.reasoning import MARKERS, THINK, ReasoningParser, reasoning_markers


def run(pieces: list[str], prompt: str = "") -> tuple[str, str]:
    parser = ReasoningParser(THINK, prompt)
    parts = [parser.feed(piece, i == len(pieces) - 1) for i, piece in enumerate(pieces)]
    return "".join(a for a, _ in parts), "".join(b for _, b in parts)


@pytest.mark.parametrize(
    ("prompt", "text", "thought", "answer"),
    [
        ("", "<think>\na < b</thin\n</think>\n\nYes.", "a < b</thin", "Yes."),
        ("<|assistant|><think>\n", "so\n\nit is</think>Yes.", "so\n\nit is", "Yes."),
        ("<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
        ("", "Yes <think>no</think>", "", "Yes <think>no</think>"),
        ("", "<thin", "", "<thin"),
        ("", "<think>cut </thi", "cut </thi", ""),
        ("", " \n<think></think> Yes", "", "Yes"),
    ],
)
def test_a_thought(prompt: str, text: str, thought: str, answer: str) -> None:
    assert run([text], prompt) == (thought, answer)
    assert run(list(text), prompt) == (thought, answer)


@given(st.text("<>think/ \na", max_size=60), st.lists(st.integers(0, 60), max_size=8), st.booleans())
def test_any_cut_gives_the_same(text: str, cuts: list[int], begun: bool) -> None:
    text = text.replace("tn", "</think>").replace("kh", "<think>")
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    prompt = "<think>" if begun else ""
    assert run([text[a:b] for a, b in itertools.pairwise(places)], prompt) == run([text], prompt)


def test_markers_are_found_from_the_template() -> None:
    assert reasoning_markers("auto", ["{{ '<think></think>' }}"]) == THINK
    assert reasoning_markers("auto", ["plain"]) is None
    assert reasoning_markers("none", ["</think>"]) is None
    assert reasoning_markers("granite", []) == MARKERS["granite"]
