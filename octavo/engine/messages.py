"""What the engine is told and what it says: plain data, in this process or between two."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import msgspec

from octavo.config import EngineArgs
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError, RequestFailedError
from octavo.loading.model_info import ModelInfo
from octavo.lora import AdapterRef
from octavo.media.limits import DEFAULT_LIMITS, MediaLimits
from octavo.media.model_media import ModelMedia
from octavo.outputs import PackedLogprobs
from octavo.params import PoolingParams, SamplingParams, StructuredOutputsParams
from octavo.text.checked_prompt import CheckedPrompt, EncoderInput
from octavo.text.inputs import InputChecker
from octavo.text.tokenizer import Tokenizer
from octavo.transcripts import TranscriptRule


class Message(msgspec.Struct, tag=True, array_like=True, omit_defaults=True):
    """Any of the messages below."""


class Add(Message):
    """Run a request. `sampling` or `pooling` has the fields of its parameters that are not the defaults."""

    request_id: str
    prompt: CheckedPrompt
    sampling: dict[str, Any] | None
    pooling: dict[str, Any] | None
    priority: int = 0

    def params(self) -> SamplingParams | PoolingParams:
        """What the request asks for. Raises InvalidRequestError for values that cannot be."""
        if self.pooling is not None:
            return PoolingParams(**self.pooling)
        values = self.sampling or {}
        if "structured_outputs" in values:
            values = {**values, "structured_outputs": StructuredOutputsParams(**values["structured_outputs"])}
        if "transcript" in values:
            values = {**values, "transcript": TranscriptRule(**values["transcript"])}
        return SamplingParams(**values)


class LoadAdapter(Message):
    """Load an adapter, without a prompt: a Loaded or a Failed comes. Requests use it at once from then on, as long as
    there is room for it.
    """

    request_id: str
    adapter: AdapterRef


class DropAdapter(Message):
    """Give back an adapter's memory, once no request needs it any more. A later request loads it anew."""

    adapter: AdapterRef


class Abort(Message):
    """End requests now; unknown ids are ignored."""

    request_ids: list[str]


class Finish(Message):
    """End one of a request's sequences, because a stop string has come."""

    request_id: str
    index: int


class Stop(Message):
    """End the process."""


Command = Add | LoadAdapter | DropAdapter | Abort | Finish | Stop


class Ready(Message):
    """The model is loaded: what must be known of the engine by those who send it requests."""

    info: ModelInfo
    """With the longest request that the engine's memory allows."""
    num_blocks: int
    """Of the KV cache."""
    prefix_block_size: int = 0
    """Tokens of a block that the prefix cache finds again; 0 where there is no such cache."""
    rank_weight_bytes: list[int] = []
    """Bytes of the weights that each rank holds."""

    def checker(
        self, tokenizer: Tokenizer | None, max_logprobs: int, limits: MediaLimits = DEFAULT_LIMITS
    ) -> InputChecker:
        """Checks prompts and sampling values for this engine; `limits` are of each picture, film or sound.

        Raises CheckpointError where the model's files contradict what its family needs for media.
        """
        info = self.info
        encoder = EncoderInput(info.max_model_len, info.decoder_start_token_id) if info.has_encoder else None
        media = ModelMedia(info.media, tokenizer, limits) if info.media is not None else None
        return InputChecker(
            tokenizer,
            info.vocab_size,
            info.max_model_len,
            max_logprobs,
            encoder,
            media,
            info.num_embeddings,
            info.serves_adapters,
            info.prompts,
        )


class LoadFailed(Message):
    """The model could not be loaded; the process ends."""

    error: str


class Died(Message):
    """The engine cannot go on, for the model or the machine has failed; the process ends."""

    reason: str


