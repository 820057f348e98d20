"""Embeddings, classes, rewards and scores, beyond what the golden cases hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from octavo import LLM, PoolerConfig, PoolingParams, SamplingParams
from octavo.errors import ConfigError, InvalidRequestError, UnsupportedModelError
from tests.golden import case_named, write_model

OPTIONS: dict[str, Any] = {"dtype": "float32", "kv_cache_memory": "8MiB"}
PROMPTS = [[1, 2, 3, 4, 5], [9, 8, 7], [4] * 20]
STEP = 4


def classifier(folder: Path, labels: int = 2) -> Path:
    case = case_named("Qwen2ForSequenceClassification--2-labels")
    case["config"]["id2label"] = {str(i): f"L{i}" for i in range(labels)}
    case["tensors"]["score.weight"]["shape"] = [labels, 64]
    write_model(case, folder)
    inner = Tokenizer(WordLevel({"<unk>": 0, "<sep>": 1, "red": 2, "blue": 3, "sky": 4}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="$A", pair="$A <sep> $B", special_tokens=[("<sep>", 1)])
    inner.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("task", ["reward", "classify"])
def test_tasks_that_need_a_head_are_refused(tiny_folder: Path, task: str) -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM has no head for it; it serves generate"):
        LLM(str(tiny_folder), task=task)


def test_task_follows_the_model(tmp_path: Path) -> None:
    llm = LLM(str(classifier(tmp_path)), **OPTIONS)
    assert llm.engine.info.task == "classify"
    with pytest.raises(InvalidRequestError, match="task='classify' and generates no text"):
        llm.generate("red")
    with pytest.raises(InvalidRequestError, match='task="embedding"'):
        llm.embed("red")


def test_classes_of_any_family_are_as_transformers_computes_them(tmp_path: Path) -> None:
    """What transformers publishes for classification is known by the name of the family's language model."""
    from transformers import MistralConfig, MistralForSequenceClassification

    config = MistralConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
        max_position_embeddings=256,
        num_labels=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    reference = MistralForSequenceClassification(config).eval()
    reference.save_pretrained(tmp_path)
    llm = LLM(str(tmp_path), skip_tokenizer_init=True, **OPTIONS)
    for ids, output in zip(PROMPTS, llm.classify(PROMPTS, use_tqdm=False), strict=True):
        with torch.no_grad():
            want = torch.softmax(reference(torch.tensor([ids])).logits[0], -1)
        np.testing.assert_allclose(output.outputs.probs, want.numpy(), atol=1e-5)
    raw = llm.encode(PROMPTS, PoolingParams(softmax=False), use_tqdm=False)
    probabilities = llm.classify(PROMPTS, use_tqdm=False)
    for scores, output in zip(raw, probabilities, strict=True):
        assert torch.softmax(scores.outputs.data, -1).tolist() == pytest.approx(output.outputs.probs)


def test_use_activation_is_the_softmax_of_scores(tmp_path: Path) -> None:
    llm = LLM(str(classifier(tmp_path)), **OPTIONS)

    def of(**options: Any) -> list[float]:
        return list(llm.encode("red", PoolingParams(**options), use_tqdm=False)[0].outputs.data.tolist())

    raw, probabilities = of(softmax=False), of(softmax=True)
    assert raw != probabilities
    assert (of(use_activation=False), of(use_activation=True), of()) == (raw, probabilities, probabilities)
    assert of(use_activation=False, softmax=True) == probabilities


def test_tasks_that_are_no_more_name_what_took_their_place() -> None:
    with pytest.raises(InvalidRequestError, match="task='score' is no task any more; use classify"):
        PoolingParams(task="score")


def test_one_class_gives_a_sigmoid(tmp_path: Path) -> None:
    llm = LLM(str(classifier(tmp_path, labels=1)), **OPTIONS)
    raw = llm.encode("red", PoolingParams(softmax=False), use_tqdm=False)[0].outputs.data
    assert llm.classify("red", use_tqdm=False)[0].outputs.probs == pytest.approx(torch.sigmoid(raw).tolist())


