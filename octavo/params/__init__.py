"""What requests ask for, by vLLM's names: sampling, structured outputs, beam search, pooling."""

from octavo.params.beam_params import BeamSearchParams
from octavo.params.checks import SIDES, range_text
from octavo.params.pooling_params import PoolingParams
from octavo.params.sampling_params import (
    GENERATION_KEYS,
    LogitsProcessor,
    RequestOutputKind,
    SamplingParams,
    check_recommended,
    recommended_sampling,
)
from octavo.params.structured_params import GuidedDecodingParams, StructuredOutputsParams

__all__ = [
    "GENERATION_KEYS",
    "SIDES",
    "BeamSearchParams",
    "GuidedDecodingParams",
    "LogitsProcessor",
    "PoolingParams",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "check_recommended",
    "range_text",
    "recommended_sampling",
]
