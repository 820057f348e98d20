"""A text model with a tower under the names that LLaVA's kind is published with."""

from collections.abc import Mapping

from octavo.parts import CausalLM, Into, MediaTower


def with_tower(text: CausalLM, tower: MediaTower, names: Mapping[str, str | Into]) -> CausalLM:
    """`text`, with a tower whose names are `names`; its own are published after `language_model.`.

    What transformers writes since 4.52 is understood as well: everything but the head after `model.`, the text model
    without its own prefix after `model.language_model.`. Where the checkpoint stores no head, the table of tokens is
    used as one, which the whole model's config may say as well as the text's.
    """
    head, prefix = text.names.published("head.weight").removesuffix("weight"), text.names.prefix
    text.tied_if_absent = True
    model = text.with_media(tower, names, text="language_model.")
    own = sorted({name.split(".")[0] for name in names})
    spellings = {"lm_head.": f"language_model.{head}", "model.language_model.": f"language_model.{prefix}"}
    model.names = model.names.spelled({**spellings, **{f"model.{each}": each for each in own}})
    return model
