"""Copies of packed weights: the same bits as when they are packed, and never those of another state of the files."""

import gc
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.architectures import find_architecture
from octavo.architectures.registry import ARCHITECTURES
from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.loading import packed_copies
from octavo.loading.model import load_model
from octavo.loading.packed_copies import ENDING, copies_folder, make_room
from octavo.loading.packed_file import ALIGNMENT, MAGIC
from octavo.loading.weight_loader import WeightLoader
from octavo.ops import host_memory, native
from octavo.ops.native import library
from octavo.ops.native.native_products import NativeLinear
from octavo.ops.native.packed_weight import PackedWeight
from tests.golden import case_named, write_model
from tests.loading.gguf_models import write_gguf

GREEDY = SamplingParams(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True, detokenize=False)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of copies, of models of any size."""
    monkeypatch.setattr(packed_copies, "SMALLEST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OCTAVO_PACKED_CACHE", "1GiB")
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


def loaded(model: Path, **options: object) -> dict[str, PackedWeight]:
    """The packed weights of a model; what it keeps is written."""
    found = {}
    made = load_model(EngineArgs(str(model), skip_tokenizer_init=True, **options))  # type: ignore[arg-type]
    for name, module in made.model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, NativeLinear):
                found |= {f"{name}.{attribute}.{i}": part for i, part in enumerate(value.parts)}
    for thread in threading.enumerate():
        if thread.name == "octavo-packed-copy":
            thread.join()
    return found


def alike(one: dict[str, PackedWeight], other: dict[str, PackedWeight]) -> bool:
    assert one.keys() == other.keys()
    assert one
    return all(
        (a.kind, a.outputs, a.width) == (b.kind, b.outputs, b.width) and torch.equal(a.data, b.data)
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def copies(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}, {"quantization": "q4"}, {"dtype": "bfloat16"}])
def test_what_is_mapped_is_what_was_packed(
    tiny_folder: Path, folder: Path, packed_here: list[str], options: dict[str, str]
) -> None:
    first = loaded(tiny_folder, **options)
    assert packed_here
    assert len(copies(folder)) == 1
    packed_here.clear()
    assert alike(first, loaded(tiny_folder, **options))
    assert packed_here == []
    assert len(copies(folder)) == 1


@pytest.mark.parametrize("case", ["MixtralForCausalLM--8x7b", "Qwen3MoeForCausalLM--30b-a3b"])
def test_experts_are_mapped(tmp_path: Path, packed_here: list[str], case: str) -> None:
    model = write_model(case_named(case), tmp_path / "model")
    answers = []
    for _ in range(2):
        packed_here.clear()
        llm = LLM(str(model), skip_tokenizer_init=True, kv_cache_memory="64MiB")
        (answer,) = llm.generate([[5, 6, 7, 8]], GREEDY, use_tqdm=False)
        answers.append((answer.outputs[0].token_ids, answer.outputs[0].logprobs))
        for thread in threading.enumerate():
            if thread.name == "octavo-packed-copy":
                thread.join()
    assert packed_here == []
    assert answers[0] == answers[1]


def test_on_several_nodes_weights_lie_beside_threads(
    tmp_path: Path, packed_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are packed or mapped, they are copied once; their bits, and answers, stay."""
    model, core = write_model(case_named("Qwen3MoeForCausalLM--30b-a3b"), tmp_path / "model"), native.load()
    if core is None or not hasattr(os, "sched_getaffinity"):
        pytest.skip("no compiled core whose threads could be bound")
    threads, answers, found = core.threads, [], []
    for nodes in ({}, {0: [min(os.sched_getaffinity(0))], 1: [max(os.sched_getaffinity(0))]}):
        monkeypatch.setattr(library, "own_nodes", lambda nodes=nodes: nodes)
        shutil.rmtree(copies_folder(), ignore_errors=True)
        for start in range(2):
            packed_here.clear()
            found.append(loaded(model, threads=3))
            assert bool(packed_here) == (start == 0)
            assert core.nodes == tuple(nodes)
            llm = LLM(str(model), skip_tokenizer_init=True, kv_cache_memory="64MiB", threads=3)
            (answer,) = llm.generate([[5, 6, 7, 8]], GREEDY, use_tqdm=False)
            answers.append((answer.outputs[0].token_ids, answer.outputs[0].logprobs))
    monkeypatch.setattr(library, "own_nodes", dict)
    core.set_threads(threads)
    assert all(alike(found[0], other) for other in found[1:])
    assert all(answer == answers[0] for answer in answers)
    addresses = {part.data.data_ptr() for part in found[3].values()}
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = [[int(end, 16) for end in of[0].split("-")] for of in maps if of[-1].startswith("/")]
    assert not any(first <= at < end for at in addresses for first, end in files)


