"""Flags as people and vLLM's scripts write them."""

import argparse
import contextlib
import logging
from pathlib import Path

import pytest

from octavo.cli.flags import engine_args_of
from octavo.cli.main import build_parser, main
from octavo.config import EngineArgs, engine_args
from octavo.errors import ConfigError
from octavo.vllm_options import vllm_keywords


def parsed(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


def engine(*arguments: str) -> EngineArgs:
    return engine_args_of(parsed("serve", *arguments))


def test_spellings() -> None:
    args = engine("--max_model_len", "4K", "--max-num-seqs=2k", "-tp", "1", "-q", "int8", "--kv_cache_memory_bytes=1G")
    assert (args.max_model_len, args.max_num_seqs, args.quantization) == (4096, 2000, "int8")
    assert args.kv_cache_bytes == 1 << 30
    assert engine("--max-model-len", "auto").max_model_len is None
    assert engine("--max-model-len", "-1").max_model_len is None
    assert engine("--device-memory-utilization", "0.5").gpu_memory_utilization == 0.5
    assert engine("--disable-prefix-caching").enable_prefix_caching is False
    assert engine("--no_enable_prefix_caching").enable_prefix_caching is False
    assert engine("--dtype", "bf16").dtype == "bfloat16"


def test_objects_by_their_keys() -> None:
    args = engine(
        *("--hf-overrides.rope_scaling.factor", "4", "--hf_overrides.rope_scaling.rope_type=yarn"),
        *("--hf-overrides.names+", "a,b", "--hf-overrides.names+=[3]", "--limit-mm-per-prompt.image", "2"),
    )
    assert args.hf_overrides == {"rope_scaling": {"factor": 4, "rope_type": "yarn"}, "names": ["a", "b", 3]}
    assert args.limit_mm_per_prompt == {"image": 2}
    assert main(["serve", "--hf-overrides.a", "1", "--hf-overrides.a.b", "2"]) == 1


def test_what_is_behind_two_hyphens_stays() -> None:
    assert parsed("generate", "--raw", "--", "--max_tokens").words == ["--max_tokens"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serv"], "Did you mean serve"),
        (["serve", "--max-modellen", "3"], "Did you mean --max-model-len"),
        (["serve", "--max_model_length=3"], "--max-model-len"),
        (["env", "--jsno"], "Did you mean --json"),
        (["bench", "latncy"], "Did you mean latency"),
        (["serve", "--port", "x"], "--port: 'x' is not a whole number"),
        (["serve", "--max-num-seqs", "1.5"], "is not a whole number"),
    ],
)
def test_mistyped(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert said in told
    assert len(told.splitlines()) == 2, "and no list of all flags"


def test_octavo_alone_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "serve" in capsys.readouterr().out


def config_file(folder: Path, text: str, name: str = "c.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_config_file(tmp_path: Path) -> None:
    text = """
model: of-the-file
port: 9001
max-num-seqs: 7
max_num_batched_tokens: 64
enable-prefix-caching: false
offline: true
trust-remote-code: null
hf-overrides: {rope_scaling: {factor: 2}}
allowed-media-domains: [a.org, b.org]
api-key: [one, two]
enforce-eager: true
"""
    name = config_file(tmp_path, text)
    namespace = parsed("serve", "--config", name, "--max-num-seqs=9")
    args = engine_args_of(namespace)
    assert (args.model, args.max_num_seqs, args.max_num_batched_tokens) == ("of-the-file", 9, 64)
    assert (args.enable_prefix_caching, args.offline, args.trust_remote_code) == (False, True, False)
    assert args.hf_overrides == {"rope_scaling": {"factor": 2}}
    assert args.allowed_media_domains == ["a.org", "b.org"]
    assert (namespace.port, namespace.api_key) == (9001, ["one", "two"])
    other = parsed("serve", "mine", "-tp", "1", f"--config={name}", "--api-key", "three")
    assert (other.served, other.api_key) == ("mine", ["three"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max-modellen: 3\n", "'max-modellen' is unknown. Did you mean --max-model-len"),
        ("[1, 2]\n", "must have lines such as"),
        ("a: [\n", "not readable YAML"),
        ("a: &a [1]\nb: *a\n", "references"),
        ("!!python/object/apply:os.system ['true']\n", "not readable YAML"),
        ("port: [1, 2]\n", "not a whole number"),
        ("x" * (1 << 21), "larger than"),
    ],
)
def test_config_files_that_cannot_be(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert main(["serve", "--config", config_file(tmp_path, text)]) == 1
    assert said in capsys.readouterr().err


def test_config_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", str(tmp_path / "none.yaml")]) == 1
    assert main(["serve", "--config", config_file(tmp_path, "port: 1", "c.txt")]) == 1
    name = config_file(tmp_path, "port: 1")
    assert main(["serve", "--config", name, "--config", name]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [any(word in line for line in said) for word in ("is there such a file", ".yaml or .yml", "once")] == [
        True
    ] * 3


def test_flags_without_effect_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        engine("--enforce-eager", "--no-enforce-eager", "--moe_backend", "triton", "-O3", "-cc.mode", "3")
    said = [record.message for record in caplog.records]
    assert said == [
        "--enforce-eager has no effect: there is no compilation to switch off",
        "--moe-backend has no effect: each device has one implementation of an operation",
        "--optimization-level has no effect: nothing is compiled",
        "--compilation-config has no effect: nothing is compiled",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kv-events-config", '{"publisher": "x"}'],
        ["--nnodes", "2"],
        ["-pcp", "2"],
        ["--enable-prompt-embeds"],
        ["--kv-cache-dtype-skip-layers", "1", "2"],
        ["--rope-theta", "5"],
    ],
)
def test_flags_that_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", "/nowhere", *arguments]) == 1  # and no server, if one is taken by mistake
    said = capsys.readouterr().err
    assert arguments[0].replace("-pcp", "--prefill-context-parallel-size") in said
    assert "is not available: " in said


def test_python_and_flags_have_one_table() -> None:
    """Each keyword is accepted with what it means anyway, and refused with something else unless all is accepted."""
    for option in vllm_keywords(EngineArgs.__dataclass_fields__).values():
        for value in option.taken if option.taken is not None else (None, "x", 3):
            args, notes = engine_args("m", {option.name: value})
            assert args == EngineArgs("m")
            assert notes == [f"{option.name} has no effect: {option.why}"]
        if option.taken is not None:
            with pytest.raises(ConfigError, match=f"{option.name}='no such value' is not available: "):
                engine_args("m", {option.name: "no such value"})


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ({"runner": "pooling"}, "pooling"),
        ({"runner": "generate"}, "generate"),
        ({"runner": "auto", "convert": "auto"}, "auto"),
        ({"convert": "embed"}, "embedding"),
        ({"runner": "pooling", "convert": "classify"}, "classify"),
        ({"runner": "pooling", "task": "reward"}, "reward"),
        ({"task": "embed"}, "embed"),
    ],
)
def test_runner_and_convert(given: dict[str, str], task: str) -> None:
    assert EngineArgs("m", **given).task == task  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"runner": "generate", "convert": "embed"},
        {"runner": "generate", "task": "embed"},
        {"convert": "classify", "task": "generate"},
        {"runner": "draft"},
        {"convert": "emed"},
    ],
)
def test_runner_and_convert_that_contradict(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"contradict|is unknown"):
        EngineArgs("m", **given)  # type: ignore[arg-type]
