"""The formats of tool calls, by vLLM's names of their parsers."""

from collections.abc import Sequence

from octavo.server.gemma_calls import GemmaCalls
from octavo.server.json_calls import JsonCalls, JsonOr, NamedCalls
from octavo.server.json_scanner import WHITESPACE
from octavo.server.pythonic_calls import PythonicCalls
from octavo.server.tagged_calls import TaggedCalls
from octavo.server.tool_parser import ToolFormat

JSON = JsonCalls()
_ARG_KEYS = (("<arg_key>", "</arg_key>"), ("<arg_value>", "</arg_value>"))
_FUNCTION = TaggedCalls(
    ("<function=", ">"), ("<parameter=", ">"), ("", "</parameter>"), end="</function>", on_lines=True
)
_DSML = TaggedCalls(
    ('<｜DSML｜invoke name="', '">'),
    ('<｜DSML｜parameter name="', '">'),
    ("", "</｜DSML｜parameter>"),
    end="</｜DSML｜invoke>",
    key_ends=(('" string="true">', True), ('" string="false">', False)),
)
_DEEPSEEK = (
    ("<｜tool▁call▁begin｜>",),
    ("<｜tool▁call▁end｜>",),
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)

HERMES = ToolFormat(JSON, ("<tool_call>",), ("</tool_call>",), signs=("<tool_call>",))
MISTRAL = ToolFormat(
    JsonOr(JSON, NamedCalls(after="[ARGS]", id_after="[CALL_ID]")), ("[TOOL_CALLS]",), signs=("[TOOL_CALLS]",)
)
LLAMA_JSON = ToolFormat(
    JSON,
    ("<|python_tag|>",),
    bare=("{",),
    between=WHITESPACE + ";",
    signs=("python_tag",),
)
_JSON_LIST = ToolFormat(JSON, ("<tool_calls>",), ("</tool_calls>",), signs=("<tool_calls>",))
_QWEN_XML = ToolFormat(_FUNCTION, ("<tool_call>",), ("</tool_call>",), bare=("<function=",), signs=("<function=",))
_GLM = ToolFormat(TaggedCalls(("", ""), *_ARG_KEYS), ("<tool_call>",), ("</tool_call>",), signs=("<arg_key>",))
_PYTHONIC = ToolFormat(PythonicCalls(), bare=("[",), only_first=True)

