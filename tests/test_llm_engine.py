"""What scripts written for vLLM ask of an LLM and its engine beside answers."""

import copy
import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, BeamSearchParams, EngineArgs, LLMEngine, PoolerConfig, PoolingParams, SamplingParams
from octavo.client.request_counts import Counter, Gauge, Histogram
from octavo.errors import ConfigError, InvalidRequestError, RequestFailedError
from octavo.executor.local import LocalExecutor
from octavo.outputs import FlatLogprobs
from tests.server.conftest import write_tiny

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("engine") / "tiny")


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(str(folder), kv_cache_memory="16MiB", scheduling_policy="priority")


def answer(llm: LLM, prompt: Any = "Hello", **options: Any) -> list[int]:
    return llm.generate(prompt, GREEDY, use_tqdm=False, **options)[0].outputs[0].token_ids


def test_tokenizer_answers_as_transformers_does(llm: LLM, folder: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    own, theirs = llm.get_tokenizer(), AutoTokenizer.from_pretrained(folder)
    assert isinstance(own, PreTrainedTokenizerBase)
    assert own(["Hello", "a</s>b"]).input_ids == theirs(["Hello", "a</s>b"]).input_ids
    assert own("x" * 9, truncation=True, max_length=4).input_ids == theirs("x" * 4).input_ids
    assert (len(own), own.eos_token, own.eos_token_id, own.pad_token_id) == (257, "</s>", 256, None)
    assert own.get_vocab() == theirs.get_vocab()
    ids = own.encode("Hi")
    assert own.convert_tokens_to_ids(own.convert_ids_to_tokens(ids)) == ids
    assert own.batch_decode([ids, [256]]) == ["Hi", "</s>"]
    assert own.batch_decode([[256]], skip_special_tokens=True) == [""]
    conversation = [{"role": "user", "content": "a"}]
    assert own.apply_chat_template(conversation, tokenize=False) == "<|user|>a<|assistant|>"
    assert own.chat_template == theirs.chat_template
    assert own.model_max_length == llm.model_config.max_model_len


def test_what_is_set_on_the_tokenizer_changes_nothing(llm: LLM) -> None:
    before = answer(llm)
    tokenizer = llm.get_tokenizer()
    tokenizer.add_tokens(["Hello"])
    try:
        assert len(tokenizer.encode("Hello")) == 1
        assert answer(llm) == before
    finally:
        del llm.llm_engine.tokenizer


def test_model_config(llm: LLM, folder: Path) -> None:
    config = llm.llm_engine.vllm_config
    assert config.model_config.hf_config.num_hidden_layers == 2
    assert config.model_config.get_vocab_size() == llm.engine.info.vocab_size
    assert config.model_config.model == str(folder)
    assert (config.model_config.runner_type, config.model_config.dtype) == ("generate", torch.float32)
    assert config.cache_config.num_gpu_blocks == llm.engine.ready.num_blocks
    assert llm.get_world_size() == 1
    assert llm.supported_tasks == ("generate",)
    assert (config.lora_config, config.speculative_config) == (None, None)


def test_engine_step_by_step(folder: Path) -> None:
    engine = LLMEngine.from_engine_args(EngineArgs(model=str(folder), kv_cache_memory="16MiB"))
    engine.add_request("one", "Hello", GREEDY)
    engine.add_request("two", {"prompt": "Hi"}, SamplingParams(n=2, seed=1, max_tokens=3, ignore_eos=True))
    engine.add_request("gone", "Hello", GREEDY)
    engine.abort_request("gone")
    assert engine.get_num_unfinished_requests() == 2
    done = dict[str, Any]()
    while engine.has_unfinished_requests():
        done |= {output.request_id: output for output in engine.step() if output.finished}
    assert {name: [len(o.token_ids) for o in output.outputs] for name, output in done.items()} == {
        "one": [6],
        "two": [3, 3],
    }
    assert engine.step() == []
    with pytest.raises(InvalidRequestError, match="request_id must be a text"):
        engine.add_request(7, "Hello", GREEDY)  # type: ignore[arg-type]


def test_enqueued_prompts_wait_for_their_call(llm: LLM) -> None:
    alone = answer(llm, "Hi")
    ids = llm.enqueue(["Hello", "Hi"], GREEDY)
    assert answer(llm, "Hi") == alone  # a call between them gets its own answer
    ids += llm.enqueue_chat([{"role": "user", "content": "a"}], GREEDY)
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == ids
    assert outputs[1].outputs[0].token_ids == alone
    assert llm.wait_for_completion(use_tqdm=False) == []


def test_prefix_cache_is_forgotten(llm: LLM) -> None:
    prompt = "x" * 64
    answer(llm, prompt)
    assert (llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens or 0) > 0
    assert llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens == 0


def test_prefix_cache_while_a_request_runs(folder: Path) -> None:
    engine = LLMEngine(EngineArgs(model=str(folder), kv_cache_memory="16MiB"))
    engine.add_request("whole", "Hello", GREEDY)
    whole = list[Any]()
    while engine.has_unfinished_requests():
        whole += engine.step()
    engine.add_request("one", "Hello", GREEDY)
    engine.step()
    assert not engine.reset_prefix_cache()
    assert engine.reset_prefix_cache(reset_running_requests=True)
    outputs = list[Any]()
    while engine.has_unfinished_requests():
        outputs += engine.step()
    assert outputs[-1].outputs[0].token_ids == whole[-1].outputs[0].token_ids


def test_sleep(llm: LLM) -> None:
    before = answer(llm)
    llm.sleep(level=1)
    with pytest.raises(ConfigError, match="wake_up"):
        answer(llm)
    assert not llm.wake_up(tags=["weights"])
    assert llm.wake_up(tags=["kv_cache"])
    assert answer(llm) == before
    llm.sleep(level=0)
    (name,) = llm.enqueue("Hello", GREEDY)
    assert llm.llm_engine.step() == []
    assert llm.wake_up(tags=["scheduling"])
    (output,) = llm.wait_for_completion(use_tqdm=False)
    assert (output.request_id, output.outputs[0].token_ids) == (name, before)
    with pytest.raises(InvalidRequestError, match="mode='hard'"):
        llm.sleep(mode="hard")


@pytest.mark.parametrize("mode", ["abort", "wait", "keep"])
def test_what_is_queued_before_a_sleep_is_waited_for_after_it(llm: LLM, mode: str) -> None:
    before = answer(llm)
    names = llm.enqueue(["Hello", "Hello"], GREEDY)
    llm.llm_engine.step()
    llm.sleep(level=1, mode=mode)
    llm.wake_up()
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == names
    if mode == "abort":
        assert [output.outputs[0].finish_reason for output in outputs] == ["abort"] * 2
        assert outputs[0].outputs[0].token_ids == before[:1]
    else:
        assert [output.outputs[0].token_ids for output in outputs] == [before] * 2
    assert not llm.llm_engine.has_unfinished_requests()


def test_what_is_aborted_is_not_waited_for(llm: LLM) -> None:
    names = llm.enqueue(["Hello", "Hello"], GREEDY)
    llm.llm_engine.abort_request(names[0])
    with pytest.raises(RequestFailedError, match="1 of 2 requests were aborted meanwhile"):
        llm.wait_for_completion(use_tqdm=False)
    assert answer(llm)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes memory back so")
def test_sleep_gives_the_caches_memory_back(folder: Path) -> None:
    def resident(tensor: torch.Tensor) -> int:
        """Pages of it that are in memory, those at its ends left out."""
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = (tensor.data_ptr() + tensor.nbytes - first) // mmap.PAGESIZE
        found = (ctypes.c_ubyte * pages)()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(first), ctypes.c_size_t(pages * mmap.PAGESIZE), found) == 0
        return sum(page & 1 for page in found)

    llm = LLM(str(folder), kv_cache_memory="16MiB")
    executor = llm.llm_engine.engine.executor
    assert isinstance(executor, LocalExecutor)
    keys = [cache.keys for cache in executor.runner.caches.paged if cache is not None]
    before = answer(llm)
    assert all(resident(one) for one in keys)
    llm.enqueue("Hello", GREEDY)
    llm.llm_engine.step()
    llm.sleep(level=1, mode="keep")
    assert not any(resident(one) for one in keys)
    assert llm.wake_up()
    (output,) = llm.wait_for_completion(use_tqdm=False)
    assert output.outputs[0].token_ids == before
    assert answer(llm) == before