def test_score_with_a_classifier_reads_pairs(tmp_path: Path) -> None:
    llm = LLM(str(classifier(tmp_path)), **OPTIONS)
    scores = llm.score("sky", ["red", "blue"], use_tqdm=False)
    pairs = llm.classify([[4, 1, 2], [4, 1, 3]], use_tqdm=False)
    assert [s.outputs.score for s in scores] == [p.outputs.probs[-1] for p in pairs]
    assert scores[0].prompt_token_ids == [4, 1, 2]
    with pytest.raises(InvalidRequestError, match="pairs of texts"):
        llm.score([1, 2], [2, 3])
    with pytest.raises(InvalidRequestError, match="2 prompts but 3 text_1"):
        llm.score(["a", "b", "c"], ["d", "e"])


def test_score_of_many_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="this one has 3"):
        LLM(str(classifier(tmp_path, labels=3)), **OPTIONS).score("a", "b")


def test_score_of_embeddings_is_their_cosine(tiny_folder: Path) -> None:
    llm = LLM(str(tiny_folder), task="embedding", skip_tokenizer_init=True, **OPTIONS)
    one, two = (np.array(o.outputs.embedding) for o in llm.embed(PROMPTS[:2], use_tqdm=False))
    assert llm.score([PROMPTS[0]], [PROMPTS[1]], use_tqdm=False)[0].outputs.score == pytest.approx(one @ two, abs=1e-6)


def test_steps_of_a_language_model_get_rewards(tiny_folder: Path) -> None:
    """As math-shepherd is used: the probabilities of "good" and "bad" at each step's tag."""
    config = PoolerConfig("STEP", step_tag_id=STEP, returned_token_ids=[7, 11], softmax=True)
    llm = LLM(str(tiny_folder), task="reward", override_pooler_config=config, skip_tokenizer_init=True, **OPTIONS)
    prompt = [5, STEP, 9, 9, STEP, 3]
    rewards = llm.encode(prompt, use_tqdm=False)[0].outputs.data
    plain = LLM(str(tiny_folder), skip_tokenizer_init=True, max_logprobs=-1, **OPTIONS)
    for row, place in zip(rewards, (2, 5), strict=True):
        params = SamplingParams(max_tokens=1, logprobs=-1)
        logprobs = plain.generate([prompt[:place]], params, use_tqdm=False)[0].outputs[0].logprobs[0]
        want = torch.softmax(torch.tensor([logprobs[7].logprob, logprobs[11].logprob]), 0)
        np.testing.assert_allclose(row, want, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PoolerConfig("STEP"), "needs step_tag_id"),
        (PoolerConfig(returned_token_ids=[1]), "needs task='reward'"),
    ],
)
def test_configurations_that_cannot_be_followed(tiny_folder: Path, config: PoolerConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(str(tiny_folder), task="embedding", override_pooler_config=config, skip_tokenizer_init=True, **OPTIONS)


def test_pooled_answers_do_not_depend_on_chunks_or_neighbours(tmp_path: Path) -> None:
    folder = str(write_model(case_named("Qwen2ForRewardModel--math-rm"), tmp_path))
    prompts = [[i % 300 for i in range(n)] for n in (3, 40, 90)]
    whole = LLM(folder, skip_tokenizer_init=True, **OPTIONS)
    cut = LLM(folder, skip_tokenizer_init=True, max_num_batched_tokens=7, **OPTIONS)
    together = [o.outputs.data for o in whole.encode(prompts, use_tqdm=False)]
    for prompt, want in zip(prompts, together, strict=True):
        assert torch.equal(cut.encode(prompt, use_tqdm=False)[0].outputs.data, want)
        assert torch.equal(whole.encode(prompt, use_tqdm=False)[0].outputs.data, want)
