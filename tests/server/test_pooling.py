"""Classes and rewards over HTTP are those of the Python interface."""

from pathlib import Path

import pytest

from octavo import LLM
from tests.golden import case_named, write_model
from tests.server.running import server
from tests.test_pooling import OPTIONS, classifier


def test_classes_and_scores(tmp_path: Path) -> None:
    folder = str(classifier(tmp_path))
    llm = LLM(folder, **OPTIONS)
    with server(folder, "--dtype", "float32", "--kv-cache-memory", "8MiB") as running:
        data = running.post("/classify", {"input": ["red", "blue sky"]}).json()["data"]
        want = [o.outputs.probs for o in llm.classify(["red", "blue sky"], use_tqdm=False)]
        for one, probs in zip(data, want, strict=True):
            assert one["probs"] == pytest.approx(probs, abs=1e-6)
            assert one["label"] == f"L{probs.index(max(probs))}"
        scores = running.post("/score", {"text_1": "sky", "text_2": ["red", "blue"]}).json()["data"]
        want_scores = [o.outputs.score for o in llm.score("sky", ["red", "blue"], use_tqdm=False)]
        assert [s["score"] for s in scores] == pytest.approx(want_scores, abs=1e-6)
        ranked = running.post("/rerank", {"query": "sky", "documents": ["red", "blue"]}).json()["results"]
        for path in ("/v1/rerank", "/v2/rerank"):
            again = running.post(path, {"query": "sky", "documents": ["red", "blue"]}).json()["results"]
            assert again == ranked
        assert [r["relevance_score"] for r in ranked] == pytest.approx(sorted(want_scores, reverse=True), abs=1e-6)
        assert running.post("/v1/embeddings", {"input": "red"}).status_code == 400


def test_rewards(tmp_path: Path) -> None:
    case = case_named("Qwen2ForRewardModel--math-rm")
    folder = str(write_model(case, tmp_path))
    flags = ("--dtype", "float32", "--kv-cache-memory", "8MiB", "--skip-tokenizer-init")
    with server(folder, *flags) as running:
        prompts = [c["prompt_token_ids"] for c in case["cases"]]
        data = running.post("/pooling", {"input": prompts}).json()["data"]
        for one, of in zip(data, case["cases"], strict=True):
            assert [row[0] for row in one["data"]] == pytest.approx(of["reward"], abs=1e-4)
        assert running.post("/tokenize", {"prompt": "x"}).status_code == 400