def test_metrics(folder: Path) -> None:
    llm = LLM(str(folder), kv_cache_memory="16MiB", disable_log_stats=False)
    llm.generate(["x" * 40, "x" * 40], GREEDY, use_tqdm=False)
    llm.generate("x" * 40, GREEDY, use_tqdm=False)
    metrics = {m.name: m for m in llm.get_metrics() if m.name != "vllm:request_success"}
    counters = {name: m.value for name, m in metrics.items() if isinstance(m, Counter)}
    assert counters["vllm:prompt_tokens"] == 120
    assert counters["vllm:generation_tokens"] == 18
    assert counters["vllm:prefix_cache_hits"] > 0
    assert metrics["vllm:kv_cache_usage_perc"] == Gauge(
        "vllm:kv_cache_usage_perc", {"model_name": str(folder), "engine": "0"}, 0.0
    )
    lengths = metrics["vllm:request_generation_tokens"]
    assert isinstance(lengths, Histogram)
    assert (lengths.count, lengths.sum, lengths.buckets["5.0"], lengths.buckets["10.0"]) == (3, 18, 0, 3)
    assert lengths.buckets["+Inf"] == 3
    ended = {m.labels["finished_reason"]: m.value for m in llm.get_metrics() if m.name == "vllm:request_success"}  # type: ignore[attr-defined]
    assert ended == {"stop": 0, "length": 3, "abort": 0, "error": 0}
    latency = metrics["vllm:e2e_request_latency_seconds"]
    assert isinstance(latency, Histogram)
    assert latency.count == 3


