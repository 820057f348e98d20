"""Several engines of one model behind one client: each request goes to one of them, and each dies alone."""

import asyncio
import dataclasses
import itertools
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from octavo.client.process_client import ProcessClient
from octavo.client.replica_routing import Route, Router
from octavo.config import EngineArgs
from octavo.engine.kv_cache import prompt_chain
from octavo.engine.messages import Failed, Loaded, Output, Ready, Stats, Tokens
from octavo.errors import EngineDeadError, OctavoError
from octavo.lora import AdapterRef
from octavo.params import PoolingParams, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt

log = logging.getLogger("octavo")

HASHED_BLOCKS = 2048
"""Blocks of a prompt that routing looks at: who shares so many shares enough."""


@dataclass
class Waiting:
    """A request that has not ended."""

    request_id: str | None
    """None once nobody waits for it any more."""
    prompt: CheckedPrompt
    params: SamplingParams | PoolingParams
    priority: int
    hashes: Sequence[bytes]
    route: Route | None = None
    may_move: bool = True
    """Whether it may be sent to another replica: it was not yet, and nothing of its answer has come."""

    @property
    def num_tokens(self) -> int:
        """Rows that are computed of its prompt."""
        return len(self.prompt.token_ids) + sum(f.length for f in self.prompt.features if f.offset is None)

    @property
    def num_sequences(self) -> int:
        return self.params.num_sequences if isinstance(self.params, SamplingParams) else 1


@dataclass
class Loading:
    """An adapter that replicas load."""

    request_id: str
    adapter: AdapterRef
    replicas: set[int]
    """Those that have not said yet that it is there."""
    is_somewhere: bool = False


