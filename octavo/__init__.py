"""Octavo: an inference and serving engine for language models.

The names below are the public interface; they are imported on first use, so that `import octavo` stays instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.architectures import register_architecture
    from octavo.async_llm import AsyncLLM
    from octavo.config import EngineArgs, PoolerConfig
    from octavo.llm import LLM
    from octavo.llm_engine import LLMEngine
    from octavo.lora import LoRARequest
    from octavo.outputs import (
        BeamSearchOutput,
        BeamSearchSequence,
        ClassificationOutput,
        ClassificationRequestOutput,
        CompletionOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        FlatLogprobs,
        Logprob,
        PoolingOutput,
        PoolingRequestOutput,
        RequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from octavo.params import (
        BeamSearchParams,
        GuidedDecodingParams,
        PoolingParams,
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )
    from octavo.prompts import TextPrompt, TokensPrompt
    from octavo.transcripts import Transcript, TranscriptionParams, TranscriptSegment

_HOME = {
    "register_architecture": "octavo.architectures",
    "LLM": "octavo.llm",
    "LLMEngine": "octavo.llm_engine",
    "AsyncLLM": "octavo.async_llm",
    "EngineArgs": "octavo.config",
    "LoRARequest": "octavo.lora",
    "PoolerConfig": "octavo.config",
    "SamplingParams": "octavo.params",
    "StructuredOutputsParams": "octavo.params",
    "GuidedDecodingParams": "octavo.params",
    "BeamSearchParams": "octavo.params",
    "PoolingParams": "octavo.params",
    "RequestOutputKind": "octavo.params",
    "TextPrompt": "octavo.prompts",
    "TokensPrompt": "octavo.prompts",
    "RequestOutput": "octavo.outputs",
    "ClassificationOutput": "octavo.outputs",
    "ClassificationRequestOutput": "octavo.outputs",
    "ScoringOutput": "octavo.outputs",
    "ScoringRequestOutput": "octavo.outputs",
    "CompletionOutput": "octavo.outputs",
    "FlatLogprobs": "octavo.outputs",
    "Logprob": "octavo.outputs",
    "BeamSearchOutput": "octavo.outputs",
    "BeamSearchSequence": "octavo.outputs",
    "PoolingOutput": "octavo.outputs",
    "PoolingRequestOutput": "octavo.outputs",
    "EmbeddingOutput": "octavo.outputs",
    "EmbeddingRequestOutput": "octavo.outputs",
    "Transcript": "octavo.transcripts",
    "TranscriptionParams": "octavo.transcripts",
    "TranscriptSegment": "octavo.transcripts",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineArgs",
    "FlatLogprobs",
    "GuidedDecodingParams",
    "LLMEngine",
    "LoRARequest",
    "Logprob",
    "PoolerConfig",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "Transcript",
    "TranscriptSegment",
    "TranscriptionParams",
    "__version__",
    "register_architecture",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
