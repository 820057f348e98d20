"""Adapters that vanish, are damaged, belong to another base or are replaced; and many, used in turn."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from octavo import LLM, LoRARequest, SamplingParams
from octavo.errors import InvalidRequestError
from tests.adapter_folders import write_adapter
from tests.golden import case_named, write_model
from tests.server.conftest import write_tiny

PARAMS = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
PROMPT = [*range(30, 80)]
"""Of several blocks, which the prefix cache keeps."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("faults") / "tiny")


@pytest.fixture
def llm(model: Path) -> LLM:
    return start(model)


def start(model: Path, **options: Any) -> LLM:
    return LLM(str(model), **{"enable_lora": True, "kv_cache_memory": "8MiB", "dtype": "float32", **options})


def ask(llm: LLM, adapter: Path | LoRARequest | None, name: str = "a") -> list[int]:
    request = LoRARequest(name, 1, str(adapter)) if isinstance(adapter, Path) else adapter
    (output,) = llm.generate(PROMPT, PARAMS, lora_request=request, use_tqdm=False)
    return list(output.outputs[0].token_ids)


def goes_on(llm: LLM) -> None:
    """The engine has nothing left of what failed, and answers."""
    assert not llm.engine.has_work
    assert llm.engine.cache.pool.num_free == llm.engine.cache.pool.num_blocks
    assert len(ask(llm, None)) == 6


