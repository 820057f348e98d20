"""Transcripts of long sounds: windows, times and tokens as transformers' long-form generation has them."""

import asyncio
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.client.transcribing import Piece, split_at_times
from octavo.errors import CheckpointError, InvalidRequestError
from octavo.executor.transcript_logits import TranscriptLogits
from octavo.lora import LoRARequest
from octavo.transcripts import TranscriptionParams, TranscriptRule
from tests.adapter_folders import write_adapter
from tests.golden import case_named, write_model
from tests.media.test_hostile import film, wav
from tests.whisper_models import END, IDS, NO_TIMESTAMPS, RATE, START, TIMES, VOCABULARY, tones, write_whisper

OPTIONS: dict[str, Any] = {"dtype": "float32", "kv_cache_memory": "32MiB"}
PLAIN: dict[str, Any] = {
    "temperature": 0,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}
"""One try for each window, whatever comes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"), seed=1)


@pytest.fixture(scope="module")
def whisper(folder: Path) -> LLM:
    return LLM(str(folder), **OPTIONS)


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LLM]:
    made = write_whisper(tmp_path_factory.mktemp("english"), multilingual=False, seed=2, scale=0.6)
    return made, LLM(str(made), **OPTIONS)


def transcribe(llm: LLM, sound: Any, **params: Any) -> Any:
    (made,) = llm.transcribe(sound, TranscriptionParams(**params), use_tqdm=False)
    return made


def told(transcript: Any) -> list[tuple[float, float, list[int]]]:
    return [(segment.start, segment.end, segment.tokens) for segment in transcript.segments]


def reference(folder: Path, sound: "np.ndarray[Any, Any]", **options: Any) -> list[tuple[float, float, list[int]]]:
    """The segments of transformers: without the timestamp that begins a piece which is left out."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    given = extractor(sound, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest")
    made = model.generate(given.input_features, return_timestamps=True, return_segments=True, **options)
    segments = []
    for segment in made["segments"][0]:
        tokens = segment["tokens"].tolist()
        tokens = tokens[:-1] if len(tokens) > 2 and tokens[-2] >= TIMES else tokens
        segments.append((round(float(segment["start"]), 3), round(float(segment["end"]), 3), tokens))
    return segments


def between(values: list[float]) -> float:
    """A threshold in the widest gap of some values, so that no rounding decides."""
    ordered = sorted(values)
    gap, low = max((high - low, low) for low, high in itertools.pairwise(ordered))
    return low + gap / 2


LONG = tones(9.3)


@pytest.mark.parametrize("task", ["transcribe", "translate"])
@pytest.mark.parametrize("language", [None, "de"])
def test_windows_of_a_long_sound(whisper: LLM, folder: Path, task: str, language: str | None) -> None:
    made = transcribe(whisper, (LONG, RATE), **PLAIN, task=task, language=language, condition_on_previous_text=False)
    want = reference(folder, LONG, task=task, language=language, condition_on_prev_tokens=False)
    assert told(made) == want
    assert len(want) > 4
    assert len({segment.seek for segment in made.segments}) > 3
    assert made.language == (language or "fr")
    assert made.duration == pytest.approx(9.3)
    assert made.text == "".join(segment.text for segment in made.segments).strip()


def test_windows_that_see_the_text_before_them(whisper: LLM, folder: Path) -> None:
    made = transcribe(whisper, (LONG, RATE), **PLAIN, language="en")
    want = reference(folder, LONG, task="transcribe", language="en", condition_on_prev_tokens=True)
    assert told(made) == want
    assert want != reference(folder, LONG, task="transcribe", language="en", condition_on_prev_tokens=False)
    prompt = torch.tensor([IDS["<|startofprev|>"], *whisper.engine.tokenizer.encode(" Ada, Bob", False)])
    prompted = transcribe(whisper, (LONG, RATE), **PLAIN, language="en", prompt=" Ada, Bob ")
    options: dict[str, Any] = {"task": "transcribe", "language": "en", "condition_on_prev_tokens": True}
    assert told(prompted) == reference(folder, LONG, prompt_ids=prompt, **options) != want


def test_an_english_model(english: tuple[Path, LLM]) -> None:
    folder, llm = english
    made = transcribe(llm, (LONG, RATE), **PLAIN, condition_on_previous_text=False)
    assert told(made) == reference(folder, LONG)
    assert made.language == "en"
    assert told(transcribe(llm, (LONG, RATE), **PLAIN, language="English")) == told(
        transcribe(llm, (LONG, RATE), **PLAIN)
    )
    for wrong, says in (({"language": "de"}, "knows English only"), ({"task": "translate"}, "does not translate")):
        with pytest.raises(InvalidRequestError, match=says):
            transcribe(llm, (LONG, RATE), **wrong)


