"""How models write what they think, by vLLM's names of their parsers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ReasoningFormat:
    """A thought before the answer."""

    openings: tuple[str, ...] = ("<think>",)
    closings: tuple[str, ...] = ("</think>",)
    label: str = ""
    """What the thought begins with, and is no part of it."""
    implied: bool = False
    """Whether an answer without an opening marker is a thought as well, up to the closing one."""
    interrupted_by: tuple[str, ...] = ()
    """What begins calls, and ends a thought without its closing marker."""
    around: tuple[str, ...] = ()
    """Markers around the answer, which are no part of it."""
    in_content: bool = False
    """Whether the thought is told as a part of the answer, with its markers."""

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """All that may be special tokens."""
        return (*self.openings, *self.closings, *self.around)


THINK = ReasoningFormat()
_IMPLIED = ReasoningFormat(implied=True)
_QWEN = ReasoningFormat(interrupted_by=("<tool_call>\n<function=",))
_MARKS = ReasoningFormat(("[THINK]",), ("[/THINK]",))
_GRANITE = ReasoningFormat(
    ("Here is my thought process:", "Here's my thought process:"), ("Here is my response:", "Here's my response:")
)
_COHERE = ReasoningFormat(
    ("<|START_THINKING|>",), ("<|END_THINKING|>",), around=("<|START_RESPONSE|>", "<|END_RESPONSE|>")
)

FORMATS: dict[str, ReasoningFormat] = {
    "apertus": ReasoningFormat(("<|inner_prefix|>",), ("<|inner_suffix|>",)),
    "cohere_command3": _COHERE,
    "cohere_command4": _COHERE,
    "deepseek_r1": _IMPLIED,
    "deepseek_v3": THINK,
    "deepseek_v31": THINK,
    "deepseek_v32": THINK,
    "deepseek_v4": THINK,
    "ernie45": ReasoningFormat(around=("<response>", "</response>")),
    "exaone4": THINK,
    "gemma4": ReasoningFormat(("<|channel>",), ("<channel|>",), label="thought", interrupted_by=("<|tool_call>",)),
    "glm45": THINK,
    "glm47": THINK,
    "granite": _GRANITE,
    "holo2": _IMPLIED,
    "hunyuan_a13b": ReasoningFormat(around=("<answer>", "</answer>")),
    "hy_v3": THINK,
    "kimi_k2": ReasoningFormat(interrupted_by=("<|tool_calls_section_begin|>",)),
    "mimo": _QWEN,
    "minimax_m2": _IMPLIED,
    "minimax_m2_append_think": ReasoningFormat(implied=True, in_content=True),
    "mistral": _MARKS,
    "nemotron_v3": _QWEN,
    "olmo3": _IMPLIED,
    "poolside_v1": THINK,
    "qwen3": _QWEN,
    "seed_oss": ReasoningFormat(("<seed:think>",), ("</seed:think>",)),
    "step3": _IMPLIED,
    "step3p5": _QWEN,
}
HARMONY = "openai_gptoss"
REASONING_PARSERS = ("auto", *sorted([*FORMATS, HARMONY]), "none")
_SIGNS = {
    "gemma4": ("<|channel>",),
    "mistral": ("[/THINK]",),
    "seed_oss": ("</seed:think>",),
    "apertus": ("<|inner_suffix|>",),
    "cohere_command3": ("<|END_THINKING|>",),
    "granite": ("Here is my thought process:",),
    "hunyuan_a13b": ("</think>", "<answer>"),
    "ernie45": ("</think>", "<response>"),
    "kimi_k2": ("</think>", "<|tool_calls_section_begin|>"),
    "qwen3": ("</think>",),
}
"""What chat templates of the families write; those that have more of their own come first."""


def is_harmony(templates: Sequence[str]) -> bool:
    """Whether the chat templates write messages in channels, as gpt-oss' do."""
    text = "".join(templates)
    return all(sign in text for sign in ("<|start|>", "<|channel|>", "<|message|>"))


def format_of(templates: Sequence[str]) -> str | None:
    """The name of the format in which chat templates write thoughts; None where they write none that is known."""
    if is_harmony(templates):
        return HARMONY
    text = "".join(templates)
    return next((name for name, signs in _SIGNS.items() if all(sign in text for sign in signs)), None)
