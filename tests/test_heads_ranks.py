"""Heads on several ranks: they guess as in one process, and no answer shows that they are there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import SamplingParams
from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.executor import adapter_slots, local, rank_executor
from octavo.executor.drafting import drafter_of
from tests.golden import CASES, case_named, prompt_of, read_case, write_model
from tests.head_models import MTP, Case, eagle_head, medusa_heads, with_mtp, write_head
from tests.loaded_ranks import LoadedRanks
from tests.parts.test_split import ranks_for
from tests.preemption import preempted
from tests.random_adapters import random_adapter, request
from tests.rank_threads import ThreadBackend, run_ranks
from tests.test_golden import opened
from tests.test_heads import LONG, SPECULATION, Listener, listened
from tests.test_invariance import WAYS, bits
from tests.test_speculation import always
from tests.thread_stages import stages_are_threads

OF_FOLDERS = ("eagle", "eagle3", "eagle3 of few tokens", "medusa")
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_parallel_size": 2},
    "pp2": {"pipeline_parallel_size": 2},
    "tp2pp2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
}


def made(name: str, folder: Path) -> tuple[Case, Path, dict[str, Any]]:
    """A model with a head, by its case with a layer for that, or by a method; its folder, and how it guesses."""
    if name in MTP:
        case = with_mtp(name)
        return case, write_model(case, folder / "model"), SPECULATION
    case, (method, *few) = case_named("Glm4MoeForCausalLM--4.5"), name.split(" of ")
    if method == "medusa":
        own = write_model(medusa_heads(case["config"], by_authors=False), folder / "head")
    else:
        # Rows of all stages: of the first one's, where it ends, and of the last one's.
        head = eagle_head(case["config"], method, 100 if few else 0, reads=(1, 0, 2))
        own = write_head(head, folder / "head")
    return (
        case,
        write_model(case, folder / "model"),
        {"method": method, "model": str(own), "num_speculative_tokens": 3},
    )


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", [*MTP, *OF_FOLDERS])
def test_stages(name: str, stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one guesses what one process does, from rows that come through all of them."""
    case, folder, config = made(name, tmp_path)
    section = case["config"].get("text_config", case["config"])
    if section["num_hidden_layers"] < stages:
        pytest.skip("fewer layers")
    prompts = [prompt_of(c) for c in case["cases"]]
    llm, alone = listened(case, folder, config)
    expected = [bits(o) for o in llm.generate(prompts, LONG, use_tqdm=False)]
    listeners = list[Listener]()

    def listening(*args: Any) -> Listener | None:
        if (drafter := drafter_of(*args)) is None:
            return None
        listeners.append(Listener(drafter))  # type: ignore[arg-type]
        return listeners[-1]

    monkeypatch.setattr(local, "drafter_of", listening)
    options = {"pipeline_parallel_size": stages, "speculative_config": config, "max_num_batched_tokens": 16}
    with stages_are_threads():
        llm = opened(case, folder, **options)
        always(llm.engine)
        assert [bits(o) for o in llm.generate(prompts, LONG, use_tqdm=False)] == expected
        (listener,) = listeners
        assert listener.guessed == alone.guessed
        assert [bits(o) for o in llm.generate(prompts * 3, LONG, use_tqdm=False)] == expected * 3
        done = preempted(llm, {str(i): (prompt, LONG) for i, prompt in enumerate(prompts * 2)}, after=3)
        assert [bits(done[str(i)]) for i in range(len(prompts) * 2)] == expected * 2


@pytest.mark.parametrize("name", [*MTP, *OF_FOLDERS])
def test_ranks_that_share_layers(name: str, tmp_path: Path) -> None:
    """All of them guess the same, and what one process does."""
    case, folder, config = made(name, tmp_path)
    prompts, size = [prompt_of(c) for c in case["cases"]], ranks_for(case)
    llm, alone = listened(case, folder, config, ops="torch")
    llm.generate(prompts, LONG, use_tqdm=False)

    def plain(backend: ThreadBackend) -> list[Any]:
        return [bits(o) for o in opened(case, folder).generate(prompts, LONG, use_tqdm=False)]

    def guessing(backend: ThreadBackend) -> tuple[list[Any], Any]:
        llm, listener = listened(case, folder, config)
        assert backend.model is not None
        answers = [bits(o) for o in llm.generate(prompts, LONG, use_tqdm=False)]
        assert [bits(o) for o in llm.generate(prompts * 2, LONG, use_tqdm=False)] == answers * 2
        return answers, listener.guessed

    expected = run_ranks(size, plain)
    found = run_ranks(size, guessing)
    assert [answers for answers, _ in found] == expected
    (guessed, *others) = [guesses for _, guesses in found]
    assert others == [guessed] * (size - 1)
    both = guessed.keys() & alone.guessed.keys()
    assert len(both) > 10
    assert {tokens: guessed[tokens] for tokens in both} == {tokens: alone.guessed[tokens] for tokens in both}


