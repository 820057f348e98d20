"""The Python interface, on a tiny model of token ids and on SmolLM2."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, BeamSearchParams, RequestOutputKind, SamplingParams
from octavo.errors import ConfigError, InvalidRequestError
from octavo.outputs import RequestOutput
from tests.golden import case_named, write_model
from tests.preemption import preempt_all

PROMPT = {"prompt_token_ids": [5, 6, 7, 8]}


def one(llm: LLM, prompt: Any = PROMPT, **values: Any) -> RequestOutput:
    return llm.generate(prompt, SamplingParams(**{"temperature": 0, **values}), use_tqdm=False)[0]


class TestPrompts:
    def test_kinds(self, tiny: LLM) -> None:
        want = one(tiny).outputs[0].token_ids
        assert one(tiny, [5, 6, 7, 8]).outputs[0].token_ids == want
        params = SamplingParams(temperature=0)
        many = tiny.generate([[5, 6, 7, 8], PROMPT], [params, params], use_tqdm=False)
        assert [o.outputs[0].token_ids for o in many] == [want, want]
        older = tiny.generate(prompt_token_ids=[[5, 6, 7, 8]], sampling_params=params, use_tqdm=False)
        assert older[0].outputs[0].token_ids == want
        assert older[0].prompt_token_ids == [5, 6, 7, 8]

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ({"prompt_token_ids": []}, "empty"),
            ({"prompt_token_ids": [320]}, "outside this model's vocabulary"),
            ({"prompt_token_ids": [-1]}, "outside"),
            ({"prompt_token_ids": ["x"]}, "integers"),
            ({"prompt_token_ids": [1] * 256}, "context length is 256 tokens.*prompt has 256"),
            ({"text": "x"}, "needs prompt or prompt_token_ids"),
            ("text", "skip_tokenizer_init"),
            (3, "prompts must be"),
        ],
    )
    def test_refused_before_anything_runs(self, tiny: LLM, prompt: Any, message: str) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            one(tiny, prompt)
        assert not tiny.engine.has_work

    def test_one_bad_prompt_leaves_nothing_behind(self, tiny: LLM) -> None:
        with pytest.raises(InvalidRequestError, match="prompt 1:"):
            tiny.generate([PROMPT, {"prompt_token_ids": [999]}], SamplingParams(), use_tqdm=False)
        assert not tiny.engine.has_work
        assert one(tiny).finished

    def test_truncation(self, tiny: LLM) -> None:
        assert one(tiny, [1] * 300, truncate_prompt_tokens=3).prompt_token_ids == [1, 1, 1]
        assert len(one(tiny, [1] * 300, truncate_prompt_tokens=-1, max_tokens=1).prompt_token_ids) == 255

    def test_answer_ends_at_the_models_length(self, tiny: LLM) -> None:
        output = one(tiny, [1] * 250, max_tokens=None, ignore_eos=True)
        assert len(output.outputs[0].token_ids) == 6
        assert output.outputs[0].finish_reason == "length"


class TestSampling:
    @pytest.mark.parametrize(
        "values",
        [
            {"temperature": -1},
            {"top_p": 0},
            {"top_p": 1.5},
            {"top_k": -2},
            {"min_p": 2},
            {"n": 0},
            {"n": 2, "temperature": 0},
            {"best_of": 1, "n": 2},
            {"max_tokens": 0},
            {"min_tokens": 5, "max_tokens": 2},
            {"presence_penalty": 3},
            {"frequency_penalty": -3},
            {"repetition_penalty": 0},
            {"logprobs": -2},
            {"stop": [""]},
            {"stop": "x", "detokenize": False},
            {"allowed_token_ids": []},
            {"truncate_prompt_tokens": 0},
            {"bad_words": [""]},
        ],
        ids=str,
    )
    def test_out_of_range(self, values: dict[str, Any]) -> None:
        name = next(iter(values))
        with pytest.raises(ValueError, match=name):
            SamplingParams(**values)

    def test_unknown_keyword_names_the_closest(self) -> None:
        for make in (SamplingParams, SamplingParams.from_optional):
            with pytest.raises(ValueError, match="Did you mean temperature"):
                make(temprature=1)
        with pytest.raises(TypeError, match="It takes beam_width"):
            BeamSearchParams(zzz=1)
        with pytest.raises(ConfigError, match=r"max_model_len"):
            LLM("anything", max_modell_len=3)

    @pytest.mark.parametrize(
        "values",
        [{"logprobs": 21}, {"logit_bias": {500: 1.0}}, {"allowed_token_ids": [400]}, {"stop_token_ids": [320]}],
        ids=str,
    )
    def test_what_this_model_cannot_honour(self, tiny: LLM, values: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequestError, match=next(iter(values))):
            one(tiny, **values)

    def test_seed_is_independent_of_neighbours(self, tiny: LLM) -> None:
        params = SamplingParams(seed=11, max_tokens=20, ignore_eos=True)
        alone = tiny.generate(PROMPT, params, use_tqdm=False)[0].outputs[0].token_ids
        others = [SamplingParams(seed=i, temperature=0.5 + i / 10, max_tokens=5 + i) for i in range(6)]
        many = tiny.generate([PROMPT] * 7, [*others[:3], params, *others[3:]], use_tqdm=False)
        assert many[3].outputs[0].token_ids == alone

    def test_n_gives_different_sequences_of_one_seed(self, tiny: LLM) -> None:
        params = SamplingParams(n=4, seed=3, max_tokens=8, ignore_eos=True)
        first, second = (tiny.generate(PROMPT, params, use_tqdm=False)[0].outputs for _ in range(2))
        assert [c.index for c in first] == [0, 1, 2, 3]
        assert len({tuple(c.token_ids) for c in first}) == 4
        assert [c.token_ids for c in first] == [c.token_ids for c in second]

    def test_best_of_returns_the_likeliest(self, tiny: LLM) -> None:
        all_of = tiny.generate(PROMPT, SamplingParams(n=6, seed=3, max_tokens=8, logprobs=0), use_tqdm=False)[0].outputs
        best = tiny.generate(PROMPT, SamplingParams(n=2, best_of=6, seed=3, max_tokens=8, logprobs=0), use_tqdm=False)[
            0
        ].outputs
        ranked = sorted(all_of, key=lambda c: -c.cumulative_logprob)
        assert [c.token_ids for c in best] == [c.token_ids for c in ranked[:2]]

    def test_stop_token_ids_and_min_tokens(self, tiny: LLM) -> None:
        free = one(tiny, max_tokens=10, ignore_eos=True).outputs[0].token_ids
        stopped = one(tiny, max_tokens=10, ignore_eos=True, stop_token_ids=[free[4]]).outputs[0]
        assert stopped.token_ids == free[: free.index(free[4]) + 1]
        assert (stopped.finish_reason, stopped.stop_reason) == ("stop", free[4])
        longer = one(tiny, max_tokens=10, ignore_eos=True, stop_token_ids=[free[0]], min_tokens=3).outputs[0]
        assert len(longer.token_ids) >= 3
        assert free[0] not in longer.token_ids[:3]

    def test_prompt_logprobs_are_the_same_in_chunks(self, tiny: LLM, tiny_folder: Any) -> None:
        prompt = [(7 * i) % 320 for i in range(100)]
        chunked = LLM(
            str(tiny_folder),
            dtype="float32",
            skip_tokenizer_init=True,
            kv_cache_memory="8MiB",
            max_num_batched_tokens=9,
        )
        one(tiny, prompt)  # is in the prefix cache now, which must not cost any log-probability
        given = [one(llm, prompt, prompt_logprobs=2).prompt_logprobs for llm in (tiny, chunked)]
        assert given[0] == given[1]
        assert given[0][0] is None
        assert len(given[0]) == 100
        assert all(prompt[i] in given[0][i] for i in range(1, 100))

    def test_prompt_logprobs_after_preemption(self, tiny: LLM, tiny_folder: Any) -> None:
        """Preempted in the middle of the prompt, and cut otherwise when it is computed anew."""
        prompt = [(7 * i) % 320 for i in range(60)]
        want = one(tiny, prompt, prompt_logprobs=1, max_tokens=2).prompt_logprobs
        llm = LLM(
            str(tiny_folder),
            dtype="float32",
            skip_tokenizer_init=True,
            kv_cache_memory="8MiB",
            max_num_batched_tokens=16,
        )
        params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=2)
        llm.requests.add("first", [9, 9, 9], SamplingParams(max_tokens=3, ignore_eos=True))
        llm.requests.add("asked", prompt, params)
        outputs = []
        for step in range(40):
            outputs += llm.requests.step()
            if step in (1, 4):
                preempt_all(llm.engine)
        assert next(o for o in outputs if o.request_id == "asked" and o.finished).prompt_logprobs == want

    def test_failing_logits_processor_ends_its_request_alone(self, tiny: LLM) -> None:
        def broken(output: list[int], row: torch.Tensor) -> torch.Tensor:
            if len(output) == 3:
                raise RuntimeError("oops")
            return row

        bad, good = tiny.generate(
            [PROMPT, PROMPT],
            [
                SamplingParams(temperature=0, ignore_eos=True, logits_processors=[broken]),
                SamplingParams(temperature=0, ignore_eos=True),
            ],
            use_tqdm=False,
        )
        assert bad.outputs[0].finish_reason == "error"
        assert "oops" in bad.outputs[0].stop_reason
        assert len(bad.outputs[0].token_ids) == 3
        assert good.outputs[0].finish_reason == "length"


class TestEngine:
    def test_kv_memory_too_large_or_small(self, tiny_folder: Any) -> None:
        for size, message in (("99TiB", "more than the"), ("1KiB", "does not hold one block"), ("x", "not a size")):
            with pytest.raises(ConfigError, match=message):
                LLM(str(tiny_folder), skip_tokenizer_init=True, kv_cache_memory=size)

    def test_request_longer_than_the_cache_is_refused(self, tiny_folder: Any) -> None:
        llm = LLM(str(tiny_folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="64KiB")
        limit = llm.engine.max_model_len
        assert limit < 256
        with pytest.raises(InvalidRequestError, match=f"context length is {limit} tokens"):
            one(llm, [1] * limit)
        assert len(one(llm, [1] * (limit - 2), max_tokens=50, ignore_eos=True).outputs[0].token_ids) == 2

    def test_small_cache_preempts_and_answers_the_same(self, tiny: LLM, tiny_folder: Any) -> None:
        small = LLM(str(tiny_folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="96KiB")
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, logprobs=1)
        prompts = [{"prompt_token_ids": [i, i + 1, i + 2]} for i in range(12)]
        want, got = (llm.generate(prompts, params, use_tqdm=False) for llm in (tiny, small))
        assert small.engine.scheduler.num_preemptions > 0
        assert [o.outputs[0] for o in got] == [o.outputs[0] for o in want]

    def test_abort_frees_everything(self, tiny: LLM) -> None:
        engine = tiny.engine
        free = engine.cache.pool.num_free
        tiny.requests.add("a", [1, 2, 3], SamplingParams(max_tokens=50, ignore_eos=True))
        tiny.requests.step()
        last = tiny.requests.abort(["a", "unknown"])
        assert last[0].outputs[0].finish_reason == "abort"
        assert not engine.has_work
        assert engine.cache.pool.num_free == free

    def test_overflow_fails_its_request_alone(self, tmp_path: Path) -> None:
        """A token whose embedding is infinite poisons its own request, and nothing that comes after."""
        folder = write_model(case_named("LlamaForCausalLM--llama1-keys"), tmp_path / "untied")
        llm = LLM(str(folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="64KiB")
        sound = one(llm, [1, 2, 3], max_tokens=8)
        llm.engine.executor.runner.model.embed.weight[300] = torch.inf
        bad, good = llm.generate([[300] * 20, [1, 2, 3]], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
        assert bad.outputs[0].finish_reason == "error"
        assert good.outputs[0].token_ids == sound.outputs[0].token_ids
        for cache in llm.engine.executor.runner.caches.paged:
            assert torch.isfinite(cache.keys).all()
            assert torch.isfinite(cache.values).all()

    @pytest.mark.parametrize("kind", list(RequestOutputKind))
    def test_output_kinds(self, tiny: LLM, kind: RequestOutputKind) -> None:
        want = one(tiny, max_tokens=6, ignore_eos=True, logprobs=1).outputs[0]
        tiny.requests.add(
            "k", PROMPT, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=1, output_kind=kind)
        )
        outputs = []
        while tiny.requests.has_work:
            outputs += tiny.requests.step()
        pieces = [o.outputs[0] for o in outputs]
        if kind is RequestOutputKind.DELTA:
            assert [t for p in pieces for t in p.token_ids] == want.token_ids
            assert [e for p in pieces for e in p.logprobs] == want.logprobs
            assert all(len(p.token_ids) == 1 for p in pieces)
        else:
            assert pieces[-1].token_ids == want.token_ids
            assert len(pieces) == (6 if kind is RequestOutputKind.CUMULATIVE else 1)

    def test_priority_policy(self, tiny_folder: Any) -> None:
        llm = LLM(
            str(tiny_folder),
            skip_tokenizer_init=True,
            kv_cache_memory="8MiB",
            max_num_seqs=1,
            scheduling_policy="priority",
        )
        for name, priority in (("late", 9), ("soon", 1)):
            llm.requests.add(name, PROMPT, SamplingParams(max_tokens=2), priority)
        order = []
        while llm.engine.has_work:
            order += [o.request_id for o in llm.requests.step() if o.finished]
        assert order == ["soon", "late"]

    def test_ignored_and_impossible_vllm_arguments(self, tiny_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", "octavo"):
            LLM(str(tiny_folder), skip_tokenizer_init=True, kv_cache_memory="8MiB", enforce_eager=True, swap_space=4)
        said = [r.message for r in caplog.records if "has no effect" in r.message]
        assert len(said) == 2
        with pytest.raises(ConfigError, match="tokenizer_mode='slow'"):
            LLM(str(tiny_folder), tokenizer_mode="slow")

    def test_cache_report_is_one_line(self, tiny_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", "octavo"):
            LLM(str(tiny_folder), skip_tokenizer_init=True, kv_cache_memory="1MiB")
        line = next(r.message for r in caplog.records if "KV cache" in r.message)
        assert "blocks of 16 tokens" in line
        assert "requests of 256 tokens" in line


def test_beam_search_finds_the_best_of_all(tiny: LLM) -> None:
    """With a beam as wide as the vocabulary squared would be, two steps are exhaustive: compare with brute force."""
    best = tiny.beam_search(PROMPT, BeamSearchParams(beam_width=4, max_tokens=2, ignore_eos=True))[0].sequences
    wide = LLM.generate(tiny, PROMPT, SamplingParams(temperature=0, max_tokens=1, logprobs=8), use_tqdm=False)
    candidates = []
    for token, entry in wide[0].outputs[0].logprobs[0].items():
        then = one(tiny, [*PROMPT["prompt_token_ids"], token], max_tokens=1, logprobs=8).outputs[0].logprobs[0]
        candidates += [(entry.logprob + e.logprob, [token, t]) for t, e in then.items()]
    candidates.sort(key=lambda c: -c[0])
    # The first beam keeps 4 first tokens; the best pairs here begin with one of them.
    assert best[0].tokens[-2:] == candidates[0][1]
    assert best[0].cum_logprob == pytest.approx(candidates[0][0])
    assert [b.cum_logprob for b in best] == sorted((b.cum_logprob for b in best), reverse=True)


class TestText:
    def test_continues_a_text(self, smollm: LLM) -> None:
        output = one(smollm, "The capital of France is", max_tokens=3)
        assert "Paris" in output.outputs[0].text
        assert output.prompt == "The capital of France is"

    def test_chat(self, smollm: LLM) -> None:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        output = smollm.chat(messages, SamplingParams(temperature=0, max_tokens=30), use_tqdm=False)[0]
        assert "Paris" in output.outputs[0].text
        assert output.outputs[0].finish_reason == "stop"
        assert output.prompt.startswith("<|im_start|>system")
        two = smollm.chat([messages, messages], SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)
        assert len(two) == 2

    def test_tokenizer_applies_the_template(self, smollm: LLM) -> None:
        """As scripts do that prepare their prompts themselves."""
        tokenizer = smollm.engine.tokenizer
        messages = [{"role": "user", "content": "Hi"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text.endswith("<|im_start|>assistant\n")
        assert tokenizer.apply_chat_template(messages) == tokenizer.encode(text.removesuffix("<|im_start|>assistant\n"))

    @pytest.mark.parametrize(
        "messages", [[], "hi", [{"content": "x"}], [{"role": "user"}], [{"role": "user", "content": 3}]]
    )
    def test_bad_messages(self, smollm: LLM, messages: Any) -> None:
        with pytest.raises(InvalidRequestError, match="message"):
            smollm.chat(messages)

    def test_template_is_sandboxed(self, smollm: LLM) -> None:
        evil = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
        with pytest.raises(InvalidRequestError, match="rejected"):
            smollm.chat([{"role": "user", "content": "x"}], chat_template=evil)

    @pytest.mark.parametrize("include", [False, True])
    def test_stop_string(self, smollm: LLM, include: bool) -> None:
        free = one(smollm, "Count: one, two, three,", max_tokens=20).outputs[0].text
        stop = free[8:12]
        got = one(smollm, "Count: one, two, three,", max_tokens=20, stop=stop, include_stop_str_in_output=include)
        end = free.index(stop) + (len(stop) if include else 0)
        assert got.outputs[0].text == free[:end]
        assert (got.outputs[0].finish_reason, got.outputs[0].stop_reason) == ("stop", stop)

    def test_stream_never_shows_what_a_stop_string_takes_back(self, smollm: LLM) -> None:
        free = one(smollm, "Count: one, two, three,", max_tokens=20).outputs[0].text
        stop = free[6:14]
        params = SamplingParams(temperature=0, max_tokens=20, stop=stop, output_kind=RequestOutputKind.DELTA)
        smollm.requests.add("s", "Count: one, two, three,", params)
        shown = ""
        while smollm.engine.has_work:
            for output in smollm.requests.step():
                shown += output.outputs[0].text
                assert free.startswith(shown)
        assert shown == free[: free.index(stop)]

    def test_bad_words(self, smollm: LLM) -> None:
        got = one(smollm, "The capital of France is", max_tokens=8, bad_words=["Paris"]).outputs[0].text
        assert "Paris" not in got

    def test_logprobs_carry_text(self, smollm: LLM) -> None:
        step = one(smollm, "The capital of France is", max_tokens=1, logprobs=2).outputs[0].logprobs[0]
        assert next(iter(step.values())).decoded_token == " Paris"
        assert [e.rank for e in step.values()] == [1, 2]

    def test_detokenize_off(self, smollm: LLM) -> None:
        output = one(smollm, "Hello", max_tokens=3, detokenize=False).outputs[0]
        assert output.text == ""
        assert len(output.token_ids) == 3

    def test_special_tokens_are_skipped_unless_wanted(self, smollm: LLM) -> None:
        prompt = "<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\n"
        hidden = one(smollm, prompt, max_tokens=60, ignore_eos=True).outputs[0].text
        shown = one(smollm, prompt, max_tokens=60, ignore_eos=True, skip_special_tokens=False).outputs[0].text
        assert "<|im_end|>" not in hidden
        assert "<|im_end|>" in shown

    def test_beam_search_text(self, smollm: LLM) -> None:
        beams = smollm.beam_search("The capital of France is", BeamSearchParams(beam_width=3, max_tokens=4))[
            0
        ].sequences
        assert len(beams) == 3
        assert "Paris" in beams[0].text
