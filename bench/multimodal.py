"""What a picture costs, in pairs of one run: `python bench/multimodal.py`

The model is random and shaped like LLaVA-1.5: a tower of CLIP-L's size, which makes 576 rows of a picture, before a
Llama of 1.1B. Octavo and transformers read the same checkpoint, with as many threads, each with its own processing of
pictures, and take turns, so that a drift of the machine's speed meets both.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import document
import numpy as np
import torch
from models import LLAMA_1B
from PIL import Image

from octavo import LLM, SamplingParams

IMAGE_TOKEN, ROWS = 49151, 576
"""The placeholder's id, and how many of them a picture takes."""
QUESTION, ANSWER, TOGETHER = 32, 32, 16
"""Tokens of a question and of an answer, and requests in one batch."""
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


Asked = tuple[Image.Image, list[int]]
"""A picture and a question about it, as token ids."""


class Engine(Protocol):
    def ask(self, batch: list[Asked], tokens: int) -> None:
        """Have all of these answered, with so many tokens each."""


def pictures() -> Iterator[Image.Image]:
    """Photographs in size, noise in content, and no two alike."""
    generator = np.random.default_rng(0)
    while True:
        yield Image.fromarray(generator.integers(0, 256, (480, 640, 3), dtype=np.uint8))


def questions() -> Iterator[list[int]]:
    """Token ids."""
    for i in itertools.count():
        yield [(i * 37 + j * 11) % 40000 + 100 for j in range(QUESTION)]


def write_model(folder: Path, dtype: torch.dtype) -> None:
    """The random checkpoint, as transformers writes it."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER), text_config=LlamaConfig(**LLAMA_1B), image_token_index=IMAGE_TOKEN
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        Llava(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    size = {"height": TOWER["image_size"], "width": TOWER["image_size"]}
    CLIPImageProcessorPil(size={"shortest_edge": TOWER["image_size"]}, crop_size=size).save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    assert stored["architectures"] == ["LlavaForConditionalGeneration"]


class Octavo:
    """A question about a picture is a prompt of one placeholder and the question's tokens."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.llm = LLM(
            str(folder),
            skip_tokenizer_init=True,
            max_model_len=2048,
            max_num_seqs=TOGETHER,
            kv_cache_memory="2GiB",
            threads=threads,
        )

    def ask(self, batch: list[Asked], tokens: int) -> None:
        prompts = [{"prompt_token_ids": [1, IMAGE_TOKEN, *q], "multi_modal_data": {"image": p}} for p, q in batch]
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self.llm.generate(prompts, params, use_tqdm=False)


class Transformers:
    """The same prompt, with a placeholder for each row."""

    def __init__(self, folder: Path, threads: int, dtype: torch.dtype) -> None:
        from transformers import CLIPImageProcessorPil
        from transformers import LlavaForConditionalGeneration as Llava

        torch.set_num_threads(threads)
        self.model: Any = Llava.from_pretrained(folder, dtype=dtype).eval()
        self.processor: Any = CLIPImageProcessorPil.from_pretrained(folder)
        self.dtype = dtype

    def ask(self, batch: list[Asked], tokens: int) -> None:
        for picture, question in batch:
            pixels = self.processor(images=picture, return_tensors="pt")["pixel_values"].to(self.dtype)
            ids = torch.tensor([[1, *[IMAGE_TOKEN] * ROWS, *question]])
            with torch.inference_mode():
                self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    pixel_values=pixels,
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                )


def seconds(engine: Engine, batches: list[list[Asked]], tokens: int) -> float:
    """What batches take one after another."""
    start = time.perf_counter()
    for batch in batches:
        engine.ask(batch, tokens)
    return time.perf_counter() - start


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def measure(folder: Path, threads: int, dtype: torch.dtype, rounds: int) -> None:
    """Print the table and what follows from it."""
    ours, theirs = Octavo(folder, threads), Transformers(folder, threads, dtype)
    picture, question = pictures(), questions()
    for engine in (ours, theirs):
        engine.ask([(next(picture), next(question))], 2)
    first, second, other = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        seen = next(picture)
        for engine, times in ((ours, first), (ours, second), (theirs, other)):
            times.append(seconds(engine, [[(seen, next(question))]], 1))
    many, one = list[float](), list[float]()
    for _ in range(max(1, rounds // 3)):
        batch = [(next(picture), next(question)) for _ in range(TOGETHER)]
        many.append(seconds(ours, [batch], ANSWER))
        one.append(seconds(ours, [[(next(picture), next(question))] for _ in range(TOGETHER)], ANSWER))
    name = str(dtype).removeprefix("torch.")
    print(f"A picture and a question of {QUESTION} tokens, in {name}, threads: {threads}, medians of {rounds} pairs:\n")
    print("| | to the first token (s) |\n| --- | --- |")
    print(f"| Octavo | {statistics.median(first):.2f} |\n| transformers | {statistics.median(other):.2f} |")
    print(f"| Octavo, a second question about the picture | {statistics.median(second):.3f} |\n")
    print(f"- transformers takes {ratio(other, first):.2f} times as long as Octavo")
    print(f"- a second question about a picture costs {ratio(second, first):.1%} of the first")
    print(
        f"- {TOGETHER} requests with a picture and {ANSWER} tokens of answer each: {statistics.median(many):.1f} s in "
        f"one batch, {ratio(one, many):.2f} times as fast as one after another"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    chosen = getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as made:
        write_model(Path(made), chosen)
        mark = f"bench/multimodal.py {options.dtype}"
        with document.printed(mark, options.write):
            measure(Path(made), options.threads, chosen, options.rounds)
