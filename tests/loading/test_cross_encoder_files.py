"""How a cross-encoder reads pairs, as sentence-transformers' files say it."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, PoolingParams
from octavo.errors import CheckpointError, InvalidRequestError
from octavo.loading.cross_encoder_files import pair_template
from octavo.text.pair_template import PairTemplate
from tests.test_pooling import OPTIONS, classifier

MODULE = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
TEMPLATE = "{{ lead }} {{ messages[0].content }} blue {{ messages[1].content }}"


def write(folder: Path, template: Any = None, **changes: Any) -> Path:
    """The files of a cross-encoder whose only module reads messages."""
    module = {
        "transformer_task": "sequence-classification",
        "modality_config": {"text": {}, "message": {"format": "flat"}},
        "processing_kwargs": {} if template is None else {"chat_template": template},
    }
    files = {
        "config_sentence_transformers.json": {"model_type": "CrossEncoder"},
        "modules.json": [MODULE],
        "sentence_bert_config.json": module,
    }
    for name, value in {**files, **changes}.items():
        (folder / name.replace("_json", ".json")).write_text(json.dumps(value))
    return folder


def test_files_that_declare_messages(tmp_path: Path) -> None:
    assert pair_template(write(tmp_path)) == PairTemplate()
    own = {"chat_template": "rank", "restore_suffix": True, "lead": "red"}
    assert pair_template(write(tmp_path, own)) == PairTemplate(name="rank", variables={"lead": "red"})


@pytest.mark.parametrize(
    "changes",
    [
        {"config_sentence_transformers_json": {"model_type": "SentenceTransformer"}},
        {"modules_json": [MODULE, MODULE]},
        {"modules_json": [{**MODULE, "path": "0_Transformer"}]},
        {"sentence_bert_config_json": {"max_seq_length": 512}},
    ],
)
def test_files_that_do_not(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert pair_template(write(tmp_path, **changes)) is None
    assert pair_template(tmp_path / "nothing") is None


@pytest.mark.parametrize("template", [["rank"], {"chat_template": 5}, {"tools": []}])
def test_settings_that_cannot_be(tmp_path: Path, template: Any) -> None:
    with pytest.raises(CheckpointError, match=r"processing_kwargs\.chat_template"):
        pair_template(write(tmp_path, template))


def test_scores_are_those_of_the_written_text(tmp_path: Path) -> None:
    folder = write(classifier(tmp_path), {"chat_template": "rank", "lead": "red"})
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": {"rank": TEMPLATE}}))
    llm = LLM(str(folder), **OPTIONS)
    (score,) = llm.score("sky", "red", use_tqdm=False)
    (written,) = llm.classify("red sky blue red", use_tqdm=False)
    assert score.outputs.score == written.outputs.probs[-1]


def test_a_template_and_values_of_the_call(tmp_path: Path) -> None:
    """They go before what the files say, in the call and for the whole LLM."""
    folder = classifier(tmp_path)
    template = "{{ messages[1].content }} {{ messages[0].content }}"
    raw = PoolingParams(use_activation=False)
    llm = LLM(str(folder), **OPTIONS)
    (score,) = llm.score("sky", "red", chat_template=template, pooling_params=raw, use_tqdm=False)
    (written,) = llm.classify("red sky", raw, use_tqdm=False)
    assert score.outputs.score == written.outputs.probs[-1]
    (usual,) = LLM(str(folder), chat_template=template, **OPTIONS).score("sky", "red", use_tqdm=False)
    (written,) = llm.classify("red sky", use_tqdm=False)
    assert usual.outputs.score == written.outputs.probs[-1] != score.outputs.score


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    llm = LLM(str(write(classifier(tmp_path), {"chat_template": "rank"})), **OPTIONS)
    with pytest.raises(InvalidRequestError, match="chat template 'rank', which it does not have"):
        llm.score("sky", "red", use_tqdm=False)
