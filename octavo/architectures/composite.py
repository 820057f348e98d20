"""A text model with a tower under the names that LLaVA's kind is published with."""

from collections.abc import Mapping

from octavo.architectures.model_config import Config
from octavo.parts import CausalLM, Into, MediaTower


def text_alone(c: Config, text: CausalLM, *beside: str, begins: str = "language_model.model.") -> CausalLM:
    """`text`, of a checkpoint that also has a tower, which is not computed: its tensors' names begin with `beside`.

    The text's names begin with `begins`, or with model.language_model., language_model.model. or model. in its place.
    Whether the head is tied stands beside the text's section in `c`, or in it; where the checkpoint stores no head, the
    table of tokens is one.
    """
    if (tied := c.stated("tie_word_embeddings")) is not None:
        text.tied = tied
    text.tied_if_absent = True
    spellings = {f"model.{name}": name for name in beside}
    spellings |= dict.fromkeys(("model.language_model.", "language_model.model.", "model."), begins)
    spellings["language_model."] = ""
    text.names = text.names.renamed("model.", begins).spelled(spellings).leaving_out(*beside)
    return text


def with_tower(c: Config, text: CausalLM, tower: MediaTower, names: Mapping[str, str | Into]) -> CausalLM:
    """`text`, with a tower whose names are `names`; its own are published after `language_model.`.

    What transformers writes since 4.52 is understood as well: everything but the head after `model.`, the text model
    without its own prefix after `model.language_model.`. The head is the composite's own: it is not tied where the
    whole model's config `c` says so, whatever the text's says; where the checkpoint stores none, the table of tokens is
    used as one; and it may lack the bias that the text family's has.
    """
    if c.stated("tie_word_embeddings") is False:
        text.tied = False
    head, prefix = text.names.published("head.weight").removesuffix("weight"), text.names.prefix
    text.tied_if_absent, text.optional = True, (*text.optional, "head.bias")
    model = text.with_media(tower, names, text="language_model.")
    own = sorted({name.split(".")[0] for name in names})
    spellings = {"lm_head.": f"language_model.{head}", "model.language_model.": f"language_model.{prefix}"}
    if head != "lm_head.":
        spellings["language_model.lm_head."] = f"language_model.{head}"
    if prefix not in ("", "model."):
        spellings["language_model.model."] = f"language_model.{prefix}"
    model.names = model.names.spelled({**spellings, **{f"model.{each}": each for each in own}})
    return model