class Replicas:
    """An EngineClient over `data_parallel_size` engines. Use `start()` before anything else, and `stop()` at the end.

    Requests have names of its own there: an id may be used again while a replica still says something of the last.

    Args:
        args: the engines' options.
        on_outputs: called with what a step of one of them has given, and with failures of requests that have died
            with their replica.
        on_stats: called with every report of a replica's numbers: which one, and how often it was started again.
    """

    def __init__(
        self,
        args: EngineArgs,
        on_outputs: Callable[[list[Output]], None],
        on_stats: Callable[[int, Stats, int], None] = lambda number, stats, restarts: None,
    ) -> None:
        self.args, self.on_outputs = args, on_outputs
        self.on_failure: Callable[[], None] = lambda: None
        """Called if nobody reads what a replica says any more, for a reason that nobody foresaw."""
        self.clients = [self._client(number, on_stats) for number in range(args.data_parallel_size)]
        self._router = Router([1] * len(self.clients), 0)
        self._ready: Ready | None = None
        self._waiting: dict[str, Waiting] = {}
        self._loading: dict[str, Loading] = {}
        self._names: dict[str, str] = {}
        """By the ids of requests what replicas call them."""
        self._numbers = itertools.count()
        self._random = random.Random(args.seed)
        self._is_stopping = False

    def _client(self, number: int, on_stats: Callable[[int, Stats, int], None]) -> ProcessClient:
        client = ProcessClient(
            dataclasses.replace(self.args, data_parallel_rank=number),
            partial(self._take, number),
            partial(self._bury, number),
            partial(on_stats, number),
        )
        client.on_failure = lambda: self.on_failure()
        if self.args.data_parallel_size > 1:
            client.name = f"replica {number}"
        return client

    @property
    def ready(self) -> Ready:
        assert self._ready is not None, "start() comes first"
        return self._ready

    @property
    def states(self) -> list[str]:
        """The replicas' states: starting, running, restarting or dead."""
        return [client.state for client in self.clients]

    @property
    def state(self) -> str:
        """running while one of them runs."""
        states = self.states
        return next((state for state in ("running", "restarting", "starting") if state in states), "dead")

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended."""
        return bool(self._waiting or self._loading)

    @property
    def failure(self) -> BaseException | None:
        """Why nobody reads what a replica says."""
        return next((client.failure for client in self.clients if client.failure is not None), None)

    def launch(self) -> None:
        """Start the processes, which end with the thread that calls this. Raises OSError where that cannot be."""
        for client in self.clients:
            client.launch()

    async def start(self) -> Ready:
        """Wait until all have loaded the model. Raises OctavoError with the reason if one cannot."""
        tasks = [asyncio.create_task(client.start()) for client in self.clients]
        try:
            ready = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        first, shortest = ready[0], min(one.info.max_model_len for one in ready)
        self._ready = msgspec.structs.replace(
            first,
            info=msgspec.structs.replace(first.info, max_model_len=shortest),
            rank_weight_bytes=[count for one in ready for count in one.rank_weight_bytes],
        )
        # Of one alone nothing needs to be known.
        block_size = first.prefix_block_size if len(ready) > 1 else 0
        self._router = Router([one.num_blocks for one in ready], block_size)
        return self._ready

    async def stop(self) -> None:
        """End all of them, and tell who waits."""
        self._is_stopping = True
        await asyncio.gather(*(client.stop() for client in self.clients))

    def add(
        self, request_id: str, prompt: CheckedPrompt, params: SamplingParams | PoolingParams, priority: int = 0
    ) -> None:
        if len(self.clients) > 1 and isinstance(params, SamplingParams) and params.seed is None:
            params = params.clone()  # seeds as one engine would draw them: replicas by themselves would draw the same
            params.seed = self._random.getrandbits(64)
        waiting = Waiting(request_id, prompt, params, priority, self._hashes(prompt))
        name = f"{next(self._numbers)}:{request_id}"
        self._send(name, waiting)
        self._disown(request_id)
        self._waiting[name], self._names[request_id] = waiting, name

    def _hashes(self, prompt: CheckedPrompt) -> Sequence[bytes]:
        """Of the prompt's blocks, as the replicas' prefix caches have them."""
        block_size = self._router.block_size
        if not block_size:
            return ()
        chain = prompt_chain(prompt, self.ready.info.long_rope_threshold)
        chain.extend(prompt.token_ids[: HASHED_BLOCKS * block_size], block_size)
        return chain.hashes

    def _running(self) -> list[int]:
        return [number for number, state in enumerate(self.states) if state == "running"]

    def _send(self, name: str, waiting: Waiting) -> None:
        """Send a request to the best replica that takes it. Raises as `add`."""
        for number, to_read in self._router.rank(self._running(), waiting.num_tokens, waiting.hashes):
            try:
                self.clients[number].add(name, waiting.prompt, waiting.params, waiting.priority)
            except EngineDeadError:
                continue  # it has died, which is not noticed yet
            waiting.route = self._router.start(number, to_read, waiting.num_sequences, waiting.hashes)
            return
        raise EngineDeadError(f"the engine is {self._absent()}. Try again in a moment.")

    def _absent(self) -> str:
        return "not running" if self.state == "running" else self.state

    def _take(self, number: int, outputs: list[Output]) -> None:
        """What a replica says, for those who still wait for it."""
        handed: list[Output] = []
        for message in outputs:
            name = message.request_id
            if (loading := self._loading.get(name)) is not None:
                if self._take_loading(number, name, loading, message):
                    message.request_id = loading.request_id
                    handed.append(message)
                continue
            waiting = self._waiting.get(name)
            if waiting is None or waiting.route is None or waiting.route.replica != number:
                continue  # it has ended here already
            waiting.may_move = False
            self._router.has_read(waiting.route)
            if not isinstance(message, Tokens):
                self._end(name, waiting, None)
            elif message.finish_reason is not None:
                self._end(name, waiting, [message.index])
            if waiting.request_id is not None:
                message.request_id = waiting.request_id
                handed.append(message)
        if handed:
            self.on_outputs(handed)

    def _end(self, name: str, waiting: Waiting, indexes: list[int] | None) -> None:
        """Some of a request's sequences have ended, or all of it."""
        if waiting.route is None or self._router.end(waiting.route, indexes):
            self._forget(name, waiting)

    def _forget(self, name: str, waiting: Waiting) -> None:
        del self._waiting[name]
        if waiting.request_id is not None:
            del self._names[waiting.request_id]

    def _disown(self, request_id: str) -> None:
        """Nobody waits any more for the request that has this id."""
        name = self._names.pop(request_id, None)
        if name is not None and name in self._waiting:
            self._waiting[name].request_id = None

    def _bury(self, number: int, error: OctavoError) -> None:
        """A replica has died. What it had begun to answer is lost; the rest goes to another one, once."""
        self._router.forget(number)
        said: list[Output] = []
        for name, waiting in [*self._waiting.items()]:
            if waiting.route is None or waiting.route.replica != number:
                continue
            self._router.end(waiting.route)
            if waiting.may_move and waiting.request_id is not None and self._move(name, waiting):
                continue
            self._forget(name, waiting)
            if waiting.request_id is not None:
                said.append(Failed.of(waiting.request_id, error))
        for name, loading in [*self._loading.items()]:
            loading.replicas.discard(number)
            if loading.replicas:
                continue
            self._forget_loading(name)
            said.append(Loaded(loading.request_id) if loading.is_somewhere else Failed.of(loading.request_id, error))
        if said:
            self.on_outputs(said)

    def _move(self, name: str, waiting: Waiting) -> bool:
        """Send a request whose replica has died to another one; whether there is one."""
        waiting.may_move = False
        if self._is_stopping:
            return False
        try:
            self._send(name, waiting)
        except OctavoError:
            return False
        return True

    def load_adapter(self, request_id: str, adapter: AdapterRef) -> None:
        """Have all replicas that run load an adapter. Those that are started again load it when a request needs it."""
        name = f"{next(self._numbers)}:{request_id}"
        asked = set()
        for number in self._running():
            try:
                self.clients[number].load_adapter(name, adapter)
            except EngineDeadError:
                continue
            asked.add(number)
        if not asked:
            raise EngineDeadError(f"the engine is {self._absent()}. Try again in a moment.")
        self._loading[name] = Loading(request_id, adapter, asked)
        self._names[request_id] = name

    def _take_loading(self, number: int, name: str, loading: Loading, message: Output) -> bool:
        """A replica has loaded an adapter, or cannot; whether its reader is to be told."""
        loading.replicas.discard(number)
        loading.is_somewhere = True
        if isinstance(message, Failed):
            self._forget_loading(name)
            self._stop_loading(name, loading)
            self.drop_adapter(loading.adapter)
            return True
        if not loading.replicas:
            self._forget_loading(name)
        return not loading.replicas

    def _forget_loading(self, name: str) -> None:
        self._names.pop(self._loading.pop(name).request_id, None)

    def _stop_loading(self, name: str, loading: Loading) -> None:
        for number in loading.replicas:
            self.clients[number].abort(name)

    def drop_adapter(self, adapter: AdapterRef) -> None:
        for client in self.clients:
            client.drop_adapter(adapter)

    def finish(self, request_id: str, index: int) -> None:
        name = self._names.get(request_id, "")
        waiting = self._waiting.get(name)
        if waiting is not None and waiting.route is not None:
            self.clients[waiting.route.replica].finish(name, index)
            self._end(name, waiting, [index])

    def abort(self, request_id: str) -> None:
        name = self._names.get(request_id, "")
        if (loading := self._loading.get(name)) is not None:
            self._forget_loading(name)
            self._stop_loading(name, loading)
            return
        waiting = self._waiting.get(name)
        if waiting is not None and waiting.route is not None:
            waiting.may_move = False
            self.clients[waiting.route.replica].abort(name)
            if isinstance(waiting.params, PoolingParams):  # of which nothing more is said
                self._end(name, waiting, None)

    def drop(self, request_id: str) -> None:
        """Abort a request, of which nothing more is handed out."""
        self.abort(request_id)
        self._disown(request_id)
