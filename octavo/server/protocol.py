"""What clients may send: OpenAI's requests with vLLM's extensions. Keys that are not known are ignored, as there."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.errors import InvalidRequestError
from octavo.params import SamplingParams, StructuredOutputsParams

Tokens = list[int]


class Request(BaseModel):
    """Keys of every request."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    user: str | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class ResponseFormat(BaseModel):
    """`text`, `json_object`, or `json_schema` with the schema under `json_schema.schema`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None

    def structured(self) -> StructuredOutputsParams | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return StructuredOutputsParams(json_object=True)
        schema = (self.json_schema or {}).get("schema")
        if not isinstance(schema, dict):
            raise InvalidRequestError("response_format: json_schema needs its schema under json_schema.schema.")
        return StructuredOutputsParams(json=schema or {"type": "object"})


PASSED_ON = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
    "prompt_logprobs",
    "allowed_token_ids",
    "bad_words",
)
"""Keys that mean in SamplingParams what they mean here."""


class Sampling(Request):
    """Keys of requests that generate."""

    n: int | None = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    priority: int | None = 0
    cache_salt: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: bool | None = False

    def sampling_params(self, defaults: dict[str, Any], max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """SamplingParams of what was asked for, then of the model's own defaults.

        Raises InvalidRequestError for a value that cannot be.
        """
        asked = {name: value for name in PASSED_ON if (value := getattr(self, name)) is not None}
        if self.logit_bias:
            asked["logit_bias"] = {_token(key): bias for key, bias in self.logit_bias.items()}
        params = SamplingParams(
            **{**defaults, **asked},
            max_tokens=max_tokens,
            logprobs=logprobs,
            structured_outputs=self.structured(),
        )
        if params.n > 128:
            raise InvalidRequestError(f"n={params.n} is more than 128.")
        return params

    def structured(self) -> StructuredOutputsParams | None:
        """What the answer must follow, however it was said."""
        if self.structured_outputs is not None:
            return StructuredOutputsParams(**self.structured_outputs)
        guided = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        if any(guided.values()):
            return StructuredOutputsParams(**{k: v for k, v in guided.items() if v})  # type: ignore[arg-type]
        return None if self.response_format is None else self.response_format.structured()


def _token(key: str) -> int:
    try:
        return int(key)
    except ValueError as error:
        raise InvalidRequestError(f"logit_bias: {key!r} is no token id.") from error


class CompletionRequest(Sampling):
    """/v1/completions"""

    prompt: str | list[str] | Tokens | list[Tokens]
    suffix: str | None = None
    echo: bool | None = False
    logprobs: int | None = None
    best_of: int | None = None
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


class ChatRequest(Sampling):
    """/v1/chat/completions"""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = True
    echo: bool | None = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False


class EmbeddingRequest(Request):
    """/v1/embeddings"""

    input: str | list[str] | Tokens | list[Tokens]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    normalize: bool | None = None


class PoolingRequest(Request):
    """/pooling"""

    input: str | list[str] | Tokens | list[Tokens]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    normalize: bool | None = None
    softmax: bool | None = None


class ClassifyRequest(Request):
    """/classify"""

    input: str | list[str] | Tokens | list[Tokens]
    truncate_prompt_tokens: int | None = None


class ScoreRequest(Request):
    """/score"""

    text_1: str | list[str]
    text_2: str | list[str]
    truncate_prompt_tokens: int | None = None


class RerankRequest(Request):
    """/v1/rerank"""

    query: str
    documents: list[str]
    top_n: int | None = Field(None, ge=0)
    return_documents: bool | None = True
    truncate_prompt_tokens: int | None = None


class TokenizeRequest(Request):
    """/tokenize: of a `prompt`, or of `messages` by the chat template."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = True
    return_token_strs: bool | None = False


class DetokenizeRequest(Request):
    """/detokenize"""

    tokens: Tokens
