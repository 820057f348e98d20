"""Objects of vLLM's configuration that scripts make. They keep what they are given; LLM says what it does with it."""

from enum import StrEnum
from types import SimpleNamespace


class CompilationConfig(SimpleNamespace):
    """Of what nothing is compiled."""


class ProfilerConfig(SimpleNamespace):
    """Of a profiler, which LLM refuses."""


class StructuredOutputsConfig(SimpleNamespace):
    """Of which backend follows grammars."""


class AttentionConfig(SimpleNamespace):
    """Of which backend computes attention."""


class KVTransferConfig(SimpleNamespace):
    """Of caches that move between engines, which LLM refuses."""


class SpeculativeConfig(SimpleNamespace):
    """Of speculative decoding, which LLM refuses."""


class UsageContext(StrEnum):
    """From where an engine is used, which nothing is told of."""

    UNKNOWN_CONTEXT = "UNKNOWN_CONTEXT"
    LLM_CLASS = "LLM_CLASS"
    API_SERVER = "API_SERVER"
    OPENAI_API_SERVER = "OPENAI_API_SERVER"
    OPENAI_BATCH_RUNNER = "OPENAI_BATCH_RUNNER"
    ENGINE_CONTEXT = "ENGINE_CONTEXT"
