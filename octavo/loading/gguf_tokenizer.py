"""The tokenizer that a GGUF file carries, turned into a fast one."""

import logging
from typing import Any

import numpy as np

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_reader import Metadata, shown
from octavo.loading.gguf_splits import SPLITS, Split
from octavo.loading.gguf_vocab import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, numbers
from octavo.text.tokenizer import FastTokenizer

log = logging.getLogger("octavo")

MAX_MERGES = 1 << 21
MAX_CUTS = 1 << 28
"""Characters looked at to find which pairs a sentencepiece vocabulary merges; Gemma's 256,000 tokens need 2**24."""


def gguf_tokenizer(file: GGUFFile) -> FastTokenizer:
    """The tokenizer of `file`: llama.cpp's kinds `gpt2` (byte-level BPE), `llama` (sentencepiece's BPE), `bert`
    (WordPiece) and `t5` (sentencepiece's unigrams).

    Raises UnsupportedModelError for others, CheckpointError where parts are missing or contradict each other.
    """
    vocabulary, data = file.vocabulary, file.metadata
    if vocabulary is None:
        raise CheckpointError(f"{file.path} contains no tokenizer. Give one with tokenizer=.")
    builders = {"gpt2": _byte_level, "gemma4": _byte_level, "llama": _sentencepiece, "bert": _wordpiece, "t5": _unigram}
    if vocabulary.kind not in builders:
        raise UnsupportedModelError(
            f"{file.path} has a tokenizer of kind {shown(vocabulary.kind)}; supported are {', '.join(builders)}. Give "
            "another with tokenizer=."
        )
    inner = builders[vocabulary.kind](file, vocabulary)
    special = {name: inner.id_to_token(index) for name, index in vocabulary.special.items()}
    _add_special(inner, vocabulary, data.text("general.name") or "")
    _add_ends(inner, data, vocabulary)
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "sep": "seperator", "mask": "mask"}
    named = {f"{name}_token": special[key] for name, key in names.items() if key in special}
    return FastTokenizer(inner, named, _chat_templates(data), vocabulary.special.get("eos"))


def _chat_templates(data: Metadata) -> dict[str, str]:
    templates = {"default": data.text("tokenizer.chat_template")}
    for name in data.texts("tokenizer.chat_templates", 64) or []:
        templates[name] = data.text(f"tokenizer.chat_template.{name}")
    return {name: template for name, template in templates.items() if template is not None}


def _split(file: GGUFFile, kind: str) -> Split:
    pre = "gemma4" if kind == "gemma4" else file.metadata.text("tokenizer.ggml.pre")
    if pre is None:
        log.warning(
            "%s does not say how its text is split (tokenizer.ggml.pre): GPT-2's way is taken, as by llama.cpp, which "
            "is wrong for many models. Convert it again, or give the published tokenizer with tokenizer=.",
            file.path,
        )
        return SPLITS["default"]
    if pre not in SPLITS:
        raise UnsupportedModelError(
            f"{file.path} splits text in the way {shown(pre)}, which Octavo does not know. Give the model's published "
            "tokenizer with tokenizer=."
        )
    return SPLITS[pre]


def _add_special(inner: Any, vocabulary: Vocabulary, name: str) -> None:
    """Have control and user-defined tokens found in text before it is split."""
    from tokenizers import AddedToken

    # llama.cpp knows by their names that Phi-3's marks swallow the spaces behind them.
    phi3 = any(phi in name.lower() for phi in ("phi-3", "phi3"))
    control: list[AddedToken] = []
    user: list[AddedToken] = []
    for index, kind in enumerate(vocabulary.types):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            text = inner.id_to_token(index)
            strips = phi3 and text not in ("<unk>", "<s>", "<|endoftext|>")
            token = AddedToken(text, special=kind != USER_DEFINED, normalized=False, rstrip=strips)
            (user if kind == USER_DEFINED else control).append(token)
    if control:
        inner.add_special_tokens(control)
    if user:
        inner.add_tokens(user)


def _add_ends(inner: Any, data: Metadata, vocabulary: Vocabulary) -> None:
    """Have bos and eos put around texts, where the file or its kind of vocabulary says so."""
    from tokenizers.processors import TemplateProcessing

    kind, pre = vocabulary.kind, data.text("tokenizer.ggml.pre")
    begins = kind in ("llama", "gemma4") or (kind == "gpt2" and pre in SPLITS and SPLITS[pre].add_bos)
    said = {name: f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos")}
    ends = {"bos": data.flag(said["bos"], begins), "eos": data.flag(said["eos"], kind == "t5")}
    if kind == "bert":
        ends = {"bos": True, "seperator": True}
    for name, added in ends.items():
        if added and name not in vocabulary.special:
            if name not in said or said[name] in data:
                data.fail(f"tokenizer.ggml.{name}_token_id is missing, which its texts begin or end with")
            ends[name] = False
    # Pieces go by these names, since a token's own text may look like something else to the library.
    begin, end = ([name for name in names if ends.get(name)] for names in (("bos",), ("eos", "seperator")))
    # RoBERTa's kind ends the first text of two, and begins the second with the same token.
    between = ["seperator"] if end == ["eos"] and begin and "seperator" in vocabulary.special else []
    ids = {name: vocabulary.special[name] for name in (*begin, *end, *between)}
    if ids:
        inner.post_processor = TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *between, "$B:1", *(end if kind in ("bert", "t5") or between else [])],
            special_tokens=[{"id": n, "ids": [i], "tokens": [inner.id_to_token(i)]} for n, i in ids.items()],
        )


