"""Programs that others wrote for OpenAI's and Anthropic's APIs, with a tiny model; `make clients` runs more of them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "clients" / "programs"
NEEDS = {
    "openai": ["openai"],
    "anthropic": ["anthropic"],
    "langchain": ["langchain_openai", "langchain_anthropic"],
    "pydantic_ai": ["pydantic_ai"],
}
"""Programs, and what they import."""


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("name", NEEDS)
def test_client(name: str, urls: dict[str, str]) -> None:
    missing = [module for module in NEEDS[name] if not is_there(module)]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed; `make clients` installs it")
    command = [sys.executable, str(PROGRAMS / f"{name}_client.py"), urls["chat"], urls["embed"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
