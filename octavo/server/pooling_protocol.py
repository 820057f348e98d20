"""What clients may send to be embedded, classified, scored and ranked: OpenAI's requests and vLLM's."""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from octavo.params import PoolingParams
from octavo.server.protocol import Conversation, Int, Many, Prompts, Request

Encoding = Literal["float", "base64", "bytes", "bytes_only"]
Messages = Many[dict[str, Any]]


class Pooled(Request):
    """Keys of requests whose hidden states are pooled."""

    truncate_prompt_tokens: Int | None = Field(None, ge=-1)
    truncation_side: Literal["left", "right"] | None = None
    use_activation: bool | None = None
    priority: Int | None = 0
    cache_salt: str | None = None
    padding: Literal["do_not_pad"] | None = None

    def params(self, **more: Any) -> PoolingParams:
        """What it asks for."""
        return PoolingParams(
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            truncation_side=self.truncation_side,
            use_activation=self.use_activation,
            **more,
        )


class Input(Pooled, Conversation):
    """Of an `input`, or of `messages` by the chat template."""

    input: Prompts | Messages | Many[Messages] | None = None
    messages: Messages | Many[Messages] | None = None  # type: ignore[assignment]
    add_generation_prompt: bool | None = False
    add_special_tokens: bool | None = None
    """None: yes for an input, and no for messages, whose template writes them."""

    @model_validator(mode="after")
    def _one_input(self) -> "Input":
        if (self.input is None) == (self.messages is None):
            both = "input and messages exclude each other" if self.input is not None else "an input is missing"
            raise ValueError(f"{both}; give an input or messages.")
        if isinstance(self.input, list) and self.input and _is_chat(self.input):
            self.messages, self.input = self.input, None  # type: ignore[assignment]
        return self

    def conversations(self) -> list["Input"]:
        """A request for each of its conversations."""
        messages: Any = self.messages or []
        several = messages if messages and isinstance(messages[0], list) else [messages]
        return [self.model_copy(update={"messages": one}) for one in several]


def _is_chat(items: list[Any]) -> bool:
    """Whether an input is messages, or lists of messages, of which none is empty."""
    several = items if isinstance(items[0], list) else [items]
    return all(isinstance(one, list) and one and isinstance(one[0], dict) for one in several)


class ClassifyRequest(Input):
    """/classify"""


class EmbeddingRequest(Input):
    """/v1/embeddings"""

    encoding_format: Encoding | None = "float"
    embed_dtype: Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"] | None = "float32"
    endianness: Literal["native", "big", "little"] | None = "native"
    dimensions: Int | None = None
    normalize: bool | None = None
    prompt_name: str | None = None


class PoolingRequest(EmbeddingRequest):
    """/pooling"""

    task: str | None = None
    softmax: bool | None = None


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Parts(BaseModel):
    """A text as content parts."""

    content: str | Many[TextPart]

    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


Text = str | Parts
TextOrTexts = Text | Many[Text]


def texts_of(given: TextOrTexts) -> list[str]:
    """One text or several."""
    return [one if isinstance(one, str) else one.text() for one in (given if isinstance(given, list) else [given])]


class Scored(Pooled):
    """Keys of requests whose texts are compared."""

    max_tokens_per_query: Int | None = 0
    max_tokens_per_doc: Int | None = 0
    instruction: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def template_variables(self) -> dict[str, Any]:
        """More names for the template of a query and a document."""
        own = {} if self.instruction is None else {"instruction": self.instruction}
        return {**own, **(self.chat_template_kwargs or {})}


PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
"""What the two sides may be called."""


class ScoreRequest(Scored):
    """/score: of text_1 and text_2, or under any other of their names."""

    text_1: TextOrTexts | None = None
    text_2: TextOrTexts | None = None
    data_1: TextOrTexts | None = None
    data_2: TextOrTexts | None = None
    queries: TextOrTexts | None = None
    documents: TextOrTexts | None = None
    items: TextOrTexts | None = None

    @model_validator(mode="after")
    def _has_pair(self) -> "ScoreRequest":
        self.pair()
        return self

    def pair(self) -> tuple[list[str], list[str]]:
        """The texts of both sides. Raises ValueError where one is missing or empty."""
        for names in PAIRS:
            first, second = (getattr(self, name) for name in names)
            if first is None or second is None:
                continue
            sides = texts_of(first), texts_of(second)
            for name, side in zip(names, sides, strict=True):
                if not side:
                    raise ValueError(f"{name} is empty; at least one text must be given.")
            return sides
        raise ValueError("two sides are needed: " + ", or ".join(" and ".join(names) for names in PAIRS) + ".")


class RerankRequest(Scored):
    """/rerank, /v1/rerank (Jina), /v2/rerank (Cohere)"""

    query: Text
    documents: TextOrTexts
    top_n: Int | None = Field(None, ge=0)
    """None and 0: all."""
    return_documents: bool | None = True

    @model_validator(mode="after")
    def _has_documents(self) -> "RerankRequest":
        if self.documents == []:
            raise ValueError("documents is empty; at least one text must be given.")
        return self
