"""The command line, as a user runs it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, AsyncLLM
from octavo.cli.flags import engine_args_of, sampling_params_of
from octavo.cli.main import build_parser, main
from octavo.cli.models import markdown
from octavo.config import EngineArgs
from octavo.errors import ConfigError, OctavoError
from octavo.launch import launch_engine
from octavo.params import recommended_sampling
from tests.server.conftest import write_tiny


def octavo(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def model(smollm_file: Path) -> Sequence[str]:
    return ("--model", str(smollm_file), "--kv-cache-memory", "256MiB", "--max-model-len", "1024")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("cli") / "tiny")


def test_import_and_help_are_instant() -> None:
    """Neither needs what takes long to import: torch alone takes a second."""
    slow = {"torch", "transformers", "tokenizers", "numpy", "fastapi", "jinja2", "huggingface_hub"}
    code = f"import sys, octavo, octavo.cli.main as m; m.build_parser().format_help(); print({slow} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_every_option_has_a_flag_with_help() -> None:
    parsed = build_parser().parse_args(["generate", "x"])
    assert engine_args_of(parsed) == EngineArgs()
    text = octavo("generate", "--help").stdout
    for flag in ("--max-model-len", "--kv-cache-memory", "--trust-remote-code", "--temperature", "--dtype"):
        assert flag in text


def test_flags_reach_the_engine() -> None:
    arguments = ["generate", "x", "--kv-cache-memory", "2GiB", "--block-size", "32", "--no-enable-prefix-caching"]
    parsed = build_parser().parse_args(
        [*arguments, "--temperature", "0.5", "--stop", "a", "--stop", "b", "--top-k", "3"]
    )
    args = engine_args_of(parsed)
    assert (args.kv_cache_bytes, args.block_size, args.enable_prefix_caching) == (2 << 30, 32, False)
    params = sampling_params_of(parsed)
    assert (params.temperature, params.stop, params.top_k, params.max_tokens) == (0.5, ["a", "b"], 3, 256)


def test_generate(model: Sequence[str], tmp_path: Path) -> None:
    raw = octavo("generate", "The capital of France is", "--raw", "--max-tokens", "4", *model)
    assert raw.returncode == 0, raw.stderr
    assert "Paris" in raw.stdout
    (tmp_path / "prompt.txt").write_text("What is the capital of France?")
    answer = octavo("generate", "--file", str(tmp_path / "prompt.txt"), "--json", "--dtype", "float32", *model)
    told = json.loads(answer.stdout)
    assert "Paris" in told["outputs"][0]["text"]
    assert told["outputs"][0]["finish_reason"] == "stop"
    assert told["num_prompt_tokens"] > 10
    piped = octavo("generate", "--json", "--n", "2", "--temperature", "1", *model, stdin="Hello")
    assert len(json.loads(piped.stdout)["outputs"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--model", "./nosuch"], "was not found"),
        (["generate", "x", "--temperature", "-1"], "temperature=-1"),
        (["generate", "--file", "/nosuch"], "cannot be read"),
        (["generate", "x", "--kv-cache-memory", "lots"], "not a size"),
        (["bench", "latency", "--runs", "0"], "at least 1"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", [["generate", "x"], ["chat"], ["embed", "x"], ["serve"], ["bench", "latency"]])
@pytest.mark.parametrize("name", ["", "  "])
def test_an_unset_variable_is_no_model(command: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--model", name]) == 1
    assert "names no model (is a variable unset?)" in capsys.readouterr().err
    if command == ["serve"]:
        assert main(["serve", name]) == 1
        assert "names no model" in capsys.readouterr().err


@pytest.mark.parametrize("make", [LLM, AsyncLLM, EngineArgs])
@pytest.mark.parametrize("model", [None, "", " \n", 5, True, [], ["a"], {}, b"a"])
def test_what_names_no_model_is_an_error(make: Callable[..., Any], model: Any) -> None:
    for call in (lambda: make(model), lambda: make(model=model)):
        with pytest.raises(ConfigError, match="names no model"):
            call()


def test_a_path_names_a_model(tmp_path: Path) -> None:
    assert EngineArgs(tmp_path).model == str(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(OctavoError, match=r"config\.json"):
        LLM(tmp_path)


@pytest.fixture
def recommending(tiny_model: Path, tmp_path: Path) -> Path:
    """A model that recommends a penalty which forbids, in effect, to say a token twice, and a temperature."""
    for file in tiny_model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    recommended = {"repetition_penalty": 1e6, "temperature": 0.6, "top_k": 7, "top_p": 0.9, "max_new_tokens": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(recommended))
    return tmp_path


def test_the_models_own_sampling_values(recommending: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = launch_engine(EngineArgs(str(recommending), kv_cache_memory="16MiB"))
    parsed = build_parser().parse_args(["generate", "x", "--top-k", "3"])
    params = sampling_params_of(parsed, engine.info.generation_config)
    assert (params.repetition_penalty, params.temperature, params.top_k, params.top_p) == (1e6, 0.6, 3, 0.9)
    assert params.max_tokens == 256
    served = recommended_sampling(engine.info.generation_config)
    assert LLM.from_args(engine.args).get_default_sampling_params().temperature == served["temperature"] == 0.6
    arguments = ["generate", "hello", "--raw", "--json", "--model", str(recommending), "--kv-cache-memory", "16MiB"]
    ids = {}
    for more in ([], ["--generation-config", "none"]):
        assert main([*arguments, "--max-tokens", "60", "--temperature", "0", "--ops", "torch", *more]) == 0
        text = json.loads(capsys.readouterr().out)["outputs"][0]["text"]
        ids[bool(more)] = [b for b in text.encode() if b < 128]
    assert len(ids[False]) == len(set(ids[False]))
    assert ids[False] != ids[True]
    # Two answers need a temperature, and the model brings one.
    assert main([*arguments, "--n", "2", "--max-tokens", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["outputs"]) == 2


def test_cut_answers_are_marked(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(tiny_model), "--kv-cache-memory", "16MiB", "--raw"]
    assert main(["generate", "hello", "--max-tokens", "3", *options]) == 0
    assert "octavo: the answer was cut after 3 tokens; --max-tokens allows more." in capsys.readouterr().err
    assert main(["generate", "hello", "--max-tokens", "3", "--n", "2", "--temperature", "1", *options]) == 0
    said = capsys.readouterr().err
    assert "answer 1 was cut" in said
    assert "answer 2 was cut" in said
    assert main(["generate", "hello", "--max-model-len", "8", *options]) == 0
    assert "cut after 3 tokens: the model's length, which --max-model-len limits." in capsys.readouterr().err


def test_answers_that_end_one_after_the_other_keep_their_reasons() -> None:
    from octavo.cli.answers import Answer

    answer = Answer(Any, ["a", "b"], [3, 2], ["length", "stop"], [None, None], 0.0, 0.0)  # type: ignore[arg-type]
    assert [answer.cut_at(0), answer.cut_at(1)] == [3, None]
    answer = Answer(Any, ["a"], [1], ["error"], ["not finite"], 0.0, 0.0)  # type: ignore[arg-type]
    with pytest.raises(OctavoError, match="not finite"):
        answer.check()


def test_bench(model: Sequence[str]) -> None:
    common = ["--runs", "1", "--json", *model]
    startup = json.loads(octavo("bench", "startup", *common).stdout)
    assert 0 < startup["first_token_seconds"]["median"] < 60
    small = ["--input-len", "16", "--output-len", "4", "--num-prompts", "2"]
    latency = json.loads(octavo("bench", "latency", *small, *common).stdout)
    assert 0 <= latency["seconds_per_token"]["median"] <= latency["seconds"]["median"]
    assert 0 < latency["memory_bandwidth_share"]["median"] < 1
    assert 0 < latency["matrix_peak_share"]["median"] < 1
    throughput = json.loads(octavo("bench", "throughput", *small, *common).stdout)
    assert throughput["output_tokens_per_second"]["median"] > 0


def test_serve_takes_vllms_spellings() -> None:
    arguments = ["serve", "some/model", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--port", "9"]
    parsed = build_parser().parse_args(arguments)
    assert (parsed.served, parsed.tool_parser, parsed.port) == ("some/model", "hermes", 9)
    assert "--enable-auto-tool-choice" not in octavo("serve", "--help").stdout


def test_embed(model: Sequence[str], tmp_path: Path) -> None:
    """Arguments, lines and JSON lines give the same embeddings, as lines and as an array."""
    small = ("--max-num-seqs", "2", "--dimensions", "8", "--hf-overrides", '{"is_matryoshka": true}')
    plain = [json.loads(line) for line in octavo("embed", "red", "blue", *model, *small).stdout.splitlines()]
    assert [r["text"] for r in plain] == ["red", "blue"]
    assert np.linalg.norm(plain[0]["embedding"]) == pytest.approx(1.0, abs=1e-5)

    lines = tmp_path / "in.jsonl"
    lines.write_text('{"id": 7, "input": "red"}\n\n"blue"\n')
    out = tmp_path / "out.jsonl"
    assert octavo("embed", "--file", str(lines), "--output", str(out), *model, *small).returncode == 0
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert kept[0]["id"] == 7
    assert [r["embedding"] for r in kept] == [r["embedding"] for r in plain]

    array = tmp_path / "out.npy"
    assert octavo("embed", "--output", str(array), *model, *small, stdin="red\nblue\n").returncode == 0
    np.testing.assert_allclose(np.load(array), [r["embedding"] for r in plain], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--jsonl"], '"fine"\n{oops', "line 2 is not JSON"),
        (["--jsonl"], '{"id": 1}', "line 1 has no text"),
        ([], "", "no text to embed"),
        (["a", "--output", "x.txt"], None, "must end in"),
        (["a", "--output", "/nosuch/x.npy"], None, "no folder"),
        (["--file", "/nosuch"], None, "cannot be read"),
    ],
)
def test_embed_refuses_before_it_loads(arguments: list[str], stdin: str | None, message: str) -> None:
    done = octavo("embed", "--model", "/nosuch/model", *arguments, stdin=stdin)
    assert done.returncode == 1
    assert message in done.stderr


def test_models_table() -> None:
    text = octavo("models").stdout
    assert "LlamaForCausalLM" in text
    assert "MambaForCausalLM" in markdown()
    rows = {r["architecture"]: r for r in json.loads(octavo("models", "--format", "json").stdout)}
    assert rows["LlamaForCausalLM"]["tasks"] == "generate, embedding"
    assert rows["LlamaForCausalLM"]["prefix caching"] == "yes"
    assert rows["MambaForCausalLM"]["prefix caching"] == "no"
    assert "RWForCausalLM" in rows["FalconForCausalLM"]["also called"]
    assert "RWForCausalLM" not in rows
    assert all(r["golden cases"] > 0 for r in rows.values())


def test_env() -> None:
    facts = json.loads(octavo("env", "--json").stdout)
    assert facts["torch"] != "not installed"
    assert re.fullmatch(r"\d+: [-\d,]+(; \d+: [-\d,]+)*", facts["NUMA nodes"])
    assert facts["linear float32 batch-invariant"] is True
    assert facts["linear bfloat16 batch-invariant"] is True


def test_a_missing_core_is_said(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CORE", str(tmp_path))
    done = octavo("generate", "Hi", "--model", str(tiny_model), "--kv-cache-memory", "8MiB", "--max-tokens", "1")
    assert done.returncode == 0, done.stderr
    assert "no compiled core" in done.stderr
