"""Classes that change the logits of whole batches, by the names that users give them."""

import importlib
from collections.abc import Iterable
from typing import Any

from octavo.errors import ConfigError, InvalidRequestError, shorten
from octavo.params import SamplingParams

METHODS = ("apply", "update_state", "is_argmax_invariant")
"""What such a class has, as octavo.executor.batch_logits.LogitsProcessor says."""


def named(processors: Iterable[Any] | None, alone: bool) -> list[Any] | None:
    """Each class by its name, `module:Class`, if it can be imported by it; None for none.

    Raises ConfigError for one that cannot, if the model's process is not `alone` and others would have to.
    """
    names = [_name_of(one) for one in processors or ()]
    unnamed = [one for one in names if not isinstance(one, str)]
    if unnamed and not alone:
        raise ConfigError(
            f"logits_processors: {getattr(unnamed[0], '__qualname__', unnamed[0])} belongs to the running script, and "
            "the model's other processes cannot import it. Put it into a module, and give module:Class."
        )
    return names or None


def _name_of(processor: Any) -> Any:
    if not isinstance(processor, type) or processor.__module__ == "__main__" or "<locals>" in processor.__qualname__:
        return processor
    name = f"{processor.__module__}:{processor.__qualname__}"
    try:
        return name if load_class(name) is processor else processor
    except ConfigError:
        return processor


def load_class(named: Any) -> type[Any]:
    """The class of `module:Class`, or one that is given itself.

    Raises ConfigError for a name that leads to none, and for a class that is no logits processor.
    """
    found = named
    if isinstance(named, str):
        module, colon, path = named.partition(":")
        if not colon or not module or not path:
            raise ConfigError(f"logits_processors: {shorten(named)!r} must be of the form module:Class.")
        try:
            found = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except Exception as error:  # whatever a stranger's module raises
            raise ConfigError(
                f"logits_processors: {shorten(named)} could not be imported: {shorten(error, 300)}. Is its folder on "
                "PYTHONPATH?"
            ) from error
    if not isinstance(found, type) or not all(callable(getattr(found, name, None)) for name in METHODS):
        raise ConfigError(
            f"logits_processors: {shorten(named)} is no class with {', '.join(METHODS)}, as "
            "vllm.v1.sample.logits_processor.LogitsProcessor has them. For one request, give a function in its "
            "SamplingParams."
        )
    return found


def check_params(classes: Iterable[type[Any]], params: SamplingParams) -> None:
    """Raises InvalidRequestError for a request's values that one of the classes refuses."""
    for cls in classes:
        validate = getattr(cls, "validate_params", None)
        if validate is None:
            continue
        try:
            validate(params)
        except InvalidRequestError:
            raise
        except Exception as error:  # a stranger's code
            raise InvalidRequestError(f"{cls.__name__}: {shorten(error, 500)}") from error