FORMATS: dict[str, ToolFormat] = {
    "apertus": ToolFormat(
        JsonCalls(by_key=True), ("<|tools_prefix|>",), ("<|tools_suffix|>",), signs=("<|tools_prefix|>",)
    ),
    "cohere_command3": ToolFormat(
        JsonCalls(name_keys=("tool_name", "name")),
        ("<|START_ACTION|>",),
        ("<|END_ACTION|>",),
        signs=("<|START_ACTION|>",),
    ),
    "deepseek_v3": ToolFormat(
        NamedCalls(before=("function", "<｜tool▁sep｜>"), fenced=True),
        *_DEEPSEEK,
        signs=("<｜tool▁sep｜>", "```json"),
    ),
    "deepseek_v31": ToolFormat(NamedCalls(after="<｜tool▁sep｜>"), *_DEEPSEEK, signs=("<｜tool▁sep｜>",)),
    "deepseek_v32": ToolFormat(
        _DSML,
        ("<｜DSML｜function_calls>",),
        ("</｜DSML｜function_calls>",),
        bare=('<｜DSML｜invoke name="',),
        signs=("｜DSML｜", "function_calls"),
    ),
    "deepseek_v4": ToolFormat(
        _DSML,
        ("<｜DSML｜tool_calls>",),
        ("</｜DSML｜tool_calls>",),
        bare=('<｜DSML｜invoke name="',),
        signs=("｜DSML｜", "tool_calls"),
    ),
    "functiongemma": ToolFormat(
        GemmaCalls("<escape>"),
        ("<start_function_call>",),
        ("<end_function_call>",),
        signs=("<start_function_call>",),
    ),
    "gemma4": ToolFormat(GemmaCalls('<|"|>'), ("<|tool_call>",), ("<tool_call|>",), signs=("<|tool_call>",)),
    "glm45": _GLM,
    "granite": ToolFormat(
        JSON, ("<|tool_call|>", "<tool_call>"), bare=("[",), only_first=True, signs=("<|tool_call|>",)
    ),
    "granite-20b-fc": ToolFormat(JSON, ("<function_call>",), signs=("<function_call>",)),
    "hermes": HERMES,
    "hy_v3": ToolFormat(
        TaggedCalls(("", "<tool_sep>"), *_ARG_KEYS),
        ("<tool_call>",),
        ("</tool_call>",),
        ("<tool_calls>", "</tool_calls>"),
        signs=("<tool_sep>", "<arg_key>"),
    ),
    "internlm": ToolFormat(
        JsonCalls(before=("<|plugin|>",)), ("<|action_start|>",), ("<|action_end|>",), signs=("<|action_start|>",)
    ),
    "jamba": _JSON_LIST,
    "kimi_k2": ToolFormat(
        NamedCalls(after="<|tool_call_argument_begin|>", prefix="functions."),
        ("<|tool_call_begin|>",),
        ("<|tool_call_end|>",),
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        numbered="functions.",
        signs=("<|tool_call_argument_begin|>",),
    ),
    "lfm2": ToolFormat(
        PythonicCalls(), ("<|tool_call_start|>",), ("<|tool_call_end|>",), signs=("<|tool_call_start|>",)
    ),
    "llama3_json": LLAMA_JSON,
    "llama4_pythonic": ToolFormat(
        PythonicCalls(),
        ("<|python_start|>",),
        ("<|python_end|>",),
        bare=("[",),
        only_first=True,
        signs=("<|python_start|>",),
    ),
    "longcat": ToolFormat(
        JsonOr(
            JSON,
            TaggedCalls(
                ("", ""),
                ("<longcat_arg_key>", "</longcat_arg_key>"),
                ("<longcat_arg_value>", "</longcat_arg_value>"),
            ),
        ),
        ("<longcat_tool_call>",),
        ("</longcat_tool_call>",),
        signs=("<longcat_tool_call>",),
    ),
    "minimax_m2": ToolFormat(
        TaggedCalls(
            ('<invoke name="', '">'), ('<parameter name="', '">'), ("", "</parameter>"), "</invoke>", on_lines=True
        ),
        ("<minimax:tool_call>",),
        ("</minimax:tool_call>",),
        signs=("<minimax:tool_call>",),
    ),
    "mistral": MISTRAL,
    "nemotron_json": ToolFormat(JSON, ("<TOOLCALL>",), ("</TOOLCALL>",), signs=("<TOOLCALL>",)),
    "olmo3": ToolFormat(
        PythonicCalls(in_list=False), ("<function_calls>",), ("</function_calls>",), signs=("<function_calls>",)
    ),
    "phi4_mini_json": ToolFormat(JSON, ("functools",), signs=("functools",)),
    "pythonic": _PYTHONIC,
    "qwen3_xml": _QWEN_XML,
    "seed_oss": ToolFormat(_FUNCTION, ("<seed:tool_call>",), ("</seed:tool_call>",), signs=("<seed:tool_call>",)),
    "step3": ToolFormat(
        TaggedCalls(
            ('<steptml:invoke name="', '">'),
            ('<steptml:parameter name="', '">'),
            ("", "</steptml:parameter>"),
            end="</steptml:invoke>",
            before=("function", "<｜tool_sep｜>"),
        ),
        ("<｜tool_call_begin｜>",),
        ("<｜tool_call_end｜>",),
        ("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),
        signs=("<｜tool_call_begin｜>",),
    ),
    "xlam": ToolFormat(
        JSON,
        ("[TOOL_CALLS]", "<tool_call>", "```json"),
        ("</tool_call>", "```"),
        bare=("[",),
        only_first=True,
        strict=True,
    ),
}
"""Each with the name that vLLM has for it, or the first of them."""
ALIASES = {
    "cohere_command4": "cohere_command3",
    "ernie45": "hermes",
    "glm47": "glm45",
    "granite4": "hermes",
    "hunyuan_a13b": "jamba",
    "llama4_json": "llama3_json",
    "mimo": "qwen3_xml",
    "minimax": "jamba",
    "minimax_m1": "jamba",
    "poolside_v1": "glm45",
    "qwen3_coder": "qwen3_xml",
    "step3p5": "qwen3_xml",
}
"""vLLM's other names."""
HARMONY = "openai"
"""The name of the format in which calls, thoughts and answers are messages of their own."""
TOOL_PARSERS = ("auto", *sorted([*FORMATS, *ALIASES, HARMONY]), "none")
_RANK = [
    *("gemma4", "functiongemma", "kimi_k2", "deepseek_v32", "deepseek_v4", "deepseek_v3", "deepseek_v31", "step3"),
    *("minimax_m2", "seed_oss", "hy_v3", "glm45", "qwen3_xml", "longcat", "apertus", "cohere_command3", "lfm2"),
    *("llama4_pythonic", "olmo3", "internlm", "nemotron_json", "granite", "granite-20b-fc", "jamba", "mistral"),
    *("hermes", "phi4_mini_json", "llama3_json"),
]
"""In which order templates are looked at for signs: what writes more of its own comes first."""


def named_format(name: str) -> ToolFormat | None:
    """The format of that name."""
    return FORMATS.get(ALIASES.get(name, name))


def format_of(templates: Sequence[str]) -> str | None:
    """The name of the format that chat templates write calls in; None where they tell of none that is known."""
    text = "".join(templates)
    found = next((name for name in _RANK if all(sign in text for sign in FORMATS[name].signs)), None)
    return found or ("llama3_json" if '"parameters":' in text else None)
