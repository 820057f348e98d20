"""An engine that cannot go on, as its ranks or its model have failed: its process ends at once, and all are told."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.client.async_requests import AsyncRequests
from octavo.client.output_processor import processor_of
from octavo.client.process_client import ProcessClient
from octavo.config import EngineArgs
from octavo.errors import EngineDeadError
from octavo.params import SamplingParams
from octavo.text.checked_prompt import CheckedPrompt
from tests.server.conftest import write_tiny

DYING = """
import sys
from pathlib import Path
from octavo.client import engine_process
from octavo.engine.engine import Engine
from octavo.errors import EngineDeadError

step, died = Engine.step, Path({died!r})

def dies(self):
    if not died.exists():
        died.touch()
        raise EngineDeadError("rank 1 has not come to all_reduce within 60 s.")
    return step(self)

Engine.step = dies
sys.exit(engine_process.main(int(sys.argv[1]), sys.argv[2]))
"""


@pytest.fixture
def dying_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first engine's process whose ranks die in its first step."""
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        program = DYING.format(died=str(tmp_path / "died"))
        return real([sys.executable, "-c", program, *command[3:]], **options)

    monkeypatch.setattr("octavo.client.process_client.subprocess.Popen", start)


@pytest.mark.usefixtures("dying_engine")
def test_who_waits_is_told_why_and_the_next_engine_serves(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny")
    requests = AsyncRequests()
    client = ProcessClient(EngineArgs(str(folder), kv_cache_memory="16MiB"), requests.on_outputs, requests.fail_all)

    async def answer(name: str) -> list[int]:
        processor = processor_of(name, CheckedPrompt("x", [70]), SamplingParams(max_tokens=3, ignore_eos=True), None)
        return [output.outputs[0].token_ids async for output in requests.generate(client, processor)][-1]

    async def main() -> None:
        try:
            await client.start()
            first = client.process
            assert first is not None
            asked = [asyncio.create_task(answer(str(i))) for i in range(3)]
            for one in asked:
                with pytest.raises(EngineDeadError, match=r"rank 1 has not come to all_reduce within 60 s\. Try again"):
                    await one
            with pytest.raises(EngineDeadError, match="restarting"):
                await answer("meanwhile")
            while client.state != "running":
                await asyncio.sleep(0.01)
            assert first.poll() is not None
            assert len(await answer("later")) == 3
        finally:
            await client.stop()

    asyncio.run(asyncio.wait_for(main(), 120))
