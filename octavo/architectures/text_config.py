"""The language model of a config that describes more: which section says it, and which family it is of."""

from octavo.architectures.families import all_architectures
from octavo.architectures.model_config import Config
from octavo.architectures.registry import Architecture
from octavo.errors import UnsupportedModelError, did_you_mean
from octavo.parts import CausalLM

SECTIONS = ("text_config", "llm_config")
"""What published configs call the section."""


def text_config(c: Config) -> Config:
    """The section that describes the language model, with its family's defaults; `c` where it has none."""
    for key in SECTIONS:
        if c.get(key):
            section = c.section(key)
            family = _family(section)
            return section if family is None else _with_defaults(section, family)
    return c


def text_model(c: Config, model_type: str = "") -> CausalLM:
    """The language model that a section of a config describes, of whatever family that is.

    Args:
        c: the section: `architectures` or `model_type` says the family.
        model_type: the family if the section does not say.

    Raises UnsupportedModelError for a family that is not known.
    """
    section = c if not model_type or c.get("model_type") else c.replace(model_type=model_type)
    family = _family(section)
    if family is None:
        kind = str(section.get("model_type"))
        raise UnsupportedModelError(
            f"{c.path}model_type {kind!r} is no language model that Octavo has."
            f"{did_you_mean(kind, all_architectures())} `octavo models` lists them all."
        )
    return family.build(_with_defaults(section, family))


def _with_defaults(section: Config, family: Architecture) -> Config:
    made = type(section)(section.values, {**section.defaults, **family.defaults}, section.path)
    made.assumed = section.assumed
    return made


def _family(section: Config) -> Architecture | None:
    """The family that a section names; None for one that is not known."""
    known = all_architectures()
    names: list[str] = section.get("architectures", [])
    for name in names:
        if name in known:
            return known[name]
    wanted = str(section.get("model_type", "")).removesuffix("_text").replace("_", "") + "forcausallm"
    return next((known[name] for name in known if name.lower() == wanted), None)
