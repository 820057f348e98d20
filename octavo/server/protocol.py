"""What clients may send: OpenAI's requests with vLLM's extensions. Keys that are not known are ignored, as there."""

import dataclasses
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    PrivateAttr,
    create_model,
    field_validator,
    model_validator,
)

from octavo.errors import InvalidRequestError, did_you_mean
from octavo.option_types import without_none
from octavo.params import SamplingParams, StructuredOutputsParams
from octavo.text.chat_prompt import RESERVED

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

MAX_ANSWERS = 128
"""Largest `n`."""


class _First(FailFast):
    """pydantic's own cannot be hashed, as a part of a Union must be."""

    __hash__ = object.__hash__


Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What the engine's messages can hold."""
Many = Annotated[list[T], _First()]
"""A list of which only the first wrong item is told: a body may hold a million."""
Tokens = Many[Int]
Texts = Annotated[list[str], _First(), Field(min_length=1)]
Prompts = str | Many[str] | Tokens | Many[Tokens]


_TOKEN = re.compile(r"[0-9]{1,10}", re.ASCII)


class Request(BaseModel):
    """Keys of every request."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str | None = None
    user: str | None = None
    _is_filled_in: bool = PrivateAttr(False)
    """Whether the operator's options have been added."""


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class ResponseFormat(BaseModel):
    """`text`, `json_object`, `json_schema` with the schema under `json_schema.schema`, or `structural_tag`.

    The last has a format, or in its older spelling structures and triggers.
    """

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: dict[str, Any] | None = None
    format: dict[str, Any] | None = None
    structures: Many[dict[str, Any]] | None = None
    triggers: Many[str] | None = None

    def structured(self) -> StructuredOutputsParams | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return StructuredOutputsParams(json_object=True)
        if self.type == "structural_tag":
            names = ("format",) if self.format is not None else ("structures", "triggers")
            tag = {name: getattr(self, name) for name in names}
            if None in tag.values():
                raise InvalidRequestError("response_format: structural_tag needs a format, or structures and triggers.")
            return StructuredOutputsParams(structural_tag=tag)
        schema = (self.json_schema or {}).get("schema")
        if not isinstance(schema, dict):
            raise InvalidRequestError("response_format: json_schema needs its schema under json_schema.schema.")
        return StructuredOutputsParams(json=schema or {"type": "object"})


class StructuredOutputs(BaseModel):
    """vLLM's `structured_outputs`: StructuredOutputsParams has the meanings, and names what it does not know."""

    model_config = ConfigDict(extra="allow")

    schema_: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: Many[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None

    @model_validator(mode="after")
    def _known(self) -> "StructuredOutputs":
        if self.model_extra:
            name, known = next(iter(self.model_extra))[:60], [f.alias or n for n, f in type(self).model_fields.items()]
            raise ValueError(f"{name!r} is unknown.{did_you_mean(name, known)} It takes {', '.join(known)}.")
        return self

    def params(self) -> StructuredOutputsParams:
        return StructuredOutputsParams(**self.model_dump(by_alias=True, exclude_unset=True))


def _biases(value: dict[Any, Any]) -> dict[int, float]:
    """Checked here, so that only the first wrong entry is told."""
    for key, bias in value.items():
        if not (isinstance(key, str) and _TOKEN.fullmatch(key)):
            raise ValueError(f"{key!r:.60} is not a token id.")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)):
            raise ValueError(f"the bias of {key} must be a number.")
    return {int(key): bias for key, bias in value.items()}


_HTTP_TYPES: dict[Any, Any] = {
    int: Int,
    float: float,
    bool: bool,
    list[int]: Tokens,
    list[str]: Many[str],
    str | list[str]: str | Many[str],
    dict[int, float]: Annotated[dict[Any, Any], AfterValidator(_biases)],
}
"""What values of a sampling option's type are in a request."""
_OPTIONS = {f.name: f for f in dataclasses.fields(SamplingParams) if f.metadata.get("http")}


def _http_type(option: "dataclasses.Field[Any]") -> Any:
    """What the values of a sampling option are in a request."""
    choices = option.metadata["choices"]
    return Literal[choices] if choices else _HTTP_TYPES[without_none(option.type)]


def with_sampling_options(cls: type[Model]) -> type[Model]:
    """The model with a field for each sampling option that requests over HTTP have. None stands for its default."""
    options: dict[str, Any] = {
        name: (_http_type(f) | None, Field(None, description=f.metadata["help"])) for name, f in _OPTIONS.items()
    }
    return create_model(cls.__name__, __base__=cls, __module__=__name__, **options)


