"""The table of architectures: a row for each name that config.json's `architectures` uses. Families fill it."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.architectures.config_defaults import defaults_of
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.projector_format import ProjectorFormat
from octavo.architectures.score_heads import Build
from octavo.errors import ConfigError
from octavo.media.processor import Processor

GENERATES = ("generate", "embedding")
"""Tasks of a language model. It also gives rewards, where told which tokens' logits they are."""
EMBEDS = ("embedding",)
"""Tasks of a model that is published without a head."""
CLASSIFIES = ("classify",)
REWARDS = ("reward",)
TOKEN_CLASSIFIES = ("token_classify", "reward")
"""Tasks of a model that has classes for each token."""


Media = type[Processor] | Callable[[Config], type[Processor] | None]


@dataclass(frozen=True)
class OtherCheckpoint:
    """A checkpoint of its own that a config names in place of a section."""

    section: str
    names: Mapping[str, str]
    """How its tensors' names begin there, and here; all others are left out."""
    has_tokenizer: bool = False
    """Whether its tokenizer is the model's where the model's own folder has none."""
    has_processor: bool = False
    """Whether its preprocessor_config.json is the model's where the model's own folder has none."""

    def is_named(self, key: str, values: Mapping[str, Any]) -> bool:
        """Whether a config.json's values name it under `key`, and do not describe it themselves."""
        return bool(values.get(key)) and not values.get(self.section)


@dataclass(frozen=True)
class Architecture:
    """A row of the table of models."""

    name: str
    build: Build
    about: str = ""
    examples: tuple[str, ...] = ()
    gguf: GGUFFormat | None = None
    read_as: str = ""
    """llama.cpp's name for its files, where these are read as another row's."""
    tasks: tuple[str, ...] = GENERATES
    """What it serves, of octavo.config.Task. The first is what it does unless told otherwise."""
    aliases: tuple[str, ...] = ()
    """Other names that published configs have for it."""
    media: Media | None = None
    """What makes features of its media, or which of them a config is for; None for models of text alone."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What its config class takes for keys that a config.json leaves out."""
    mmproj: tuple[ProjectorFormat, ...] = ()
    """How llama.cpp stores its towers and projectors; none where such files are not read."""
    others: Mapping[str, OtherCheckpoint] = field(default_factory=dict)
    """Checkpoints that its parts may be, by the key that names each."""
    home: str = ""
    """The module that registers it."""

    def processor(self, config: Config) -> type[Processor] | None:
        """What makes features of the media of a model with this config."""
        return self.media if self.media is None or isinstance(self.media, type) else self.media(config)

    def config(self, values: Mapping[str, Any]) -> Config:
        """The config that a config.json's values make. Raises CheckpointError for absurd sizes."""
        config = Config(values, self.defaults)
        config.check_sizes()
        return config


ARCHITECTURES: dict[str, Architecture] = {}
"""Those of the families that were imported; `all_architectures` imports all."""


def architecture(
    name: str,
    *aliases: str,
    about: str = "",
    examples: tuple[str, ...] = (),
    gguf: GGUFFormat | None = None,
    read_as: str = "",
    tasks: tuple[str, ...] = GENERATES,
    media: Media | None = None,
    defaults: Mapping[str, Any] | None = None,
    mmproj: tuple[ProjectorFormat, ...] = (),
    others: Mapping[str, OtherCheckpoint] | None = None,
) -> Callable[[Build], Build]:
    """Register a function from config to model under `name`, and under aliases that published configs use."""
    home: str = sys._getframe(1).f_globals["__name__"]

    def register(build: Build) -> Build:
        same = next((a.defaults for a in ARCHITECTURES.values() if a.build is build), {})
        known = defaults if defaults is not None else defaults_of(name) or same
        made = Architecture(
            name, build, about, examples, gguf, read_as, tasks, aliases, media, known, mmproj, others or {}, home
        )
        for each in (name, *aliases):
            if each in ARCHITECTURES:
                raise ConfigError(f"architecture {each!r} is registered already; choose another name.")
            ARCHITECTURES[each] = made
        return build

    return register
