"""Files that were made to hurt: each a clear, short error before anything is loaded, and bounded work until then."""

import io
import json
import os
import random
import resource
import socket
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError, OctavoError
from octavo.files import read_json
from octavo.loading.formats.plain import HEADER_MAX
from octavo.loading.pickled import pickled_tensors
from octavo.loading.weight_loader import WeightLoader
from tests.golden import case_named, write_model
from tests.server.conftest import write_tiny

LONG = "x" * 60_000
MESSAGE_MAX = 1500


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A tiny model with a tokenizer, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in made.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "generation_config.json").write_text('{"eos_token_id": [256], "temperature": 0.5}')
    return folder


def load(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), dtype="float32", kv_cache_memory="4MiB", max_model_len=32, **options)


def refused(folder: Path, *words: str, **options: Any) -> str:
    """The error of a folder that must not load: short, and with these words."""
    with pytest.raises(OctavoError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert len(message) < MESSAGE_MAX
    assert message.isprintable()
    for word in words:
        assert word in message
    return message


def answer(llm: LLM) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    return llm.generate({"prompt_token_ids": [1, 2, 3]}, params, use_tqdm=False)[0].outputs[0].token_ids


def stand_in(path: Path, kind: str) -> None:
    """Something else in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        where = os.getcwd()
        os.chdir(path.parent)  # its whole path is longer than a socket's address may be
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
        os.chdir(where)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "nowhere": "/nowhere/at/all", "itself": path.name}[kind])


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")
OTHERS = ("model.safetensors.index.json", "pytorch_model.bin", "chat_template.jinja", "modules.json", "tokenizer.model")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "device", "nowhere", "itself"])
@pytest.mark.parametrize("name", FILES + OTHERS)
def test_what_is_no_file(model: Path, name: str, kind: str) -> None:
    stand_in(model / name, kind)
    word = {"nowhere": "cannot be opened", "itself": "cannot be opened"}.get(kind, f"is a {kind}")
    refused(model, name, word)


def test_the_model_itself_may_be_no_file(tmp_path: Path) -> None:
    for kind in ("FIFO", "socket", "device"):
        stand_in(tmp_path / "model.gguf", kind)
        refused(tmp_path / "model.gguf", f"is a {kind}")


def test_a_fifo_deeper_down(model: Path) -> None:
    (model / "modules.json").write_text('[{"type": "x.Pooling", "path": "1_Pooling"}]')
    (model / "1_Pooling").mkdir()
    os.mkfifo(model / "1_Pooling" / "config.json")
    refused(model, "is a FIFO", task="embedding")


def test_hub_caches_are_links(model: Path, tmp_path: Path) -> None:
    want = answer(load(model))
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        file.rename(blobs / f"sha-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"sha-{file.name}")
    llm = load(snapshot)
    assert answer(llm) == want
    assert "messages" in llm.engine.tokenizer.chat_templates["default"]


def test_weights_may_lie_elsewhere_and_templates_not(model: Path, tmp_path: Path) -> None:
    want = answer(load(model))
    (model / "model.safetensors").rename(tmp_path / "elsewhere")
    (model / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert answer(load(model)) == want
    (tmp_path / "secret").write_text("a key")
    (model / "chat_template.jinja").symlink_to(tmp_path / "secret")
    assert "a key" not in refused(model, "points out of its folder")


DEEP = "[" * 100_000
JSONS: dict[str, str | bytes] = {
    "a list": "[]",
    "null": "null",
    "text": '"x"',
    "number": "5",
    "nothing": "",
    "cut": '{"a": ',
    "deep": '{"a": ' + DEEP + "]" * 100_000 + "}",
    "deeper than can be read": DEEP,
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a surrogate": '{"architectures": ["LlamaForCausalLM"], "a": "\\ud800"}',
    "5000 digits": '{"a": ' + "9" * 5000 + "}",
    "zero bytes": b"\0" * 4096,
    "large": '{"a": "' + "x" * (17 << 20) + '"}',
}


@pytest.mark.parametrize("what", JSONS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_json_that_is_none(model: Path, name: str, what: str) -> None:
    text = JSONS[what]
    (model / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    if name == "tokenizer.json" and what == "large":
        return  # tokenizers may be
    refused(model, name)


@pytest.mark.parametrize("what", [w for w in JSONS if w != "large"])
def test_an_index_that_is_none(model: Path, what: str) -> None:
    text = JSONS[what]
    path = model / "model.safetensors.index.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(model)


@pytest.mark.parametrize(
    "weight_map",
    [
        [],
        ["model.safetensors"],
        None,
        5,
        "model.safetensors",
        {"a": 5},
        {"a": None},
        {"a": ["model.safetensors"]},
        {"a": {}},
        {"a": LONG},
        {"a": "../model.safetensors"},
        {"a": "/etc/passwd"},
        {"a": ".."},
        {"a": "."},
        {"a": ""},
        {"a": "x/y"},
        {"a": "x\0y"},
        {"a": "missing-\u202e\x9b31m.safetensors"},
        {f"{i}": f"missing-{i}-{'x' * 200}.safetensors" for i in range(10_000)},
        {"a": "config.json"},
    ],
)
def test_an_index_that_names_what_it_may_not(model: Path, weight_map: Any) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(model)


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(WeightLoader, "_place", never)


def raw_safetensors(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def test_a_large_header(model: Path) -> None:
    entries = (f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(1_500_000))
    raw_safetensors(model / "model.safetensors", ("{" + ",".join(entries) + "}").encode())
    assert (model / "model.safetensors").stat().st_size > 2 * HEADER_MAX
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(model, "has a header of")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


HEADERS: dict[str, bytes] = {
    "a list": b"[]",
    "text": b'"x"',
    "cut": b'{"a": {"dtype": "F32"',
    "deep": b"[" * 100_000,
    "an entry of another type": b'{"a": 5}',
    "no shape": b'{"a": {"dtype": "F32", "data_offsets": [0, 0]}}',
    "a shape of texts": b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 0]}}',
    "a shape of fractions": b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
    "a shape of booleans": b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
    "a shape below zero": b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    "a shape without end": b'{"a": {"dtype": "F32", "shape": [999999999999999999999], "data_offsets": [0, 4]}}',
    "a shape of nothing, without end": b'{"a": {"dtype": "F32", "shape": [0, 99999999999], "data_offsets": [0, 0]}}',
    "a shape that overflows": b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4]}}',
    "offsets beyond the file": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000]}}',
    "offsets the wrong way": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
    "no offsets": b'{"a": {"dtype": "F32", "shape": [1]}}',
    "an unknown type": b'{"a": {"dtype": "' + LONG.encode() + b'", "shape": [1], "data_offsets": [0, 4]}}',
    "a long name": b'{"' + LONG.encode() + b'": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "a name of controls": b'{"\\u001b[31m\\u202e": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "a name twice": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
    b'"a": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}',
    "not UTF-8": b'{"\xff": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "nothing": b"",
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers(model: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_work(monkeypatch)
    raw_safetensors(model / "model.safetensors", HEADERS[what], b"\0" * 4)
    refused(model)


@pytest.mark.parametrize("length", [0, 1, 7, 2**32, 2**63, 2**64 - 1])
def test_lengths_of_headers(model: Path, length: int) -> None:
    data = (model / "model.safetensors").read_bytes()
    raw_safetensors(model / "model.safetensors", data[8:], length=length)
    refused(model, "model.safetensors is damaged")
    (model / "model.safetensors").write_bytes(data[:5])
    refused(model, "model.safetensors is damaged")


def test_many_tensors_too_many(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_file(model / "model.safetensors")
    extra = {f"model.layers.{i}.surprise.weight": np.zeros(0, np.float32) for i in range(100_000)}
    save_file({**weights, **extra}, model / "model.safetensors")
    forbid_work(monkeypatch)
    refused(model, "100000 tensors that the model has no place for")


def test_nothing_is_read_before_all_fits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_work(monkeypatch)
    sound = dict(load_file(model / "model.safetensors"))
    weights = dict(sound)
    weights.pop("model.layers.0.self_attn.k_proj.weight")
    weights["model.norm.weight"] = np.zeros(3, np.float32)
    weights["y" * 50_000] = np.zeros(3, np.float32)
    save_file(weights, model / "model.safetensors")
    refused(model, "1 tensors missing: model.layers.0.self_attn.k_proj", "wrong shape: model.norm", "no place for: yyy")


def test_a_stack_without_end(tmp_path: Path) -> None:
    folder = write_model(case_named("DbrxForCausalLM--dbrx"), tmp_path / "dbrx")
    weights = dict(load_file(folder / "model.safetensors"))
    name = next(n for n in sorted(weights) if "experts.mlp" in n)
    rows = 2**40
    weights[name] = np.zeros((rows, 0), np.float32)
    save_file(weights, folder / "model.safetensors")
    refused(folder, "wrong shape", name, skip_tokenizer_init=True)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("indexed", [True, False])
def test_names_that_are_there_twice(model: Path, suffix: str, indexed: bool) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    parts = [dict(weights), {"model.norm.weight": weights["model.norm.weight"] + 1}]
    for file, part in zip(files, parts, strict=True):
        if suffix == "safetensors":
            save_file(part, model / file)
        else:
            torch.save({n: torch.from_numpy(w) for n, w in part.items()}, model / file)
    if indexed:
        weight_map = {**dict.fromkeys(weights, files[0]), "model.norm.weight": files[1]}
        (model / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(model, "model.norm.weight twice", *files)


# PyTorch's files


def as_bin(model: Path, **options: Any) -> Path:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(
        OrderedDict((n, torch.from_numpy(w)) for n, w in weights.items()), model / "pytorch_model.bin", **options
    )
    return model / "pytorch_model.bin"


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED) -> None:
    """A zip file with other records."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_answer_alike(model: Path, zipped: bool) -> None:
    want = answer(load(model))
    as_bin(model, _use_new_zipfile_serialization=zipped)
    assert answer(load(model)) == want


@pytest.mark.parametrize("zipped", [True, False])
def test_what_else_torch_saves(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24, dtype=torch.float32)
    saved: dict[str, Any] = {
        "view": base[4:16].view(3, 4),
        "transposed": base.view(4, 6).t(),
        "steps": base[::5],
        "whole": base,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "scalar": torch.tensor(5),
        "empty": torch.empty(0, 3),
        "bfloat16": torch.randn(3, 5).bfloat16(),
        "half": torch.randn(3).half(),
        "bool": torch.tensor([True, False]),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "expanded": torch.arange(5).expand(1, -1),
        "step": 7,
        "names": ["a", ("b", 1.5, None)],
        "raw": b"abc",
    }
    path = tmp_path / "x.bin"
    torch.save({"state_dict": saved, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    found = {name: source.read() for name, source in pickled_tensors(path)}
    assert set(found) == {name for name, value in saved.items() if isinstance(value, torch.Tensor)}
    for name, tensor in found.items():
        assert tensor.dtype == saved[name].dtype
        assert torch.equal(tensor, saved[name])


def test_a_storage_is_missing(model: Path) -> None:
    rewrite(as_bin(model), lambda records: records.pop(next(n for n in records if n.endswith("data/3"))) and None)
    refused(model, "pytorch_model.bin lacks the numbers of")


def test_a_storage_is_shorter_than_it_says(model: Path) -> None:
    rewrite(as_bin(model), lambda r: r.update({n: d[:-4] for n, d in r.items() if n.endswith("data/3")}))
    refused(model, "storage 3 is larger than its record")


@pytest.mark.parametrize("what", ["numbers", "pickle"])
def test_a_zip_that_expands(model: Path, what: str) -> None:
    def expand(records: dict[str, bytes]) -> None:
        if what == "pickle":
            name = next(n for n in records if n.endswith("data.pkl"))
            records[name] = b"\x80\x02" + b"]" * (64 << 20) + b"."

    rewrite(as_bin(model), expand, zipfile.ZIP_DEFLATED)
    refused(model, "pickle is larger than" if what == "pickle" else "its numbers are compressed")


def test_many_records(model: Path) -> None:
    with zipfile.ZipFile(as_bin(model), "a") as archive:
        for i in range(150_000):
            archive.writestr(f"archive/extra/{i:060}", b"")
    refused(model, "records")


def put(path: Path, code: bytes, zipped: bool) -> None:
    """A PyTorch file with this pickle."""
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", code)
            archive.writestr("archive/data/0", b"\0" * 4)
    else:
        buffer = io.BytesIO()
        torch.save({}, buffer, _use_new_zipfile_serialization=False)
        old = buffer.getvalue()
        start = [i for i in range(len(old)) if old.startswith(b"\x80\x02", i)]
        path.write_bytes(old[: start[3]] + code + old[start[4] :])


def tensor_code(shape: tuple[int, ...], stride: tuple[int, ...], numel: int = 1, offset: int = 0) -> bytes:
    """The pickle of `{"a": tensor}` over a storage of one float."""
    ints = "".join(f"I{n}\n" for n in (offset,)).encode()
    pid = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + f"I{numel}\n".encode() + b"tQ"
    sizes = b"(" + "".join(f"L{n}L\n" for n in shape).encode() + b"t"
    steps = b"(" + "".join(f"L{n}L\n" for n in stride).encode() + b"t"
    rebuilt = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + ints + sizes + steps + b"I00\nccollections\nOrderedDict\n)RtR"
    )
    return b"\x80\x02}X\x01\0\0\0a" + rebuilt + b"s."


DOUBLED = b"".join(b"\x71" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(100))
PICKLES: dict[str, bytes] = {
    "a tuple that doubles, as a key": b"\x80\x02})" + DOUBLED + b"Ns.",
    "a tuple that doubles, as the state": b"\x80\x02)" + DOUBLED + b".",
    "a list that holds itself": b"\x80\x02]q\0h\0a.",
    "a large list": b"\x80\x02](" + b"N" * 900_000 + b"e.",
    "lists in lists": b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b".",
    "very many instructions": b"\x80\x02" + b"N0" * 2_000_000 + b"}.",
    "a text longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "an integer longer than the file": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "a call": b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.",
    "an array of bytes without end": b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.",
    "a storage without end": b"\x80\x02ctorch\nFloatStorage\n\x8a\x06\0\0\0\0\0\x01\x85R.",
    "a call of a call": b"\x80\x02}}\x85R.",
    "nothing": b"",
    "only an end": b".",
    "no end": b"\x80\x02}",
    "a memo that is not there": b"\x80\x02h\5.",
    "a mark that is not there": b"\x80\x02u.",
    "an extension": b"\x80\x02\x82\x01.",
    "a version that is none": b"\x80\xff}.",
    "a long name": b"\x80\x02c" + LONG.encode() + b"\nx\n)R.",
    "a state that is a list": b"\x80\x02].",
    "a state of another type": b"\x80\x02N.",
    "a key that is a list": b"\x80\x02}]Ns.",
    "an expanded tensor": tensor_code((10**6, 10**6), (0, 0)),
    "a tensor beyond its storage": tensor_code((2,), (1,)),
    "an offset beyond its storage": tensor_code((1,), (1,), offset=1),
    "an offset below its storage": tensor_code((1,), (1,), offset=-1),
    "a storage beyond its record": tensor_code((10**12,), (1,), numel=10**12),
    "a stride below zero": tensor_code((1, 1), (-1, 1)),
    "a shape below zero": tensor_code((-1,), (1,)),
    "a shape without end": tensor_code((2**62, 2**62), (0, 0)),
    "a shape and strides of two lengths": tensor_code((1,), (1, 1)),
    "many dimensions": tensor_code((1,) * 10_000, (1,) * 10_000),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", PICKLES)
def test_pickles(model: Path, what: str, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_work(monkeypatch)
    (model / "model.safetensors").unlink()
    put(model / "pytorch_model.bin", PICKLES[what], zipped)
    refused(model)


def test_the_pickles_are_read_but_for_what_is_wrong(tmp_path: Path) -> None:
    put(tmp_path / "x.bin", tensor_code((1, 1), (1, 1)), True)
    ((name, source),) = pickled_tensors(tmp_path / "x.bin")
    assert (name, source.shape, source.read().tolist()) == ("a", (1, 1), [[0.0]])


# Mutations


def mutated(data: bytes, rng: random.Random, header: int) -> bytes:
    """A file with a few bytes changed, cut, doubled or moved."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not changed:
            break
        at = rng.randrange(min(header, len(changed)) or 1)
        kind = rng.randrange(5)
        if kind == 0:
            changed[at : at + 1] = bytes([rng.choice(b'\0\xff0-9"{}[],:eE.\\u' + bytes([rng.randrange(256)]))])
        elif kind == 1:
            del changed[at : at + rng.randrange(1, 20)]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            changed[at:at] = rng.choice(
                [b"999999999999999999999", b"-1", b"1e999", b"[[[[", b"null", b"\\ud800", b"{}"]
            )
        else:
            del changed[at + rng.randrange(len(changed)) :]
    return bytes(changed)


def survives(folder: Path, **options: Any) -> None:
    """It loads and answers, or is refused with a short error."""
    message = ""
    try:
        llm = load(folder, **options)
    except OctavoError as error:
        message = str(error)
    if message:
        assert len(message) < MESSAGE_MAX
        return
    params = SamplingParams(temperature=0, max_tokens=2, detokenize=False)
    (output,) = llm.generate([[1, 2, 3]], params, use_tqdm=False)
    assert output.outputs[0].finish_reason in ("length", "stop", "error")


EXAMPLES = int(os.environ.get("OCTAVO_FUZZ", "60"))


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "legacy.bin",
        "config.json",
        "generation_config.json",
        "index",
        "modules.json",
    ],
)
def test_damaged_files(model: Path, name: str) -> None:
    if name == "legacy.bin":
        as_bin(model, _use_new_zipfile_serialization=False)
        name = "pytorch_model.bin"
    elif name == "pytorch_model.bin":
        as_bin(model)
    elif name == "index":
        name = "model.safetensors.index.json"
        weights = load_file(model / "model.safetensors")
        (model / name).write_text(json.dumps({"weight_map": dict.fromkeys(weights, "model.safetensors")}))
    elif name == "modules.json":
        (model / name).write_text('[{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}]')
    sound = (model / name).read_bytes()
    for seed in range(EXAMPLES):
        rng = random.Random(f"{name} {seed}")
        (model / name).write_bytes(mutated(sound, rng, 4000 if seed % 3 else len(sound)))
        try:
            survives(model, skip_tokenizer_init=True)
        except BaseException:
            print(f"seed {seed}")
            raise


def test_json_of_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + '{"a": [NaN, "é🙂\\ud83d\\ude42"]}'.encode())
    assert read_json(tmp_path / "a.json")["a"][1] == "é🙂🙂"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json(tmp_path / "b.json")
