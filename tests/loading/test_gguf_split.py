"""Models in several GGUF files."""

import os
import shutil
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ModelNotFoundError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.model_files import _check_folder, _files_to_download, _with_quant
from tests.golden import case_named
from tests.loading.gguf_models import write_gguf
from tests.loading.gguf_raw import U16, RawGGUF, Value, take_apart, whole

CASE = "LlamaForCausalLM--gqa-tied"
PARTS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model in three parts, as llama.cpp's gguf-split writes them."""
    sound = take_apart(write_gguf(case_named(CASE), tmp_path / "sound.gguf"))
    (tmp_path / "sound.gguf").unlink()
    home, each = tmp_path / "model", -(-len(sound.tensors) // PARTS)
    home.mkdir()
    for part in range(PARTS):
        tensors = sound.tensors[part * each : (part + 1) * each]
        first = tensors[0].offset
        last = sound.tensors[(part + 1) * each].offset if part + 1 < PARTS else len(sound.data)
        raw = RawGGUF(sound.pairs if part == 0 else [], tensors, sound.data[first:last])
        for tensor in tensors:
            tensor.offset -= first
        raw.set("split.no", Value(U16, part))
        raw.set("split.count", Value(U16, PARTS))
        raw.set("split.tensors.count", Value(5, len(sound.tensors)))
        (home / f"m-Q4_K_M-{part + 1:05d}-of-{PARTS:05d}.gguf").write_bytes(raw.encoded())
    return home


def answer(path: Path) -> list[int]:
    prompt = {"prompt_token_ids": case_named(CASE)["cases"][0]["prompt_token_ids"]}
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="4MiB")
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    return list(llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids)


def test_any_part_and_the_folder_name_the_whole(folder: Path) -> None:
    want = case_named(CASE)["cases"][0]["output_token_ids"]
    for path in (folder, *sorted(folder.iterdir())):
        assert answer(path) == want, path.name


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_part_that_is_missing_is_named(folder: Path, missing: int) -> None:
    (folder / f"m-Q4_K_M-{missing:05d}-of-00003.gguf").unlink()
    for path in (folder, *sorted(folder.iterdir())):
        with pytest.raises(CheckpointError, match=f"m-Q4_K_M-{missing:05d}-of-00003.gguf is missing"):
            LLM(str(path))


def test_a_part_by_another_name(folder: Path) -> None:
    first, second = (folder / f"m-Q4_K_M-{n:05d}-of-00003.gguf" for n in (1, 2))
    shutil.copy(first, folder.parent / "renamed.gguf")
    with pytest.raises(CheckpointError, match=r"one of 3 parts.*-00001-of-00003\.gguf"):
        GGUFFile(folder.parent / "renamed.gguf")
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match="says that it is part 1, and its name 2"):
        GGUFFile(first)


def test_parts_that_do_not_fit_together(folder: Path) -> None:
    paths = sorted(folder.iterdir())
    sound = paths[1].read_bytes()
    raw = take_apart(paths[1])
    raw.tensors[0].name = take_apart(paths[0]).tensors[0].name
    paths[1].write_bytes(raw.encoded())
    with pytest.raises(CheckpointError, match="is in two parts"):
        GGUFFile(paths[0])
    paths[1].write_bytes(sound)
    raw = take_apart(paths[0])
    raw.set("split.tensors.count", whole(999))
    paths[0].write_bytes(raw.encoded())
    with pytest.raises(CheckpointError, match=r"tensors of 999"):
        GGUFFile(paths[2])


def test_a_folder_with_several_models_wants_a_name(folder: Path) -> None:
    shutil.copy(folder / "m-Q4_K_M-00001-of-00003.gguf", folder / "other.gguf")
    with pytest.raises(CheckpointError, match=r"several GGUF files \(m-Q4_K_M-00001-of-00003.gguf, other.gguf\)"):
        LLM(str(folder))


def test_a_quantization_of_a_folder_on_this_disk(folder: Path) -> None:
    """As of a hub's name; and where parts lie in a folder of their own, as large models are published."""
    alone = answer(folder)
    inner = folder.parent / "repo" / "Q4_K_M"
    shutil.copytree(folder, inner)
    write_gguf(case_named("Qwen2ForCausalLM--7b"), folder / "m-Q4_K.gguf")
    assert answer(Path(f"{folder}:Q4_K_M")) == answer(Path(f"{folder}:q4_k_m")) == alone
    assert answer(Path(f"{inner.parent}:Q4_K_M")) == answer(inner.parent) == alone
    for name in (f"{folder}:Q8_0", f"{inner.parent}:Q8_0"):
        with pytest.raises(CheckpointError, match="no GGUF file with 'Q8_0' in its name"):
            answer(Path(name))
    with pytest.raises(ModelNotFoundError, match="was not found"):
        answer(folder.parent / "nothing:Q8_0")


def test_what_is_no_file_is_passed_over(folder: Path) -> None:
    """A pipe would be waited for without end."""
    os.mkfifo(folder / "a.gguf")
    (folder / "b.gguf").mkdir()
    assert _check_folder(folder).name == "m-Q4_K_M-00001-of-00003.gguf"
    with pytest.raises(CheckpointError, match="could not be read"):
        GGUFFile(folder / "b.gguf")


def test_a_projector_for_pictures_is_no_second_model(folder: Path) -> None:
    (folder / "mmproj-m.gguf").write_bytes(b"GGUF")
    assert answer(folder) == case_named(CASE)["cases"][0]["output_token_ids"]


def test_a_quantization_is_a_word_of_the_name() -> None:
    names = ["m-BF16.gguf", "m-F16.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf"]
    assert _with_quant(names, "F16") == ["m-F16.gguf"]
    assert _with_quant(names, "q4_k_m") == ["m-Q4_K_M.gguf"]
    assert _with_quant(names, "Q4_K") == ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf"]
    assert _with_quant(names, "Q8_0") == ["Q8_0/m-Q8_0-00001-of-00002.gguf"]
    assert _with_quant(names, "") == names


def test_a_hub_name_with_a_quantization_takes_all_its_parts(folder: Path) -> None:
    """The parts may lie in a folder of their own, as large models are published."""
    args = EngineArgs(model="owner/m:Q4_K_M")
    parts = [f"Q4_K_M/{path.name}" for path in sorted(folder.iterdir())]
    assert _files_to_download([*parts, "m-Q8_0.gguf", "README.md"], "Q4_K_M", args, True) == parts
    home = folder.parent / "snapshot"
    shutil.copytree(folder, home / "Q4_K_M")
    assert _check_folder(home, "Q4_K_M") == home / parts[0]
