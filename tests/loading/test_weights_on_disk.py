"""Weights that stay on disk: the same bits as in memory, which they do not take, and errors where there is no room."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.loading import packed_copies, placement
from octavo.loading.packed_copies import ENDING, ON_DISK, copies_folder
from octavo.loading.packed_file import PARTIAL, PackedFile
from octavo.loading.placement import WeightSize, choose_placement
from octavo.loading.precision import Precision
from octavo.loading.weight_loader import WeightLoader
from octavo.ops.native.native_products import NativeExperts
from octavo.ops.weight_kinds import WeightKind
from octavo.parts.weight_slots import Role
from tests.golden import case_named, write_model
from tests.loading.gguf_models import write_gguf

GREEDY = SamplingParams(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True, detokenize=False)
MIXTRAL, QWEN = "MixtralForCausalLM--8x7b", "Qwen3MoeForCausalLM--30b-a3b"
MIB = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="weights stay on disk where files are mapped in parts")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of copies, of models of any size."""
    monkeypatch.setattr(packed_copies, "SMALLEST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OCTAVO_PACKED_CACHE", raising=False)
    return copies_folder()


@pytest.fixture
def packed_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of what is packed, as it is."""
    done, give = list[str](), WeightLoader._give

    def noted(self: WeightLoader, filling: object, *rest: object) -> None:
        done.append(filling.path)  # type: ignore[attr-defined]
        give(self, filling, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(WeightLoader, "_give", noted)
    return done


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each layer of experts that is made, whether their weights stay on disk."""
    seen, made = list[bool](), NativeExperts.__init__

    def noted(self: NativeExperts, library: object, experts: list) -> None:  # type: ignore[type-arg]
        made(self, library, experts)  # type: ignore[arg-type]
        seen.append(all(part.on_disk for expert in experts for part in expert.parts))

    monkeypatch.setattr(NativeExperts, "__init__", noted)
    return seen


def answers(model: Path, **options: object) -> list[object]:
    """What a model answers, with log-probabilities, in prefill and in decode."""
    options = {"kv_cache_memory": "64MiB", "packed_cache": None, **options}
    llm = LLM(str(model), skip_tokenizer_init=True, **options)
    outputs = llm.generate([[5, 6, 7, 8], list(range(3, 40))], GREEDY, use_tqdm=False)
    return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs]


def names(folder: Path) -> list[str]:
    return [path.suffix for path in sorted(folder.iterdir())] if folder.is_dir() else []


@pytest.mark.parametrize(
    ("case", "options"), [(MIXTRAL, {}), (QWEN, {"quantization": "q4"}), (QWEN, {"dtype": "bfloat16"})]
)
def test_the_same_bits_as_in_memory(
    tmp_path: Path, folder: Path, packed_here: list[str], on_disk: list[bool], case: str, options: dict[str, str]
) -> None:
    model = write_model(case_named(case), tmp_path / "model")
    in_memory = answers(model, **options, packed_cache=0)
    assert on_disk
    assert not any(on_disk)
    for again in (False, True):
        packed_here.clear()
        on_disk.clear()
        assert answers(model, **options, weights_on_disk="on") == in_memory
        assert all(on_disk)
        assert bool(packed_here) != again
        assert names(folder) == [ON_DISK]


def test_of_a_gguf_file(tmp_path: Path, folder: Path, on_disk: list[bool]) -> None:
    model = write_gguf(case_named(MIXTRAL), tmp_path / "model.gguf")
    in_memory = answers(model, packed_cache=0)
    on_disk.clear()
    assert [answers(model, weights_on_disk="on") for _ in range(2)] == [in_memory] * 2
    assert all(on_disk)


