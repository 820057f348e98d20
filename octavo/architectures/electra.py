"""ELECTRA (Clark et al. 2020): BERT's layers, whose embeddings may be narrower."""

from octavo.architectures.bert import dense_classifier, encoder, token_classifier
from octavo.architectures.bert_names import names
from octavo.architectures.model_config import Config
from octavo.architectures.registry import CLASSIFIES, EMBEDS, TOKEN_CLASSIFIES, architecture
from octavo.parts import CausalLM


@architecture(
    "ElectraModel",
    "ElectraForPreTraining",
    about="ELECTRA embedders",
    examples=("google/electra-base-discriminator",),
    tasks=EMBEDS,
)
def electra(c: Config) -> CausalLM:
    return encoder(c, names("electra."))


@architecture(
    "ElectraForSequenceClassification",
    about="ELECTRA classifiers and cross-encoders",
    examples=("cross-encoder/ms-marco-electra-base",),
    tasks=CLASSIFIES,
)
def electra_classifier(c: Config) -> CausalLM:
    return dense_classifier(electra(c), c, "gelu")


@architecture(
    "ElectraForTokenClassification",
    about="ELECTRA taggers",
    examples=("google/electra-small-discriminator",),
    tasks=TOKEN_CLASSIFIES,
)
def electra_token_classifier(c: Config) -> CausalLM:
    return token_classifier(electra(c), c)
