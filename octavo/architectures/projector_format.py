"""How llama.cpp stores the towers of models that take media: in a file of their own, beside the text model's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.parts import Into


class ProjectorHeader(Protocol):
    """What such a file (mmproj) says of itself."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """By llama.cpp's names."""
        ...

    def integer(self, key: str, min: int, max: int) -> int | None:
        """The whole number `clip.KEY` of this range, None where the file lacks it."""
        ...

    def numbers(self, key: str, most: int) -> list[int] | None:
        """The list `clip.KEY` of at most so many whole numbers from 0 to 65536, None where the file lacks it."""
        ...

    def text_numbers(self, key: str, most: int) -> list[int] | None:
        """The same of the text model's file: `ARCHITECTURE.KEY`."""
        ...

    def token(self, text: str) -> int | None:
        """The id of the text model's token that is spelled so; None where there is none."""
        ...

    def spare_token(self) -> int | None:
        """One of the text model's tokens that stands for no text and begins or ends none; None where there is none."""
        ...

    def vision_config(self) -> dict[str, Any]:
        """Sizes of the tower under the names that most vision_configs have."""
        ...

    def audio_config(self) -> dict[str, Any]:
        """Sizes of Whisper's encoder, as its config has them."""
        ...


@dataclass(frozen=True)
class ProjectorFormat:
    """How llama.cpp stores what an architecture has besides its text model.

    Args:
        kind: llama.cpp's `clip.projector_type`.
        config: the keys of config.json from the file's header; of the text model's only what its own file's do not say.
        names: llama.cpp's names of modules (or of tensors, as `parameter` has them) to places in the model.
        section: where config.json has the text model; empty where beside the rest.
        text: what the whole model's published checkpoint calls a tensor of the text model, by the text's own name.
        when: which files this is for, where several formats share `kind`.
        preprocessor: what preprocessor_config.json says beside mean and std.
    """

    kind: str
    config: Callable[[ProjectorHeader], dict[str, Any]]
    names: Callable[[ProjectorHeader], Mapping[str, str | Into]]
    section: str = "text_config"
    text: Callable[[str], str] = lambda name: f"language_model.{name}"
    when: Callable[[ProjectorHeader], bool] = lambda file: True
    preprocessor: Callable[[ProjectorHeader], dict[str, Any]] = lambda file: {}
