"""Guessed tokens change no bit of any answer, whoever guesses: for a model of every row, with every feature beside."""

import dataclasses
import random
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.client.local_client import LocalRequests
from octavo.config import EngineArgs
from octavo.engine.engine import Engine
from octavo.engine.scheduler import ScheduledSequence
from octavo.engine.sequence import Sequence
from octavo.engine.speculation import Speculation
from octavo.errors import ConfigError
from octavo.executor import adapter_slots, local
from octavo.executor.local import LocalExecutor
from octavo.executor.prompt_lookup import PromptLookup
from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceStart
from octavo.launch import launch_engine
from octavo.speculative_config import speculative_config
from tests.golden import CASES, case_named, prompt_of, read_case, write_model
from tests.preemption import preempt_all, preempted
from tests.random_adapters import random_adapter, request
from tests.server.conftest import write_tiny
from tests.test_golden import load, opened
from tests.test_invariance import PARAMS, ROWS, WAYS, bits
from tests.test_stages import BIT_CASES
from tests.test_steps_in_flight import MOST_STEPS, REQUESTS, facts
from tests.thread_stages import stages_are_threads

SPECULATION = {"method": "ngram", "num_speculative_tokens": 4}


class Prophet:
    """A Drafter that knows the answers, and is wrong now and then: nobody else is right so often with random weights.

    Args:
        answers: the tokens of answers, in any order: the one that a sequence has begun with counts.
        wrong: how many of a hundred drafts are wrong.
    """

    def __init__(self, answers: Iterable[Seq[int]], wrong: int = 25) -> None:
        self.answers, self._wrong, self._random = [list(answer) for answer in answers], wrong, random.Random(7)
        self.num_wrong = 0

    def propose(self, states: Seq[SequenceState], counts: Seq[int]) -> list[list[int]]:
        return [self._propose(state, count) for state, count in zip(states, counts, strict=True)]

    def _propose(self, state: SequenceState, count: int) -> list[int]:
        assert state.sampling is not None
        begun = state.sampling.output_token_ids
        answer = next((a for a in self.answers if a[: len(begun)] == begun), [])
        drafts = answer[len(begun) : len(begun) + count]
        if drafts and self._random.randrange(100) < self._wrong * len(drafts):
            place = self._random.randrange(len(drafts))
            drafts[place] = (drafts[place] + 1 + self._random.randrange(5)) % 7
            self.num_wrong += 1
        return drafts

    def end(self, seq_ids: Iterable[int]) -> None:
        pass


def executor_of(engine: Any) -> LocalExecutor:
    assert isinstance(engine.executor, LocalExecutor)
    return engine.executor


def guess(engine: Any, answers: Iterable[Seq[int]], wrong: int = 25) -> Prophet:
    """Have a Prophet guess, and as many tokens as may be, whatever that costs."""
    prophet = Prophet(answers, wrong)
    executor_of(engine).drafter = prophet
    always(engine)
    return prophet


def always(engine: Any) -> None:
    engine.speculation.most_drafts = lambda sequence: engine.speculation.config.num_speculative_tokens


def accepted(engine: Any) -> int:
    return sum(engine.speculation.accepted_by_place)


@pytest.mark.parametrize("way", ["native", "torch", "bfloat16", "int8"])
@pytest.mark.parametrize("row", ROWS)
def test_drafts_leave_no_trace(row: str, way: str, tmp_path: Path) -> None:
    case, options = read_case(ROWS[row]), WAYS[way]
    prompts = [prompt_of(c) for c in case["cases"]]
    expected = [bits(o) for o in load(case, tmp_path, **options).generate(prompts, PARAMS, use_tqdm=False)]
    llm = load(case, tmp_path, speculative_config=SPECULATION, **options)
    guess(llm.engine, [one[0] for one in expected])

    def run(some: list[Any]) -> list[Any]:
        return [bits(o) for o in llm.generate(some, PARAMS, use_tqdm=False)]

    assert run(prompts) == expected
    assert [run([p])[0] for p in prompts] == expected
    assert run(prompts * 3) == expected * 3
    assert accepted(llm.engine) > 0
    done = preempted(llm, {str(i): (prompt, PARAMS) for i, prompt in enumerate(prompts * 2)}, after=3)
    assert [bits(done[str(i)]) for i in range(len(prompts) * 2)] == expected * 2


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("speculation") / "tiny")