def test_a_damaged_copy_is_not_used(
    tiny_folder: Path, folder: Path, packed_here: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = loaded(tiny_folder)
    (path,) = copies(folder)
    whole = path.read_bytes()
    for at in (3, len(MAGIC) + 2, len(MAGIC) + 20, ALIGNMENT + 200, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        packed_here.clear()
        assert alike(first, loaded(tiny_folder))
        assert packed_here, at
        assert f"{path} is not used" in caplog.text
        assert path.read_bytes() == whole
    for size in (0, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        packed_here.clear()
        assert alike(first, loaded(tiny_folder))
        assert packed_here
        assert path.read_bytes() == whole


def test_what_others_may_have_written_is_not_used(tiny_folder: Path, folder: Path, packed_here: list[str]) -> None:
    loaded(tiny_folder)
    (path,) = copies(folder)
    path.chmod(0o666)
    packed_here.clear()
    loaded(tiny_folder)
    assert packed_here
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_copy_is_of_one_state_of_the_files(tmp_path: Path, folder: Path, packed_here: list[str]) -> None:
    model = write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path / "model")
    loaded(model)
    os.utime(model / "model.safetensors", ns=(1, 1))
    packed_here.clear()
    loaded(model)
    assert packed_here
    assert len(copies(folder)) == 2
    packed_here.clear()
    loaded(model, quantization="int8")
    loaded(model, task="embedding")
    assert packed_here
    assert len(copies(folder)) == 4


def test_gguf_files_have_copies(tmp_path: Path, folder: Path, packed_here: list[str]) -> None:
    model = write_gguf(case_named("LlamaForCausalLM--gqa-tied"), tmp_path / "model.gguf")
    first = loaded(model)
    packed_here.clear()
    assert alike(first, loaded(model))
    assert packed_here == []


def test_nothing_is_kept_where_that_is_said(
    tiny_folder: Path, folder: Path, packed_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(tiny_folder, packed_cache=0)
    loaded(tiny_folder, packed_cache="1KiB")  # it is larger
    loaded(tiny_folder, ops="torch")
    monkeypatch.setenv("OCTAVO_PACKED_CACHE", "0")
    loaded(tiny_folder)
    monkeypatch.setattr(packed_copies, "SMALLEST", 1 << 30)
    loaded(tiny_folder, packed_cache="2GiB")
    assert copies(folder) == []
    monkeypatch.setenv("OCTAVO_PACKED_CACHE", "much")
    with pytest.raises(ConfigError, match="OCTAVO_PACKED_CACHE='much' is not a size"):
        loaded(tiny_folder)


def test_mapped_weights_are_not_free_memory(tiny_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 33))
    loaded(tiny_folder)
    gc.collect()  # what other tests have mapped
    (path,), before = copies(folder), host_memory.available()
    kept = loaded(tiny_folder)
    assert before - host_memory.available() == path.stat().st_size
    del kept
    gc.collect()
    assert host_memory.available() == before


def test_an_architecture_from_elsewhere_has_no_copies(
    tiny_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = find_architecture(["LlamaForCausalLM"])
    monkeypatch.setitem(ARCHITECTURES, "LlamaForCausalLM", replace(row, home="somebodys"))
    loaded(tiny_folder)
    assert copies(folder) == []


def test_a_folder_that_cannot_be_written_keeps_nothing(tiny_folder: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    assert loaded(tiny_folder)


def test_the_oldest_go_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / (name + ENDING)
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "abandoned.partial").write_bytes(b"")
    os.utime(tmp_path / "abandoned.partial", (1e9, 1e9))
    (tmp_path / "begun.partial").write_bytes(b"")
    make_room(tmp_path, 250, keep=tmp_path / ("old" + ENDING))
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["begun", "middle", "new", "old"]
    make_room(tmp_path, 250)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["begun", "middle", "new"]
    make_room(tmp_path, 100)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["begun", "new"]
