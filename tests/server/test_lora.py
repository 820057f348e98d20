"""Adapters behind the endpoints: models of their own, which come and go while requests run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, LoRARequest, SamplingParams
from octavo.errors import ConfigError
from octavo.server.adapter_metrics import MOST_NAMES
from octavo.server.metrics import Metrics
from octavo.server.server_options import LoRAModule, ServerOptions
from tests.adapter_folders import write_adapter
from tests.server.running import Running, server
from tests.server.test_hostile import generated, try_all

MEMORY = ("--kv-cache-memory", "32MiB")
PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
BODY = {"prompt": "Hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(folder / name, tiny_model, seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def answers(tiny_model: Path, adapters: dict[str, Path]) -> dict[str, str]:
    """What each adapter continues "Hello" with, and "" for the model itself."""
    llm = LLM(str(tiny_model), enable_lora=True, kv_cache_memory="16MiB")
    refs = [None, *(LoRARequest(name, i + 1, str(path)) for i, (name, path) in enumerate(adapters.items()))]
    outputs = llm.generate(["Hello"] * len(refs), PARAMS, lora_request=refs, use_tqdm=False)
    found = dict(zip(["", *adapters], (o.outputs[0].text for o in outputs), strict=True))
    assert len({*found.values()}) == len(found)
    return found


@pytest.fixture(scope="module")
def adapted(tiny_model: Path, adapters: dict[str, Path]) -> Iterator[Running]:
    second = json.dumps({"name": "b", "path": str(adapters["b"]), "base_model_name": "tiny"})
    modules = ("--lora-modules", f"a={adapters['a']}", second, "--allow-runtime-lora-updating")
    flags = (*MEMORY, "--served-model-name", "tiny", "--max-loras", "2", "--max-cpu-loras", "4")
    with server(str(tiny_model), *flags, *modules) as running:
        yield running


def complete(running: Running, model: str | None, **more: Any) -> str:
    answer = running.post("/v1/completions", {**BODY, "model": model, **more})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == (model or "tiny")
    return str(answer.json()["choices"][0]["text"])


def load(running: Running, name: str, path: Path | str, **more: Any) -> tuple[int, str]:
    answer = running.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), **more})
    return answer.status_code, answer.text


def unload(running: Running, name: str, **more: Any) -> tuple[int, str]:
    answer = running.post("/v1/unload_lora_adapter", {"lora_name": name, **more})
    return answer.status_code, answer.text


def names(running: Running) -> list[str]:
    return [card["id"] for card in running.get("/v1/models").json()["data"]]


def test_models(adapted: Running, tiny_model: Path, adapters: dict[str, Path]) -> None:
    cards = adapted.get("/v1/models").json()["data"]
    assert [(c["id"], c["parent"], c["root"]) for c in cards] == [
        ("tiny", None, str(tiny_model)),
        ("a", "tiny", str(adapters["a"])),
        ("b", "tiny", str(adapters["b"])),
    ]
    assert len({*map(frozenset, cards)}) == 1


def test_model_says_which_adapter_answers(adapted: Running, answers: dict[str, str]) -> None:
    for model, key in (("tiny", ""), (None, ""), ("a", "a"), ("b", "b")):
        assert complete(adapted, model) == answers[key]
    several = adapted.post("/v1/completions", {**BODY, "model": "b", "prompt": ["Hello", "Hello"], "n": 1}).json()
    assert [c["text"] for c in several["choices"]] == [answers["b"]] * 2
    streamed = adapted.post("/v1/completions", {**BODY, "model": "a", "stream": True}).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(e["choices"][0]["text"] for e in events if e["choices"]) == answers["a"]
    assert {e["model"] for e in events} == {"a"}


def test_chats(adapted: Running) -> None:
    texts = {}
    for model in ("tiny", "a", "b"):
        body = {"model": model, "messages": MESSAGES, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        answer = adapted.post("/v1/chat/completions", body).json()
        assert answer["model"] == model
        texts[model] = answer["choices"][0]["message"]["content"]
        streamed = adapted.post("/v1/chat/completions", {**body, "stream": True}).text
        events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == texts[model]
        assert {e["model"] for e in events} == {model}
    assert len({*texts.values()}) == 3


def test_other_endpoints_take_the_names(adapted: Running) -> None:
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        assert adapted.post(path, {**body, "model": "a"}).status_code == 200
        unknown = adapted.post(path, {**body, "model": "nobody"})
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    for path, more in (("/v1/completions", BODY), ("/v1/chat/completions", {"messages": MESSAGES})):
        assert adapted.post(path, {**more, "model": "nobody"}).status_code == 404


def test_pooling(tiny_model: Path, adapters: dict[str, Path]) -> None:
    llm = LLM(str(tiny_model), enable_lora=True, task="embedding", kv_cache_memory="8MiB")
    adapter = LoRARequest("a", 1, str(adapters["a"]))
    with server(str(tiny_model), *MEMORY, "--task", "embedding", "--lora-modules", f"a={adapters['a']}") as running:
        for model, request in ((str(tiny_model), None), ("a", adapter)):
            texts = ["one", "two"]
            expected = llm.embed(texts, use_tqdm=False, lora_request=request)
            for path, key in (("/v1/embeddings", "embedding"), ("/pooling", "data")):
                answer = running.post(path, {"model": model, "input": texts}).json()
                assert answer["model"] == model
                for one, other in zip(answer["data"], expected, strict=True):
                    assert np.allclose(one[key], other.outputs.embedding, atol=1e-6)
            (score,) = llm.score("one", ["two"], use_tqdm=False, lora_request=request)
            answer = running.post("/score", {"model": model, "text_1": "one", "text_2": "two"}).json()
            assert answer["data"][0]["score"] == pytest.approx(score.outputs.score, abs=1e-6)
            answer = running.post("/rerank", {"model": model, "query": "one", "documents": ["two"]}).json()
            assert answer["results"][0]["relevance_score"] == pytest.approx(score.outputs.score, abs=1e-6)
        assert running.post("/v1/embeddings", {"model": "b", "input": "x"}).status_code == 404
        assert running.post("/v1/load_lora_adapter", {"lora_name": "b", "lora_path": "x"}).status_code == 404


def test_load_and_unload(adapted: Running, adapters: dict[str, Path], answers: dict[str, str]) -> None:
    assert load(adapted, "c", adapters["c"]) == (200, "Success: LoRA adapter 'c' added successfully.")
    assert names(adapted) == ["tiny", "a", "b", "c"]
    assert complete(adapted, "c") == answers["c"]
    status, text = load(adapted, "c", adapters["a"])
    assert status == 400
    assert "The lora adapter 'c' has already been loaded." in text
    assert load(adapted, "c", adapters["a"], load_inplace=True)[0] == 200
    assert complete(adapted, "c") == answers["a"]
    assert unload(adapted, "c", lora_int_id=77) == (200, "Success: LoRA adapter 'c' removed successfully.")
    assert names(adapted) == ["tiny", "a", "b"]
    assert adapted.post("/v1/completions", {**BODY, "model": "c"}).status_code == 404
    status, text = unload(adapted, "c")
    assert status == 404
    assert "The lora adapter 'c' cannot be found." in text
    assert load(adapted, "c", adapters["c"])[0] == 200
    assert complete(adapted, "c") == answers["c"]
    assert unload(adapted, "c")[0] == 200
    assert adapted.get("/v1/load_lora_adapter").status_code == 405


def test_what_cannot_be_loaded_leaves_nothing(
    adapted: Running, tiny_model: Path, adapters: dict[str, Path], answers: dict[str, str], tmp_path: Path
) -> None:
    damaged = write_adapter(tmp_path / "damaged", tiny_model)
    (damaged / "adapter_model.safetensors").write_bytes(b"\x10" * 100)
    large = write_adapter(tmp_path / "large", tiny_model, rank=32)
    other = write_adapter(tmp_path / "other", tiny_model, peft_type="IA3")
    for name, path, status, words in (
        ("", adapters["a"], 400, "Both 'lora_name' and 'lora_path' must be provided."),
        ("x", "", 400, "Both 'lora_name' and 'lora_path' must be provided."),
        ("tiny", adapters["a"], 400, "the model itself"),
        (str(tiny_model), adapters["a"], 400, "the model itself"),
        ("x\ty", adapters["a"], 400, "printable"),
        ("x" * 300, adapters["a"], 400, "at most 256"),
        ("x", tmp_path / "nowhere", 404, "nowhere"),
        ("x", tiny_model, 400, "adapter_config.json"),
        ("x", "x" * 5000, 400, "cannot be read"),
        ("x", damaged, 400, "adapter_model.safetensors"),
        ("x", large, 400, "max_lora_rank=16"),
        ("x", other, 400, "IA3"),
    ):
        found, text = load(adapted, name, path)
        assert (found, words in text) == (status, True), (name[:20], text)
    for broken in (damaged, tmp_path / "nowhere"):  # what is there already goes on
        assert load(adapted, "b", broken, load_inplace=True)[0] in (400, 404)
        assert complete(adapted, "b") == answers["b"]
    assert unload(adapted, "")[0] == 400
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        for body in ({}, {"lora_name": None}, {"lora_name": 5, "lora_path": "x"}, {"lora_path": "x"}):
            assert adapted.post(path, body).status_code == 400
    assert names(adapted) == ["tiny", "a", "b"]
    assert adapted.metric("engine_restarts_total") == 0


def test_runtime_updating_is_opt_in(tiny_model: Path, adapters: dict[str, Path]) -> None:
    flags = (*MEMORY, "--enable-lora", "--api-key", "secret")
    keys = {"headers": {"Authorization": "Bearer secret"}}
    body = {"lora_name": "a", "lora_path": str(adapters["a"])}
    with server(str(tiny_model), *flags) as running:
        assert running.post("/v1/load_lora_adapter", body, **keys).status_code == 404
    with server(str(tiny_model), *flags, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True") as running:
        assert running.post("/v1/load_lora_adapter", body).status_code == 401
        assert running.post("/v1/load_lora_adapter", body, **keys).status_code == 200
        assert running.post("/v1/unload_lora_adapter", {"lora_name": "a"}).status_code == 401
    with server(str(tiny_model), *MEMORY, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as running:
        refused = running.post("/v1/load_lora_adapter", body)
        assert refused.status_code == 400
        assert "enable_lora" in refused.text


def test_a_bad_adapter_at_start(tiny_model: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    """The server does not start, and says why."""
    bad = write_adapter(tmp_path / "bad", tiny_model)
    (bad / "adapter_model.safetensors").write_bytes(b"")
    for modules, words in (
        ([f"bad={bad}"], "adapter_model.safetensors"),
        ([f"gone={tmp_path / 'gone'}"], "there is no"),
        ([f"a={adapters['a']}", f"{tiny_model}={adapters['b']}"], "the model itself"),
        (["nameless"], "names no adapter"),
        ([f"a={adapters['a']}", "--no-enable-lora"], "need --enable-lora"),
    ):
        command = [sys.executable, "-m", "octavo", "serve", str(tiny_model), "--port", "0", *MEMORY]
        done = subprocess.run(
            [*command, "--lora-modules", *modules], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_modules() -> None:
    given = ["a=/x=y", '{"name": "b", "path": "p", "base_model_name": null}', '[{"name": "c", "path": "q"}]']
    options = ServerOptions(lora_modules=[*given, {"name": "d", "path": "r", "base_model_name": "m"}])
    expected = [("a", "/x=y", None), ("b", "p", None), ("c", "q", None), ("d", "r", "m")]
    assert options.lora_adapters == [LoRAModule(*one) for one in expected]
    for bad in ("a", "=x", "a=", "{", '{"name": "a"}', '{"name": 1, "path": "x"}', '["a=x"]', "[" * 9999, 5, None):
        with pytest.raises(ConfigError, match="lora_modules"):
            ServerOptions(lora_modules=[bad])
    with pytest.raises(ConfigError, match="scale"):
        ServerOptions(lora_modules=[{"name": "a", "path": "x", "scale": "2"}])
    with pytest.raises(ConfigError, match="two adapters of the name 'a'"):
        ServerOptions(lora_modules=["a=x", "a=y"])


def test_metrics_and_log(adapted: Running, adapters: dict[str, Path]) -> None:
    def counts(name: str) -> dict[str, float]:
        lines = [line for line in adapted.get("/metrics").text.splitlines() if line.startswith(f"octavo:{name}{{")]
        return {line.partition('lora_name="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}

    assert load(adapted, "m", adapters["c"])[0] == 200
    complete(adapted, "m")
    complete(adapted, "m", prompt="four")
    assert counts("lora_requests_total")["m"] == 2
    assert counts("lora_prompt_tokens_total")["m"] == 9
    assert counts("lora_generation_tokens_total")["m"] == 16
    adapted.until(lambda: any('"adapter": "m"' in line and '"finish"' in line for line in adapted.log))
    (info,) = [x for x in adapted.get("/metrics").text.splitlines() if x.startswith("octavo:lora_requests_info{")]
    assert 'max_lora="2"' in info
    assert unload(adapted, "m")[0] == 200
    assert "m" not in counts("lora_requests_total")


def test_names_in_metrics_are_bounded() -> None:
    metrics = Metrics("x", 2)
    assert metrics.adapters is not None
    for i in range(3 * MOST_NAMES):
        metrics.adapters.on_change(f"a{i}", True)
        metrics.adapters.end(f"a{i}", 1, 1)
        metrics.adapters.take([f"a{i}"], ["b"])
    text = metrics.text().decode()
    assert text.count("octavo:lora_requests_total{") == MOST_NAMES + 1
    assert text.count("octavo:lora_requests_info{") == 1
    for i in range(3 * MOST_NAMES):
        metrics.adapters.on_change(f"a{i}", False)
    metrics.adapters.end("a0", 1, 1)  # it ran until now
    assert metrics.text().decode().count("octavo:lora_requests_total{") == 1
    assert "lora" not in Metrics("x").text().decode()


def test_running_adapters_are_told(adapted: Running) -> None:
    def info() -> str:
        return next(x for x in adapted.get("/metrics").text.splitlines() if "lora_requests_info{" in x)

    body = {**BODY, "model": "a", "max_tokens": 1900, "stream": True}
    with adapted_stream(adapted, body):
        adapted.until(lambda: 'running_lora_adapters="a"' in info())
    adapted.until(lambda: 'running_lora_adapters=""' in info())


def adapted_stream(running: Running, body: dict[str, Any]) -> Any:
    import httpx

    return httpx.stream("POST", running.url + "/v1/completions", json=body, timeout=60)


def test_what_runs_is_finished(adapted: Running, adapters: dict[str, Path], answers: dict[str, str]) -> None:
    """An adapter is unloaded, and another put in its place, while a request runs with it."""
    long = {**BODY, "max_tokens": 300}
    assert load(adapted, "c", adapters["c"])[0] == 200
    expected = complete(adapted, "c", **long)
    with adapted_stream(adapted, {**long, "model": "c", "stream": True}) as answer:
        lines = answer.iter_lines()
        text = json.loads(next(lines)[6:])["choices"][0]["text"]
        assert unload(adapted, "c")[0] == 200
        assert adapted.post("/v1/completions", {**BODY, "model": "c"}).status_code == 404
        assert load(adapted, "c", adapters["a"])[0] == 200
        assert complete(adapted, "c") == answers["a"]
        for line in lines:
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    assert text == expected
    assert unload(adapted, "c")[0] == 200


def test_folders_that_change(adapted: Running, tiny_model: Path, answers: dict[str, str], tmp_path: Path) -> None:
    """New files are answered with; files that are gone, or no adapter any more, are an error of the request alone."""
    folder = write_adapter(tmp_path / "x", tiny_model, 0)
    prompt = "a prompt of several blocks, which the prefix cache keeps: " * 3
    assert load(adapted, "x", folder)[0] == 200
    first = complete(adapted, "x", prompt=prompt)
    assert first == complete(adapted, "x", prompt=prompt) == complete(adapted, "a", prompt=prompt)
    write_adapter(folder, tiny_model, 1)
    assert complete(adapted, "x", prompt=prompt) == complete(adapted, "b", prompt=prompt) != first
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    refused = adapted.post("/v1/completions", {**BODY, "model": "x"})
    assert refused.status_code == 400
    assert "adapter_model.safetensors" in refused.text
    write_adapter(folder, tiny_model, 0)
    assert complete(adapted, "x", prompt=prompt) == first
    shutil.rmtree(folder)
    assert complete(adapted, "x", prompt=prompt) == first  # it is in memory still
    assert unload(adapted, "x")[0] == 200
    assert load(adapted, "x", folder)[0] == 404
    assert complete(adapted, "a") == answers["a"]
    assert adapted.metric("engine_restarts_total") == 0


def test_load_and_unload_under_load(adapted: Running, adapters: dict[str, Path], answers: dict[str, str]) -> None:
    """Requests go on, each with its own answer, while adapters come and go; the engine is never restarted."""
    stop = threading.Event()
    failed: list[str] = []

    def ask(model: str, key: str, may_miss: bool) -> int:
        count = 0
        while not stop.is_set():
            answer = adapted.post("/v1/completions", {**BODY, "model": model})
            if answer.status_code == 404 and may_miss:
                continue
            if answer.status_code != 200 or answer.json()["choices"][0]["text"] != answers[key]:
                failed.append(f"{model}: {answer.status_code} {answer.text[:300]}")
                return count
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        steady = [pool.submit(ask, model, key, False) for model, key in (("a", "a"), ("b", "b"), ("tiny", ""))]
        coming = [pool.submit(ask, f"c{i % 2}", "c", True) for i in range(4)]
        try:
            for i in range(20):
                assert load(adapted, f"c{i % 2}", adapters["c"])[0] == 200
                if i % 3 == 0:
                    assert load(adapted, f"c{i % 2}", adapters["c"], load_inplace=True)[0] == 200
                assert unload(adapted, f"c{i % 2}")[0] == 200
        finally:
            stop.set()
        counts = [future.result() for future in (*steady, *coming)]
    assert not failed
    assert min(counts[:3]) > 0
    assert names(adapted) == ["tiny", "a", "b"]
    assert adapted.metric("engine_restarts_total") == 0
    adapted.until(lambda: adapted.metric("num_requests_running") == adapted.metric("num_requests_waiting") == 0)


def test_hostile_values(adapted: Running, adapters: dict[str, Path]) -> None:
    sound: dict[str, dict[str, Any]] = {
        "/v1/load_lora_adapter": {"lora_name": "h", "lora_path": str(adapters["a"]), "load_inplace": True},
        "/v1/unload_lora_adapter": {"lora_name": "h"},
    }
    cases = [(path, "", what, body) for path, _, what, body in generated(adapted, sound)]
    assert {what for _, _, what, _ in cases} >= {"too deep a list", "zero byte"}
    try_all_texts(adapted, cases)
    for name in names(adapted)[3:]:
        assert unload(adapted, name)[0] == 200


def try_all_texts(running: Running, cases: list[tuple[str, str, str, str]]) -> None:
    """As `try_all`, of endpoints whose answers are sentences."""
    import httpx

    with httpx.Client(base_url=running.url, timeout=120) as client:
        for path, _, what, body in cases:
            headers = {"Content-Type": "application/json"}
            answer = client.post(path, content=body.encode("utf-8", "surrogatepass"), headers=headers)
            assert answer.status_code in (200, 400, 404), (path, what, answer.text)
            if answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    try_all(running, [])


def test_an_engine_that_is_started_again_has_the_adapters(
    tiny_model: Path, adapters: dict[str, Path], answers: dict[str, str]
) -> None:
    with server(
        str(tiny_model), *MEMORY, "--served-model-name", "tiny", "--lora-modules", f"a={adapters['a']}"
    ) as running:
        assert complete(running, "a") == answers["a"]
        os.kill(running.engine_pid(), signal.SIGKILL)
        running.until(lambda: running.metric("engine_restarts_total") == 1, 60)
        running.until(lambda: running.get("/health").status_code == 200, 60)
        assert names(running) == ["tiny", "a"]
        assert complete(running, "a") == answers["a"]
        assert complete(running, "tiny") == answers[""]
