"""Golden cases: tiny models in published formats, and what their reference implementations answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from octavo.tools.recipe import values, write_model

__all__ = ["CASES", "case_named", "read_case", "tensors", "write_model"]

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


def read_case(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def case_named(name: str) -> dict[str, Any]:
    return read_case(Path(__file__).parent / "cases" / f"{name}.json")


def tensors(case: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: values(name, spec) for name, spec in case["tensors"].items()}
