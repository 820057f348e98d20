"""What /v1/messages takes: Anthropic's request."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.server.body import BodyError
from octavo.server.inner_chat import chat_request
from octavo.server.message_blocks import messages_of
from octavo.server.protocol import ChatRequest, Int, Many, Request


class MessageTool(BaseModel):
    """A tool that the client runs. This server runs none itself."""

    model_config = ConfigDict(extra="ignore")

    type: str | None = None
    name: str = Field(min_length=1)
    description: str | None = None
    input_schema: dict[str, Any] | None = None

    def for_chat(self, index: int) -> dict[str, Any]:
        """The tool as chats have it. Raises BodyError for one of Anthropic's own."""
        if self.type not in (None, "custom") or self.input_schema is None:
            raise BodyError(
                f"{self.type or 'custom'!r:.60} without an input_schema is no tool of this server, which runs none "
                "itself. Give tools with an input_schema, which your program runs.",
                f"tools[{index}]",
            )
        function = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function}


class MessageToolChoice(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = False

    def for_chat(self) -> Any:
        """What it is in a chat."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name or ""}}
        return "required" if self.type == "any" else self.type


class Thinking(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Int | None = None


class MessageFormat(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    model_config = ConfigDict(extra="ignore")

    effort: str | None = Field(None, max_length=32)
    format: MessageFormat | None = None


class MessageMetadata(BaseModel):
    model_config = ConfigDict(extra="ignore")

    user_id: str | None = None


class CountMessagesRequest(Request):
    """/v1/messages/count_tokens"""

    messages: Many[dict[str, Any]]
    system: str | Many[dict[str, Any]] | None = None
    tools: Many[MessageTool] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def shows_thoughts(self) -> bool:
        """Whether the answer tells what was thought."""
        return self.thinking is None or self.thinking.type != "disabled"

    def chat(self, **sampling: Any) -> ChatRequest:
        """The chat that this is. Raises BodyError that names what cannot be."""
        messages = messages_of(self.system, self.messages)
        goes_on = messages[-1]["role"] == "assistant" and bool(messages[-1]["content"])
        effort, format = None, None
        if self.output_config is not None:
            effort, format = self.output_config.effort, self.output_config.format
        choice = self.tool_choice
        return chat_request(
            {
                **sampling,
                "model": self.model,
                "messages": messages,
                "tools": [tool.for_chat(i) for i, tool in enumerate(self.tools or ())] or None,
                "tool_choice": None if choice is None else choice.for_chat(),
                "parallel_tool_calls": not (choice is not None and choice.disable_parallel_tool_use),
                "continue_final_message": goes_on or None,
                "response_format": None
                if format is None
                else {"type": "json_schema", "json_schema": {"schema": format.schema_}},
                "reasoning_effort": effort,
                "chat_template_kwargs": self._variables(),
            }
        )

    def _variables(self) -> dict[str, Any] | None:
        """What the chat template is told of thinking, by the names that templates have for it."""
        thinks = {} if self.thinking is None else dict.fromkeys(("enable_thinking", "thinking"), self.shows_thoughts)
        return {**thinks, **(self.chat_template_kwargs or {})} or None


class MessagesRequest(CountMessagesRequest):
    """/v1/messages"""

    max_tokens: Int = Field(ge=1)
    stop_sequences: Many[Annotated[str, Field(min_length=1)]] | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_k: Int | None = None
    top_p: float | None = None
    metadata: MessageMetadata | None = None

    def chat(self, **sampling: Any) -> ChatRequest:
        """The chat that answers this. Raises BodyError that names what cannot be."""
        return super().chat(
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            user=None if self.metadata is None else self.metadata.user_id,
            **sampling,
        )
