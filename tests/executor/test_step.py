"""What engine and executor say to each other is plain data: as bytes and back it is the same."""

import dataclasses
import subprocess
import sys
from typing import Any, TypeVar

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from octavo.config import PoolerConfig
from octavo.executor.step import Pooled, SequenceResult, SequenceStart, SequenceStep, Step, StepResult
from octavo.features import Feature, encoder_feature
from octavo.loading.model_info import ModelInfo
from octavo.media.model_media import MediaInfo
from octavo.params import PoolingParams, SamplingParams, StructuredOutputsParams
from octavo.text.pair_template import PairTemplate
from octavo.text.text_prompts import TextPrompts
from octavo.transcripts import TranscriptRule

T = TypeVar("T")
IDS = st.lists(st.integers(0, 1 << 31), max_size=6)
SEQ = st.integers(0, 1 << 62)
FLOATS = st.floats(allow_nan=False, width=32)
LOGPROBS = st.lists(st.tuples(st.integers(0, 1 << 31), FLOATS, st.integers(1, 1 << 20)), max_size=4)
SAMPLING = st.builds(
    SamplingParams,
    n=st.just(1),
    temperature=st.floats(0, 3),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(-1, 1 << 40),
    min_p=st.floats(0, 1),
    presence_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.1, 9),
    logprobs=st.none() | st.integers(-1, 20),
    stop=st.lists(st.text(min_size=1), max_size=3),
    stop_token_ids=IDS,
    bad_words=st.just(["x y"]),
    logit_bias=st.none() | st.dictionaries(st.integers(0, 1 << 20), st.floats(-100, 100), max_size=3),
    allowed_token_ids=st.none() | st.lists(st.integers(0, 1 << 20), min_size=1, max_size=3),
    transcript=st.none() | st.builds(TranscriptRule, IDS, IDS, st.integers(0, 99), st.none() | st.just(9)),
    structured_outputs=st.none()
    | st.builds(StructuredOutputsParams, regex=st.text(min_size=1))
    | st.builds(StructuredOutputsParams, json=st.just({"type": "object", "properties": {"a": {"minimum": 1.5}}}))
    | st.builds(StructuredOutputsParams, choice=st.lists(st.text(min_size=1), min_size=1, max_size=3)),
)
FEATURES = st.builds(encoder_feature, IDS) | st.builds(
    Feature, st.text(), st.binary(), SEQ, st.binary(min_size=32, max_size=32), st.none() | SEQ
)
STARTS = st.builds(
    SequenceStart,
    seq_id=SEQ,
    prompt_token_ids=IDS,
    index=st.integers(0, 9),
    count=st.integers(1, 9),
    sampling=st.none() | SAMPLING,
    seed=st.integers(0, (1 << 64) - 1),
    stop_ids=IDS,
    bad_words=st.lists(IDS, max_size=3),
    pooling=st.none() | st.builds(PoolingParams, dimensions=st.none() | st.integers(1, 99)),
    features=st.lists(FEATURES, max_size=2),
)
STEPS = st.builds(
    Step,
    starts=st.lists(STARTS, max_size=2),
    sequences=st.lists(
        st.builds(
            SequenceStep,
            seq_id=SEQ,
            row=st.integers(0, 999),
            token_ids=IDS,
            start=SEQ,
            length=SEQ,
            new_blocks=st.lists(st.tuples(st.integers(0, 99), IDS), max_size=2),
            is_new=st.booleans(),
            num_samples=st.integers(0, 4),
            prompt_logprobs=st.booleans(),
        ),
        max_size=3,
    ),
    ended=IDS,
)
RESULTS = st.lists(
    st.builds(
        SequenceResult,
        seq_id=SEQ,
        token_ids=IDS,
        logprobs=st.lists(LOGPROBS, max_size=2),
        prompt_logprobs=st.lists(LOGPROBS, max_size=2),
        pooled=st.none() | st.builds(Pooled, st.tuples(st.integers(0, 9), st.integers(0, 9)), st.binary()),
        ended=st.booleans(),
        error=st.none() | st.text(),
        is_invalid=st.booleans(),
        non_finite=st.booleans(),
    ),
    max_size=3,
)


def through_bytes(value: T) -> T:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))


@given(STEPS)
def test_steps(step: Step) -> None:
    assert through_bytes(step) == step


@given(st.builds(StepResult, sequences=RESULTS, late=RESULTS, ready=IDS, refused=RESULTS))
def test_results(result: StepResult) -> None:
    assert through_bytes(result) == result


def test_a_models_info() -> None:
    values: dict[str, Any] = {
        "task": "reward",
        "vocab_size": 99,
        "num_embeddings": 107,
        "max_model_len": 128,
        "eos_token_ids": frozenset({1, 2}),
        "generation_config": {"temperature": 0.5, "eos_token_id": [1, 2], "suppress": None},
        "labels": ["good", "bad"],
        "num_scores": 2,
        "pooling": PoolerConfig("STEP", step_tag_id=4, returned_token_ids=[1]),
        "has_encoder": True,
        "reads_whole": True,
        "decoder_start_token_id": 2,
        "long_rope_threshold": None,
        "serves_adapters": True,
        "pooling_tasks": ["token_classify"],
        "dimensions": [8, 16],
        "pair_template": PairTemplate(name="rerank", variables={"instruction": "find"}),
        "prompts": TextPrompts(texts={"query": "find: "}, default="query", are_pooled=False),
        "media": MediaInfo(processor="module:Name", takes={"image": None}, config={"vision_config": {"depth": 2}}),
    }
    info = ModelInfo(**values)
    assert through_bytes(info) == info
    assert set(values) == {f.name for f in msgspec.structs.fields(ModelInfo)}


def test_every_sampling_value_reaches_the_executor() -> None:
    """A new one too, as none is listed anywhere."""
    start = SequenceStart(1, [2], sampling=SamplingParams(logit_bias={3: 1.5}, ignore_eos=True, min_tokens=3))
    read = through_bytes(start)
    assert read.sampling is not None
    assert start.sampling is not None
    assert dataclasses.asdict(read.sampling) == dataclasses.asdict(start.sampling)


def test_the_engine_imports_no_torch() -> None:
    program = "import sys, octavo.engine.engine, octavo.executor.executor; assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