def test_silent_windows_are_left_out(whisper: LLM, folder: Path) -> None:
    values: dict[str, Any] = {"temperature": 0, "language": "en", "compression_ratio_threshold": None}
    values["condition_on_previous_text"] = False
    every = transcribe(whisper, (LONG, RATE), **{**PLAIN, **values})
    windows = {segment.seek: segment for segment in every.segments}
    least = between([segment.avg_logprob for segment in windows.values()])
    most = between([segment.no_speech_prob for segment in windows.values() if segment.avg_logprob < least])
    made = transcribe(whisper, (LONG, RATE), **values, logprob_threshold=least, no_speech_threshold=most)
    want = reference(
        folder,
        LONG,
        task="transcribe",
        language="en",
        temperature=(0.0,),
        logprob_threshold=least,
        no_speech_threshold=most,
        return_dict_in_generate=True,
    )
    assert told(made) == want
    assert {segment.seek for segment in made.segments} != set(windows)
    assert transcribe(whisper, (LONG, RATE), **values, logprob_threshold=0.0, no_speech_threshold=0.0).segments == []


def test_mean_log_probabilities_are_of_what_the_rules_leave(whisper: LLM) -> None:
    made = transcribe(whisper, (tones(1.9, 3), RATE), **PLAIN, language="en", timestamps=False)
    (segment,) = made.segments
    assert (segment.start, segment.end) == (0.0, 1.9)
    prompt = [START, IDS["<|en|>"], IDS["<|transcribe|>"], NO_TIMESTAMPS]
    config = whisper.engine.info.generation_config
    banned = dict.fromkeys(config["suppress_tokens"], -100.0)
    data = {"prompt_token_ids": prompt, "multi_modal_data": {"audio": (tones(1.9, 3), RATE)}}
    params = SamplingParams(temperature=0, max_tokens=60, logprobs=VOCABULARY - 1, logit_bias=banned)
    llm = LLM(str(whisper.engine.args.model), max_logprobs=VOCABULARY, **OPTIONS)
    (output,) = llm.generate(data, params, use_tqdm=False)
    answer = output.outputs[0]
    total = 0.0
    for place, (token, step) in enumerate(zip(answer.token_ids, answer.logprobs or [], strict=True)):
        left = [e.logprob for i, e in step.items() if i not in banned and (place or i not in (2, END))]
        total += step[token].logprob - math.log(sum(math.exp(value) for value in left))
    assert answer.token_ids[: len(segment.tokens)] == segment.tokens
    assert segment.avg_logprob == pytest.approx(total / len(answer.token_ids), abs=1e-4)


