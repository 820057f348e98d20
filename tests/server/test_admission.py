"""How much is taken at a time: counted when a request arrives, and given back when it ends, however it ends."""

import asyncio
import threading
from typing import Any

import httpx
import pytest

from octavo.config import EngineArgs
from octavo.engine.messages import Ready, Tokens
from octavo.errors import InvalidRequestError
from octavo.loading.model_info import ModelInfo
from octavo.server.admission import OverloadedError
from octavo.server.app import create_app
from octavo.server.metrics import Metrics
from octavo.server.server_options import ServerOptions
from octavo.server.service import Service
from octavo.text.checked_prompt import CheckedPrompt
from tests.engine.machine import Machine
from tests.server.running import Running


class Checker:
    """Takes as long for a prompt as the test wants."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.num_asked = 0

    def sampling(self, params: Any) -> None:
        pass

    def prompt(self, prompt: Any, params: Any, adapter: Any = None) -> CheckedPrompt:
        self.num_asked += 1
        assert self.go_on.wait(30)
        if "bad" in str(prompt):
            raise InvalidRequestError("bad")
        return CheckedPrompt(prompt, [1])


def service(**options: Any) -> tuple[Service, Checker]:
    """A service without a process behind it: every request is answered with one token."""
    made, checker = Service(EngineArgs("none"), ServerOptions(**options)), Checker()
    made.client._ready = Ready(ModelInfo(task="generate", vocab_size=10, max_model_len=100), 10)
    made.client.clients[0].state, made.metrics, made._checker = "running", Metrics("m"), checker  # type: ignore[assignment]

    def add(request_id: str, prompt: CheckedPrompt, params: Any, priority: int = 0) -> None:
        made.requests.on_outputs([Tokens(request_id, i, [7], finish_reason="length") for i in range(params.n)])

    made.client.add = add  # type: ignore[method-assign]
    return made, checker


async def ask(app: Any, body: dict[str, Any]) -> int:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return (await client.post("/v1/completions", json=body, timeout=60)).status_code


def test_those_who_arrive_together_are_counted_together() -> None:
    made, checker = service(max_queued_requests=2)
    app = create_app(made)

    async def main() -> None:
        for stream in (False, True):
            checker.go_on.clear()
            body = {"prompt": "x" * 5000, "stream": stream}
            asked = [asyncio.create_task(ask(app, body)) for _ in range(40)]
            while sum(a.done() for a in asked) < 38:
                await asyncio.sleep(0.01)
            checker.go_on.set()
            statuses = await asyncio.gather(*asked)
            assert (statuses.count(200), statuses.count(429)) == (2, 38)
            assert made.admission.load.requests == made.admission.load.sequences == 0

    asyncio.run(asyncio.wait_for(main(), 60))
    assert checker.num_asked == 4


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": "x", "n": 8, "temperature": 1}, 200),
        ({"prompt": ["x"] * 4}, 200),
        ({"prompt": ["x"] * 5}, 400),
        ({"prompt": ["x"] * 3, "n": 3, "temperature": 1}, 400),
        ({"prompt": "x", "n": 9, "temperature": 1}, 400),
        ({"prompt": ["x", "bad"]}, 400),
        ({"prompt": "x", "temperature": -1}, 400),
    ],
)
def test_arrays_of_prompts_times_n(body: dict[str, Any], status: int) -> None:
    """What no server with these limits would ever take is a 400; and nothing stays counted of what is refused."""
    made, checker = service(max_queued_requests=4, max_queued_sequences=64, max_request_sequences=8)
    checker.go_on.set()
    assert asyncio.run(ask(create_app(made), body)) == status
    assert made.admission.load.requests == made.admission.load.sequences == 0


def test_answers_are_counted_beside_requests() -> None:
    made, checker = service(max_queued_requests=100, max_queued_sequences=20, max_request_sequences=10)
    app, many = create_app(made), {"prompt": "x" * 5000, "n": 8, "temperature": 1}

    async def main() -> list[int]:
        asked = [asyncio.create_task(ask(app, many)) for _ in range(5)]
        while sum(a.done() for a in asked) < 3:
            await asyncio.sleep(0.01)
        checker.go_on.set()
        return await asyncio.gather(*asked)

    assert sorted(asyncio.run(asyncio.wait_for(main(), 60))) == [200, 200, 429, 429, 429]


def test_a_client_that_goes_is_no_longer_counted(tiny_server: Running) -> None:
    body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "n": 8}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(tiny_server.url + "/v1/completions", json=body, timeout=0.3)
    tiny_server.until(lambda: tiny_server.metric("num_requests_running") == 0)
    assert tiny_server.post("/v1/completions", {"prompt": ["x"] * 400, "n": 128}).status_code == 400


def test_outside_of_a_request_limits_hold_too() -> None:
    made, _ = service(max_queued_requests=2)
    made.admission.load.requests = 1
    made.admission.admit(1)
    with pytest.raises(OverloadedError):
        made.admission.admit(2)


def test_dead_entries_go_at_the_abort() -> None:
    """25,600 waiting sequences that end leave nothing, whatever their order, and each is looked at a few times only."""
    machine = Machine(num_blocks=64, max_sequences=1)
    sequences = [machine.add([1, 2], 1) for _ in range(25_600)]
    entries = 0
    for i, sequence in enumerate(sequences[::2] + sequences[1::2]):
        before = machine.scheduler._waiting
        machine.scheduler.finish(sequence)
        if machine.scheduler._waiting is not before:
            entries += len(before)
        assert len(machine.scheduler._waiting) <= 2 * (len(sequences) - 1 - i)
    assert not machine.scheduler._waiting
    assert entries <= 3 * len(sequences)
    assert not machine.scheduler.has_work
