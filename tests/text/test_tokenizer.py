"""Tokenizers: GGUF's against the published way, settings that transformers obeys, and files that are missing."""

import base64
import io
import json
from pathlib import Path

import pytest

from octavo import LLM
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_tokenizer import gguf_tokenizer
from octavo.text.tokenizer import load_tokenizer


def write_tokenizer(folder: Path, **settings: object) -> Path:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    inner.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, chat_template="{{ messages[0].content }}"), False)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 257)
    assert tokenizer.decode(tokenizer.encode("Grüße 🙂")) == "Grüße 🙂"
    assert tokenizer.decode([256, *tokenizer.encode("a"), 257]) == "a"
    assert tokenizer.decode([257], skip_special_tokens=False) == "</s>"
    assert tokenizer.chat_templates == {"default": "{{ messages[0].content }}"}


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, "a"),
        ({"tokenizer_class": "LlamaTokenizerFast"}, "a"),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}, "<s>a"),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": True}, "a</s>"),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}, "a"),
    ],
)
def test_bos_and_eos_settings(settings: dict[str, object], want: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, **settings), False)
    assert tokenizer.decode(tokenizer.encode("a"), skip_special_tokens=False) == want
    assert tokenizer.decode(tokenizer.encode("a", add_special_tokens=False), skip_special_tokens=False) == "a"


def test_named_and_separate_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    assert load_tokenizer(write_tokenizer(tmp_path, chat_template=named), False).chat_templates["tool_use"] == "B"
    (tmp_path / "chat_template.jinja").write_text("C")
    assert load_tokenizer(tmp_path, False).chat_templates["default"] == "C"


def test_through_transformers(tmp_path: Path) -> None:
    """A GPT-2 tokenizer in its older files."""
    from tokenizers import pre_tokenizers

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {
        "<|endoftext|>": 256,
        "he": 257,
    }
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(tmp_path, False)
    ids = tokenizer.encode("hehe!")
    assert ids[:2] == [257, 257]
    assert tokenizer.decode(ids) == "hehe!"
    assert tokenizer.eos_token_id == 256


def test_sentencepiece_model_file(tmp_path: Path) -> None:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world", "the quick brown fox"] * 20),
        model_writer=model,
        vocab_size=60,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path, False)
    plain = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert tokenizer.encode("hello fox", add_special_tokens=False) == plain.encode("hello fox")
    assert tokenizer.decode(plain.encode("hello fox")) == "hello fox"
    assert tokenizer.eos_token_id == 2


REMOTE = """
import tiktoken
from pathlib import Path
from tiktoken.load import load_tiktoken_bpe
from transformers import PreTrainedTokenizer

class OwnTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "own.tiktoken"}

    def __init__(self, vocab_file, **options):
        self.ranks = load_tiktoken_bpe(vocab_file)
        self.inner = tiktoken.Encoding("own", pat_str=r"\\S+|\\s+", mergeable_ranks=self.ranks, special_tokens={})
        super().__init__(**options)

    vocab_size = property(lambda self: len(self.ranks))
    get_vocab = lambda self: self.ranks
    _tokenize = lambda self, text: [self.inner.decode_single_token_bytes(i) for i in self.inner.encode(text)]
    _convert_token_to_id = lambda self, token: self.ranks[token]
    _convert_id_to_token = lambda self, index: self.inner.decode_single_token_bytes(index)
    convert_tokens_to_string = lambda self, tokens: b"".join(tokens).decode("utf-8", "replace")
"""


def test_code_of_the_models_own_over_a_tiktoken_file(tmp_path: Path) -> None:
    """As the first Qwen has it: the code runs where it is trusted, and nowhere else."""
    ranks = [bytes([i]) for i in range(256)] + [b"he", b"llo", b"hello"]
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for rank, token in enumerate(ranks)]
    (tmp_path / "own.tiktoken").write_bytes(b"\n".join(lines))
    (tmp_path / "tokenization_own.py").write_text(REMOTE)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    settings = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModelError, match="trust_remote_code=True"):
        load_tokenizer(tmp_path, False)
    tokenizer = load_tokenizer(tmp_path, True)
    ids = tokenizer.encode("he said")
    assert ids[0] == 256
    assert tokenizer.decode(ids) == "he said"


def test_no_tokenizer(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="skip_tokenizer_init=True"):
        LLM(str(tiny_folder), kv_cache_memory="8MiB")


def test_damaged_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path, False)


def test_smollm_splits_digits_as_published(smollm_file: Path) -> None:
    """SmolLM2's published tokenizer takes digits one by one: ids from its hub page's tokenizer.json."""
    tokenizer = gguf_tokenizer(GGUFFile(smollm_file))
    assert tokenizer.encode("Hello world 123") == [19556, 905, 216, 33, 34, 35]
    assert tokenizer.encode("<|im_start|>user") == [1, 4093]
    assert tokenizer.decode([1, 4093, 2]) == "user"
    assert tokenizer.eos_token_id == 2


def test_sentencepiece_in_gguf(tmp_path: Path) -> None:
    import gguf

    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "h", "e", "l", "o", "he", "ll", "hell", "▁hell", "▁hello", "hello"]
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * 9 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    writer.add_token_types([2, 3, 3, 6] + [1] * 11)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    tokenizer = gguf_tokenizer(GGUFFile(tmp_path / "t.gguf"))
    assert tokenizer.encode("hello hello") == [1, 13, 13]
    assert tokenizer.encode("hell\n") == [1, 12, 3]
    assert tokenizer.decode([1, 13, 13]) == "hello hello"
