"""Requests of models with an encoder: prompts, defaults, limits, sharing."""

from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, BeamSearchParams, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.executor.local import LocalExecutor
from tests.golden import case_named, write_model
from tests.preemption import preempt_all

START = 2
SOURCE = [5, 6, 7, 8]
PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = write_model(case_named("BartForConditionalGeneration--base"), tmp_path_factory.mktemp("bart"))
    return LLM(str(folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="8MiB", block_size=4)


def answer(llm: LLM, prompt: Any) -> Any:
    return llm.generate(prompt, PARAMS, use_tqdm=False)[0]


def test_a_plain_prompt_is_the_encoders(bart: LLM) -> None:
    explicit = {"encoder_prompt": SOURCE, "decoder_prompt": [START]}
    plain = answer(bart, SOURCE)
    assert plain.encoder_prompt_token_ids == SOURCE
    assert plain.prompt_token_ids == [START]
    for prompt in (explicit, {"encoder_prompt": {"prompt_token_ids": SOURCE}, "decoder_prompt": None}):
        assert answer(bart, prompt).outputs[0].token_ids == plain.outputs[0].token_ids


def test_the_prefix_cache_tells_encoder_prompts_apart(bart: LLM) -> None:
    """Equal beginnings of the answer share blocks only where the encoder has read the same."""
    beginning = [START, *range(10, 26)]
    first = answer(bart, {"encoder_prompt": SOURCE, "decoder_prompt": beginning})
    again = answer(bart, {"encoder_prompt": SOURCE, "decoder_prompt": beginning})
    other = answer(bart, {"encoder_prompt": SOURCE[::-1], "decoder_prompt": beginning})
    assert again.num_cached_tokens == 16
    assert other.num_cached_tokens == 0
    assert again.outputs[0].logprobs == first.outputs[0].logprobs
    assert other.outputs[0].logprobs != first.outputs[0].logprobs


def test_blocks_come_back(bart: LLM) -> None:
    free = bart.engine.cache.pool.num_free
    bart.generate([SOURCE * n for n in range(1, 20)], PARAMS, use_tqdm=False)
    assert bart.engine.cache.pool.num_free == free


def test_beams_keep_their_encoder(bart: LLM) -> None:
    beams = bart.beam_search([SOURCE], BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True))[0]
    assert beams.sequences[0].tokens[1:] == answer(bart, SOURCE).outputs[0].token_ids


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"encoder_prompt": [], "decoder_prompt": [START]}, "encoder's prompt is empty"),
        ({"encoder_prompt": [400], "decoder_prompt": [START]}, "encoder_prompt holds 400"),
        ({"encoder_prompt": [1] * 129, "decoder_prompt": [START]}, "has 129 tokens, and this encoder takes 128"),
        ({"encoder_prompt": SOURCE, "decoder_prompt": []}, "prompt is empty"),
        ({"encoder_prompt": SOURCE, "decoder_prompt": [START] * 128}, "maximum context length is 128"),
    ],
)
def test_bad_prompts(bart: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        answer(bart, prompt)


def test_models_without_an_encoder_say_so(tiny_folder: Path) -> None:
    llm = LLM(str(tiny_folder), skip_tokenizer_init=True, kv_cache_memory="8MiB")
    with pytest.raises(InvalidRequestError, match="this model has no encoder"):
        answer(llm, {"encoder_prompt": SOURCE, "decoder_prompt": [START]})


def test_the_encoder_reads_an_input_once(bart: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever brings it, whether in one step or later, and after a preemption too."""
    assert isinstance(bart.engine.executor, LocalExecutor)
    model = bart.engine.executor.runner.model
    bart.engine.cache.pool.reset()
    read: list[int] = []
    real = model.encode

    def encode(batch: Any) -> None:
        read.extend(count for _, count in batch.runs)
        real(batch)

    monkeypatch.setattr(model, "encode", encode)
    source, other = list(range(20, 31)), list(range(20, 32))
    params = SamplingParams(temperature=0.9, seed=1, n=3, max_tokens=8, ignore_eos=True, logprobs=1)
    together = bart.generate([source, other, source], params, use_tqdm=False)
    assert sorted(read) == [11, 12]
    bart.requests.add("again", source, params)
    bart.requests.step()
    preempt_all(bart.engine)
    [again] = [output for _ in range(20) for output in bart.requests.step() if output.finished]
    assert sorted(read) == [11, 12]
    for output in (together[2], again):
        assert [c.logprobs for c in output.outputs] == [c.logprobs for c in together[0].outputs]
    bart.engine.cache.pool.reset()
    alone = bart.generate([source], params, use_tqdm=False)[0]
    assert sorted(read) == [11, 11, 12]
    assert [c.logprobs for c in alone.outputs] == [c.logprobs for c in together[0].outputs]
