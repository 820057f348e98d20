"""lm_eval, unmodified, with a tiny model: `--model vllm`, and a server's completions and chats, on two tiny tasks.

Run from the repository's folder by a Python that has Octavo and lm_eval.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.server.conftest import write_tiny
from tests.server.running import server

CHOICE, TEXT = "octavo_tiny_choice", "octavo_tiny_text"
FOLDER = "tests/compat/clients"
Samples = dict[str, list[dict[str, Any]]]


def evaluate(program: Sequence[str], model: str, tasks: Sequence[str], results: Path) -> Samples:
    """What lm_eval noted of each task's questions. Raises CalledProcessError where it does not run to its end."""
    command = [sys.executable, "-m", *program, "run", *model.split(), "--tasks", ",".join(tasks)]
    command += ["--include_path", FOLDER, "--output_path", str(results), "--log_samples"]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    said = json.loads(next(results.rglob("results_*.json")).read_text())["results"]
    assert said.keys() == set(tasks), said
    print(f"lm_eval {model.split()[1]}: {said}")
    return {task: [json.loads(line) for line in next(results.rglob(f"samples_{task}*")).open()] for task in tasks}


def main() -> int:
    """Raises AssertionError where a task does not run, or scores are not those of the engine itself."""
    with tempfile.TemporaryDirectory() as made:
        model, both = write_tiny(Path(made) / "tiny"), (CHOICE, TEXT)
        engine = f"--model vllm --model_args pretrained={model},max_model_len=512,kv_cache_memory=64MiB"
        inside = evaluate(["octavo.compat.vllm", "-m", "lm_eval"], engine, both, Path(made) / "vllm")
        check_likelihoods(model, inside[CHOICE])
        with server(str(model), "--kv-cache-memory", "64MiB", "--max-model-len", "512") as running:
            at = f"--model_args model={model},num_concurrent=3,base_url={running.url}/v1"
            texts = f"--model local-completions {at}/completions"
            over_http = evaluate(["lm_eval"], texts, both, Path(made) / "completions")
            chats = f"--model local-chat-completions {at}/chat/completions --apply_chat_template"
            evaluate(["lm_eval"], chats, [TEXT], Path(made) / "chats")
    for task in both:
        for one, other in zip(answers(inside[task]), answers(over_http[task]), strict=True):
            assert same(one, other), (task, one, other)
    return 0


def answers(samples: list[dict[str, Any]]) -> list[Any]:
    """What was answered to each question, in their order."""
    return [sample["resps"] for sample in sorted(samples, key=lambda sample: int(sample["doc_id"]))]


def same(one: Any, other: Any) -> bool:
    """Whether texts are the same, and numbers nearly."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    try:
        return abs(float(one) - float(other)) < 1e-3
    except ValueError:
        return bool(one == other)


def check_likelihoods(model: Path, samples: list[dict[str, Any]]) -> None:
    """Each choice's log-likelihood is what the engine says of its tokens."""
    from octavo import LLM, SamplingParams

    llm = LLM(str(model), max_model_len=512, kv_cache_memory="64MiB")
    encode = llm.get_tokenizer().encode
    for sample in samples:
        doc = sample["doc"]
        for choice, ((likelihood, _),) in zip(doc["choices"], sample["resps"], strict=True):
            question = str(doc["question"])
            ids, start = encode(question + choice), len(encode(question))
            params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
            (output,) = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
            places = (output.prompt_logprobs or [])[start:]
            own = sum(place[token].logprob for place, token in zip(places, ids[start:], strict=True) if place)
            assert abs(own - float(likelihood)) < 1e-3, (question, choice, own, likelihood)


if __name__ == "__main__":
    sys.exit(main())
