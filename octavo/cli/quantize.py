"""`octavo quantize`: a checkpoint in fewer bits, written to disk."""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from octavo.cli.flags import engine_args_of, take_model
from octavo.config import EngineArgs
from octavo.errors import InvalidRequestError
from octavo.llm import LLM
from octavo.loading.folder_to_gguf import folder_to_gguf
from octavo.loading.gguf_writing import TYPES
from octavo.loading.model_files import find_model
from octavo.loading.quantize_folder import ROUNDINGS, folder_bytes, quantize_folder, size_text
from octavo.loading.quantize_gguf import quantize_gguf
from octavo.params import SamplingParams

WINDOW = 1024
"""Tokens of a text that are read at once to measure perplexity."""
TOKENS_MAX = 32 * WINDOW


def run(namespace: argparse.Namespace) -> int:
    take_model(namespace, namespace.source)
    args = engine_args_of(namespace)
    out, text = Path(namespace.out), _text(namespace.text)
    files = find_model(args)
    kind = _kind(namespace.to, files.is_gguf or out.suffix == ".gguf")
    is_gguf = kind in TYPES
    _check(out, is_gguf)
    before = files.path.stat().st_size if files.is_gguf else folder_bytes(files.path)
    with tqdm(total=before, unit="B", unit_scale=True, desc="Quantizing", disable=not sys.stderr.isatty()) as bar:
        if files.is_gguf:
            kept = quantize_gguf(files.path, kind, out, bar.update)
        elif is_gguf:
            kept = folder_to_gguf(args, kind, out, bar.update)
        else:
            kept = quantize_folder(args, ROUNDINGS[kind], out, bar.update)
    after = out.stat().st_size if is_gguf else folder_bytes(out)
    print(f"{out}: {size_text(after)}, of {size_text(before)} ({after / max(1, before):.0%})")
    if kept:
        more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
        print(f"{len(kept)} weights of layers stay as they are: {', '.join(kept[:3])}{more}")
    if text is not None:
        for name, model in (("before", args.model), ("after", str(out))):
            print(f"perplexity {name}: {perplexity(replace(args, model=model), text):.3f}")
    return 0


def _kind(given: str, to_gguf: bool) -> str:
    """The target, as its writer spells it: one of TYPES for a GGUF file, of ROUNDINGS for a folder.

    Raises InvalidRequestError for what is neither.
    """
    of_gguf, of_folder = given.upper(), given.lower()
    if to_gguf:
        of_gguf = {"int8": "Q8_0", "q4": "Q4_1"}.get(of_folder, of_gguf)
    elif of_folder in ROUNDINGS:
        return of_folder
    if of_gguf not in TYPES:
        raise InvalidRequestError(
            f"--to {given}: a folder is written as {' or '.join(ROUNDINGS)} (compressed-tensors), and a GGUF file as "
            f"{', '.join(TYPES)}."
        )
    return of_gguf


def _check(out: Path, is_gguf: bool) -> None:
    """Raises InvalidRequestError for a place that cannot be written to, or that holds something."""
    if not out.absolute().parent.is_dir():
        raise InvalidRequestError(f"{out}: there is no folder {out.absolute().parent}.")
    if is_gguf and out.suffix != ".gguf":
        raise InvalidRequestError(f"{out}: the name of a GGUF file must end in .gguf.")
    if out.exists() and (is_gguf or not out.is_dir() or any(out.iterdir())):
        raise InvalidRequestError(f"{out} is there already. Name another place, or remove it.")


def _text(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--text {path} cannot be read: {error}") from error


def perplexity(args: EngineArgs, text: str) -> float:
    """Of a model on a text, in windows of WINDOW tokens, at most TOKENS_MAX of them.

    Raises InvalidRequestError for a text of fewer than two tokens.
    """
    llm = LLM.from_args(args)
    ids: list[int] = llm.get_tokenizer().encode(text)[:TOKENS_MAX]
    size = min(WINDOW, llm.engine.max_model_len - 1)
    windows = [ids[first : first + size] for first in range(0, len(ids), size)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise InvalidRequestError("--text: perplexity needs a text of two tokens at least.")
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate(windows, params, use_tqdm=sys.stderr.isatty())
    given = [
        entry[token].logprob
        for output, window in zip(outputs, windows, strict=True)
        for entry, token in zip((output.prompt_logprobs or [])[1:], window[1:], strict=True)
        if entry is not None
    ]
    return math.exp(-sum(given) / len(given))
