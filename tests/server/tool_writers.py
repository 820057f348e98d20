"""Calls as models of each family write them."""

import json
from collections.abc import Callable
from typing import Any

Arguments = dict[str, Any]
SCHEMA = {
    "type": "object",
    "properties": {
        "x": {"type": "string"},
        "n": {"type": "integer"},
        "u": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "b": {"type": "boolean"},
        "l": {"$ref": "#/$defs/list"},
    },
    "$defs": {"list": {"type": "array", "items": {}}},
}


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def as_json(name: str, arguments: Arguments, key: str = "arguments") -> str:
    return dumped({"name": name, key: arguments})


def tagged(opening: str, key: str, closing: str, end: str, line: str = "") -> Callable[[str, Arguments], str]:
    """Arguments between tags; NAME and KEY stand for names, KIND for whether a value is text."""

    def write(name: str, arguments: Arguments) -> str:
        parts = [opening.replace("NAME", name)]
        for argument, value in arguments.items():
            is_text = isinstance(value, str)
            tag = key.replace("KEY", argument).replace("KIND", "true" if is_text else "false")
            parts.append(f"{tag}{line}{value if is_text else dumped(value)}{line}{closing}")
        return "\n".join([*parts, end])

    return write


def pythonic(name: str, arguments: Arguments) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def gemma(quote: str) -> Callable[[str, Arguments], str]:
    def value(given: Any) -> str:
        if isinstance(given, str):
            return f"{quote}{given}{quote}"
        if isinstance(given, dict):
            return "{" + ",".join(f"{quote}{key}{quote}:{value(v)}" for key, v in given.items()) + "}"
        return f"[{','.join(map(value, given))}]" if isinstance(given, list) else dumped(given)

    def write(name: str, arguments: Arguments) -> str:
        return f"call:{name}{{{','.join(f'{key}:{value(v)}' for key, v in arguments.items())}}}"

    return write


_qwen = tagged("<function=NAME>", "<parameter=KEY>", "</parameter>", "</function>", "\n")
_dsml = tagged(
    '<｜DSML｜invoke name="NAME">',
    '<｜DSML｜parameter name="KEY" string="KIND">',
    "</｜DSML｜parameter>",
    "</｜DSML｜invoke>",
)
_minimax = tagged('<invoke name="NAME">', '<parameter name="KEY">', "</parameter>", "</invoke>", "\n")
_step = tagged(
    '<steptml:invoke name="NAME">', '<steptml:parameter name="KEY">', "</steptml:parameter>", "</steptml:invoke>"
)
_glm = tagged("NAME", "<arg_key>KEY</arg_key>\n<arg_value>", "</arg_value>", "")
_hy = tagged("NAME<tool_sep>", "<arg_key>KEY</arg_key>\n<arg_value>", "</arg_value>", "")
_longcat = tagged("NAME", "<longcat_arg_key>KEY</longcat_arg_key>\n<longcat_arg_value>", "</longcat_arg_value>", "")


def _cohere(name: str, arguments: Arguments) -> str:
    return dumped({"tool_call_id": "0", "tool_name": name, "parameters": arguments})