def test_collective_rpc(llm: LLM) -> None:
    def count(worker: Any, factor: int, add: int = 0) -> int:
        return sum(p.numel() for p in worker.get_model().parameters()) * factor + add

    (one,), (twice,) = llm.collective_rpc(count, args=(1,)), llm.collective_rpc(count, args=(2,), kwargs={"add": 1})
    assert twice == 2 * one + 1
    assert llm.apply_model(lambda model: type(model).__name__) == ["CausalLM"]
    assert llm.collective_rpc("get_model_inspection") == [str(llm.llm_engine.engine.executor.runner.model)]  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequestError, match="no method 'load_model'; it has apply_model"):
        llm.collective_rpc("load_model")


def test_one_priority_for_all(llm: LLM) -> None:
    assert answer(llm, priority=3) == answer(llm, priority=[3])
    with pytest.raises(InvalidRequestError, match="2 prompts but 1 priority"):
        llm.generate(["a", "b"], GREEDY, priority=[1], use_tqdm=False)
    (output,) = llm.chat([{"role": "user", "content": "a"}], GREEDY, False, None, 2)
    assert len(output.outputs[0].token_ids) == 6


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"truncation": True, "max_length": 3}, list("llo")),
        ({"truncation": True, "max_length": 3, "truncation_side": "right"}, list("Hel")),
        ({"max_length": 3, "padding": False, "add_special_tokens": True}, list("Hello")),
        ({"truncate_prompt_tokens": 2}, list("lo")),
    ],
)
def test_tokenization_kwargs(llm: LLM, options: dict[str, Any], ids: list[str]) -> None:
    (output,) = llm.generate("Hello", GREEDY, tokenization_kwargs=options, use_tqdm=False)
    assert output.prompt_token_ids == [llm.get_tokenizer().convert_tokens_to_ids(c) for c in ids]


def test_unknown_tokenization_kwargs(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="tokenization_kwargs: 'stride' is not supported"):
        llm.generate("Hello", GREEDY, tokenization_kwargs={"stride": 2}, use_tqdm=False)


def test_content_format(llm: LLM) -> None:
    kinds = "{% for m in messages %}{{ 'text' if m.content is string else m.content | length }}{% endfor %}"

    def shown(content: Any, form: str) -> str | None:
        messages = [{"role": "user", "content": content}]
        return llm.chat(
            messages, GREEDY, False, chat_template=kinds, chat_template_content_format=form
        )[0].prompt  # fmt: skip

    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert (shown(parts, "string"), shown("a", "string")) == ("text", "text")
    assert (shown(parts, "openai"), shown("a", "openai")) == ("2", "1")
    with pytest.raises(InvalidRequestError, match="chat_template_content_format='parts'"):
        shown("a", "parts")


