"""`octavo embed`: texts in, embeddings out, the first of them while others are read."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from octavo.cli.flags import adapters_of, engine_args_of
from octavo.cli.load_spinner import loading
from octavo.cli.model_argument import after_model
from octavo.cli.text_records import Record, Records, records_from
from octavo.client.local_client import LocalRequests
from octavo.engine.messages import Failed
from octavo.errors import InvalidRequestError
from octavo.launch import start_requests
from octavo.lora import LoRARequest
from octavo.params import PoolingParams

Array = np.ndarray[Any, np.dtype[np.float32]]
ADDED_PER_STEP = 32
"""Most records that are tokenized between two steps, so that the first results are there at once."""


def run(namespace: argparse.Namespace) -> int:
    namespace.texts = after_model(namespace, namespace.texts)
    records = records_from(namespace)
    records.check()
    output = None if namespace.output is None else _writable(Path(namespace.output))
    args = engine_args_of(namespace)
    args.task = "embedding"
    params = PoolingParams(
        dimensions=namespace.dimensions, normalize=namespace.normalize, prompt_name=namespace.prompt_name
    )
    with loading(args.model):
        requests = start_requests(args)
    embedded = embed_records(
        requests, records, params, next(iter(adapters_of(namespace)), None), window=2 * args.max_num_seqs
    )
    embedded = _with_bar(records, embedded, output is not None)
    if output is not None and output.suffix == ".npy":
        np.save(output, np.stack([row for _, row in embedded]))
        return 0
    with contextlib.nullcontext(sys.stdout) if output is None else open(output, "w", encoding="utf-8") as file:
        _write_lines(file, embedded)
    return 0


def embed_records(
    requests: LocalRequests,
    records: Records,
    params: PoolingParams,
    adapter: LoRARequest | None = None,
    *,
    window: int,
) -> Iterator[tuple[Record, Array]]:
    """Records with their embeddings [values], in their order, each as soon as those before it are there.

    Args:
        requests: an engine's whose task is embedding.
        records: read as they are needed.
        params, adapter: for all of them.
        window: most records that are in the engine at a time, or wait for those before them.

    Raises InvalidRequestError that names the text which cannot be embedded; then nothing is left in the engine.
    """
    waiting: dict[int, Record] = {}
    done: dict[int, Array] = {}
    first = added = 0
    is_open = True
    try:
        while is_open or waiting:
            for _ in range(min(ADDED_PER_STEP, window - len(waiting)) if is_open else 0):
                try:
                    record = records.next(wait=not waiting)
                except StopIteration:
                    is_open = False
                    break
                if record is None:
                    break
                with _named(added):
                    requests.add(str(added), record["text"], params, adapter=adapter)
                waiting[added] = record
                added += 1
            for output in requests.step() if requests.has_work else ():
                index = int(output.request_id)
                if isinstance(output, Failed):
                    raise output.exception(f"text {index + 1}: ")
                done[index] = output.outputs.data  # type: ignore[union-attr]
            while first in done:
                yield waiting.pop(first), done.pop(first)
                first += 1
    finally:
        requests.abort([str(index) for index in waiting if index not in done])


@contextlib.contextmanager
def _named(index: int) -> Iterator[None]:
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError(f"text {index + 1}: {error}") from error


def _with_bar(
    records: Records, embedded: Iterator[tuple[Record, Array]], is_to_file: bool
) -> Iterator[tuple[Record, Array]]:
    """The same, with a bar on the terminal, unless the results are written there."""
    is_shown = sys.stderr.isatty() and records.total != 1 and (is_to_file or not sys.stdout.isatty())
    with tqdm(total=records.total, desc="Embedding", unit="text", dynamic_ncols=True, disable=not is_shown) as bar:
        for pair in embedded:
            bar.total = records.total
            bar.update()
            yield pair


def _write_lines(file: TextIO, embedded: Iterator[tuple[Record, Array]]) -> None:
    for index, (record, row) in enumerate(embedded):
        line = {"index": index, **record, "embedding": row.tolist()}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()


def _writable(path: Path) -> Path:
    """Checked before the model is loaded: an hour's work must not end in a folder that is not there."""
    if path.suffix not in (".npy", ".jsonl"):
        raise InvalidRequestError(f"--output {path}: the name must end in .jsonl (JSON lines) or .npy (an array).")
    if not path.absolute().parent.is_dir():
        raise InvalidRequestError(f"--output {path}: there is no folder {path.absolute().parent}.")
    return path
