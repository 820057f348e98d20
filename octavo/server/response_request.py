"""What /v1/responses takes: OpenAI's request with vLLM's sampling options."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from octavo.server.body import BodyError
from octavo.server.inner_chat import chat_request
from octavo.server.protocol import ChatRequest, Int, Many, Request, StructuredOutputs, with_sampling_options

LOGPROBS = "message.output_text.logprobs"
"""What `include` has where the answer's log-probabilities are asked for."""
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class TextFormat(BaseModel):
    """What the text must follow."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextConfig(BaseModel):
    model_config = ConfigDict(extra="ignore")

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(BaseModel):
    model_config = ConfigDict(extra="ignore")

    effort: str | None = Field(None, max_length=32)
    summary: str | None = None


class FunctionTool(BaseModel):
    """A function that the client runs. This server runs no tools itself."""

    model_config = ConfigDict(extra="ignore")

    type: str = "function"
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self, index: int) -> dict[str, Any]:
        """The tool as chats have it. Raises BodyError for one that is no function."""
        if self.type != "function":
            raise BodyError(
                f"{self.type!r:.60} is no tool of this server, which runs none itself. Give functions, which your "
                "program runs.",
                f"tools[{index}].type",
            )
        if not self.name:
            raise BodyError("a function needs a name.", f"tools[{index}].name")
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


class ToolChoice(BaseModel):
    """A function's name, or those that may be called."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: Many[dict[str, Any]] | None = None


class StreamSettings(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_obfuscation: bool | None = None


@with_sampling_options
class ResponsesRequest(Request):
    """/v1/responses"""

    input: str | Many[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    store: bool | None = True
    background: bool | None = False
    stream: bool | None = False
    stream_options: StreamSettings | None = None
    include: Many[str] | None = None
    max_output_tokens: Int | None = Field(None, ge=1)
    max_tool_calls: Int | None = None
    metadata: Metadata | None = Field(None, max_length=16)
    parallel_tool_calls: bool | None = True
    reasoning: Reasoning | None = None
    service_tier: str | None = None
    text: TextConfig | None = None
    tools: Many[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    top_logprobs: Int | None = Field(None, ge=0)
    truncation: Literal["auto", "disabled"] | None = "disabled"
    structured_outputs: StructuredOutputs | None = None
    priority: Int | None = 0
    cache_salt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None

    @field_validator("conversation", "prompt", mode="after")
    @classmethod
    def _not_here(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("it is not supported; send instructions, input and previous_response_id.")
        return value

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are to be in the answer."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def chat(self, messages: list[dict[str, Any]]) -> ChatRequest:
        """The chat that answers this. Raises BodyError that names what cannot be.

        Args:
            messages: the conversation, its input included.
        """
        if self.n is not None and self.n != 1:  # type: ignore[attr-defined]
            raise BodyError("a response is one answer; leave it out.", "n")
        sampling = {name: getattr(self, name) for name in _SAMPLING}
        if self.max_output_tokens is not None:
            sampling["max_tokens"] = self.max_output_tokens
        if self.truncation == "auto" and sampling["truncate_prompt_tokens"] is None:
            sampling["truncate_prompt_tokens"] = -1
        tools, choice = self._tools()
        return chat_request(
            {
                **sampling,
                "model": self.model,
                "user": self.user,
                "messages": messages,
                "tools": tools or None,
                "tool_choice": choice,
                "parallel_tool_calls": self.parallel_tool_calls,
                "response_format": self._format(),
                "structured_outputs": self.structured_outputs,
                "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
                "logprobs": self.wants_logprobs,
                "top_logprobs": self.top_logprobs if self.wants_logprobs else None,
                "priority": self.priority,
                "cache_salt": self.cache_salt,
                "chat_template_kwargs": self.chat_template_kwargs,
                "mm_processor_kwargs": self.mm_processor_kwargs,
            }
        )

    def _tools(self) -> tuple[list[dict[str, Any]], Any]:
        """The chat's tools and its tool_choice."""
        tools = [tool.for_chat(i) for i, tool in enumerate(self.tools or ())]
        choice = self.tool_choice
        if not isinstance(choice, ToolChoice):
            return tools, choice
        if choice.type == "function":
            return tools, {"type": "function", "function": {"name": choice.name or ""}}
        allowed = {str(one.get("name")) for one in choice.tools or ()}
        if unknown := allowed - {tool["function"]["name"] for tool in tools}:
            raise BodyError(f"{sorted(unknown)[0]!r:.60} is none of the tools.", "tool_choice.tools")
        return [tool for tool in tools if tool["function"]["name"] in allowed], choice.mode

    def _format(self) -> dict[str, Any] | None:
        format = None if self.text is None else self.text.format
        if format is None or format.type == "text":
            return None
        if format.type == "json_object":
            return {"type": "json_object"}
        if format.schema_ is None:
            raise BodyError("json_schema needs a schema.", "text.format.schema")
        return {"type": "json_schema", "json_schema": {"name": format.name, "schema": format.schema_}}


_SAMPLING = [name for name in ResponsesRequest.model_fields if name not in ResponsesRequest.__base__.model_fields]  # type: ignore[union-attr]


class CountInputRequest(ResponsesRequest):
    """/v1/responses/input_tokens"""

    input: str | Many[dict[str, Any]] | None = None  # type: ignore[assignment]