def test_chat_template_of_the_llm(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!")
    for given in (str(tmp_path / "own.jinja"), tmp_path / "own.jinja", "{{ messages[0].content }}!"):
        llm = LLM(str(folder), kv_cache_memory="16MiB", chat_template=given)
        assert llm.chat([{"role": "user", "content": "a"}], GREEDY, False)[0].prompt == "a!"
    with pytest.raises(ConfigError, match=r"none\.jinja is not readable"):
        LLM(str(folder), chat_template=tmp_path / "none.jinja")


def test_flat_logprobs(llm: LLM) -> None:
    plain = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1)
    flat = copy.deepcopy(plain)
    flat.flat_logprobs = True
    one, other = (llm.generate("Hello", p, use_tqdm=False)[0] for p in (plain, flat))
    packed = other.outputs[0].logprobs
    assert isinstance(packed, FlatLogprobs)
    assert isinstance(other.prompt_logprobs, FlatLogprobs)
    assert list(packed) == one.outputs[0].logprobs
    assert list(packed[1:3]) == (one.outputs[0].logprobs or [])[1:3]
    assert list(other.prompt_logprobs)[1:] == (one.prompt_logprobs or [])[1:]
    assert other.prompt_logprobs[0] == {}
    assert packed.token_ids[packed.start_indices[2]] == one.outputs[0].token_ids[2]
    with pytest.raises(TypeError):
        packed[0] = {}


def test_beam_search_in_groups(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=3, ignore_eos=True)
    prompts = ["Hello", "Hi", "Ho"]
    together, apart = (llm.beam_search(prompts, params, concurrency_limit=n, priority=1) for n in (None, 2))
    assert [[b.tokens for b in o.sequences] for o in together] == [[b.tokens for b in o.sequences] for o in apart]
    with pytest.raises(InvalidRequestError, match="concurrency_limit=0"):
        llm.beam_search(prompts, params, concurrency_limit=0)


def test_beam_search_among_allowed_tokens(folder: Path) -> None:
    llm = LLM(str(folder), kv_cache_memory="16MiB", max_logprobs=-1)
    params = BeamSearchParams(beam_width=2, max_tokens=3, ignore_eos=True, allowed_token_ids=[5, 9])
    (found,) = llm.beam_search("Hello", params)
    assert all(set(beam.tokens[5:]) <= {5, 9} for beam in found.sequences)
    assert len(found.sequences) == 2


@pytest.mark.parametrize("values", [{"watermarking": True}, {"allowed_token_ids": []}])
def test_beam_search_values_that_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(values))):
        BeamSearchParams(beam_width=2, max_tokens=3, **values)


def test_a_progress_bar_of_the_callers(llm: LLM) -> None:
    made = list[dict[str, Any]]()

    class Bar:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def update(self, n: int) -> None:
            made.append({"update": n})

        def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

        def close(self) -> None: ...

    llm.generate(["a", "b"], GREEDY, use_tqdm=Bar)
    assert made == [{"total": 2, "desc": "Generating", "unit": "request"}, {"update": 1}, {"update": 1}]


def test_shutdown(folder: Path) -> None:
    llm = LLM(str(folder), kv_cache_memory="16MiB")
    llm.enqueue("Hello", GREEDY)
    llm.shutdown()
    assert not llm.llm_engine.has_unfinished_requests()


def test_pooler_config_as_vllm_has_it(folder: Path) -> None:
    options: dict[str, Any] = {"runner": "pooling", "kv_cache_memory": "16MiB"}
    config = PoolerConfig(task="token_embed", use_activation=False, seq_pooling_type="mean")
    assert (config.pooling_type, config.normalize, config.softmax, config.use_activation) == (
        "MEAN",
        False,
        False,
        None,
    )
    llm = LLM(str(folder), pooler_config=config, **options)
    (rows,), (one,) = llm.encode("Hello", use_tqdm=False), llm.encode("Hello", pooling_task="embed", use_tqdm=False)
    assert rows.outputs.data.shape == (5, 64)
    assert one.outputs.data.shape == (64,)
    assert float(one.outputs.data.norm()) > 1.5  # it is not scaled
    (cut,) = llm.embed("Hello", PoolingParams(task="embed"), tokenization_kwargs={"truncate_prompt_tokens": 2})
    assert len(cut.prompt_token_ids) == 2
    with pytest.raises(ConfigError, match=r"PoolerConfig\.task='classify': this engine pools for embed, token_embed"):
        LLM(str(folder), pooler_config={"task": "classify"}, **options)
