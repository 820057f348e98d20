"""The tables of docs/compatibility.md: each of vLLM's flags, endpoints and parameters has its line."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.compatibility_tables import ENDPOINTS, FLAGS, PAGE, endpoints, filled, flags, opened, parameters, rows


def cells(table: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    split = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in split}


def test_flags() -> None:
    table = cells(flags())
    assert len(table) == len(rows(FLAGS))
    assert table["`--enforce-eager`"] == ["accepted, without effect: there is no compilation to switch off"]
    assert table["`--kv-events-config`"][0].startswith("refused: ")
    assert table["`--port`"][0].startswith("port to listen at")
    assert table["`--tool-call-parser`"][0].startswith("as `--tool-parser`: ")
    assert all(text for (text,) in table.values())


def test_endpoints() -> None:
    table, (document, behind) = cells(endpoints()), opened()
    assert {path for path, *_ in rows(ENDPOINTS)} <= {path.strip("`") for path in table}
    assert document["paths"].keys() <= {path.strip("`") for path in table}
    assert table["`/v1/chat/completions`"] == ["Answer a conversation"]
    assert table["`/collective_rpc`"] == ["not there"] or "/collective_rpc" in document["paths"]
    assert behind["/v1/load_lora_adapter"] == "`--allow-runtime-lora-updating`"
    assert "(with `--allow-runtime-lora-updating`)" in table["`/v1/load_lora_adapter`"][0]
    assert "/v1/audio/transcriptions" in document["paths"]


def test_parameters() -> None:
    table = cells(parameters())
    taken, ignored, told = table["`temperature`"]
    assert "`/v1/completions`" in taken
    assert "randomness" in told
    assert "`/v1/chat/completions`" not in ignored
    assert "`/v1/audio/transcriptions`" in table["`timestamp_granularities`"][0]
    assert table["`ec_transfer_params`"][0] == ""


def test_a_page_without_its_places() -> None:
    text = PAGE.read_text()
    assert filled(text).count(": made by `make docs` -->") == 3
    with pytest.raises(ValueError, match="2 of 3"):
        filled(text.replace("<!-- flags:", "<!-- gone:"))
