"""Names of vLLM's that scripts import, and whose work is done in another way here."""

from typing import Any, NoReturn

from octavo.architectures.registry import ARCHITECTURES
from octavo.errors import ConfigError


class ModelRegistry:
    """vLLM's list of architectures."""

    @staticmethod
    def register_model(model_arch: str, model_cls: Any = None) -> NoReturn:
        """Raises ConfigError: architectures are made of parts here."""
        raise ConfigError(
            f"ModelRegistry.register_model({model_arch[:60]!r}) cannot take a model of vLLM's. Architectures are added "
            "with octavo.register_architecture; see docs/extending.md."
        )

    @staticmethod
    def get_supported_archs() -> list[str]:
        """The architectures there are."""
        return sorted(ARCHITECTURES)


def initialize_ray_cluster(*_: Any, **__: Any) -> NoReturn:
    """Raises ConfigError: the engine joins a cluster itself."""
    raise ConfigError('initialize_ray_cluster is not needed: give LLM distributed_executor_backend="ray".')