def test_all_weights_stay_where_no_memory_is_free(
    tmp_path: Path, folder: Path, packed_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(case_named(MIXTRAL), tmp_path / "model")
    in_memory = answers(model, packed_cache=0)
    monkeypatch.setattr(placement, "MEMORY_SHARE", 0.0)
    assert answers(model, weights_on_disk="on") == in_memory
    packed_here.clear()
    assert answers(model, weights_on_disk="on") == in_memory
    assert packed_here == []


def test_ranks_leave_their_parts_on_disk(tmp_path: Path, folder: Path) -> None:
    model = write_model(case_named(MIXTRAL), tmp_path / "model")
    whole, split = ({"tensor_parallel_size": 2, "weights_on_disk": where} for where in ("off", "on"))
    assert answers(model, **split) == answers(model, **whole)
    assert names(folder) == []


@pytest.mark.parametrize("limit", [0, "1KiB"])
def test_what_is_not_to_be_kept_is_not(
    tmp_path: Path, folder: Path, on_disk: list[bool], limit: object, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_model(case_named(MIXTRAL), tmp_path / "model")
    answers(model, weights_on_disk="on", packed_cache=limit)
    assert all(on_disk)
    assert names(folder) == []
    assert ("packed_cache=1.0 KiB keeps no" in caplog.text) == bool(limit)


def test_the_default_size_of_copies_is_no_limit(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, packed_here: list[str]
) -> None:
    monkeypatch.setattr(packed_copies, "SIZE", "1KiB")
    model = write_model(case_named(MIXTRAL), tmp_path / "model")
    answers(model, weights_on_disk="on")
    assert names(folder) == [ON_DISK]
    os.utime(model / "model.safetensors", ns=(1, 1))  # of its state before, nothing is left
    packed_here.clear()
    answers(model, weights_on_disk="on")
    assert packed_here
    assert names(folder) == [ON_DISK]


def test_copies_serve_both(tmp_path: Path, folder: Path, packed_here: list[str]) -> None:
    model = write_model(case_named(MIXTRAL), tmp_path / "model")
    on_disk = answers(model, weights_on_disk="on")
    packed_here.clear()
    assert answers(model) == on_disk
    assert packed_here == []
    (copy,) = folder.iterdir()
    whole = bytearray(copy.read_bytes())
    whole[len(whole) // 2] ^= 1  # in memory, all of it is looked at
    copy.write_bytes(whole)
    assert answers(model) == on_disk
    assert packed_here


def sizes(experts: int, others: int) -> list[WeightSize]:
    return [
        WeightSize("experts.0", Role.MULTIPLIED, experts * MIB // 4, experts * MIB // 4, 0.25),
        WeightSize("head", Role.HEAD, others * MIB // 4, others * MIB // 4, 1.0),
    ]


FLOATS = Precision(torch.float32, torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("experts", "others", "asked", "expected"),
    [
        (10, 10, "auto", (False, False)),
        (100, 10, "auto", (True, False)),
        (100, 10, "off", (False, False)),
        (10, 10, "on", (True, False)),
        (0, 10, "on", (False, False)),
        (0, 99, "auto", (False, False)),
        (0, 200, "off", (False, False)),
        (0, 200, "on", (False, True)),
        (100, 200, "on", (True, True)),
    ],
)
def test_where_weights_are(experts: int, others: int, asked: str, expected: tuple[bool, bool], tmp_path: Path) -> None:
    args = EngineArgs("a/model", weights_on_disk=asked)  # type: ignore[arg-type]
    found = choose_placement(args, sizes(experts, others), FLOATS, 0, 100 * MIB, tmp_path)
    assert (found.experts, found.others) == expected


@pytest.mark.parametrize("experts", [0, 100])
def test_what_every_token_needs_must_fit(experts: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        choose_placement(EngineArgs("a/model"), sizes(experts, 200), FLOATS, 0, 100 * MIB, tmp_path)
    read = "225.0 MiB" if experts else "200.0 MiB"
    for part in ("a/model: 200.0 MiB of weights", "100.0 MiB of memory free", "quantization='q4'", "='on'", read):
        assert part in str(error.value)


def test_sizes_are_those_of_the_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rounded = Precision(torch.float32, torch.float32, torch.float32, False, WeightKind.Q4_1, WeightKind.Q8_0)
    assert placement.wanted_bytes(sizes(64, 64), rounded, 0) == MIB * (10 + 17)
    stored = Precision(torch.float32, torch.float32, torch.float32, as_stored=True)
    assert placement.wanted_bytes(sizes(64, 64), stored, 12 * MIB) == 12 * MIB
    choose_placement(EngineArgs("a/model"), sizes(800, 10), FLOATS, 0, 100 * MIB, tmp_path)
    assert "810.0 MiB of weights, 100.0 MiB of memory free: experts stay on disk" in caplog.text
    assert "a token reads up to 200.0 MiB" in caplog.text


def test_a_full_disk_is_told_before_anything_is_read(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, packed_here: list[str]
) -> None:
    model = write_model(case_named(MIXTRAL), tmp_path / "model")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"which .* has 1000 B free.*XDG_CACHE_HOME"):
        answers(model, weights_on_disk="on")
    assert packed_here == []
    assert names(folder) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, append, count = write_model(case_named(MIXTRAL), tmp_path / "model"), PackedFile._append, [0]

    def full(self: PackedFile, data: torch.Tensor) -> tuple[int, torch.Tensor]:
        count[0] += 1
        if count[0] > 5:
            raise OSError(28, "No space left on device")
        return append(self, data)

    monkeypatch.setattr(PackedFile, "_append", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        answers(model, weights_on_disk="on")
    assert names(folder) == []


def test_without_a_folder_all_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    model = write_model(case_named(MIXTRAL), tmp_path / "model")
    monkeypatch.setattr(packed_copies, "cache_folder", homeless)
    assert answers(model)
    with pytest.raises(ConfigError, match="Set XDG_CACHE_HOME"):
        answers(model, weights_on_disk="on")


def test_what_a_process_left_that_was_killed_goes(tmp_path: Path, folder: Path) -> None:
    model = write_model(case_named(MIXTRAL), tmp_path / "model")
    folder.mkdir(parents=True)
    (folder / f"old{PARTIAL}").write_bytes(bytes(100))
    os.utime(folder / f"old{PARTIAL}", (1e9, 1e9))
    answers(model, weights_on_disk="on")
    assert names(folder) == [ON_DISK]


def test_the_reference_has_no_weights_on_disk(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="needs the compiled core"):
        LLM(str(tiny_folder), skip_tokenizer_init=True, ops="torch", weights_on_disk="on")


MEASURE = """
import sys, threading
from pathlib import Path
from octavo.config import EngineArgs
from octavo.loading.model import load_model

def held():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024

most, done = [0.0], threading.Event()
def watch():
    while not done.wait(0.01):
        most[0] = max(most[0], held())

load_model(EngineArgs(model=sys.argv[1], skip_tokenizer_init=True))  # libraries and backend are in memory now
before = held()
threading.Thread(target=watch, daemon=True).start()
model = load_model(EngineArgs(model=sys.argv[2], skip_tokenizer_init=True, weights_on_disk=sys.argv[3]))
done.set()
print(max(most[0], held()) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_experts_take_no_memory(tiny_folder: Path, tmp_path: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    hidden, inner, experts, layers = 256, 1024, 32, 4
    config = case_named(MIXTRAL)["config"]
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 1000}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": experts, "head_dim": 64}
    weights = {f"{name}.weight": torch.zeros(1000, hidden) for name in ("model.embed_tokens", "lm_head")}
    weights |= {"model.norm.weight": torch.ones(hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        for name in "qkvo":
            weights[f"{layer}.self_attn.{name}_proj.weight"] = torch.zeros(hidden, hidden)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{name}.weight"] = torch.ones(hidden)
        weights[f"{layer}.block_sparse_moe.gate.weight"] = torch.zeros(experts, hidden)
        for e in range(experts):
            for name, shape in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
                weights[f"{layer}.block_sparse_moe.experts.{e}.{name}.weight"] = torch.zeros(shape)
    size = sum(w.nbytes for w in weights.values()) / MIB
    assert size > 384
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors")
    taken = {}
    for where in ("off", "on", "on"):
        command = [sys.executable, "-c", MEASURE, str(tiny_folder), str(tmp_path), where]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "OCTAVO_PACKED_CACHE": "1GiB"}
        )
        taken.setdefault(where, []).append(float(done.stdout))
        for path in folder.glob(f"*{ENDING}"):
            path.unlink()  # of the model in memory
    assert taken["off"][0] > size * 0.9
    assert all(each < size / 5 for each in taken["on"]), taken
    assert not list(folder.glob(f"*{PARTIAL}"))