def engine_of(folder: Path, **options: Any) -> Engine:
    options = {"dtype": "float32", "kv_cache_memory": "16MiB", "max_num_batched_tokens": 64, **options}
    return launch_engine(EngineArgs(str(folder), **options))


def run(engine: Engine, between: Callable[[int], None] = lambda step: None) -> tuple[dict[str, Any], int]:
    """Answers of all REQUESTS, which come one after the other; and how many steps they took."""
    requests, todo, done = LocalRequests(engine), dict(REQUESTS), dict[str, Any]()
    for step in range(MOST_STEPS):
        if todo and step % 2 == 0:
            name = next(iter(todo))
            requests.add(name, *todo.pop(name))
        done |= {output.request_id: facts(output) for output in requests.step() if output.finished}
        if not todo and len(done) == len(REQUESTS):
            return done, step
        between(step)
    raise AssertionError(f"{MOST_STEPS} steps, and {set(REQUESTS) - set(done)} have not ended")


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> tuple[dict[str, Any], int]:
    return run(engine_of(tiny_model))


def answers_of(expected: dict[str, Any]) -> list[list[int]]:
    return [answer[0] for _, answers in expected.values() for answer in answers]


@pytest.mark.parametrize("wrong", [0, 10, 40])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 5},
        {"max_num_seqs": 1},
        {"max_num_seqs": 2},
        {"kv_cache_memory": "256KiB"},
        {"block_size": 1},
        {"enable_prefix_caching": False},
        {"ops": "torch"},
    ],
    ids=str,
)
def test_requests_of_all_kinds(
    tiny_model: Path, expected: tuple[dict[str, Any], int], options: dict[str, Any], wrong: int
) -> None:
    """Log-probabilities, penalties, grammars, words that may not come, several answers, stop strings."""
    want, plain_steps = run(engine_of(tiny_model, **options)) if "ops" in options else expected
    engine = engine_of(tiny_model, speculative_config=SPECULATION, **options)
    guess(engine, answers_of(want), wrong)
    done, steps = run(engine)
    assert done == want
    if not options:
        assert steps < plain_steps


@pytest.mark.parametrize("every", [2, 3, 7])
def test_preempted_again_and_again(tiny_model: Path, expected: tuple[dict[str, Any], int], every: int) -> None:
    engine = engine_of(tiny_model, speculative_config=SPECULATION)
    guess(engine, answers_of(expected[0]))
    done, _ = run(engine, lambda step: preempt_all(engine) if step % every == 0 and step < 60 else None)
    assert done == expected[0]


@pytest.mark.parametrize("config", [SPECULATION, {**SPECULATION, "prompt_lookup_min": 1}])
def test_prompt_lookup_itself(tiny_model: Path, expected: tuple[dict[str, Any], int], config: dict[str, Any]) -> None:
    engine = engine_of(tiny_model, speculative_config=config)
    assert run(engine)[0] == expected[0]


def test_suffix_decoding_itself(tiny_model: Path, expected: tuple[dict[str, Any], int]) -> None:
    """The second time answers are guessed from those of the first."""
    engine = engine_of(tiny_model, speculative_config={"method": "suffix"})
    always(engine)
    right = [0]
    for _ in range(2):
        assert run(engine)[0] == expected[0]
        right.append(accepted(engine))
    assert right[2] - right[1] > right[1]


@pytest.mark.parametrize("name", BIT_CASES)
def test_suffix_decoding_of_every_kind(name: str, tmp_path: Path) -> None:
    """Experts, states of fixed size, an encoder: answers are the same bits while earlier ones help."""
    case = read_case(BIT_CASES[name])
    prompts = [prompt_of(c) for c in case["cases"]]
    expected = [bits(o) for o in load(case, tmp_path).generate(prompts, PARAMS, use_tqdm=False)]
    llm = load(case, tmp_path, speculative_config={"method": "suffix"}, max_num_batched_tokens=16)
    always(llm.engine)
    for _ in range(3):
        assert [bits(o) for o in llm.generate(prompts * 2, PARAMS, use_tqdm=False)] == expected * 2
    assert accepted(llm.engine) > 0