ONE: dict[str, Callable[[str, Arguments], str]] = {
    "apertus": lambda n, a: f"<|tools_prefix|>[{dumped({n: a})}]<|tools_suffix|>",
    "cohere_command3": lambda n, a: f"<|START_ACTION|>[\n    {_cohere(n, a)}\n]<|END_ACTION|>",
    "deepseek_v3": lambda n, a: (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{dumped(a)}\n```<｜tool▁call▁end｜>"
    ),
    "deepseek_v31": lambda n, a: f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{dumped(a)}<｜tool▁call▁end｜>",
    "deepseek_v32": lambda n, a: f"<｜DSML｜function_calls>\n{_dsml(n, a)}\n</｜DSML｜function_calls>",
    "deepseek_v4": lambda n, a: f"<｜DSML｜tool_calls>\n{_dsml(n, a)}\n</｜DSML｜tool_calls>",
    "functiongemma": lambda n, a: f"<start_function_call>{gemma('<escape>')(n, a)}<end_function_call>",
    "gemma4": lambda n, a: f"<|tool_call>{gemma('<|' + chr(34) + '|>')(n, a)}<tool_call|>",
    "glm45": lambda n, a: f"<tool_call>{_glm(n, a)}</tool_call>",
    "granite": lambda n, a: f"<|tool_call|>[{as_json(n, a)}]",
    "granite-20b-fc": lambda n, a: f"<function_call> {as_json(n, a)}",
    "hermes": lambda n, a: f"<tool_call>\n{as_json(n, a)}\n</tool_call>",
    "hy_v3": lambda n, a: f"<tool_call>{_hy(n, a)}</tool_call>",
    "internlm": lambda n, a: f"<|action_start|><|plugin|>\n{as_json(n, a, 'parameters')}<|action_end|>",
    "jamba": lambda n, a: f"<tool_calls>[\n{as_json(n, a)}\n]</tool_calls>",
    "kimi_k2": lambda n, a: (
        f"<|tool_call_begin|>functions.{n}:0<|tool_call_argument_begin|>{dumped(a)}<|tool_call_end|>"
    ),
    "lfm2": lambda n, a: f"<|tool_call_start|>[{pythonic(n, a)}]<|tool_call_end|>",
    "llama3_json": lambda n, a: as_json(n, a, "parameters"),
    "llama4_pythonic": lambda n, a: f"<|python_start|>[{pythonic(n, a)}]<|python_end|>",
    "longcat": lambda n, a: f"<longcat_tool_call>{_longcat(n, a)}</longcat_tool_call>",
    "minimax_m2": lambda n, a: f"<minimax:tool_call>\n{_minimax(n, a)}\n</minimax:tool_call>",
    "mistral": lambda n, a: f"[TOOL_CALLS]{n}[ARGS]{dumped(a)}",
    "nemotron_json": lambda n, a: f"<TOOLCALL>[{as_json(n, a)}]</TOOLCALL>",
    "olmo3": lambda n, a: f"<function_calls>\n{pythonic(n, a)}\n</function_calls>",
    "phi4_mini_json": lambda n, a: f"functools[{as_json(n, a)}]",
    "pythonic": lambda n, a: f"[{pythonic(n, a)}]",
    "qwen3_xml": lambda n, a: f"<tool_call>\n{_qwen(n, a)}\n</tool_call>",
    "seed_oss": lambda n, a: f"<seed:tool_call>\n{_qwen(n, a)}\n</seed:tool_call>",
    "step3": lambda n, a: f"<｜tool_call_begin｜>function<｜tool_sep｜>{_step(n, a)}<｜tool_call_end｜>",
    "xlam": lambda n, a: f"[{as_json(n, a)}]",
}
"""One call, by the format's name."""
SEVERAL: dict[str, Callable[[list[str]], str]] = {
    "deepseek_v3": lambda calls: f"<｜tool▁calls▁begin｜>{chr(10).join(calls)}<｜tool▁calls▁end｜>",
    "deepseek_v31": lambda calls: f"<｜tool▁calls▁begin｜>{''.join(calls)}<｜tool▁calls▁end｜>",
    "hy_v3": lambda calls: f"<tool_calls>\n{chr(10).join(calls)}\n</tool_calls>",
    "kimi_k2": lambda calls: f"<|tool_calls_section_begin|>{''.join(calls)}<|tool_calls_section_end|>",
    "llama3_json": "; ".join,
    "mistral": "".join,
    "pythonic": lambda calls: f"[{', '.join(call[1:-1] for call in calls)}]",
    "step3": lambda calls: f"<｜tool_calls_begin｜>\n{chr(10).join(calls)}\n<｜tool_calls_end｜>",
    "xlam": lambda calls: f"[{', '.join(call[1:-1] for call in calls)}]",
}
"""All calls of an answer; those of other formats stand one after the other."""
ONLY_FIRST = ("pythonic", "xlam")
"""Whose calls stand at the beginning of an answer."""


def written(kind: str, calls: list[tuple[str, Arguments]]) -> str:
    """All of an answer's calls."""
    texts = [ONE[kind](name, arguments) for name, arguments in calls]
    return SEVERAL.get(kind, "\n".join)(texts) if texts else ""
