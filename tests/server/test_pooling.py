"""Classes, scores, rewards and embeddings over HTTP are those of the Python interface, by all of vLLM's names."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo import LLM, PoolingParams
from octavo.compat.embedding_tensors import (
    EMBED_DTYPES,
    ENDIANNESS,
    MetadataItem,
    binary2tensor,
    build_metadata_items,
    decode_pooling_output,
    tensor2binary,
)
from octavo.errors import InvalidRequestError
from tests.golden import case_named, write_model
from tests.server.running import Running, server
from tests.test_pooling import OPTIONS, classifier

FLAGS = ("--dtype", "float32", "--kv-cache-memory", "8MiB")
TEMPLATE = (
    "{{ instruction or '' }}{% for m in messages %}{% if m.role == 'query' %}sky {{ m.content }} {% else %}blue "
    "{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = classifier(tmp_path_factory.mktemp("classes"))
    chat = "{% for m in messages %}{{ m.content }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat}))
    return folder


@pytest.fixture(scope="module")
def llm(classes: Path) -> LLM:
    return LLM(str(classes), **OPTIONS)


@pytest.fixture(scope="module")
def served(classes: Path) -> Iterator[Running]:
    with server(str(classes), *FLAGS) as running:
        yield running


def scores(running: Running, body: dict[str, Any]) -> list[float]:
    answer = running.post("/score", body)
    assert answer.status_code == 200, answer.text
    return [one["score"] for one in answer.json()["data"]]


def test_classes_and_scores(llm: LLM, served: Running) -> None:
    data = served.post("/classify", {"input": ["red", "blue sky"]}).json()["data"]
    want = [o.outputs.probs for o in llm.classify(["red", "blue sky"], use_tqdm=False)]
    for one, probs in zip(data, want, strict=True):
        assert one["probs"] == pytest.approx(probs, abs=1e-6)
        assert one["label"] == f"L{probs.index(max(probs))}"
    want_scores = [o.outputs.score for o in llm.score("sky", ["red", "blue"], use_tqdm=False)]
    ranked = served.post("/rerank", {"query": "sky", "documents": ["red", "blue"]}).json()["results"]
    for path in ("/v1/rerank", "/v2/rerank"):
        again = served.post(path, {"query": "sky", "documents": ["red", "blue"]}).json()["results"]
        assert again == ranked
    assert [r["relevance_score"] for r in ranked] == pytest.approx(sorted(want_scores, reverse=True), abs=1e-6)
    assert served.post("/v1/embeddings", {"input": "red"}).status_code == 400


@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")]
)
def test_the_two_sides_by_every_name(llm: LLM, served: Running, names: tuple[str, str]) -> None:
    want = [o.outputs.score for o in llm.score("sky", ["red", "blue"], use_tqdm=False)]
    assert scores(served, {names[0]: "sky", names[1]: ["red", "blue"]}) == pytest.approx(want, abs=1e-6)
    parts = {"content": [{"type": "text", "text": "red"}]}
    assert scores(served, {names[0]: ["sky"], names[1]: parts}) == pytest.approx(want[:1], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text_1": "sky", "documents": ["red"]}, "queries and documents, or queries and items"),
        ({"queries": "sky", "documents": []}, "documents is empty"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "3 prompts but 2"),
        ({"text_1": "a", "text_2": "b", "max_tokens_per_doc": -1}, "max_tokens_per_doc must be a non-negative"),
        ({"text_1": "a", "text_2": "b", "max_tokens_per_query": 4096}, "must be less than max_model_len"),
        ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 4096}, "cannot be greater than max_model_len"),
        ({"text_1": "a", "text_2": {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}}, "text_2"),
    ],
)
def test_scores_that_cannot_be(served: Running, body: dict[str, Any], message: str) -> None:
    answer = served.post("/score", body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_texts_are_cut_to_their_own_limits(served: Running) -> None:
    long = {"queries": "sky red", "documents": ["red blue sky", "blue"]}
    short = {"queries": "sky", "documents": ["red blue", "blue"]}
    limits = {"max_tokens_per_query": 1, "max_tokens_per_doc": 2}
    assert scores(served, {**long, **limits}) == scores(served, short)
    ranked = served.post("/rerank", {"query": "sky", "documents": ["red blue", "blue"], "top_n": 0}).json()
    cut = served.post("/rerank", {"query": "sky", "documents": ["red blue sky", "blue"], **limits}).json()
    assert [r["relevance_score"] for r in cut["results"]] == [r["relevance_score"] for r in ranked["results"]]
    assert cut["usage"]["prompt_tokens"] == cut["usage"]["total_tokens"] > 0
    assert len(served.post("/rerank", {"query": "a", "documents": ["b", "c"], "top_n": 1}).json()["results"]) == 1


def test_use_activation(llm: LLM, served: Running) -> None:
    raw = llm.encode("red", PoolingParams(softmax=False), use_tqdm=False)[0].outputs.data.tolist()
    for path, key in (("/classify", "probs"), ("/pooling", "data")):
        body = {"input": "red", "use_activation": False}
        assert served.post(path, body).json()["data"][0][key] == pytest.approx(raw, abs=1e-6)
    plain = scores(served, {"text_1": "sky", "text_2": "red"})
    assert scores(served, {"text_1": "sky", "text_2": "red", "use_activation": True}) == plain
    assert scores(served, {"text_1": "sky", "text_2": "red", "use_activation": False}) != plain


def test_classes_of_a_conversation(served: Running) -> None:
    def probs(**body: Any) -> list[list[float]]:
        return [one["probs"] for one in served.post("/classify", body).json()["data"]]

    red, sky = [{"role": "user", "content": "red"}], [{"role": "user", "content": "sky"}]
    of_texts = probs(input=["red", "sky"], add_special_tokens=False)
    assert probs(messages=red) == of_texts[:1]
    assert probs(messages=[red, sky]) == of_texts
    assert served.post("/classify", {"messages": red, "input": "red"}).status_code == 400
    assert served.post("/classify", {}).status_code == 400


def test_tasks_by_name(served: Running, embedding_server: Running) -> None:
    asked = {"input": "red", "task": "classify"}
    assert served.post("/pooling", asked).status_code == 200
    for task, message in (("score", "use classify"), ("embed", "pools for classify"), ("foo", "is unknown")):
        answer = served.post("/pooling", {**asked, "task": task})
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
    rows = embedding_server.post("/pooling", {"input": "red", "task": "token_embed"}).json()["data"][0]["data"]
    assert len(rows) == 3


def test_pairs_by_a_template(classes: Path, llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jinja"
    file.write_text(TEMPLATE)
    want = [o.outputs.probs[-1] for o in llm.classify(["sky red blue sky", "red sky red blue sky"], use_tqdm=False)]
    with server(str(classes), *FLAGS, "--chat-template", str(file)) as running:
        body = {"queries": "red", "documents": ["sky"]}
        assert scores(running, body) == pytest.approx(want[:1], abs=1e-6)
        assert scores(running, {**body, "instruction": "red "}) == pytest.approx(want[1:], abs=1e-6)
        more = {"chat_template_kwargs": {"instruction": "red "}}
        assert scores(running, {**body, **more}) == pytest.approx(want[1:], abs=1e-6)
        answer = running.post("/score", {**body, "chat_template_kwargs": {"messages": []}})
        assert answer.status_code == 400


def test_rewards(tmp_path: Path) -> None:
    case = case_named("Qwen2ForRewardModel--math-rm")
    folder = str(write_model(case, tmp_path))
    with server(folder, *FLAGS, "--skip-tokenizer-init") as running:
        prompts = [c["prompt_token_ids"] for c in case["cases"]]
        data = running.post("/pooling", {"input": prompts}).json()["data"]
        for one, of in zip(data, case["cases"], strict=True):
            assert [row[0] for row in one["data"]] == pytest.approx(of["reward"], abs=1e-4)
        assert running.post("/tokenize", {"prompt": "x"}).status_code == 400


def test_embeddings_as_bytes(embedding_server: Running) -> None:
    body = {"input": ["red", "blue"]}
    whole = embedding_server.post("/v1/embeddings", body).json()
    want = [one["embedding"] for one in whole["data"]]
    for dtype, kind in (("float32", "f4"), ("float16", "f2")):
        own = {**body, "embed_dtype": dtype, "endianness": "big"}
        coded = embedding_server.post("/v1/embeddings", {**own, "encoding_format": "base64"}).json()["data"]
        found = [np.frombuffer(base64.b64decode(one["embedding"]), ">" + kind) for one in coded]
        np.testing.assert_allclose(found, want, atol=1e-3)
        answer = embedding_server.post("/v1/embeddings", {**own, "encoding_format": "bytes"})
        about = json.loads(answer.headers["metadata"])
        assert (about["usage"], about["model"]) == (whole["usage"], whole["model"])
        places = [(p["start"], p["end"], p["shape"], p["embed_dtype"]) for p in about["data"]]
        size = len(want[0]) * int(kind[1])
        assert places == [(0, size, [len(want[0])], dtype), (size, 2 * size, [len(want[0])], dtype)]
        np.testing.assert_allclose(np.frombuffer(answer.content, ">" + kind).reshape(2, -1), want, atol=1e-3)
        bare = embedding_server.post("/v1/embeddings", {**own, "encoding_format": "bytes_only"})
        assert bare.content == answer.content
        assert "metadata" not in bare.headers


def test_bytes_are_read_as_scripts_for_vllm_do(embedding_server: Running) -> None:
    body = {"input": ["red", "blue"]}
    want = torch.tensor([one["embedding"] for one in embedding_server.post("/v1/embeddings", body).json()["data"]])
    for dtype, kind in EMBED_DTYPES.items():
        for endianness in ENDIANNESS:
            own = {**body, "embed_dtype": dtype, "endianness": endianness}
            answer = embedding_server.post("/v1/embeddings", {**own, "encoding_format": "bytes"})
            items = [MetadataItem(**one) for one in json.loads(answer.headers["metadata"])["data"]]
            made = torch.stack(decode_pooling_output(items, answer.content))
            assert torch.equal(made.float(), want.to(kind).float())
            assert build_metadata_items(dtype, endianness, tuple(made.shape[1:]), 2) == [
                replace(item, shape=tuple(item.shape)) for item in items
            ]
            assert tensor2binary(made, dtype, endianness) == answer.content
    for wrong in (("float64", "big"), ("float32", "middle")):
        with pytest.raises(InvalidRequestError, match="is unknown; it is one of"):
            binary2tensor(b"", (0,), *wrong)


def test_late_interaction(tiny_model: Path) -> None:
    texts = ["red sky", "a blue sky at night", "red"]
    with server(str(tiny_model), "--runner", "pooling", "--pooler-config.task", "token_embed") as running:
        rows = [np.array(one["data"]) for one in running.post("/pooling", {"input": texts}).json()["data"]]
        assert [len(one) for one in rows] == [len(text) for text in texts]
        body = {"text_1": texts[0], "text_2": texts[1:]}
        scores = [one["score"] for one in running.post("/score", body).json()["data"]]
        ranked = running.post("/rerank", {"query": texts[0], "documents": texts[1:]}).json()["results"]
    want = [(rows[0] @ other.T).max(1).sum() for other in rows[1:]]
    assert scores == pytest.approx(want, rel=1e-5)
    assert [one["relevance_score"] for one in ranked] == pytest.approx(sorted(want, reverse=True), rel=1e-5)
    llm = LLM(str(tiny_model), runner="pooling", pooler_config={"task": "token_embed"}, kv_cache_memory="64MiB")
    own = llm.score(texts[0], texts[1:], use_tqdm=False)
    assert [one.outputs.score for one in own] == pytest.approx(want, rel=1e-5)


def test_embeddings_of_conversations(embedding_server: Running) -> None:
    def vectors(**body: Any) -> list[list[float]]:
        answer = embedding_server.post("/v1/embeddings", body)
        assert answer.status_code == 200, answer.text
        return [one["embedding"] for one in answer.json()["data"]]

    red, blue = [{"role": "user", "content": "red"}], [{"role": "user", "content": "blue"}]
    one, both = vectors(messages=red), vectors(messages=[red, blue])
    assert both[:1] == one
    assert both == vectors(input=[red, blue])
    assert one == vectors(input=red)
    assert one == vectors(input="<|user|>red<|assistant|>", add_special_tokens=False)
    raw = vectors(messages=red, use_activation=False)
    np.testing.assert_allclose(np.array(raw) / np.linalg.norm(raw), one, atol=1e-6)
    assert embedding_server.post("/v1/embeddings", {"input": [red, []]}).status_code == 400
