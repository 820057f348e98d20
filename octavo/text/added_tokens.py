"""Tokens that stand beside a tokenizer.json: added and special ones, as transformers takes them from a model folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.files import read_json

STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROBERTA = {**_SENTENCEPIECE, "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
OF_CLASS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("Llama", "CodeLlama"), _SENTENCEPIECE),
    **dict.fromkeys(("Roberta", "XLMRoberta", "Bart"), _ROBERTA),
    **dict.fromkeys(("GPT2", "CodeGen", "GPTNeoX"), _GPT2),
    "Qwen2": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "Gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "Cohere": {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>"},
    "T5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
}
"""What transformers' tokenizer classes call their special tokens where no file does."""
FLAGS = ("lstrip", "rstrip", "normalized", "single_word")


def add_tokens(inner: Any, folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Give `inner`, a tokenizer of the `tokenizers` library, the tokens that the folder's other files name.

    Args:
        settings: tokenizer_config.json.

    Returns the special tokens that have a name (`eos_token` and so on). Raises CheckpointError for damaged files.

    tokenizer_config.json's `added_tokens_decoder` counts for all that it says; where it is missing,
    special_tokens_map.json and added_tokens.json do (transformers has both orders as well).
    """
    settings = dict(settings)
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        map_file = folder / "special_tokens_map.json"
        settings.update(read_json(map_file) if map_file.is_file() else {})
    settings = {**_of_class(inner, settings), **settings}
    named, extra = _special(settings)
    special = {token.content for token in (*named.values(), *extra)}
    added = _decoder(decoder) if decoder is not None else _legacy(folder, special)
    for token in added:
        token.special = token.special or token.content in special
    _add(inner, [*named.values(), *extra], added)
    return {name: token.content for name, token in named.items()}


def _of_class(inner: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that the folder's tokenizer class has by default, as far as `inner` has them."""
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast").removesuffix("Tokenizer")
    return {name: t for name, t in OF_CLASS.get(kind, {}).items() if inner.token_to_id(t) is not None}


def _add(inner: Any, special: list[Any], added: list[Any]) -> None:
    known = {token.content: token for token in inner.get_added_tokens_decoder().values()}
    new = {token.content: token for token in added if repr(known.get(token.content)) != repr(token)}
    for token in special:
        present = known.get(token.content)
        if present is None:
            new.setdefault(token.content, token)
        elif not present.special:  # what any file calls special is special
            present.special = True
            new.setdefault(token.content, present)
    inner.add_tokens(list(new.values()))


def _special(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Special tokens by name, and those without one."""
    names = [*STANDARD, *(n for n in settings if n.endswith("_token") and n not in STANDARD)]
    named = {n: token for n in names if (token := _token(settings.get(n))) is not None}
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        named |= {str(n): token for n, value in extra.items() if (token := _token(value)) is not None}
        extra = None
    values = extra or settings.get("additional_special_tokens") or []
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise CheckpointError(f"the tokenizer's extra special tokens must be a list or an object, not {values!r:.80}.")
    return named, [token for value in values if (token := _token(value)) is not None]


def _token(value: Any) -> Any:
    """The AddedToken of a special token, which the files write as text or as an object with flags."""
    from tokenizers import AddedToken

    content = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(content, str) or not content:
        return None
    flags = {f: value[f] for f in FLAGS if isinstance(value.get(f), bool)} if isinstance(value, Mapping) else {}
    return AddedToken(content, special=True, **flags)


def _decoder(decoder: Any) -> list[Any]:
    """The tokens of `added_tokens_decoder`, in the order of their ids."""
    from tokenizers import AddedToken

    try:
        entries = sorted(decoder.items(), key=lambda item: int(item[0]))
        return [
            AddedToken(e["content"], special=bool(e.get("special")), **{f: bool(e[f]) for f in FLAGS if f in e})
            for _, e in entries
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"tokenizer_config.json: added_tokens_decoder must hold a token with its content for each id: {error}"
        ) from error


def _legacy(folder: Path, special: set[str]) -> list[Any]:
    """The tokens of added_tokens.json, in the order of their ids."""
    from tokenizers import AddedToken

    path = folder / "added_tokens.json"
    ids = read_json(path) if path.is_file() else {}
    if not all(isinstance(i, int) for i in ids.values()):
        raise CheckpointError(f"{path} must hold an id for each token.")
    return [
        AddedToken(content, special=content in special, normalized=content not in special)
        for content, _ in sorted(ids.items(), key=lambda item: int(item[1]))
    ]