def _merges(file: GGUFFile, ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that are merged, first those that come first. A pair's first half may begin with a space."""
    data, key = file.metadata, "tokenizer.ggml.merges"
    written = data.texts(key, MAX_MERGES)
    if written is None:
        raise CheckpointError(f"{file.path} has a vocabulary without merges. Give a tokenizer with tokenizer=.")
    pairs = []
    for number, merge in enumerate(written):
        cut = merge.find(" ", 1)
        left, right = (merge[:cut], merge[cut + 1 :]) if cut > 0 else ("", "")
        if left not in ids or right not in ids or left + right not in ids:
            data.fail(f"{key}[{number}] is {shown(merge)}, which is not two tokens that make a third")
        pairs.append((left, right))
    return pairs


def _byte_level(file: GGUFFile, vocabulary: Vocabulary) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    split = _split(file, vocabulary.kind)
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    model = models.BPE(vocab=ids, merges=_merges(file, ids), ignore_merges=split.ignore_merges, byte_fallback=split.raw)
    inner = Tokenizer(model)
    steps: list[Any] = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in split.patterns]
    if split.raw:
        inner.normalizer = normalizers.Replace(" ", "▁")
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        inner.decoder = decoders.ByteLevel()
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return inner


def _unknown(file: GGUFFile, vocabulary: Vocabulary) -> int:
    if "unknown" not in vocabulary.special:
        file.metadata.fail("tokenizer.ggml.unknown_token_id is missing")
    return vocabulary.special["unknown"]


def _sentencepiece(file: GGUFFile, vocabulary: Vocabulary) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = vocabulary.tokens
    scores = numbers(file.metadata, "tokenizer.ggml.scores", len(tokens), whole=False) or [0.0] * len(tokens)
    if sum(len(token) ** 2 for token in tokens) > MAX_CUTS:
        file.metadata.fail("its vocabulary has too many long tokens")
    ids = {text: i for i, text in enumerate(tokens)}
    # sentencepiece merges the pair whose result scores highest; the rank of a merge is the rank of its result.
    ranked = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[index], index, ids[left], ids[right], left, right))
    ranked.sort(key=lambda r: r[:4])
    inner = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(r[4], r[5]) for r in ranked],
            unk_token=tokens[_unknown(file, vocabulary)],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = file.metadata.flag("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return inner


def _wordpiece(file: GGUFFile, vocabulary: Vocabulary) -> Any:
    """llama.cpp marks the tokens that begin a word; the library those that do not."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    data = file.metadata
    ids = {}
    for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        whole = kind in (CONTROL, UNKNOWN, USER_DEFINED) or (token.startswith("[") and token.endswith("]"))
        ids[token if whole else token[1:] if token.startswith("▁") else "##" + token] = index
    if len(ids) != len(vocabulary.tokens):
        data.fail("its vocabulary has tokens that are spelled alike")
    lower = data.flag("tokenizer.ggml.normalizer.lowercase", True)
    accents = data.flag("tokenizer.ggml.normalizer.strip_accents", lower)
    unknown = next(text for text, i in ids.items() if i == _unknown(file, vocabulary))
    inner = Tokenizer(models.WordPiece(ids, unk_token=unknown, max_input_chars_per_word=1 << 16))
    inner.normalizer = normalizers.BertNormalizer(strip_accents=accents, lowercase=lower)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner


def _unigram(file: GGUFFile, vocabulary: Vocabulary) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    data, tokens = file.metadata, vocabulary.tokens
    scores = numbers(data, "tokenizer.ggml.scores", len(tokens), whole=False) or [0.0] * len(tokens)
    inner = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), _unknown(file, vocabulary), False))
    steps: list[Any] = []
    if "tokenizer.ggml.precompiled_charsmap" in data:
        steps.append(normalizers.Precompiled(_charsmap(data)))
    if data.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        # One mark before each word, and nothing else is left of spaces.
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Prepend(" ")]
        steps.append(normalizers.Replace(Regex(" +"), "▁"))
    else:
        prefix = data.flag("tokenizer.ggml.add_space_prefix", False)
        steps += [normalizers.Replace(Regex(r"\A(?= *[^ ])"), " ")] if prefix else []
        steps.append(normalizers.Replace(" ", "▁"))
    inner.normalizer = normalizers.Sequence(steps)
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return inner


def _charsmap(data: Metadata) -> bytes:
    """sentencepiece's table of normalized texts.

    It is a double array in 4-byte units, in which the library does not look where it goes, and the texts behind it.
    """
    key = "tokenizer.ggml.precompiled_charsmap"
    raw = data.array(key)
    if raw.dtype.itemsize != 1 or raw.dtype.kind not in "iu":
        data.fail(f"{key} must be a list of bytes")
    table = raw.tobytes()
    size = int.from_bytes(table[:4], "little")
    if len(table) < 8 or size % 4 or not 0 < size <= len(table) - 4:
        data.fail(f"{key} is cut short")
    units, texts = np.frombuffer(table, "<u4", size // 4, 4).astype(np.int64), table[4 + size :]
    inner = np.nonzero((units >> 31 == 0) | (np.arange(len(units)) == 0))[0]  # the first is not asked what it is
    bases = inner ^ ((units[inner] >> 10) << ((units[inner] & 1 << 9) >> 6))
    if ((bases | 0xFF) >= len(units)).any():
        data.fail(f"{key} points beyond its end")
    starts = units[bases[units[inner] & 1 << 8 != 0]] & 0x7FFFFFFF
    if (starts >= len(texts)).any() or (np.frombuffer(texts, "u1")[starts] & 0xC0 == 0x80).any():
        data.fail(f"{key} points beyond its texts, or into a character")
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        data.fail(f"{key} has texts that are not UTF-8")
    return table