def test_a_folder_that_vanishes(llm: LLM, model: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", model, 1)
    expected = ask(llm, folder)
    shutil.rmtree(folder)
    assert ask(llm, folder) == expected  # it is in memory
    ask(llm, write_adapter(tmp_path / "b", model, 2), "b")  # and now it is not: there is room for one
    with pytest.raises(InvalidRequestError, match="there is no"):
        ask(llm, folder)
    with pytest.raises(InvalidRequestError, match="there is no"):
        ask(llm, tmp_path / "never", "never")
    goes_on(llm)
    write_adapter(folder, model, 1)
    assert ask(llm, folder) == expected


def broken(folder: Path, how: str) -> None:
    """Damage an adapter's folder."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty weights":
        weights.write_bytes(b"")
    elif how == "weights of zeros":
        weights.write_bytes(bytes(1000))
    elif how == "config that is no JSON":
        config.write_text("{")
    elif how == "config that is a list":
        config.write_text("[]")
    elif how == "deep config":
        config.write_text("[" * 100_000)
    elif how == "not a number":
        tensors = load_file(weights)
        next(iter(tensors.values()))[0, 0] = np.nan
        save_file(tensors, weights)
    elif how == "half of a pair":
        tensors = load_file(weights)
        del tensors[next(name for name in tensors if "lora_B" in name)]
        save_file(tensors, weights)
    elif how == "no tensors":
        save_file({}, weights)
    elif how == "a layer that is not there":
        tensors = load_file(weights)
        save_file({name.replace("layers.1.", "layers.9."): t for name, t in tensors.items()}, weights)
    elif how == "a folder for weights":
        weights.unlink()
        weights.mkdir()
    elif how == "a device for weights":
        weights.unlink()
        weights.symlink_to("/dev/zero")
    elif how == "a link to nothing":
        weights.unlink()
        weights.symlink_to(folder / "gone")
    elif how == "code in a pickle":
        weights.unlink()
        (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    elif how == "values of other kinds":
        config.write_text(json.dumps({"peft_type": "LORA", "r": "x", "lora_alpha": [1], "target_modules": 5}))


WAYS = [
    "no weights",
    "no config",
    "cut weights",
    "empty weights",
    "weights of zeros",
    "config that is no JSON",
    "config that is a list",
    "deep config",
    "not a number",
    "half of a pair",
    "no tensors",
    "a layer that is not there",
    "a folder for weights",
    "a device for weights",
    "a link to nothing",
    "code in a pickle",
    "values of other kinds",
]


def test_damaged_folders(llm: LLM, model: Path, tmp_path: Path) -> None:
    """Each is an error of its own request, and the others of the batch are not hurt once it is left out."""
    sound = write_adapter(tmp_path / "sound", model, 1)
    expected = ask(llm, sound, "sound")
    for i, how in enumerate(WAYS):
        folder = write_adapter(tmp_path / f"a{i}", model, 2)
        broken(folder, how)
        with pytest.raises(InvalidRequestError) as raised:
            ask(llm, folder)
        assert len(str(raised.value)) < 1000, how
        assert "'a'" in str(raised.value) or "adapter_" in str(raised.value), (how, raised.value)
        goes_on(llm)
        assert ask(llm, sound, "sound") == expected
    assert not Path("owned").exists()


def test_another_base(llm: LLM, tmp_path: Path) -> None:
    """Tensors that do not fit are named."""
    other = write_model(case_named("AquilaForCausalLM--34b-16k"), tmp_path / "other")
    adapter = write_adapter(tmp_path / "a", other)
    with pytest.raises(InvalidRequestError, match=r"proj.*(expected|no layer)"):
        ask(llm, adapter)
    goes_on(llm)


def test_replaced_under_the_same_name(llm: LLM, model: Path, tmp_path: Path) -> None:
    """New files give new answers, though the prompt's blocks are in the prefix cache; old files the old ones."""
    folder, kept = tmp_path / "a", tmp_path / "kept"
    first = ask(llm, write_adapter(folder, model, 1))
    assert ask(llm, folder) == first
    shutil.copytree(folder, kept)
    second = ask(llm, write_adapter(folder, model, 2))
    assert second != first
    assert ask(start(model, enable_prefix_caching=False), folder) == second
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    assert ask(llm, folder) == first
    assert ask(llm, kept, "b") == first
    goes_on(llm)


def test_links_out_of_the_folder(llm: LLM, model: Path, tmp_path: Path) -> None:
    """As in a hub's cache, whose folders consist of links."""
    blobs = write_adapter(tmp_path / "blobs", model, 1)
    folder = tmp_path / "a"
    folder.mkdir()
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(file)
    expected = ask(llm, blobs, "blobs")
    assert ask(llm, folder) == expected
    write_adapter(blobs, model, 2)
    assert ask(llm, folder) == ask(llm, blobs, "blobs") != expected
    (tmp_path / "linked").symlink_to(blobs)
    assert ask(llm, tmp_path / "linked") == ask(llm, folder)


def test_one_bad_among_good_ones(llm: LLM, model: Path, tmp_path: Path) -> None:
    """What cannot be loaded ends its own request; through the engine's messages the others go on."""
    good = write_adapter(tmp_path / "good", model, 1)
    bad = write_adapter(tmp_path / "bad", model, peft_type="VERA")
    expected = {"good": ask(llm, good, "good"), "base": ask(llm, None)}
    requests = llm.requests
    requests.add("good", PROMPT, PARAMS, adapter=LoRARequest("good", 1, str(good)))
    requests.add("bad", PROMPT, PARAMS, adapter=LoRARequest("bad", 2, str(bad)))
    requests.add("base", PROMPT, PARAMS)
    ended = {}
    while requests.has_work:
        for output in requests.step():
            ended[output.request_id] = output
    assert "VERA" in ended["bad"].error  # type: ignore[union-attr]
    for name, tokens in expected.items():
        assert list(ended[name].outputs[0].token_ids) == tokens  # type: ignore[union-attr,index]
    goes_on(llm)


def test_a_thousand_adapters_in_turn(model: Path, tmp_path: Path) -> None:
    """With room for eight, memory stays flat, and nothing of those that went is kept."""
    llm = start(model, max_cpu_loras=8, max_loras=2)
    folders = [write_adapter(tmp_path / str(i), model, i, rank=16) for i in range(1000)]
    batch = 25
    short = SamplingParams(max_tokens=1, temperature=0)
    sizes = []
    process = psutil.Process()
    gc.freeze()  # what was there before is not gone through again and again
    for first in range(0, len(folders), batch):
        refs = [LoRARequest(f"a{i}", i + 1, str(folders[i])) for i in range(first, first + batch)]
        outputs = llm.generate([PROMPT[:4]] * batch, short, lora_request=refs, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == 1 for output in outputs)
        gc.collect()
        sizes.append(process.memory_info().rss)
    gc.unfreeze()
    adapters = llm.engine.executor.runner.adapters  # type: ignore[attr-defined]
    assert len(adapters._entries) <= 8
    held = sum(file.stat().st_size for file in folders[0].iterdir())
    growth = min(sizes[-10:]) - min(sizes[5:15])
    assert growth < 100 * held, f"{growth:,} more bytes after 600 adapters of {held:,}"
    assert ask(llm, folders[0], "a0") == ask(start(model), folders[0], "a0")
    goes_on(llm)