def test_other_temperatures_are_tried(whisper: LLM) -> None:
    values: dict[str, Any] = {"language": "en", "seed": 5, "no_speech_threshold": None}
    first = transcribe(whisper, (LONG, RATE), **values, logprob_threshold=0.0)
    assert {segment.temperature for segment in first.segments} == {1.0}  # none is ever good enough
    assert first == transcribe(whisper, (LONG, RATE), **values, logprob_threshold=0.0)
    assert first != transcribe(whisper, (LONG, RATE), **{**values, "seed": 6}, logprob_threshold=0.0)
    calm = transcribe(whisper, (LONG, RATE), **values, logprob_threshold=-100.0, compression_ratio_threshold=1e9)
    assert {segment.temperature for segment in calm.segments} == {0.0}
    assert first.num_generated_tokens > calm.num_generated_tokens
    ratio = sorted(segment.compression_ratio for segment in calm.segments)[len(calm.segments) // 2]
    some = transcribe(whisper, (LONG, RATE), **values, logprob_threshold=-100.0, compression_ratio_threshold=ratio)
    assert len({segment.temperature for segment in some.segments}) > 1


def test_several_sounds_side_by_side_are_as_alone(whisper: LLM) -> None:
    sounds = [
        (tones(seconds, seed), RATE) for seed, seconds in enumerate((5.0, 0.4, 7.7, 2.0, 3.1, 1.0, 6.2, 2.5, 4.4))
    ]
    params = TranscriptionParams(seed=3)
    together = whisper.transcribe(sounds, params, use_tqdm=False)
    alone = [whisper.transcribe(sound, params, use_tqdm=False)[0] for sound in sounds]
    assert together == alone
    small = LLM(str(whisper.engine.args.model), max_num_batched_tokens=16, block_size=8, max_num_seqs=3, **OPTIONS)
    assert small.transcribe(sounds, params, use_tqdm=False) == alone
    assert not whisper.requests.has_work


async def _each(folder: Path, sounds: list[Any], params: TranscriptionParams) -> list[Any]:
    llm = AsyncLLM(str(folder), **OPTIONS)
    try:
        return await asyncio.gather(*(llm.transcribe(sound, params) for sound in sounds))
    finally:
        llm.shutdown()


def test_asynchronously(whisper: LLM, folder: Path) -> None:
    params, sounds = TranscriptionParams(seed=3), [(tones(5.0), RATE), (tones(3.0, 2), RATE)]
    assert asyncio.run(_each(folder, sounds, params)) == whisper.transcribe(sounds, params, use_tqdm=False)
    with pytest.raises(InvalidRequestError, match="cannot be decoded"):
        asyncio.run(_each(folder, [b"no sound"], params))


def test_windows_go_through_stages(whisper: LLM) -> None:
    params = TranscriptionParams(seed=3, language="en")
    staged = LLM(str(whisper.engine.args.model), pipeline_parallel_size=2, **OPTIONS)
    sounds = [(tones(5.0), RATE), (tones(3.0, 2), RATE)]
    assert staged.transcribe(sounds, params, use_tqdm=False) == whisper.transcribe(sounds, params, use_tqdm=False)


def test_an_adapter_transcribes(whisper: LLM, folder: Path, tmp_path: Path) -> None:
    adapter = LoRARequest("own", 1, str(write_adapter(tmp_path / "own", folder)))
    served = LLM(str(folder), enable_lora=True, **OPTIONS)
    params = TranscriptionParams(**PLAIN, language="en")
    base = whisper.transcribe((LONG, RATE), params, use_tqdm=False)
    adapted = served.transcribe((LONG, RATE), params, use_tqdm=False, lora_request=adapter)
    assert served.transcribe((LONG, RATE), params, use_tqdm=False) == base != adapted
    assert served.transcribe((LONG, RATE), params, use_tqdm=False, lora_request=adapter) == adapted
    with pytest.raises(InvalidRequestError, match="enable_lora"):
        whisper.transcribe((LONG, RATE), params, use_tqdm=False, lora_request=adapter)


def test_a_short_sound_ends_where_it_ends(whisper: LLM, folder: Path) -> None:
    """transformers goes on over the silence behind it, as if the sound were as long as the window."""
    short = tones(1.5)
    made = transcribe(whisper, (short, RATE), **PLAIN, language="en")
    padded = np.pad(short, (0, 2 * RATE - len(short)))
    want = reference(folder, padded, task="transcribe", language="en", condition_on_prev_tokens=True)
    assert told(made) == want[: len(made.segments)]
    assert len(made.segments) >= 1


def test_generate_still_takes_the_decoders_prompt(whisper: LLM) -> None:
    sound = (tones(1.0), RATE)
    prompt = {"prompt": "<|startoftranscript|><|en|><|transcribe|>", "multi_modal_data": {"audio": sound}}
    explicit = {"prompt_token_ids": [START, IDS["<|en|>"], IDS["<|transcribe|>"]], "multi_modal_data": {"audio": sound}}
    params = SamplingParams(temperature=0, max_tokens=5)
    encoded = {"encoder_prompt": {"prompt": "", "multi_modal_data": {"audio": sound}}}
    both = [
        {**encoded, "decoder_prompt": prompt["prompt"]},
        {**encoded, "decoder_prompt": explicit["prompt_token_ids"]},
    ]
    outputs = whisper.generate([prompt, explicit, *both], params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == [outputs[0].outputs[0].token_ids] * 4
    for wrong, says in (
        ({"encoder_prompt": "Hello", "decoder_prompt": "x"}, "reads no text"),
        ({**encoded, "decoder_prompt": None}, "decoder_prompt must say"),
    ):
        with pytest.raises(InvalidRequestError, match=says):
            whisper.generate(wrong, params, use_tqdm=False)
    with pytest.raises(InvalidRequestError, match=r"lasts 9.3 s, and Whisper hears 2 s at once. Transcribe it"):
        whisper.generate({**prompt, "multi_modal_data": {"audio": (LONG, RATE)}}, params, use_tqdm=False)


def test_files_of_all_kinds(whisper: LLM, tmp_path: Path) -> None:
    sound = wav()
    (tmp_path / "a.wav").write_bytes(sound)
    want = transcribe(whisper, sound, language="en", seed=1)
    assert transcribe(whisper, tmp_path / "a.wav", language="en", seed=1) == want
    assert transcribe(whisper, str(tmp_path / "a.wav"), language="en", seed=1) == want
    for wrong, says in (
        (b"", "empty"),
        (b"no sound at all", "cannot be decoded"),
        (film(3), "no sound in it"),
        (tmp_path / "none.wav", "cannot be read"),
        ((np.zeros(0, np.float32), RATE), "no samples"),
        ([sound, b"x"], "sound 2 of 2"),
    ):
        with pytest.raises(InvalidRequestError, match=says):
            whisper.transcribe(wrong, use_tqdm=False)
    assert not whisper.requests.has_work


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"task": "sing"}, "transcribe or translate"),
        ({"language": "klingon"}, "language 'klingon' is not known"),
        ({"language": "germn"}, "Did you mean german"),
        ({"language": "ja"}, "no token for it"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": ()}, "1 to 16"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"logprob_threshold": "low"}, "logprob_threshold"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"beam": 5}, "has no 'beam'"),
    ],
)
def test_values_that_cannot_be(whisper: LLM, params: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        transcribe(whisper, (tones(0.5), RATE), **params)


@pytest.mark.parametrize("language", ["de", "DE", "German", "de-AT", "de_DE"])
def test_languages_by_code_and_name(whisper: LLM, language: str) -> None:
    assert transcribe(whisper, (tones(0.5), RATE), language=language).language == "de"


def test_models_that_do_not_transcribe(tmp_path: Path, folder: Path) -> None:
    write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path / "llama")
    llama = LLM(str(tmp_path / "llama"), skip_tokenizer_init=True, kv_cache_memory="8MiB")
    with pytest.raises(InvalidRequestError, match="does not transcribe"):
        llama.transcribe((tones(0.5), RATE))
    blind = LLM(str(folder), skip_tokenizer_init=True, **OPTIONS)
    with pytest.raises(InvalidRequestError, match="need a tokenizer"):
        blind.transcribe((tones(0.5), RATE))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"no_timestamps_token_id": VOCABULARY - 1}, "outside this model's vocabulary"),
        ({"lang_to_id": {"<|en|>": 1 << 40}}, "lang_to_id's en"),
        ({"task_to_id": {"transcribe": "x"}}, "transcribe"),
        ({"suppress_tokens": 5}, "suppress_tokens is no list"),
    ],
)
def test_files_that_contradict_the_model(folder: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((folder / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=says):
        LLM(str(tmp_path), **OPTIONS).transcribe((tones(0.5), RATE), use_tqdm=False)


def test_what_the_files_leave_out_the_tokenizer_has(folder: Path, whisper: LLM) -> None:
    bare = LLM(str(folder), generation_config="none", **OPTIONS)
    made = transcribe(bare, (LONG, RATE), **PLAIN, language="en")
    assert made.segments  # without suppressed tokens, by the same marks
    assert made != transcribe(whisper, (LONG, RATE), **PLAIN, language="en")
    assert transcribe(bare, (LONG, RATE), **PLAIN).language == transcribe(whisper, (LONG, RATE), **PLAIN).language


def test_the_rule_is_transformers_own() -> None:
    from types import SimpleNamespace

    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    rng = np.random.default_rng(0)
    rule = TranscriptRule([3], [5], 20, 25, 24, 4)
    own = TranscriptLogits(rule)
    config: Any = SimpleNamespace(
        no_timestamps_token_id=24, eos_token_id=20, bos_token_id=20, max_initial_timestamp_index=4
    )
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=2)
    for _ in range(300):
        written = rng.choice([1, 2, 26, 28, 28, 31], rng.integers(0, 6)).tolist()
        logits = torch.from_numpy(rng.normal(0, 3, 40).astype(np.float32))
        want = logits.clone()
        want[[3] if written else [3, 5]] = -torch.inf
        want = theirs(torch.tensor([[0, 0, *written]]), want[None])[0]
        own.apply(logits, written)
        assert torch.equal(logits, want), written


@pytest.mark.parametrize(
    ("tokens", "pieces", "frames"),
    [
        ([50, 1, 2, 60], [Piece([50, 1, 2, 60], 0, 10)], 200),
        ([50, 1, 2], [Piece([50, 1, 2], 0, 100.0)], 200),
        ([1, 2], [Piece([1, 2], 0, 100.0)], 200),
        ([], [Piece([], 0, 100.0)], 200),
        ([50, 1, 60, 60, 2], [Piece([50, 1, 60], 0, 10)], 20),
        ([50, 1, 60, 60, 2, 70], [Piece([50, 1, 60], 0, 10), Piece([60, 2, 70], 10, 20)], 200),
        ([50, 1, 60, 65, 2, 70, 70], [Piece([50, 1, 60], 0, 10), Piece([65, 2, 70], 15, 20)], 40),
        ([50, 1, 50, 50], [Piece([50, 1, 50], 0, 0)], 200),
    ],
)
def test_where_the_next_window_begins(tokens: list[int], pieces: list[Piece], frames: int) -> None:
    assert split_at_times(tokens, 50, 200, 2) == (pieces, frames)
