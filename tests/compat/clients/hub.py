"""A cache of the hub in which tiny models lie under the names that vLLM's examples say.

With it examples run as they are: what they ask for by name is there, and nothing is fetched.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.adapter_folders import write_adapter
from tests.golden import case_named, write_model

ROOT = Path(__file__).parents[3]
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{% endfor %}{% if tools %}<tool_call>{{ tools | length }}{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY, LONGEST = 1024, 16384
KINDS = {
    "text": "LlamaForCausalLM--gqa-tied",
    "deep text": "LlamaForCausalLM--gqa-tied",
    "embed": "BertModel--minilm-mean",
    "vectors": "XLMRobertaModel--bge-m3",
    "classify": "Qwen2ForSequenceClassification--2-labels",
    "reward": "LlamaForSequenceClassification--skywork-reward",
    "token reward": "Qwen2ForRewardModel--math-rm",
    "score": "XLMRobertaForSequenceClassification--bge-reranker-v2-m3",
    "names": "BertForTokenClassification--ner",
    "matryoshka": "XLMRobertaModel--bge-m3",
}
"""Kinds of models, and the golden cases that they are made of."""
DEPTH = 150
"""Layers of the deep one, whose tokens take so long that a program can do something between two of them."""


@cache
def tokenizer() -> str:
    """A byte-level tokenizer.json of VOCABULARY tokens, which joins the syllables of this project's own pages."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([(ROOT / "docs" / "design.md").read_text()], trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return str(inner.to_str())


def write_kind(kind: str, folder: Path) -> Path:
    """A tiny model of a kind, with a tokenizer and a chat template, as a folder."""
    case: dict[str, Any] = case_named(KINDS[kind])
    config = case["config"]
    for spec in case["tensors"].values():
        spec["shape"] = [VOCABULARY if n == config["vocab_size"] else n for n in spec["shape"]]
        if spec["shape"][0] == config["max_position_embeddings"]:
            spec["shape"][0] = LONGEST
    if kind == "deep text":
        last = {name: spec for name, spec in case["tensors"].items() if ".layers.1." in name}
        for layer in range(2, DEPTH):
            case["tensors"] |= {name.replace(".1.", f".{layer}."): spec for name, spec in last.items()}
        config["num_hidden_layers"] = DEPTH
    config |= {"vocab_size": VOCABULARY, "max_position_embeddings": LONGEST, "eos_token_id": 1, "bos_token_id": 0}
    write_model(case, folder)
    if kind == "matryoshka":
        config["is_matryoshka"] = True
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer())
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "chat_template": CHAT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def write_hub(folder: Path, names: dict[str, str]) -> dict[str, str]:
    """The cache, and the environment of programs that use it alone.

    Args:
        folder: where it lies.
        names: of models ("facebook/opt-125m"), and of which kind each is: one of KINDS, or "adapter": one for "text".
    """
    kinds = folder / "kinds"
    made = {kind: write_kind(kind, kinds / kind.replace(" ", "-")) for kind in {*names.values(), "text"} - {"adapter"}}
    made["adapter"] = write_adapter(kinds / "adapter", made["text"])
    for name, kind in names.items():
        place = folder / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        (place / "snapshots").mkdir()
        (place / "snapshots" / ("0" * 40)).symlink_to(made[kind])
    return {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
