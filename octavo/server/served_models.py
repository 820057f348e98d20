"""What clients may name as a model: the model itself, and its adapters."""

import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from octavo.errors import InvalidRequestError, OctavoError, shorten
from octavo.lora import AdapterNotFoundError, AdapterRef, LoRARequest

LONGEST_NAME = 256


class ModelUnknownError(OctavoError):
    """The client names a model that is not here."""


@dataclass(frozen=True)
class ServedModel:
    """What answers a request."""

    name: str
    adapter: LoRARequest | None = None
    created: int = 0
    """Seconds since 1970 at which it was loaded."""
    ref: AdapterRef | None = None
    """What the engine knew the adapter by when it was loaded."""


class ServedModels:
    """The model of a server under its names, and adapters that come and go.

    Args:
        names: of the model; the first is what answers say.
        load: has the engine load an adapter. Raises InvalidRequestError for one that cannot be used.
        drop: gives its memory back, once no request needs it.
        on_change: called with a name that has come (True) or gone.
    """

    def __init__(
        self,
        names: Iterable[str],
        load: Callable[[LoRARequest], Awaitable[AdapterRef]],
        drop: Callable[[AdapterRef], None],
        on_change: Callable[[str, bool], None] = lambda name, is_there: None,
    ) -> None:
        self._names = list(dict.fromkeys(names))
        self.base = ServedModel(self._names[0], created=int(time.time()))
        self._load, self._drop, self._on_change = load, drop, on_change
        self._adapters: dict[str, ServedModel] = {}
        self._loading: set[str] = set()
        self._ids = itertools.count(1)

    @property
    def adapters(self) -> list[ServedModel]:
        """In the order in which they were loaded."""
        return list(self._adapters.values())

    def find(self, name: str | None) -> ServedModel:
        """What a client means by a model's name. Raises ModelUnknownError for a name that is not served."""
        if not name or name in self._names:
            return self.base
        if (found := self._adapters.get(name)) is not None:
            return found
        others = f" Adapters: {shorten(', '.join(self._adapters), 300)}." if self._adapters else ""
        raise ModelUnknownError(f"the model {name!r} is not served here; {self.base.name!r} is.{others}")

    def parent(self, adapter: LoRARequest) -> str:
        """The name of the model that an adapter belongs to."""
        named = adapter.base_model_name
        return named if named is not None and named in self._names else self.base.name

    async def load(self, name: str, path: str, *, in_place: bool = False, base_model_name: str | None = None) -> None:
        """Load an adapter, and let clients name it once it is there.

        Args:
            name: what they call it.
            path: a folder, a GGUF file, or a hub's name.
            in_place: put it in the place of one that has the name already; what runs is finished with that.
            base_model_name: what it was made for.

        Raises InvalidRequestError for a name that is taken or an adapter that cannot be used, and ModelUnknownError
        where there is none. Then everything is as it was before.
        """
        if not name or not path:
            raise InvalidRequestError("Both 'lora_name' and 'lora_path' must be provided.")
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise InvalidRequestError(
                f"lora_name {shorten(name)!r} must be printable and at most {LONGEST_NAME} characters long."
            )
        if name in self._names:
            raise InvalidRequestError(f"lora_name {name!r} is the name of the model itself. Give another.")
        if name in self._loading:
            raise InvalidRequestError(f"The lora adapter '{name}' is being loaded already.")
        before = self._adapters.get(name)
        if before is not None and not in_place:
            raise InvalidRequestError(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True."
            )
        number = next(self._ids) if before is None or before.adapter is None else before.adapter.lora_int_id
        adapter = LoRARequest(name, number, path, base_model_name=base_model_name)
        self._loading.add(name)
        try:
            ref = await self._load(adapter)
        except AdapterNotFoundError as error:
            raise ModelUnknownError(str(error)) from error
        finally:
            self._loading.discard(name)
        self._adapters[name] = ServedModel(name, adapter, int(time.time()), ref)
        if before is not None and before.ref is not None and before.ref != ref:
            self._drop(before.ref)
        self._on_change(name, True)

    def unload(self, name: str) -> None:
        """Let clients no longer name an adapter; what runs with it is finished.

        Raises InvalidRequestError for no name, ModelUnknownError for one that is not loaded.
        """
        if not name:
            raise InvalidRequestError("'lora_name' needs to be provided to unload a LoRA adapter.")
        if (found := self._adapters.pop(name, None)) is None:
            raise ModelUnknownError(f"The lora adapter '{shorten(name)}' cannot be found.")
        if found.ref is not None:
            self._drop(found.ref)
        self._on_change(name, False)
