"""The tokenizer that a GGUF file carries, turned into a fast one."""

from typing import Any

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.loading.gguf import GGUFFile
from octavo.loading.tokenizer import FastTokenizer, set_template

CONTROL, USER_DEFINED = 3, 4  # token types of llama.cpp

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS % r"\p{N}{1,3}"
_QWEN2 = _WORDS % r"\p{N}"
# How text is split before merging, by `tokenizer.ggml.pre`: None is GPT-2's own way, "digits" splits digits off first.
_SPLITS: dict[str, str | None] = {
    "default": None,
    "gpt-2": None,
    "gpt2": None,
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "command-r": "digits",
    "codeshell": "digits",
    "exaone": "digits",
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def gguf_tokenizer(file: GGUFFile) -> FastTokenizer:
    """The tokenizer of `file`, of llama.cpp's kinds `gpt2` (byte-level BPE) and `llama` (sentencepiece's BPE).

    Raises UnsupportedModelError for others, CheckpointError where parts are missing.
    """
    data = file.metadata
    tokens = data.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise CheckpointError(f"{file.path} carries no tokenizer. Give one with tokenizer=.")
    kind = data.get("tokenizer.ggml.model")
    if kind == "gpt2":
        inner = _byte_level(file, tokens)
    elif kind == "llama":
        inner = _sentencepiece(file, tokens)
    else:
        raise UnsupportedModelError(
            f"{file.path} carries a tokenizer of kind {kind!r}; gpt2 and llama are read. Give another with tokenizer=."
        )
    _add_special(inner, tokens, data.get("tokenizer.ggml.token_type") or [])
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = data.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            special[f"{name}_token"] = tokens[index]
    add_bos = data.get("tokenizer.ggml.add_bos_token", kind == "llama")
    add_eos = data.get("tokenizer.ggml.add_eos_token", False)
    if add_bos or add_eos:
        set_template(
            inner, special.get("bos_token") if add_bos else None, special.get("eos_token") if add_eos else None
        )
    template = data.get("tokenizer.chat_template")
    return FastTokenizer(
        inner,
        special,
        {"default": template} if isinstance(template, str) else {},
        data.get("tokenizer.ggml.eos_token_id"),
    )


def _add_special(inner: Any, tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    control = [
        AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types, strict=False) if k == CONTROL
    ]
    user = [AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=False) if k == USER_DEFINED]
    if control:
        inner.add_special_tokens(control)
    if user:
        inner.add_tokens(user)


def _byte_level(file: GGUFFile, tokens: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = file.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise CheckpointError(f"{file.path} carries a vocabulary without merges. Give a tokenizer with tokenizer=.")
    pre = file.metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _SPLITS:
        raise UnsupportedModelError(
            f"{file.path} splits text in the way {pre!r}, which Octavo does not know. Give the model's published "
            "tokenizer with tokenizer=."
        )
    pairs = [tuple(m.split(" ", 1)) for m in merges]
    inner = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs, ignore_merges=pre == "llama-bpe")
    )
    split = _SPLITS[pre]
    if split is None:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif split == "digits":
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    inner.decoder = decoders.ByteLevel()
    return inner


def _sentencepiece(file: GGUFFile, tokens: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = file.metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    vocab = {t: i for i, t in enumerate(tokens)}
    # sentencepiece merges the pair whose result scores highest; the rank of a merge is the rank of its result.
    ranked = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[index], index, vocab[left], vocab[right], left, right))
    ranked.sort(key=lambda r: r[:4])
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    inner = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[(r[4], r[5]) for r in ranked],
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return inner
