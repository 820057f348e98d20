"""`octavo embed`: texts in, embeddings out."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from octavo.cli.flags import adapters_of, engine_args_of
from octavo.errors import InvalidRequestError
from octavo.llm import LLM
from octavo.outputs import EmbeddingRequestOutput
from octavo.params import PoolingParams

TEXT_KEYS = ("text", "input", "prompt", "content")
"""Where an object of a JSON line has its text: the first of these."""


def run(namespace: argparse.Namespace) -> int:
    records = _records(namespace)
    output = None if namespace.output is None else _writable(Path(namespace.output))
    args = engine_args_of(namespace)
    args.task = "embedding"
    llm = LLM.from_args(args)
    params = PoolingParams(
        dimensions=namespace.dimensions, normalize=namespace.normalize, prompt_name=namespace.prompt_name
    )
    texts = [record["text"] for record in records]
    adapter = next(iter(adapters_of(namespace)), None)
    outputs = llm.embed(texts, params, use_tqdm=len(texts) > 1 and sys.stderr.isatty(), lora_request=adapter)
    if output is not None and output.suffix == ".npy":
        import numpy as np

        np.save(output, np.array([o.outputs.embedding for o in outputs], dtype=np.float32))
    elif output is not None:
        with open(output, "w", encoding="utf-8") as file:
            _write_lines(file, records, outputs)
    else:
        _write_lines(sys.stdout, records, outputs)
    return 0


def _write_lines(file: TextIO, records: list[dict[str, Any]], outputs: Iterable[EmbeddingRequestOutput]) -> None:
    for index, (record, output) in enumerate(zip(records, outputs, strict=True)):
        line = {"index": index, **record, "embedding": output.outputs.embedding}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _writable(path: Path) -> Path:
    """Checked before the model is loaded: an hour's work must not end in a folder that is not there."""
    if path.suffix not in (".npy", ".jsonl"):
        raise InvalidRequestError(f"--output {path}: the name must end in .jsonl (JSON lines) or .npy (an array).")
    if not path.absolute().parent.is_dir():
        raise InvalidRequestError(f"--output {path}: there is no folder {path.absolute().parent}.")
    return path


def _records(namespace: argparse.Namespace) -> list[dict[str, Any]]:
    """Each text with what came beside it in its JSON line."""
    if namespace.texts:
        return [{"text": text} for text in namespace.texts]
    if namespace.file:
        try:
            lines = Path(namespace.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"--file {namespace.file} cannot be read: {error}") from error
        is_json = namespace.jsonl or namespace.file.endswith(".jsonl")
    elif sys.stdin.isatty():
        raise InvalidRequestError('give texts: octavo embed "Hello", --file PATH, or lines on standard input.')
    else:
        lines, is_json = sys.stdin.read().splitlines(), namespace.jsonl
    records = [_record(line, i, is_json) for i, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise InvalidRequestError("there is no text to embed.")
    return records


def _record(line: str, number: int, is_json: bool) -> dict[str, Any]:
    if not is_json:
        return {"text": line}
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidRequestError(f"line {number} is not JSON: {error}") from error
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, dict):
        key = next((k for k in TEXT_KEYS if isinstance(value.get(k), str)), None)
        if key is not None:
            return {**{k: v for k, v in value.items() if k != key}, "text": value[key]}
    raise InvalidRequestError(f"line {number} has no text: it must be a string, or an object with {TEXT_KEYS[0]!r}.")
