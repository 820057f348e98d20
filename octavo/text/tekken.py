"""Mistral's tekken.json: a vocabulary of byte sequences by rank, and special tokens before it."""

import base64
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.files import read_json

SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""By id, in files that do not list them."""
BYTES_MAX = 256 << 20
TEMPLATE = """{{- bos_token }}
{%- set found = namespace(system='') %}
{%- for message in messages %}
  {%- if message.role == 'system' %}
    {%- set found.system = found.system + (message.content if message.content is string
                                           else message.content | map(attribute='text') | join('')) + '\\n\\n' %}
  {%- elif message.role == 'user' %}
    {{- '[INST]' }}
    {%- if message.content is string %}
      {{- (found.system if loop.last else '') + message.content }}
    {%- else %}
      {%- for part in message.content if part.type == 'image' %}{{- '[IMG]' }}{% endfor %}
      {{- found.system if loop.last else '' }}
      {%- for part in message.content if part.type == 'text' %}{{- part.text }}{% endfor %}
    {%- endif %}
    {{- '[/INST]' }}
  {%- elif message.role == 'assistant' %}
    {{- message.content + eos_token }}
  {%- else %}
    {{- raise_exception('only system, user and assistant messages are known here') }}
  {%- endif %}
{%- endfor %}"""
"""How Mistral's models of this format are instructed: pictures of a message come first, the system's text last."""


def tekken_tokenizer(path: Path) -> tuple[Any, dict[str, str]]:
    """The tokenizer that the file describes, of the `tokenizers` library, and its special tokens by use.

    Raises CheckpointError for a damaged file.
    """
    try:
        return _build(read_json(path, BYTES_MAX))
    except Exception as error:  # what a damaged file leads to; the library raises bare Exceptions
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is damaged ({what:.200}). Download it again.") from error


def _build(file: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    config = file["config"]
    num_special = int(config["default_num_special_tokens"])
    size = int(config["default_vocab_size"]) - num_special
    ranks = {
        base64.b64decode(entry["token_bytes"], validate=True): int(entry["rank"]) for entry in file["vocab"][:size]
    }
    if not 0 <= num_special <= 1 << 20 or sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("its ranks do not follow each other")
    letters = _letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    special = _special(file, num_special)
    # Ids after the special ones, which are added with ids of their own. A token that is spelled as one of those never
    # comes of a text, in which that is found first. A piece of text that is a token is that, whatever merges say.
    vocabulary = {spelled[token]: rank + num_special for token, rank in ranks.items()}
    vocabulary |= {name: i for i, name in enumerate(special)}
    inner = Tokenizer(models.BPE(vocabulary, _merges(ranks, spelled), ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    used = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return inner, {use: name for use, name in used.items() if name in special}


def _special(file: dict[str, Any], count: int) -> list[str]:
    listed = file.get("special_tokens")
    names = dict(enumerate(SPECIAL)) if listed is None else {int(t["rank"]): str(t["token_str"]) for t in listed}
    return [names.get(i, f"<SPECIAL_{i}>") for i in range(count)]


def _merges(ranks: dict[bytes, int], spelled: dict[bytes, str]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, those of lower rank first: what is merged first, as tiktoken has it."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        made = [(ranks[a], ranks[b], spelled[a], spelled[b]) for a, b in pairs if a in ranks and b in ranks]
        merges += [(a, b) for _, _, a, b in sorted(made)]
    return merges


def _letters() -> list[str]:
    """A printable letter for each byte, as byte-level vocabularies spell them (Radford et al. 2019)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