@pytest.mark.parametrize("name", ["Qwen2VLForConditionalGeneration--7b", "GPT2LMHeadModel", "Gemma2ForCausalLM"])
def test_models_of_other_kinds(name: str, tmp_path: Path) -> None:
    """Pictures, whose positions have axes; learned positions; windows: the last stage has the embedding too."""
    case = read_case(next(path for path in CASES if path.stem.startswith(name)))
    shapes = {key.split(".")[-2]: spec["shape"] for key, spec in case["tensors"].items() if key.endswith(".weight")}
    vocab_size, hidden_size = shapes.get("embed_tokens") or shapes["wte"]
    head = eagle_head({"vocab_size": vocab_size, "hidden_size": hidden_size}, "eagle")
    own, folder = write_head(head, tmp_path / "head"), write_model(case, tmp_path / "model")
    prompts, config = [prompt_of(c) for c in case["cases"]], {"method": "eagle", "model": str(own)}
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    expected = [answer(o) for o in opened(case, folder).generate(prompts, params, use_tqdm=False)]
    llm, _ = listened(case, folder, config)
    assert [answer(o) for o in llm.generate(prompts, params, use_tqdm=False)] == expected
    with stages_are_threads():
        llm = opened(case, folder, pipeline_parallel_size=2, speculative_config=config)
        always(llm.engine)
        assert [answer(o) for o in llm.generate(prompts * 2, params, use_tqdm=False)] == expected * 2
        assert llm.engine.speculation is not None
        assert llm.engine.speculation.num_draft_tokens > 10


@pytest.fixture(scope="module")
def ranks(layout: str) -> Iterator[LoadedRanks]:
    ranks = LoadedRanks(EngineArgs(**LAYOUTS[layout]), 20)
    yield ranks
    ranks.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", LAYOUTS, scope="module")


def answer(output: Any) -> Any:
    """What a request has got that reads the prefix cache, exactly."""
    return output.outputs[0].token_ids, [{t: e.logprob for t, e in step.items()} for step in output.outputs[0].logprobs]


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "native") for name in ("DeepseekV3ForCausalLM--v3", "Qwen3NextForCausalLM--80b-a3b", *OF_FOLDERS)),
        ("Glm4MoeForCausalLM--4.5", "q4"),
        ("eagle3", "int8"),
    ],
)
def test_processes(
    layout: str, name: str, way: str, ranks: LoadedRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is recorded, cached beginnings, values that are drawn, and after a preemption."""
    monkeypatch.setattr(rank_executor, "load_ranks", ranks.load)
    case, folder, config = made(name, tmp_path)
    beginning = [7 * i % 50 for i in range(21)]
    prompts: list[Any] = [prompt_of(c) for c in case["cases"]]
    prompts += [{"prompt_token_ids": [*beginning, last]} for last in range(3)]
    options = {**LAYOUTS[layout], "threads": 1, "block_size": 4, "max_num_batched_tokens": 32, **WAYS[way]}
    params = [LONG.clone() for _ in prompts]
    for i, one in enumerate(params):
        one.temperature, one.seed, one.prompt_logprobs = (0.0, 0.8)[i % 2], 3, None
    plain = opened(case, folder, **options)
    expected = [answer(o) for o in plain.generate(prompts, params, use_tqdm=False)]
    llm = opened(case, folder, speculative_config=config, **options)
    always(llm.engine)
    for _ in range(2):  # the second time, beginnings are cached
        assert [answer(o) for o in llm.generate(prompts, params, use_tqdm=False)] == expected
    done = preempted(llm, {str(i): pair for i, pair in enumerate(zip(prompts, params, strict=True))}, after=3)
    assert [answer(done[str(i)]) for i in range(len(prompts))] == expected
    assert llm.engine.speculation is not None
    assert llm.engine.speculation.num_draft_tokens > 30


@pytest.mark.parametrize("method", ["eagle3", "medusa"])
def test_beside_adapters(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_slots, "load_adapter", random_adapter)
    case, folder, config = made(method, tmp_path)
    prompts = [prompt_of(c) for c in case["cases"]] * 3
    adapters = [(None, request("a", tmp_path), request("b", tmp_path))[i % 3] for i in range(len(prompts))]
    options = {"enable_lora": True, "max_loras": 2, "pipeline_parallel_size": 2}
    with stages_are_threads():
        plain = opened(case, folder, **options)
        expected = [bits(o) for o in plain.generate(prompts, LONG, lora_request=adapters, use_tqdm=False)]
        llm = opened(case, folder, speculative_config=config, **options)
        always(llm.engine)
        assert [bits(o) for o in llm.generate(prompts, LONG, lora_request=adapters, use_tqdm=False)] == expected
        assert llm.engine.speculation is not None
        assert llm.engine.speculation.num_draft_tokens > 30


def test_a_head_that_cannot_be_divided(tmp_path: Path) -> None:
    case, folder, config = made("eagle", tmp_path)
    file = tmp_path / "head" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_attention_heads": 1, "num_key_value_heads": 1}))

    def work(backend: ThreadBackend) -> None:
        with pytest.raises(ConfigError, match=r"1 attention heads cannot be divided among 2 ranks\. Choose another"):
            opened(case, folder, speculative_config=config)

    run_ranks(2, work)