class Tokens(Message):
    """New tokens of one of a request's sequences."""

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[PackedLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached: int = 0
    prompt_logprobs: list[PackedLogprobs | None] | None = None
    is_invalid: bool = False
    """Whether an error that finished it is of the request's own values."""
    scheduled_time: float | None = None
    """In the first of a request's: when it was first scheduled."""
    num_preemptions: int = 0
    """In the last of a sequence's."""


class Pooled(Message):
    """A pooling request's result: float32 values in rows."""

    request_id: str
    shape: tuple[int, ...]
    data: bytes
    num_cached: int


class Loaded(Message):
    """An adapter that a LoadAdapter asked for is there."""

    request_id: str


class Failed(Message):
    """A request that was refused (`invalid`) or could not be computed."""

    request_id: str
    error: str
    invalid: bool
    is_dead: bool = False
    """Whether that is because its engine has ended."""

    @classmethod
    def of(cls, request_id: str, error: OctavoError) -> "Failed":
        """What is said of a request that has met this error."""
        return cls(request_id, str(error), isinstance(error, InvalidRequestError), isinstance(error, EngineDeadError))

    def exception(self, where: str = "") -> OctavoError:
        """The error that who waits is to see, after `where` it is."""
        kind = InvalidRequestError if self.invalid else EngineDeadError if self.is_dead else RequestFailedError
        return kind(f"{where}{self.error}")


Output = Tokens | Pooled | Loaded | Failed


class Stats(Message):
    """The engine after a step. Counters go up only."""

    running: int = 0
    waiting: int = 0
    used_blocks: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    num_drafts: int = 0
    """How often a sequence had guessed tokens computed."""
    num_draft_tokens: int = 0
    accepted_by_place: list[int] = []
    """How many of those were right, by their place after the sequence's last token; empty without speculation."""
    outside_queries: int = 0
    """Prompt tokens that the cache did not have and that were looked up outside of it (kv_offload)."""
    outside_hits: int = 0
    """Those that were found there, and read."""
    stored_bytes: int = 0
    """Bytes of blocks that were written there."""
    loaded_bytes: int = 0
    """Bytes that were read there."""
    num_media_items: int = 0
    """Pictures, films and sounds that towers have read."""
    feature_hits: int = 0
    """Those whose rows were there already."""
    media_seconds: float = 0.0
    """How long towers took."""
    running_adapters: list[str] = []
    """Names of the adapters of requests that run."""
    waiting_adapters: list[str] = []
    """Of those of which no sequence runs yet."""


class Step(Message):
    """What a step gave."""

    outputs: list[Output]
    stats: Stats


Report = Ready | LoadFailed | Died | Step

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report: Callable[[bytes], Report] = msgspec.msgpack.Decoder(Report).decode


def request_of(message: bytes) -> str | None:
    """The id of the request that a message is of which cannot be read as a Command; None where it has none."""
    try:
        read = msgspec.msgpack.decode(message)
    except msgspec.DecodeError:
        return None
    is_request = isinstance(read, list) and len(read) > 1 and read[0] in ("Add", "LoadAdapter")
    return read[1] if is_request and isinstance(read[1], str) else None


def pack_params(params: SamplingParams | PoolingParams) -> dict[str, Any]:
    """The fields that are not the defaults. Raises InvalidRequestError for what cannot leave this process."""
    packed: dict[str, Any] = {}
    for f in dataclasses.fields(params):
        value = getattr(params, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if not f.init or not f.metadata.get("engine", True) or value == default or value == []:
            continue
        if f.name == "logits_processors":
            raise InvalidRequestError("logits_processors are Python code and do not reach a server.")
        is_struct = isinstance(value, StructuredOutputsParams | TranscriptRule)
        packed[f.name] = dataclasses.asdict(value) if is_struct else value
    return packed


def write_args(args: EngineArgs) -> str:
    """The engine's options as the engine's process reads them."""
    return json.dumps(dataclasses.asdict(args))


def read_args(text: str) -> EngineArgs:
    return EngineArgs(**json.loads(text))
