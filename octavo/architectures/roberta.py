"""RoBERTa (Liu et al. 2019), XLM-R (Conneau et al. 2020): BERT's layers, positions that count after the padding's."""

from collections.abc import Callable

from torch import Tensor

from octavo.architectures.bert import dense_classifier, encoder, token_classifier
from octavo.architectures.bert_names import names
from octavo.architectures.model_config import Config
from octavo.architectures.registry import CLASSIFIES, EMBEDS, TOKEN_CLASSIFIES, architecture
from octavo.parts import CausalLM, Into, Names


def after_padding(c: Config) -> Callable[[Tensor], Tensor]:
    """A table of positions without the rows for padding and before it."""
    return lambda table: table[c.get("pad_token_id", 1) + 1 :]


def roberta_names(c: Config) -> Names:
    own = names("roberta.")
    return own.replacing({"roberta.embeddings.position_embeddings": Into("embed.positions", after_padding(c))})


@architecture(
    "RobertaModel",
    "RobertaForMaskedLM",
    about="RoBERTa embedders",
    examples=("sentence-transformers/all-distilroberta-v1",),
    tasks=EMBEDS,
    read_as="bert",
)
@architecture(
    "XLMRobertaModel",
    "XLMRobertaForMaskedLM",
    "BgeM3EmbeddingModel",
    about="XLM-RoBERTa embedders: bge-m3, multilingual E5",
    examples=("BAAI/bge-m3", "intfloat/multilingual-e5-large"),
    tasks=EMBEDS,
    read_as="bert",
)
def roberta(c: Config) -> CausalLM:
    return encoder(c, roberta_names(c), c.get("pad_token_id", 1) + 1)


@architecture(
    "RobertaForSequenceClassification",
    about="RoBERTa classifiers",
    examples=("SamLowe/roberta-base-go_emotions",),
    tasks=CLASSIFIES,
    read_as="bert",
)
@architecture(
    "XLMRobertaForSequenceClassification",
    about="XLM-RoBERTa classifiers and rerankers",
    examples=("BAAI/bge-reranker-v2-m3",),
    tasks=CLASSIFIES,
    read_as="bert",
)
def roberta_classifier(c: Config) -> CausalLM:
    return dense_classifier(roberta(c), c, "tanh")


@architecture(
    "RobertaForTokenClassification",
    about="RoBERTa taggers",
    examples=("Jean-Baptiste/roberta-large-ner-english",),
    tasks=TOKEN_CLASSIFIES,
)
@architecture(
    "XLMRobertaForTokenClassification",
    about="XLM-RoBERTa taggers",
    examples=("FacebookAI/xlm-roberta-large-finetuned-conll03-english",),
    tasks=TOKEN_CLASSIFIES,
)
def roberta_token_classifier(c: Config) -> CausalLM:
    return token_classifier(roberta(c), c)