def test_a_draft_model_itself(tiny_model: Path, expected: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    """By the model itself all drafts are right but those that rules rule out; by another few are."""
    other = write_tiny(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    noise = torch.Generator().manual_seed(1)
    save_file(
        {n: w + 0.02 * torch.randn(w.shape, generator=noise).to(w.dtype) for n, w in weights.items()},
        other / "model.safetensors",
    )
    right = []
    for model in (tiny_model, other):
        engine = engine_of(tiny_model, speculative_config={"model": str(model), "num_speculative_tokens": 3})
        assert run(engine)[0] == expected[0]
        llm = LLM(
            str(tiny_model), dtype="float32", kv_cache_memory="16MiB", speculative_config=engine.args.speculative_config
        )
        llm.generate("nothing that rules it", SamplingParams(temperature=0.8, seed=1, max_tokens=40), use_tqdm=False)
        assert llm.engine.speculation.num_draft_tokens > 0
        right.append(accepted(llm.engine) / llm.engine.speculation.num_draft_tokens)
    assert right[0] == 1 > right[1]


def test_a_draft_model_reads_what_it_lacks(tiny_model: Path, expected: tuple[dict[str, Any], int]) -> None:
    """After preemptions, with few rows and blocks of its own, and prompts that it reads in chunks."""
    engine = engine_of(
        tiny_model,
        speculative_config={"model": str(tiny_model), "num_speculative_tokens": 3},
        max_num_batched_tokens=7,
        kv_cache_memory="256KiB",
        max_num_seqs=3,
    )
    done, _ = run(engine, lambda step: preempt_all(engine) if step % 5 == 0 and step < 60 else None)
    assert done == expected[0]


@pytest.mark.parametrize("name", BIT_CASES)
def test_in_two_stages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage guesses; the others hear of what was right with the next step, and go back with their states."""
    case = read_case(BIT_CASES[name])
    prompts = [prompt_of(c) for c in case["cases"]]
    expected = [bits(o) for o in load(case, tmp_path).generate(prompts, PARAMS, use_tqdm=False)]
    prophet = Prophet([one[0] for one in expected])
    monkeypatch.setattr(local, "drafter_of", lambda loaded, *_: prophet if loaded.backend.place.is_output else None)
    with stages_are_threads():
        llm = load(case, tmp_path, pipeline_parallel_size=2, max_num_batched_tokens=16, speculative_config=SPECULATION)
        always(llm.engine)
        assert [bits(o) for o in llm.generate(prompts * 3, PARAMS, use_tqdm=False)] == expected * 3
        done = preempted(llm, {str(i): (prompt, PARAMS) for i, prompt in enumerate(prompts * 2)}, after=3)
        assert [bits(done[str(i)]) for i in range(len(prompts) * 2)] == expected * 2
        assert accepted(llm.engine) > 0 < prophet.num_wrong


@pytest.mark.alone
@pytest.mark.parametrize("layout", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_in_two_processes(tiny_model: Path, layout: str) -> None:
    prompts, params = (
        ["a b a b a b", "something else"],
        SamplingParams(temperature=0.7, seed=3, max_tokens=20, logprobs=1),
    )
    answers = []
    for config in ({}, {"model": str(tiny_model)}, {"method": "ngram", "prompt_lookup_min": 1}):
        llm = LLM(
            str(tiny_model),
            dtype="float32",
            kv_cache_memory="16MiB",
            threads=1,
            speculative_config=config,
            **{layout: 2},
        )
        answers.append([(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in llm.generate(prompts, params)])
        assert not config or llm.engine.speculation.num_draft_tokens > 0
        llm.shutdown()
    assert answers[0] == answers[1] == answers[2]


def test_beside_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_slots, "load_adapter", random_adapter)
    case = case_named("LlamaForCausalLM--gqa-tied")
    prompts = [prompt_of(c) for c in case["cases"]] * 3
    adapters = [(None, request("a", tmp_path), request("b", tmp_path))[i % 3] for i in range(len(prompts))]
    options = {"enable_lora": True, "max_loras": 2}
    plain = load(case, tmp_path, **options)
    expected = [bits(o) for o in plain.generate(prompts, PARAMS, lora_request=adapters, use_tqdm=False)]
    llm = load(case, tmp_path, speculative_config=SPECULATION, **options)
    guess(llm.engine, [one[0] for one in expected])
    assert [bits(o) for o in llm.generate(prompts, PARAMS, lora_request=adapters, use_tqdm=False)] == expected
    assert accepted(llm.engine) > 0


def test_nothing_is_guessed_where_it_costs_more_than_it_gives() -> None:
    speculation = Speculation(speculative_config({"method": "ngram", "num_speculative_tokens": 6}))
    cheap, dear = Sequence(1, [1]), Sequence(2, [1])
    cheap.draft_rate, dear.draft_rate = 0.9, 0.05
    assert speculation.most_drafts(cheap) == 6
    assert speculation.most_drafts(dear) == 0
    one = ScheduledSequence(cheap, 1, 0, drafts=[1, 2])
    for _ in range(50):  # a row more costs as much as a step of one
        speculation.stepped([one], 3.0)
        speculation.stepped([ScheduledSequence(cheap, 1, 0)], 1.0)
    assert speculation.most_drafts(cheap) == 0
    for _ in range(200):  # it costs next to nothing
        speculation.stepped([one], 1.01)
        speculation.stepped([ScheduledSequence(cheap, 1, 0)], 1.0)
    assert speculation.most_drafts(cheap) == 6
    dear.draft_rate = before = 0.0
    for _ in range(40):  # who is wrong for long tries again some time
        speculation.most_drafts(dear)
    assert dear.draft_rate > before
    for _ in range(100):  # to guess one takes as long as a step
        speculation.drafted(2, 2.0)
    assert speculation.most_drafts(cheap) == 0
    for _ in range(200):  # nobody has guessed for long
        speculation.drafted(0, 0.0)
    assert speculation.most_drafts(cheap) == 6
    small = Speculation(speculative_config({"method": "ngram", "disable_by_batch_size": 2}))
    small.stepped([one, one], 1.0)
    assert small.most_drafts(cheap) == 0


@given(
    st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 3)
)
def test_prompt_lookup_finds_what_a_search_finds(prompt: list[int], answer: list[int], least: int) -> None:
    """The longest likeness of up to `most` tokens, the latest of those; what it copies goes on with itself."""
    most, count = least + 2, 5
    lookup, so_far = PromptLookup(least, most), list[int]()
    state = SequenceState(SequenceStart(1, prompt), sampling=SamplingState(SamplingParams(), 0, prompt, frozenset()))
    for token in answer:
        so_far.append(token)
        assert state.sampling is not None
        state.sampling.output_token_ids = list(so_far)
        tokens = prompt + so_far
        found = [
            (size, end)
            for size in range(least, most + 1)
            for end in range(size, len(tokens))
            if tokens[end - size : end] == tokens[-size:] and end < len(tokens)
        ]
        (drafts,) = lookup.propose([state], [count])
        if not found:
            assert drafts == []
            continue
        _, end = max(found)
        endless = tokens.copy()
        for i in range(count):
            endless.append(endless[end + i])
        assert drafts == endless[len(tokens) :]
    lookup.end([1])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"method": "ngramm"}, "'ngramm' is unknown.* Did you mean ngram"),
        ({"method": "dflash"}, "'dflash' is not supported; give ngram, suffix, draft_model, mtp, eagle, eagle3 or"),
        ({"method": "suffix", "suffix_decoding_max_tree_depth": 0}, "suffix_decoding_max_tree_depth=0 must be a whole"),
        ({"method": "suffix", "suffix_decoding_max_cached_requests": -1}, "cached_requests=-1 must be a whole number"),
        ({"method": "suffix", "suffix_decoding_max_spec_factor": "a"}, "max_spec_factor='a' must be a number from 0"),
        (
            {"method": "suffix", "suffix_decoding_min_token_prob": 1.5},
            "min_token_prob=1.5 must be a number from 0 to 1",
        ),
        ({"method": "suffix", "model": "m"}, "method='suffix' takes no model"),
        ({"method": "longcat_flash_mtp"}, "'longcat_flash_mtp' is not supported; give ngram"),
        ({"num_speculative_tokens": 3}, "names no method"),
        ({"method": "ngram", "model": "some/model"}, "takes no model"),
        ({"method": "draft_model"}, "needs a model"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens=0 must be a whole number"),
        ({"method": "ngram", "num_speculative_tokens": 257}, "num_speculative_tokens=257 .* from 1 to 256"),
        ({"method": "ngram", "prompt_lookup_min": 4, "prompt_lookup_max": 2}, "is more than"),
        ({"method": "ngram", "promt_lookup_min": 4}, "unknown key 'promt_lookup_min'. Did you mean prompt_lookup_min"),
    ],
)
def test_wrong_options(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EngineArgs("m", speculative_config=config)


def test_spellings_of_options() -> None:
    """vLLM's: a model named [ngram], JSON, one number for both lookups, and options of their own."""
    assert EngineArgs("m", speculative_config={"model": "[ngram]"}).speculation == speculative_config(
        {"method": "ngram"}
    )
    one = EngineArgs("m", speculative_config='{"method": "ngram", "prompt_lookup_max": 3}').speculation
    assert one is not None
    assert (one.prompt_lookup_min, one.prompt_lookup_max) == (3, 3)
    short = EngineArgs("m", spec_model="x", spec_tokens=2).speculation
    assert short is not None
    assert (short.method, short.model, short.num_speculative_tokens) == ("draft_model", "x", 2)
    assert EngineArgs("m", speculative_config=None).speculation is None
    with pytest.raises(ConfigError, match="spec_tokens=2 and speculative_config, with 3, contradict"):
        EngineArgs("m", speculative_config={"method": "ngram", "num_speculative_tokens": 3}, spec_tokens=2)
    for method in ("mtp", "deepseek_mtp", "qwen3_next_mtp", "glm4_moe_mtp", "ernie_mtp"):
        own = EngineArgs("m", speculative_config={"method": method}).speculation
        assert own is not None
        assert (own.method, own.num_speculative_tokens) == ("mtp", 3)
    with pytest.raises(ConfigError, match="generates no text"):
        EngineArgs("m", task="embed", speculative_config={"method": "ngram"})


def test_what_vllm_says_otherwise() -> None:
    """Names of heads without a method, chains as trees, sizes of a draft model, and what changes nothing."""

    def read(**config: Any) -> Any:
        return EngineArgs("m", speculative_config=config).speculation

    assert read(method="ngram_gpu") == read(method="ngram", draft_tensor_parallel_size=2, tensor_parallel_size=1)
    assert read(model="yuhuili/EAGLE3-LLaMA3.1-Instruct-8B").method == "eagle3"
    assert read(model="yuhuili/EAGLE-LLaMA3-Instruct-8B").method == "eagle"
    assert read(model="eagle-farm/tiny-llama").method == "draft_model"
    assert read(method="ngram", speculative_token_tree="[(0,), (0, 0), (0, 0, 0)]").num_speculative_tokens == 3
    assert read(method="mtp", model="m") == dataclasses.replace(read(method="mtp"), model="m")
    draft = read(
        model="x", max_model_len=100, draft_load_config={"load_format": "gguf"}, rejection_sample_method="strict"
    )
    assert (draft.max_model_len, draft.draft_load_config) == (100, {"load_format": "gguf"})
    for config, said in (
        ({"speculative_token_tree": "[(0,), (1,)]"}, "guesses are one chain"),
        ({"speculative_token_tree": "__import__('os')"}, "guesses are one chain"),
        ({"speculative_token_tree": "[(0,)]", "num_speculative_tokens": 2}, "contradict each other"),
        ({"rejection_sample_method": "synthetic"}, "count as right that are not"),
        ({"parallel_drafting": True}, "several tokens at once are not read"),
        ({"tensor_parallel_size": 2}, "computed by one rank"),
        ({"method": "mtp", "model": "other"}, "model='other' is another"),
        ({"draft_load_config": {"device": "cpu"}}, "draft_load_config has 'device'; it takes load_format and"),
        ({"draft_load_config": [1]}, "must be a dict of texts"),
    ):
        with pytest.raises(ConfigError, match=said):
            read(**{"method": "ngram", **config})


def test_a_draft_model_of_short_texts(tiny_model: Path) -> None:
    """Longer ones go on without guesses."""
    made = []
    for length in (None, 24):
        config = {
            "model": str(tiny_model),
            "max_model_len": length,
            "draft_load_config": {"load_format": "safetensors"},
        }
        llm = LLM(str(tiny_model), kv_cache_memory="16MiB", dtype="float32", speculative_config=config)
        always(llm.engine)
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        llm.generate("a b", params, use_tqdm=False)
        assert llm.engine.speculation is not None
        made.append(llm.engine.speculation.num_draft_tokens)
    assert 0 < made[1] < made[0]


def test_draft_models_that_cannot_draft(tiny_model: Path, tmp_path: Path) -> None:
    for name, said in (
        ("MambaForCausalLM", "keeps a state of fixed size"),
        ("BartForConditionalGeneration", "no decoder"),
        ("ChatGLMModel", "a vocabulary of"),
    ):
        other = write_model(read_case(ROWS[name]), tmp_path / name)
        with pytest.raises(ConfigError, match=said):
            engine_of(tiny_model, speculative_config={"model": str(other)})
    with pytest.raises(ConfigError, match=r"speculative_config: .*nowhere"):
        engine_of(tiny_model, speculative_config={"model": str(tmp_path / "nowhere")})
    reward = next(p for p in CASES if p.stem.startswith("Qwen2ForRewardModel"))
    with pytest.raises(ConfigError, match="generates no text"):
        load(read_case(reward), tmp_path / "reward", task="auto", speculative_config={"method": "ngram"})


def test_what_overflows_only_as_a_draft_is_no_failure(tmp_path: Path) -> None:
    """The sequence would never have come there by itself."""
    case = case_named("LlamaForCausalLM--llama3-rope")
    prompt = {"prompt_token_ids": case["cases"][0]["prompt_token_ids"]}
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1, prompt_logprobs=1)
    expected = bits(load(case, tmp_path / "sound").generate(prompt, params, use_tqdm=False)[0])
    bad = next(token for token in range(50) if token not in expected[0] + prompt["prompt_token_ids"])
    folder = write_model(case, tmp_path / "unsound")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][bad] = float("inf")
    save_file(weights, folder / "model.safetensors")
    llm = opened(case, folder, speculative_config=SPECULATION)
    guess(llm.engine, [[*expected[0][:3], bad, bad]], wrong=0)
    assert bits(llm.generate(prompt, params, use_tqdm=False)[0]) == expected
    assert llm.engine.scheduler.num_preemptions > 0


def test_what_is_told_of_it(tiny_model: Path) -> None:
    """By vLLM's names: the configuration, and what guesses came to."""
    llm = LLM(str(tiny_model), kv_cache_memory="16MiB", speculative_config={"method": "ngram", "prompt_lookup_min": 1})
    llm.generate("a b a b a b a b", SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), use_tqdm=False)
    config = llm.llm_engine.vllm_config.speculative_config
    assert config is not None
    assert (config.method, config.num_speculative_tokens) == ("ngram", 8)
    metrics: dict[str, Any] = {metric.name.removeprefix("vllm:spec_decode_"): metric for metric in llm.get_metrics()}
    assert 0 < metrics["num_drafts"].value <= metrics["num_draft_tokens"].value
    by_place = metrics["num_accepted_tokens_per_pos"].values
    assert metrics["num_accepted_tokens"].value == sum(by_place) <= metrics["num_draft_tokens"].value
    assert by_place == sorted(by_place, reverse=True)
    assert not any(
        "spec_decode" in metric.name for metric in LLM(str(tiny_model), kv_cache_memory="16MiB").get_metrics()
    )