@with_sampling_options
class Sampling(Request):
    """Keys of requests that generate: these, and the sampling options by their names."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Many[str] | None = None
    guided_grammar: str | None = None
    priority: Int | None = 0
    cache_salt: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: bool | None = False
    return_token_ids: bool | None = False
    vllm_xargs: dict[str, str | int | float | bool | Many[Any] | None] | None = None
    """Values for the engine's own logits_processors, as SamplingParams.extra_args."""

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for requests with stream=true.")
        return self

    @property
    def streams(self) -> StreamOptions:
        """What its stream holds: no usage at all unless that is asked for, also within it."""
        given = self.stream_options or StreamOptions()
        within = bool(given.include_usage and given.continuous_usage_stats)
        return StreamOptions(include_usage=given.include_usage, continuous_usage_stats=within)

    def given(self) -> dict[str, Any]:
        """The sampling options that the request has."""
        return {name: value for name in _OPTIONS if (value := getattr(self, name)) is not None}

    def sampling_params(self, recommended: dict[str, Any], **more: Any) -> SamplingParams:
        """SamplingParams of `more`, then of what the request has, then of what the model's files recommend.

        Raises InvalidRequestError for a value that cannot be.
        """
        extra = {} if self.vllm_xargs is None else {"extra_args": dict(self.vllm_xargs)}
        values = {"max_tokens": None, **recommended, **self.given(), **extra, **more}
        params = SamplingParams(**values, structured_outputs=self.structured())
        if params.n > MAX_ANSWERS:
            raise InvalidRequestError(f"n={params.n} is more than {MAX_ANSWERS}.")
        return params

    def structured(self) -> StructuredOutputsParams | None:
        """What the answer must follow, whichever key says so. Raises InvalidRequestError for several of them."""
        guided = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        guided = {key: value for key, value in guided.items() if value is not None}
        given = [
            None if self.structured_outputs is None else self.structured_outputs.params(),
            StructuredOutputsParams(**guided) if guided else None,  # type: ignore[arg-type]
            None if self.response_format is None else self.response_format.structured(),
        ]
        given = [params for params in given if params is not None]
        if len(given) > 1:
            raise InvalidRequestError("structured_outputs, guided_* and response_format exclude each other.")
        return given[0] if given else None


class CompletionRequest(Sampling):
    """/v1/completions"""

    prompt: Prompts
    suffix: str | None = None
    echo: bool | None = False
    logprobs: Int | None = None
    best_of: Int | None = None
    add_special_tokens: bool | None = True


class Function(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    type: Literal["function"] = "function"
    function: Function


class NamedFunction(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedTools(BaseModel):
    """Those of the tools that may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Many[NamedTool]


class ToolsAllowed(BaseModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ENDINGS = {"add_generation_prompt", "continue_final_message"}


class Conversation(Request):
    """Keys of requests whose prompt the chat template writes."""

    messages: Many[dict[str, Any]] | None = None
    tools: Many[Tool] | None = None
    documents: Many[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    add_special_tokens: bool | None = False
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, dict[str, Any]] | None = None
    _default_variables: dict[str, Any] = PrivateAttr(default_factory=dict)
    """Names for the chat template that the operator gives."""

    @property
    def template_variables(self) -> dict[str, Any]:
        """More names for the chat template."""
        return {**self._default_variables, **(self.chat_template_kwargs or {})}

    @field_validator("chat_template_kwargs", mode="after")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := (RESERVED - ENDINGS) & (value or {}).keys():
            raise ValueError(f"{', '.join(sorted(reserved))} cannot be set here.")
        return value

    @model_validator(mode="after")
    def _one_ending(self) -> "Conversation":
        """The template's kwargs may say how the prompt ends, as in vLLM; a prompt ends in one way."""
        for name in ENDINGS:
            if (ending := (self.chat_template_kwargs or {}).pop(name, None)) is not None:
                setattr(self, name, bool(ending))
        if self.continue_final_message:
            if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
                raise ValueError("continue_final_message and add_generation_prompt exclude each other.")
            self.add_generation_prompt = False
        return self


class ChatRequest(Sampling, Conversation):
    """/v1/chat/completions"""

    messages: Many[dict[str, Any]]
    max_completion_tokens: Int | None = None
    logprobs: bool | None = False
    top_logprobs: Int | None = Field(None, ge=-1)
    tool_choice: Literal["none", "auto", "required"] | ToolsAllowed | NamedTool | None = None
    """`allowed_tools` has become its mode, and `tools` those that it allows."""
    parallel_tool_calls: bool | None = True
    echo: bool | None = False
    include_reasoning: bool | None = True
    reasoning_effort: str | None = Field(None, max_length=32)

    @model_validator(mode="after")
    def _allowed_alone(self) -> "ChatRequest":
        if isinstance(self.tool_choice, ToolsAllowed):
            choice, there = self.tool_choice.allowed_tools, {tool.function.name: tool for tool in self.tools or ()}
            names = dict.fromkeys(one.function.name for one in choice.tools)
            if unknown := [name for name in names if name not in there]:
                raise ValueError(f"tool_choice: {unknown[0]!r:.60} is none of the tools.")
            self.tools, self.tool_choice = [there[name] for name in names], choice.mode
        return self

    @property
    def template_variables(self) -> dict[str, Any]:
        """The template's kwargs, with the effort to be spent on thinking; none of it also says not to think."""
        effort = self.reasoning_effort
        off = {"enable_thinking": False, "thinking": False} if effort == "none" else {}
        own = {} if effort is None else {"reasoning_effort": effort, **off}
        return {**self._default_variables, **own, **(self.chat_template_kwargs or {})}


class TokenizeRequest(Conversation):
    """/tokenize: of a `prompt`, or of `messages` by the chat template."""

    prompt: str | None = None
    add_special_tokens: bool | None = None
    """None: yes for a prompt, and no for messages, whose template writes them."""
    return_token_strs: bool | None = False


class DetokenizeRequest(Request):
    """/detokenize"""

    tokens: Tokens
